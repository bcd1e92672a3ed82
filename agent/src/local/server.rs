//! The agent's side of the socket: reads lines, answers each before it reads the next.
//!
//! Bounds: [`MAX_CONNECTIONS`], one request per connection at a time, [`MAX_REQUEST_BYTES`] per line, [`IDLE`] between two
//! requests, [`WRITE_TIMEOUT`] for a reader that does not read.

use super::answer::{answer, bad_request};
use super::protocol::{Answer, MAX_REQUEST_BYTES};
use super::status::Facts;
use crate::database::Refused;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use walhub_common::task::TaskGroup;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 64;
/// A connection without a request is closed after this time.
const IDLE: Duration = Duration::from_secs(300);
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

    /// Answers until the group is cancelled. Each connection is a task of it as well.
    pub async fn run(self, facts: Arc<Facts>, group: TaskGroup) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = group.token().cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::debug!(error = %e, "local socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                turn_away(&stream);
                continue;
            };
            let (facts, token) = (facts.clone(), group.token().clone());
            group.spawn(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    // A reader that went away or is too slow gets nothing; it can ask again.
                    _ = serve(stream, &facts) => {}
                }
                drop(slot);
            });
        }
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection, to its end.
async fn serve(stream: UnixStream, facts: &Facts) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::with_capacity(512, reading);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reading).take(MAX_REQUEST_BYTES as u64);
        let Ok(read) = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await else {
            return Ok(());
        };
        if read? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let answered = match whole {
            true => answer(&line, facts).await,
            // Where the next request begins is not known any more.
            false => bad_request("the line is too long, or has no end"),
        };
        tokio::time::timeout(WRITE_TIMEOUT, writing.write_all(&text(&answered))).await??;
        if !whole {
            return writing.shutdown().await;
        }
    }
}

/// Says no without waiting: a fresh connection has room for one line.
fn turn_away(stream: &UnixStream) {
    let message = format!("{MAX_CONNECTIONS} connections are open already");
    let full = Refused::new("too-many-connections", message, "close a connection when it is not needed");
    let _ = stream.try_write(&text(&Answer::problem(full.into())));
}

fn text(answer: &Answer) -> Vec<u8> {
    // Strings and numbers only: it cannot fail.
    let mut text = serde_json::to_vec(answer).unwrap_or_default();
    text.push(b'\n');
    text
}
