//! Certificate files: read, checked, with errors that name the file and the way out.

use super::identity::{Identity, IdentityError};
use crate::clock;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest certificate or key file that is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Where the three files lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsPaths {
    /// Certificates of the CA that signs the other side's certificate (PEM).
    pub ca: PathBuf,
    /// Our certificate, followed by intermediates if any (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM: PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
}

/// Everything one side of a connection needs to prove who it is and to judge the other side.
#[derive(Clone, Debug)]
pub struct TlsMaterial {
    pub(super) paths: TlsPaths,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) key: Arc<CertifiedKey>,
    identity: Result<Identity, IdentityError>,
}

/// Why certificate files cannot be used. Every text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such file.
    #[error("{what} {}: no such file; create it with `{how}` or correct the path", path.display())]
    Missing {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The command that makes one.
        how: &'static str,
    },
    /// The file is there, its bytes are not.
    #[error("{what} {}: cannot be read: {source}; check its owner and mode", path.display())]
    Unreadable {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No PEM section of the expected kind.
    #[error("{what} {}: {reason}; expected a PEM file with a line {expected:?}", path.display())]
    NotPem {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: String,
        /// First line that was looked for.
        expected: &'static str,
    },
    /// PEM, but its content is not usable.
    #[error("{what} {}: {reason}; issue a new one with `hubctl cert issue`", path.display())]
    Unusable {
        /// Which of the three.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong inside.
        reason: String,
    },
    /// Certificate and key are not a pair.
    #[error(
        "certificate {} and key {} do not belong together; use the key that was issued with this certificate",
        cert.display(), key.display()
    )]
    KeyMismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The certificate's life is over.
    #[error("certificate {} expired on {not_after}; issue a new one with `hubctl cert issue`", path.display())]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// When, RFC 3339.
        not_after: String,
    },
    /// The certificate's life has not begun by this machine's clock.
    #[error(
        "certificate {} is valid only from {not_before}, and this machine's clock says {now}; set the clock",
        path.display()
    )]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
        /// When it begins, RFC 3339.
        not_before: String,
        /// Now by our clock, RFC 3339.
        now: String,
    },
    /// The certificate does not say whose it is.
    #[error("certificate {}: {source}", path.display())]
    Identity {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with its name.
        source: IdentityError,
    },
}

/// Reads and checks the three files: see [`TlsMaterial::load`].
pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<TlsMaterial, LoadError> {
    TlsMaterial::load(TlsPaths { ca: ca.into(), cert: cert.into(), key: key.into() })
}

impl TlsMaterial {
    /// Reads the files and refuses whatever the other side would refuse as well: a certificate that is expired, not yet
    /// valid or without a walhub name.
    pub fn load(paths: TlsPaths) -> Result<TlsMaterial, LoadError> {
        let material = TlsMaterial::read(paths)?;
        material.check_time(UnixTime::now())?;
        match &material.identity {
            Ok(_) => Ok(material),
            Err(e) => Err(LoadError::Identity { path: material.paths.cert.clone(), source: e.clone() }),
        }
    }

    /// Reads the files and leaves the judgement about time and name to the other side.
    pub fn read(paths: TlsPaths) -> Result<TlsMaterial, LoadError> {
        let roots = read_roots(&paths.ca)?;
        let chain = read_certificates("certificate", &paths.cert, CERT_HOW)?;
        let key = read_key(&paths.key)?;
        let identity = Identity::of(&chain[0]);
        if identity == Err(IdentityError::Unreadable) {
            return Err(LoadError::Unusable {
                what: "certificate",
                path: paths.cert,
                reason: "is not an X.509 v3 certificate".into(),
            });
        }
        let key = match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(key) => Arc::new(key),
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(LoadError::KeyMismatch { cert: paths.cert, key: paths.key });
            }
            Err(e) => {
                return Err(LoadError::Unusable {
                    what: "key",
                    path: paths.key,
                    reason: format!("is not usable ({e})"),
                });
            }
        };
        Ok(TlsMaterial { paths, roots: Arc::new(roots), key, identity })
    }

    /// Whose certificate this is.
    pub fn identity(&self) -> Result<&Identity, &IdentityError> {
        self.identity.as_ref()
    }

    /// Where it was read.
    pub fn paths(&self) -> &TlsPaths {
        &self.paths
    }

    fn check_time(&self, now: UnixTime) -> Result<(), LoadError> {
        let path = || self.paths.cert.clone();
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms.all;
        let (end, rest) = self.key.cert.split_first().expect("BUG: a loaded chain is never empty");
        let Ok(end) = webpki::EndEntityCert::try_from(end) else {
            return Ok(()); // `read` has refused it
        };
        // The chain is the other side's business: only the dates are looked at, and webpki checks them first.
        let usage = webpki::KeyUsage::client_auth();
        match end.verify_for_usage(algorithms, &self.roots.roots, rest, now, usage, None, None) {
            Err(webpki::Error::CertExpired { not_after, .. }) => {
                Err(LoadError::Expired { path: path(), not_after: format_time(not_after) })
            }
            Err(webpki::Error::CertNotValidYet { not_before, .. }) => Err(LoadError::NotYetValid {
                path: path(),
                not_before: format_time(not_before),
                now: format_time(now),
            }),
            _ => Ok(()),
        }
    }
}

/// The one crypto provider, named explicitly: nothing of ours looks up the process-wide default.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes the one crypto provider the process-wide default, for libraries that bring their own HTTP client. May be called
/// any number of times.
pub fn install_provider() {
    // An error says that there is one already: ours, for nobody else installs any.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// RFC 3339.
pub(super) fn format_time(time: UnixTime) -> String {
    i64::try_from(time.as_secs()).map_or_else(|_| "?".into(), |s| clock::format_ms(s.saturating_mul(1000)))
}

const CA_HOW: &str = "hubctl ca init";
const CERT_HOW: &str = "hubctl cert issue";
const CERT_LINE: &str = "-----BEGIN CERTIFICATE-----";

fn read_file(what: &'static str, path: &Path, how: &'static str) -> Result<Vec<u8>, LoadError> {
    let unreadable = |source| LoadError::Unreadable { what, path: path.into(), source };
    let read = || {
        use io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
            Err(unreadable(io::Error::other("it is larger than 1 MiB, which no certificate is")))
        }
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(LoadError::Missing { what, path: path.into(), how })
        }
        Err(e) => Err(unreadable(e)),
    }
}

fn read_certificates(
    what: &'static str,
    path: &Path,
    how: &'static str,
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let bytes = read_file(what, path, how)?;
    let fault = |reason: String| LoadError::NotPem { what, path: path.into(), reason, expected: CERT_LINE };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, PemError>>()
        .map_err(|e| fault(format!("is damaged PEM ({e})")))?;
    if found.is_empty() {
        let key = PrivateKeyDer::from_pem_slice(&bytes).is_ok();
        return Err(fault(if key { "holds a private key".into() } else { "holds no certificate".into() }));
    }
    Ok(found)
}

fn read_roots(path: &Path) -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("CA certificate", path, CA_HOW)? {
        roots.add(certificate).map_err(|e| LoadError::Unusable {
            what: "CA certificate",
            path: path.into(),
            reason: format!("is not a CA certificate ({e})"),
        })?;
    }
    Ok(roots)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let bytes = read_file("key", path, CERT_HOW)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| LoadError::NotPem {
        what: "key",
        path: path.into(),
        reason: match e {
            _ if contains(&bytes, b"BEGIN ENCRYPTED PRIVATE KEY") => "is protected by a passphrase".into(),
            _ if contains(&bytes, b"BEGIN CERTIFICATE") => "holds a certificate".into(),
            PemError::NoItemsFound => "holds no private key".into(),
            e => format!("is damaged PEM ({e})"),
        },
        expected: "-----BEGIN PRIVATE KEY-----",
    })
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
