//! The way in: TCP, TLS 1.3 with a client certificate, then HTTP/2. A connection that does not prove who it is never
//! reaches a service.

use super::peer::Peer;
use futures_util::Stream;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::Connected;
use walhub_common::task::TaskGroup;
use walhub_common::tls::{self, Acceptor, ServerStream};

/// Connections at one time; the next ones wait in the system's queue.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Handshakes at one time.
const MAX_HANDSHAKES: usize = 256;
/// Connections that have proved themselves and wait for their server.
const BACKLOG: usize = 64;
/// After a failed accept (descriptors used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One connection, with what its handshake proved.
pub struct Connection {
    stream: ServerStream,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// Connections on their way to the server.
pub struct Connections(mpsc::Receiver<Connection>);

/// Accepts until the group is cancelled. Handshakes run side by side, so that a slow one holds nobody up.
pub fn accept_loop(listener: TcpListener, acceptor: Arc<Acceptor>, tasks: &TaskGroup) -> Connections {
    let (proved, connections) = mpsc::channel(BACKLOG);
    let group = tasks.clone();
    tasks.spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                () = group.token().cancelled() => return,
                place = places.clone().acquire_owned() => place.expect("BUG: places are never closed"),
            };
            let slot = slots.clone().acquire_owned().await.expect("BUG: slots are never closed");
            let accepted = tokio::select! {
                () = group.token().cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, proved, stop) = (acceptor.clone(), proved.clone(), group.token().clone());
            group.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    connection = handshake(socket, address, &acceptor, place) => {
                        drop(slot);
                        if let Some(connection) = connection {
                            // Fails only when the server is gone.
                            let _ = proved.send(connection).await;
                        }
                    }
                }
            });
        }
    });
    Connections(connections)
}

async fn handshake(
    socket: TcpStream,
    address: SocketAddr,
    acceptor: &Acceptor,
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    match tls::accept(socket, acceptor).await {
        Ok((stream, identity)) => {
            Some(Connection { stream, peer: Peer { identity, address: address.to_string() }, _place: place })
        }
        Err(error) => {
            tracing::warn!(peer = %address, %error, "connection refused");
            None
        }
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
