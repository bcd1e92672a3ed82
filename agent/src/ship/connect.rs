//! The way to the hub: address, certificates, HTTP/2 keepalive. One call, one connection, one sentence when it fails.

use hyper_util::rt::TokioIo;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::BufWriter;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use walhub_common::tls::{self, ConnectError, Connector};

/// A silent connection is asked whether it lives after this time, so that a vanished hub is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How long the answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 window for what the hub streams back in a restore.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// As much as the TLS layer takes at once.
const WRITE_BUFFER: usize = 64 * 1024;

/// Where the hub is and how this node proves itself.
#[derive(Clone, Debug)]
pub struct HubAddress {
    /// `host:port`.
    pub address: String,
    /// Name in the hub's certificate when it is not the host of the address.
    pub server_name: Option<String>,
    /// Certificates.
    pub connector: Arc<Connector>,
}

/// Why there is no usable connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TCP or TLS.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// HTTP/2.
    #[error("the server at {address} does not speak gRPC: {reason}")]
    Http2 {
        /// As configured.
        address: String,
        /// What the HTTP/2 library said.
        reason: String,
    },
}

impl HubAddress {
    /// Opens a new connection. It is never reopened behind the caller's back: when it breaks, its requests fail. The
    /// certificates are read again first, so that a renewed one needs no restart; unusable files leave the old ones.
    pub async fn connect(&self) -> Result<Channel, DialError> {
        if let Err(fault) = self.connector.reload() {
            tracing::debug!(%fault, "certificates kept as they were");
        }
        let stream = tls::connect(&self.address, self.server_name.as_deref(), &self.connector).await?;
        // HTTP/2 writes frame by frame; what is sent together is encrypted and written together.
        let stream = BufWriter::with_capacity(WRITE_BUFFER, stream);
        let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let once = service_fn(move |_| {
            let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            std::future::ready(taken.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        Endpoint::from_static("http://hub")
            .user_agent(concat!("walhub-agent/", env!("CARGO_PKG_VERSION")))
            .expect("BUG: a valid user agent")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW)
            .connect_with_connector(once)
            .await
            .map_err(|e| DialError::Http2 { address: self.address.clone(), reason: reason(&e) })
    }
}

/// The innermost cause of an error, as text: what libraries wrap around it helps nobody.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// One sentence for a failed request: TLS failures are looked up in its causes, the rest is the hub's own text.
pub fn status_reason(status: &tonic::Status) -> String {
    if let Some(sentence) = tls::explain(status) {
        return sentence;
    }
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal
            if std::error::Error::source(status).is_some() =>
        {
            format!("the connection broke: {}", reason(status))
        }
        _ => status.message().to_owned(),
    }
}
