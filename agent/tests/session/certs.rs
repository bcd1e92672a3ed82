//! A CA for one test, with a certificate for the hub and one for the agent.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use std::path::Path;
use walhub_common::tls::TlsPaths;

/// The files of both sides.
pub(crate) struct Certificates {
    pub(crate) hub: TlsPaths,
    pub(crate) agent: TlsPaths,
}

/// Writes them into a folder.
pub(crate) fn issue(folder: &Path) -> Certificates {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    let leaf = |role: &str| {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let uri = format!("spiffe://walhub/{role}/{role}-1");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let paths = TlsPaths {
            ca: folder.join("ca.pem"),
            cert: folder.join(format!("{role}.pem")),
            key: folder.join(format!("{role}.key")),
        };
        std::fs::write(&paths.cert, params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(&paths.key, key.serialize_pem()).unwrap();
        paths
    };
    Certificates { hub: leaf("hub"), agent: leaf("agent") }
}
