//! The hub's side of a handshake: a deadline, an identity, and an alert that reaches the client.

use super::explain::{self, Side};
use super::identity::{Identity, Role};
use super::material::{LoadError, TlsMaterial, TlsPaths};
use super::verify::{RoleError, client_identity};
use crate::limits::HANDSHAKE_TIMEOUT;
use rustls::ServerConfig;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An accepted connection. The peer's chain is at `stream.get_ref().1.peer_certificates()`.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of a refused client that are thrown away meanwhile.
const LINGER_BYTES: usize = 64 * 1024;

/// Why a connection was not accepted, as a sentence for the hub's log.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Slower than [`HANDSHAKE_TIMEOUT`].
    #[error("the client did not finish the TLS handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// The handshake failed.
    #[error("{reason}")]
    Tls {
        /// What is wrong and what to do.
        reason: String,
        /// What TLS said.
        source: io::Error,
    },
    /// The client went away.
    #[error("the client closed the connection during the TLS handshake ({0})")]
    Closed(io::Error),
    /// A client certificate of no or the wrong role.
    #[error("the client's certificate was refused: {0}")]
    Role(#[from] RoleError),
}

/// The certificates that the hub serves with; replaceable while it serves.
#[derive(Debug)]
pub struct Acceptor {
    paths: TlsPaths,
    config: RwLock<Arc<ServerConfig>>,
}

impl Acceptor {
    /// Loads the files; our own certificate must be a hub's.
    pub fn open(paths: TlsPaths) -> Result<Acceptor, LoadError> {
        let config = RwLock::new(hub_config(&paths)?);
        Ok(Acceptor { paths, config })
    }

    /// From loaded material, whatever it says about its holder: for a server whose clients do the judging.
    pub fn from_material(material: &TlsMaterial) -> Result<Acceptor, rustls::Error> {
        let config = RwLock::new(Arc::new(material.server_config()?));
        Ok(Acceptor { paths: material.paths.clone(), config })
    }

    /// Reads the files again; connections from now on use them. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), LoadError> {
        let config = hub_config(&self.paths)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn hub_config(paths: &TlsPaths) -> Result<Arc<ServerConfig>, LoadError> {
    let material = TlsMaterial::load(paths.clone())?;
    let unusable = |reason| LoadError::Unusable { what: "certificate", path: paths.cert.clone(), reason };
    match material.identity() {
        Ok(identity) if identity.role != Role::Hub => Err(unusable(format!(
            "is the certificate of {identity}, and a hub needs `hubctl cert issue --hub NAME`"
        ))),
        _ => material.server_config().map(Arc::new).map_err(|e| unusable(e.to_string())),
    }
}

/// The handshake with one client. When it returns an error, the client has been told (as far as it listens) and the
/// connection is closed; this may take a second longer, so run it on the connection's own task.
pub async fn accept(socket: TcpStream, acceptor: &Acceptor) -> Result<(ServerStream, Identity), AcceptError> {
    accept_within(HANDSHAKE_TIMEOUT, socket, acceptor).await
}

pub(super) async fn accept_within(
    deadline: Duration,
    socket: TcpStream,
    acceptor: &Acceptor,
) -> Result<(ServerStream, Identity), AcceptError> {
    // Small acks must not wait for a full packet. A socket that cannot do this fails in the handshake anyway.
    let _ = socket.set_nodelay(true);
    let handshake = tokio_rustls::TlsAcceptor::from(acceptor.config()).accept(socket).into_fallible();
    let stream = match tokio::time::timeout(deadline, handshake).await {
        Err(_) => return Err(AcceptError::Timeout),
        Ok(Err((error, socket))) => {
            linger(socket).await;
            return Err(match explain::find(&error, Side::Hub) {
                Some(reason) => AcceptError::Tls { reason, source: error },
                None => AcceptError::Closed(error),
            });
        }
        Ok(Ok(stream)) => stream,
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let end = chain.first().ok_or(RoleError::Identity(super::IdentityError::None))?;
    let identity = client_identity(end)?;
    Ok((stream, identity))
}

/// Closing a socket that holds unread bytes resets the connection, and the reset overtakes the alert that says why:
/// read on until the client closes, within bounds.
async fn linger(mut socket: TcpStream) {
    let drain = async {
        socket.shutdown().await?;
        let (mut buffer, mut total) = ([0_u8; 4096], 0);
        while total < LINGER_BYTES {
            match socket.read(&mut buffer).await? {
                0 => break,
                n => total += n,
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}
