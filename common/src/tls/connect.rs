//! The client's side of a handshake: one address, one deadline, one sentence when it fails.

use super::explain::{self, Side};
use super::material::{LoadError, TlsMaterial, TlsPaths};
use crate::limits::HANDSHAKE_TIMEOUT;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;

/// An open connection to a hub that has accepted us.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Why there is no connection, as a sentence for people.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("{address:?} is not an address; write HOST:PORT")]
    Address {
        /// As given.
        address: String,
    },
    /// Not a name that a certificate could carry.
    #[error(
        "{name:?} is not a host name or IP address; set the server name to one that the hub's certificate carries"
    )]
    ServerName {
        /// As given.
        name: String,
    },
    /// No TCP connection.
    #[error(
        "cannot reach the hub at {address}: {}; check the address, the network, and that the hub runs",
        io_reason(source)
    )]
    Unreachable {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No answer within [`HANDSHAKE_TIMEOUT`].
    #[error("no answer from the hub at {address} within {} s ({waiting})", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout {
        /// As given.
        address: String,
        /// What was awaited.
        waiting: &'static str,
    },
    /// TLS failed.
    #[error("no connection to the hub at {address}: {reason}")]
    Tls {
        /// As given.
        address: String,
        /// What is wrong and what to do.
        reason: String,
        /// What TLS said.
        source: io::Error,
    },
    /// The other side closed.
    #[error(
        "the server at {address} closed the connection during the TLS handshake ({source}); is it a walhub hub?"
    )]
    Closed {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The certificates that a client shows and trusts; replaceable between connections.
#[derive(Debug)]
pub struct Connector {
    paths: TlsPaths,
    config: RwLock<Arc<ClientConfig>>,
}

impl Connector {
    /// Loads the files.
    pub fn open(paths: TlsPaths) -> Result<Connector, LoadError> {
        let config = RwLock::new(client_config(&paths)?);
        Ok(Connector { paths, config })
    }

    /// From loaded material, whatever it says about its holder: the hub does the judging.
    pub fn from_material(material: &TlsMaterial) -> Result<Connector, rustls::Error> {
        let config = RwLock::new(Arc::new(material.client_config()?));
        Ok(Connector { paths: material.paths.clone(), config })
    }

    /// Reads the files again; connections from now on use them. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), LoadError> {
        let config = client_config(&self.paths)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn client_config(paths: &TlsPaths) -> Result<Arc<ClientConfig>, LoadError> {
    let material = TlsMaterial::load(paths.clone())?;
    material.client_config().map(Arc::new).map_err(|e| LoadError::Unusable {
        what: "certificate",
        path: paths.cert.clone(),
        reason: e.to_string(),
    })
}

/// Connects to `address` (`host:port`, IPv6 in brackets). The hub's certificate must carry `server_name`, or the host
/// of the address when that is `None`.
///
/// Returns only when the hub has accepted our certificate: in TLS 1.3 that shows with its first bytes, and a gRPC
/// server speaks first (its HTTP/2 settings).
pub async fn connect(
    address: &str,
    server_name: Option<&str>,
    connector: &Connector,
) -> Result<ClientStream, ConnectError> {
    let host = host_of(address).ok_or_else(|| ConnectError::Address { address: address.into() })?;
    let name = server_name.unwrap_or(host);
    let server_name =
        ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::ServerName { name: name.into() })?;
    let deadline = tokio::time::Instant::now() + HANDSHAKE_TIMEOUT;
    let timeout = |waiting| ConnectError::Timeout { address: address.into(), waiting };
    let failed = |source: io::Error| match explain::find(&source, Side::Client) {
        Some(reason) => ConnectError::Tls { address: address.into(), reason, source },
        None => ConnectError::Closed { address: address.into(), source },
    };

    let socket = tokio::time::timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| timeout("for the TCP connection"))?
        .map_err(|source| ConnectError::Unreachable { address: address.into(), source })?;
    // Small segments must not wait for a full packet. A socket that cannot do this fails in the handshake anyway.
    let _ = socket.set_nodelay(true);
    let handshake = tokio_rustls::TlsConnector::from(connector.config()).connect(server_name, socket);
    let mut stream = tokio::time::timeout_at(deadline, handshake)
        .await
        .map_err(|_| timeout("for the TLS handshake"))?
        .map_err(failed)?;
    let first = tokio::time::timeout_at(deadline, stream.fill_buf())
        .await
        .map_err(|_| timeout("for the hub to accept our certificate"))?
        .map_err(failed)?;
    if first.is_empty() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(stream)
}

pub(crate) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some(host)
}

fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod unit {
    use super::host_of;

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(host_of("hub.example:9443"), Some("hub.example"));
        assert_eq!(host_of("[::1]:9443"), Some("::1"));
        for bad in ["hub", "hub:", "hub:x", ":1", "::1:9443", "[::1:9443", "hub:99999", ""] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
