//! mTLS between agents, operators and the hub: one CA, TLS 1.3 only, the peer's identity taken from its certificate.
//!
//! # Invariants
//! - Both sides show a certificate and both check role and name: a hub serves agents and operators, a client talks to
//!   a hub. The check is part of the handshake, never an afterthought of a handler.
//! - No session resumption: every connection is judged by the certificates and the clock of its own moment.
//! - A handshake ends within [`crate::limits::HANDSHAKE_TIMEOUT`].
//! - Every error text says what is wrong and what to do, on both sides; it is lower-case and complete, ready to print.
//! - Certificates are replaced without a restart: [`Acceptor::reload`] and [`Connector::reload`] check the new files
//!   first and keep the old ones when the new are unusable.
//!
//! # Use
//! ```no_run
//! # async fn hub(listener: tokio::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
//! use walhub_common::tls::{self, Acceptor, Connector, TlsPaths};
//! let paths = TlsPaths { ca: "ca.pem".into(), cert: "hub-hub.pem".into(), key: "hub-hub.key".into() };
//! let acceptor = Acceptor::open(paths)?;
//! let (socket, _) = listener.accept().await?;
//! let (stream, identity) = tls::accept(socket, &acceptor).await?; // AcceptError prints as a sentence
//! # let paths = TlsPaths { ca: "ca.pem".into(), cert: "agent-a.pem".into(), key: "agent-a.key".into() };
//! // The other side:
//! let connector = Connector::open(paths)?;
//! let stream = tls::connect("hub.example:9443", None, &connector).await?; // so does ConnectError
//! # Ok(()) }
//! ```
//! A reader of a stream that broke later asks [`explain`] whether TLS was the reason.
//!
//! Non-goals: no issuing (hubctl does), no revocation lists, no gRPC.

mod accept;
mod connect;
mod explain;
mod identity;
mod material;
mod verify;

pub use accept::{AcceptError, Acceptor, ServerStream, accept};
pub(crate) use connect::host_of;
pub use connect::{ClientStream, ConnectError, Connector, connect};
pub use explain::explain;
pub use identity::{Identity, IdentityError, Role};
pub use material::{LoadError, TlsMaterial, TlsPaths, install_provider, load};
pub use verify::RoleError;

#[cfg(test)]
mod tests;
