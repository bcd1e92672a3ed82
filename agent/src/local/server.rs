//! The agent's side of the socket: whoever connects gets one JSON document.

use super::status::Facts;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use walhub_common::task::TaskGroup;

/// Answers at one time.
const MAX_CONNECTIONS: usize = 8;
/// How long a reader may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept (descriptors used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A bound socket. The file is removed when it is dropped.
#[derive(Debug)]
pub struct LocalServer {
    path: PathBuf,
    listener: UnixListener,
}

impl LocalServer {
    /// Binds the socket. The caller owns the folder, so a socket that is there already belongs to a process that died.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Answers until the group is cancelled.
    pub async fn run(self, facts: Arc<Facts>, connections: TaskGroup) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = slots.clone().acquire_owned().await.expect("BUG: slots are never closed");
            let accepted = tokio::select! {
                () = connections.token().cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let facts = facts.clone();
                    connections.spawn(async move {
                        // A reader that went away or is too slow gets nothing; it can ask again.
                        let _ = tokio::time::timeout(WRITE_TIMEOUT, answer(stream, &facts)).await;
                        drop(slot);
                    });
                }
                Err(e) => {
                    tracing::debug!(error = %e, "status socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(mut stream: UnixStream, facts: &Facts) -> io::Result<()> {
    let text = serde_json::to_vec(&facts.status()).map_err(io::Error::other)?;
    stream.write_all(&text).await?;
    stream.shutdown().await
}
