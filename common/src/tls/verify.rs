//! Judging the other side: webpki's chain, time and name checks, then our own rule about roles. The rule lives inside
//! the handshake, so that a wrong role ends it with an alert and both sides know why.

use super::identity::{Identity, IdentityError, Role};
use super::material::{TlsMaterial, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use std::sync::Arc;

const ALPN_H2: &[u8] = b"h2";
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The chain is good, the holder is not the one who may sit there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// The certificate names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A client that showed a hub's certificate.
    #[error("this is the certificate of {0}, and a client must show an agent's or an operator's certificate")]
    NotAClient(Identity),
    /// A server that showed a certificate of another role.
    #[error("this is the certificate of {0}, and the server must show a hub's certificate")]
    NotAHub(Identity),
}

impl TlsMaterial {
    /// For the hub's listener: TLS 1.3 only, a client certificate of role agent or operator is required, ALPN h2. No
    /// session is resumed, so each connection proves its certificate anew.
    pub fn server_config(&self) -> Result<ServerConfig, Error> {
        let provider = provider();
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .with_client_cert_verifier(Arc::new(ClientRole(inner)))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(config)
    }

    /// For agents and hubctl: TLS 1.3 only, shows our certificate, accepts a certificate of role hub only, ALPN h2.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider = provider();
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerRole(inner)))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

fn refuse(error: RoleError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Who a verified client is.
pub(super) fn client_identity(certificate: &CertificateDer<'_>) -> Result<Identity, RoleError> {
    let identity = Identity::of(certificate)?;
    match identity.role {
        Role::Agent | Role::Operator => Ok(identity),
        Role::Hub => Err(RoleError::NotAClient(identity)),
    }
}

#[derive(Debug)]
struct ClientRole(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ClientRole {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        client_identity(end_entity).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ServerRole(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ServerRole {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let identity = Identity::of(end_entity).map_err(|e| refuse(e.into()))?;
        match identity.role {
            Role::Hub => Ok(verified),
            Role::Agent | Role::Operator => Err(refuse(RoleError::NotAHub(identity))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
