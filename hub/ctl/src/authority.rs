//! The certificate authority on disk: makes it, signs with it, writes files that are never overwritten.
//!
//! Invariants
//! - A key file is created with mode 0600 and never exists with another.
//! - Nothing is overwritten; when the second file of a pair cannot be written, the first is taken back.
//! - What is issued loads: the CA's certificate and key are checked to be a pair before anything is signed.

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use walhub_common::clock;
use walhub_common::tls::{Identity, Role, TlsMaterial, TlsPaths};

/// Certificates begin this long before now, for clocks that run behind.
const CLOCK_SLACK: Duration = Duration::minutes(5);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// From now for some time.
    pub(crate) fn from_now(length: Duration) -> Validity {
        let now = OffsetDateTime::now_utc();
        Validity { not_before: now - CLOCK_SLACK, not_after: now + length }
    }

    /// Until a moment that may lie in the past.
    pub(crate) fn until(not_after: OffsetDateTime) -> Validity {
        let not_before = OffsetDateTime::now_utc().min(not_after) - CLOCK_SLACK;
        Validity { not_before, not_after }
    }

    /// RFC 3339, whole seconds as in the certificate.
    pub(crate) fn not_after_text(self) -> String {
        clock::format_ms(self.not_after.unix_timestamp() * 1000)
    }
}

/// A CA that can sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    /// Makes a new CA in `dir`: `ca.pem` and `ca.key`.
    pub(crate) fn create(dir: &Path, name: &str, validity: Validity) -> anyhow::Result<TlsPaths> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (validity.not_before, validity.not_after);
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.self_signed(&key).context("cannot make the CA certificate")?;
        let files = pair(&dir.join("ca"));
        write_pair(&files, &certificate.pem(), &key.serialize_pem())?;
        Ok(files)
    }

    /// Opens the CA in `dir`.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Authority> {
        let files = pair(&dir.join("ca"));
        if !files.cert.exists() {
            bail!(
                "{}: no such file; make a CA with `hubctl ca init --dir {}`",
                files.cert.display(),
                dir.display()
            );
        }
        TlsMaterial::read(files.clone())?; // readable, and a pair
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let key = KeyPair::from_pem(&read(&files.key)?)
            .with_context(|| format!("{} is not a key that can sign", files.key.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&read(&files.cert)?, key)
            .with_context(|| format!("{} is not a CA certificate", files.cert.display()))?;
        Ok(Authority { issuer, ca: files.cert })
    }

    /// Issues a certificate into `<prefix>.pem` and `<prefix>.key`.
    pub(crate) fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        validity: Validity,
        prefix: &Path,
    ) -> anyhow::Result<TlsPaths> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, identity.to_string());
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into().context("bad name")?));
        for host in hosts {
            params.subject_alt_names.push(san(host)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity.role {
            Role::Hub => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Agent | Role::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (validity.not_before, validity.not_after);
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("cannot sign the certificate")?;
        let files = TlsPaths { ca: self.ca.clone(), ..pair(prefix) };
        write_pair(&files, &certificate.pem(), &key.serialize_pem())?;
        Ok(files)
    }
}

fn san(host: &str) -> anyhow::Result<SanType> {
    if let Ok(address) = host.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host.len() > 253 || !name.split('.').all(label) {
        bail!("--host {host:?} is neither a DNS name nor an IP address (give no port)");
    }
    Ok(SanType::DnsName(host.to_owned().try_into().context("bad host name")?))
}

/// `<prefix>.pem` and `<prefix>.key`; a CA is its own authority. The prefix may contain dots.
fn pair(prefix: &Path) -> TlsPaths {
    let with = |extension: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(extension);
        PathBuf::from(path)
    };
    TlsPaths { ca: with(".pem"), cert: with(".pem"), key: with(".key") }
}

fn write_pair(files: &TlsPaths, certificate: &str, key: &str) -> anyhow::Result<()> {
    if let Some(dir) = files.key.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    if files.cert.exists() {
        bail!(
            "{} exists already and is not overwritten; move it away, or choose another place",
            files.cert.display()
        );
    }
    write_new(&files.key, 0o600, key)?;
    if let Err(error) = write_new(&files.cert, 0o644, certificate) {
        let _ = fs::remove_file(&files.key); // ours: just created
        return Err(error);
    }
    Ok(())
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match opened {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(
                "{} exists already and is not overwritten; move it away, or choose another place",
                path.display()
            )
        }
        other => other.with_context(|| format!("cannot create {}", path.display()))?,
    };
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|e| {
        let _ = fs::remove_file(path); // ours: just created
        anyhow::Error::new(e).context(format!("cannot write {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use walhub_common::tls::{Acceptor, Connector, LoadError};

    fn identity(uri: &str) -> Identity {
        Identity::parse(uri).unwrap()
    }

    fn day() -> Validity {
        Validity::from_now(Duration::days(1))
    }

    fn authority(dir: &Path) -> Authority {
        Authority::create(dir, "test CA", day()).unwrap();
        Authority::open(dir).unwrap()
    }

    #[test]
    fn what_is_issued_loads_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        for uri in ["spiffe://walhub/agent/pos.17", "spiffe://walhub/operator/ann", "spiffe://walhub/hub/h"] {
            let who = identity(uri);
            let hosts = ["hub.example".to_owned(), "192.0.2.7".to_owned(), "::1".to_owned()];
            let hosts = if who.role == Role::Hub { &hosts[..] } else { &[] };
            let prefix = dir.path().join(format!("{}-{}", who.role, who.name));
            let files = authority.issue(&who, hosts, day(), &prefix).unwrap();
            let material = TlsMaterial::load(files.clone()).unwrap();
            assert_eq!(material.identity(), Ok(&who));
            assert_eq!(Acceptor::open(files).is_ok(), who.role == Role::Hub);
            assert!(Connector::from_material(&material).is_ok());
        }
        assert!(dir.path().join("agent-pos.17.pem").exists());
    }

    #[tokio::test]
    async fn issued_certificates_shake_hands() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let hosts = ["127.0.0.1".to_owned()];
        let hub = authority
            .issue(&identity("spiffe://walhub/hub/h"), &hosts, day(), &dir.path().join("h"))
            .unwrap();
        let agent =
            authority.issue(&identity("spiffe://walhub/agent/a"), &[], day(), &dir.path().join("a")).unwrap();
        let (acceptor, connector) = (Acceptor::open(hub).unwrap(), Connector::open(agent).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            let (mut stream, identity) = walhub_common::tls::accept(socket, &acceptor).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
            identity
        };
        let connect = walhub_common::tls::connect(&address, None, &connector);
        let (identity, stream) = tokio::join!(serve, connect);
        assert_eq!(identity.to_string(), "agent a");
        stream.unwrap();
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let prefix = dir.path().join("new/folder/a");
        let who = identity("spiffe://walhub/agent/a");
        let files = authority.issue(&who, &[], day(), &prefix).unwrap();
        for key in [&files.key, &dir.path().join("ca.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = fs::read(&files.key).unwrap();
        let error = authority.issue(&who, &[], day(), &prefix).unwrap_err().to_string();
        assert!(error.contains("a.pem exists already"), "{error}");
        fs::remove_file(&files.cert).unwrap();
        let error = authority.issue(&who, &[], day(), &prefix).unwrap_err().to_string();
        assert!(error.contains("a.key exists already"), "{error}");
        assert_eq!(fs::read(&files.key).unwrap(), before);
        assert!(!files.cert.exists());
        let error = Authority::create(dir.path(), "again", day()).unwrap_err().to_string();
        assert!(error.contains("ca.pem exists already"), "{error}");
    }

    #[test]
    fn an_end_in_the_past_makes_an_expired_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let validity = Validity::until(OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap());
        let who = identity("spiffe://walhub/agent/a");
        let files = authority.issue(&who, &[], validity, &dir.path().join("old")).unwrap();
        match TlsMaterial::load(files) {
            Err(LoadError::Expired { not_after, .. }) => assert_eq!(not_after, "2023-11-14T22:13:20Z"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_ca_that_is_missing_or_torn_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = |dir: &Path| format!("{:#}", Authority::open(dir).err().unwrap());
        assert!(text(dir.path()).contains("hubctl ca init"));
        authority(dir.path());
        let other = tempfile::tempdir().unwrap();
        authority(other.path());
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        assert!(text(dir.path()).contains("do not belong together"), "{}", text(dir.path()));
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for good in ["hub", "hub.example", "*.example", "10.0.0.1", "::1", "my_hub"] {
            assert!(san(good).is_ok(), "{good}");
        }
        for bad in ["", "hub:9443", "http://hub", "a..b", ".", "hüb", "a b"] {
            assert!(san(bad).is_err(), "{bad}");
        }
    }
}
