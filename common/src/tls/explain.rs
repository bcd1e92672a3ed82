//! Sentences for TLS failures: what is wrong, on whose side, what to do.

use super::connect::ConnectError;
use super::material::format_time;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use std::error::Error as StdError;
use std::io;

/// Which side reads the sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// An agent or hubctl: its peer is the hub.
    Client,
    /// The hub: its peer is an agent or an operator.
    Hub,
}

/// For a client: looks through an error and everything it was caused by for a TLS failure, and says in one sentence
/// what it means. `None` when TLS was not the reason.
///
/// In TLS 1.3 a client learns that its certificate was refused only when it first reads. [`super::connect`] waits for
/// that; later failures surface inside the errors of whatever reads the stream, and this finds them there.
pub fn explain(error: &(dyn StdError + 'static)) -> Option<String> {
    find(error, Side::Client)
}

pub(super) fn find(error: &(dyn StdError + 'static), side: Side) -> Option<String> {
    // Chains made by people are short; the bound is for a chain that refers to itself.
    let mut next = Some(error);
    for _ in 0..32 {
        let error = next?;
        if let Some(tls) = error.downcast_ref::<Error>() {
            return Some(sentence(tls, side));
        }
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return Some(connect.to_string());
        }
        // An io::Error answers `source` with the source of its inner error, not with the inner error itself.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// One sentence for a TLS error.
pub(super) fn sentence(error: &Error, side: Side) -> String {
    match error {
        Error::AlertReceived(alert) => of_alert(*alert, side),
        Error::InvalidCertificate(fault) => of_certificate(fault, side),
        Error::NoCertificatesPresented => match side {
            Side::Hub => "the client showed no certificate; give it one with `hubctl cert issue`".into(),
            Side::Client => "the hub showed no certificate; it is not a walhub hub".into(),
        },
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => format!("{} does not speak TLS 1.3, the only version walhub allows", peer(side)),
        Error::NoApplicationProtocol => format!("{} does not speak HTTP/2 (gRPC) on this port", peer(side)),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => {
            format!("{} does not speak TLS on this port", peer(side))
        }
        other => format!("the TLS connection failed: {other}"),
    }
}

const fn peer(side: Side) -> &'static str {
    match side {
        Side::Client => "the hub",
        Side::Hub => "the client",
    }
}

/// We judged the peer's certificate.
fn of_certificate(fault: &CertificateError, side: Side) -> String {
    let whose = match side {
        Side::Client => "the hub's certificate",
        Side::Hub => "the client's certificate",
    };
    let renew = match side {
        Side::Client => "have it renewed on the hub with `hubctl cert issue --hub`",
        Side::Hub => "issue a new one with `hubctl cert issue`",
    };
    match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match side {
            Side::Client => format!(
                "{whose} is not signed by our CA: check the CA file here, and that this is the right hub"
            ),
            Side::Hub => format!(
                "{whose} is not signed by our CA: issue it one with this hub's CA (`hubctl cert issue`)"
            ),
        },
        CertificateError::Expired => format!("{whose} has expired: {renew}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("{whose} expired on {}: {renew}", format_time(*not_after))
        }
        CertificateError::NotValidYet => {
            format!("{whose} is not valid yet: check the clocks of both machines")
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "{whose} is valid only from {}, and this machine's clock says {}: check the clocks of both machines",
            format_time(*not_before),
            format_time(*time)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "{whose} is not for the name {:?} but for {}: use one of these, set the server name, or issue it with `--host`",
            expected.to_str(),
            names(presented)
        ),
        CertificateError::NotValidForName => {
            format!("{whose} is for another name: use its name as address, or set the server name")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("{whose} was not issued for this purpose: {renew}")
        }
        CertificateError::Other(reason) => format!("{whose} was refused: {reason}"),
        other => format!("{whose} is not acceptable ({other}): {renew}"),
    }
}

/// `DnsName("a")` and `IpAddress(1.2.3.4)` as rustls prints them, without the wrapping.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all".into();
    }
    let plain = |name: &String| -> String {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').to_owned()
    };
    let shown: Vec<String> =
        presented.iter().filter(|n| !n.starts_with("UniformResource")).take(8).map(plain).collect();
    if shown.is_empty() { "no host at all".into() } else { shown.join(", ") }
}

/// The peer judged our certificate.
fn of_alert(alert: AlertDescription, side: Side) -> String {
    let (peer, ours) = match side {
        Side::Client => ("the hub", "our certificate"),
        Side::Hub => ("the client", "this hub's certificate"),
    };
    match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => match side {
            Side::Client => {
                format!("{peer} refused {ours}: another CA signed it; have one issued with the hub's own CA")
            }
            Side::Hub => format!(
                "{peer} refused {ours}: its CA file is not the one that signed it; give it this hub's CA certificate (ca.pem)"
            ),
        },
        AlertDescription::CertificateExpired => format!(
            "{peer} refused {ours}: by its clock it has expired or is not valid yet; renew it with `hubctl cert issue`, \
             or set the clock"
        ),
        AlertDescription::CertificateRequired => {
            format!("{peer} requires a certificate and got none; configure tls.cert and tls.key")
        }
        AlertDescription::BadCertificate => match side {
            Side::Client => {
                format!("{peer} refused {ours} as unreadable; have a new one issued with `hubctl cert issue`")
            }
            Side::Hub => format!(
                "{peer} refused {ours}: it is not for the host name the client used; issue it with \
                 `hubctl cert issue --hub NAME --host HOST`"
            ),
        },
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => match side {
            Side::Client => format!(
                "{peer} refused {ours}: it is not the certificate of an agent or an operator; have one issued with \
                 `hubctl cert issue --agent NAME` or `--operator NAME`"
            ),
            Side::Hub => format!(
                "{peer} refused {ours}: it is not the certificate of a hub; issue one with `hubctl cert issue --hub NAME`"
            ),
        },
        AlertDescription::CertificateRevoked => format!("{peer} refused {ours}: it was revoked"),
        AlertDescription::UnsupportedCertificate => {
            format!(
                "{peer} refused {ours}: it was issued for another purpose; have a new one issued with `hubctl cert issue`"
            )
        }
        AlertDescription::ProtocolVersion => {
            format!("{peer} does not speak TLS 1.3, the only version walhub allows")
        }
        AlertDescription::NoApplicationProtocol => {
            format!("{peer} does not speak HTTP/2 (gRPC) on this port")
        }
        other => format!("{peer} ended the TLS connection: {other:?}"),
    }
}
