//! A certificate authority for one test, made here and not by the programs under test, so that it can also make the
//! certificates they must refuse.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// Who a certificate names.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// A node.
    Agent(&'a str),
    /// A person with hubctl.
    Operator(&'a str),
    /// The hub, at 127.0.0.1 and localhost.
    Hub(&'a str),
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub enum Validity {
    /// Now.
    Now,
    /// It ended an hour ago.
    Expired,
    /// It starts in an hour.
    NotYet,
    /// Now, for so many seconds.
    Seconds(u32),
}

/// Files of one identity, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The authority to trust.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// A fresh authority whose files lie in `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        std::fs::create_dir_all(dir).expect("folder for certificates");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, Validity::Now);
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
        std::fs::write(dir.join("ca.crt"), issuer.pem()).expect("ca.crt");
        Authority { issuer, dir: dir.to_path_buf() }
    }

    /// Its certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A certificate that is valid now.
    pub fn issue(&self, who: Who<'_>) -> Files {
        self.issue_with(who, Validity::Now)
    }

    /// A certificate.
    pub fn issue_with(&self, who: Who<'_>, validity: Validity) -> Files {
        let (role, name) = match who {
            Who::Agent(name) => ("agent", name),
            Who::Operator(name) => ("operator", name),
            Who::Hub(name) => ("hub", name),
        };
        let hosts = match who {
            Who::Hub(_) => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
            _ => vec![],
        };
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let uri = format!("spiffe://walhub/{role}/{name}");
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("an ASCII name")));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params, validity);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        let validity = format!("{validity:?}").to_lowercase().replace(['(', ')'], "");
        let stem = format!("{role}-{name}-{validity}");
        let files = Files {
            ca: self.ca(),
            cert: self.dir.join(format!("{stem}.crt")),
            key: self.dir.join(format!("{stem}.key")),
        };
        std::fs::write(&files.cert, cert.pem()).expect("certificate file");
        write_private(&files.key, &key.serialize_pem());
        files
    }
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let now = OffsetDateTime::now_utc();
    let (from, to) = match validity {
        Validity::Now => (-Duration::hours(1), Duration::days(30)),
        Validity::Expired => (-Duration::days(30), -Duration::hours(1)),
        Validity::NotYet => (Duration::hours(1), Duration::days(30)),
        Validity::Seconds(left) => (-Duration::hours(1), Duration::seconds(i64::from(left))),
    };
    params.not_before = now + from;
    params.not_after = now + to;
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("key file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode of the key file");
}
