//! Who a certificate speaks for: its one SPIFFE name, `spiffe://<any trust domain>/<role>/<name>`.

use crate::AgentName;
use rustls::pki_types::CertificateDer;
use std::fmt;
use webpki::EndEntityCert;

/// What a certificate allows its holder to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A node: reaches its own databases only.
    Agent,
    /// A person with hubctl: reaches every database.
    Operator,
    /// The hub: the only role that may serve.
    Hub,
}

impl Role {
    /// The word in the certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Operator => "operator",
            Role::Hub => "hub",
        }
    }

    fn parse(text: &str) -> Option<Role> {
        [Role::Agent, Role::Operator, Role::Hub].into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role and a name, read from a verified certificate. The name obeys the rules of [`AgentName`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// What the holder is.
    pub role: Role,
    /// Which one.
    pub name: AgentName,
}

impl Identity {
    /// From a certificate that somebody else has verified.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
        let certificate = EndEntityCert::try_from(certificate).map_err(|_| IdentityError::Unreadable)?;
        let mut names = certificate.valid_uri_names().filter(|uri| is_spiffe(uri));
        match (names.next(), names.next()) {
            (Some(uri), None) => Identity::parse(uri),
            (None, _) => Err(IdentityError::None),
            (Some(_), Some(_)) => Err(IdentityError::Several),
        }
    }

    /// From the text of a SPIFFE name.
    pub fn parse(uri: &str) -> Result<Identity, IdentityError> {
        let malformed = || IdentityError::Malformed { uri: uri.chars().take(256).collect() };
        let path = is_spiffe(uri).then(|| &uri[SCHEME.len()..]).ok_or_else(malformed)?;
        let mut parts = path.split('/');
        let (domain, role, name) = (parts.next(), parts.next(), parts.next());
        match (domain, role.and_then(Role::parse), name, parts.next()) {
            (Some(domain), Some(role), Some(name), None) if !domain.is_empty() => {
                let name = AgentName::new(name).map_err(|_| malformed())?;
                Ok(Identity { role, name })
            }
            _ => Err(malformed()),
        }
    }

    /// The SPIFFE name that hubctl writes into certificates.
    pub fn uri(&self) -> String {
        format!("{SCHEME}walhub/{}/{}", self.role, self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

const SCHEME: &str = "spiffe://";

fn is_spiffe(uri: &str) -> bool {
    uri.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

/// Why a certificate says nothing usable about its holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No SPIFFE name at all.
    #[error("the certificate names no agent, operator or hub; issue it with `hubctl cert issue`")]
    None,
    /// More than one SPIFFE name.
    #[error("the certificate carries several SPIFFE names where exactly one is allowed")]
    Several,
    /// A SPIFFE name of another shape.
    #[error("the certificate's name {uri:?} is not of the form spiffe://DOMAIN/agent|operator|hub/NAME")]
    Malformed {
        /// The name, cut to a printable length.
        uri: String,
    },
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_trust_domain_is_accepted_and_the_path_decides() {
        let identity = Identity::parse("spiffe://walhub/agent/pos-17").unwrap();
        assert_eq!((identity.role, identity.name.as_str()), (Role::Agent, "pos-17"));
        assert_eq!(Identity::parse(&identity.uri()), Ok(identity));
        assert_eq!(Identity::parse("SPIFFE://corp.example/hub/h").unwrap().role, Role::Hub);
        assert_eq!(
            Identity::parse("spiffe://corp.example/operator/ann").unwrap().to_string(),
            "operator ann"
        );
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "spiffe:///agent/a",
            "spiffe://walhub/agent",
            "spiffe://walhub/agent/",
            "spiffe://walhub/agent/a/b",
            "spiffe://walhub/Agent/a",
            "spiffe://walhub/root/a",
            "spiffe://walhub/agent/..",
            "spiffe://walhub/agent/a b",
            "https://walhub/agent/a",
            "spïffe://walhub/agent/a",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }
}
