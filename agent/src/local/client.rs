//! Asks a running agent.

use super::status::AgentStatus;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: 20,000 databases with long paths fit.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent runs on the state folder {}; start it with `walhub-agent run --config FILE`", path.display())]
    NotRunning {
        /// The folder.
        path: PathBuf,
    },
    /// The socket is another user's.
    #[error("{}: {source}; ask as the agent's own user, or as root", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not an answer.
    #[error("the agent answered something else; is it of another version? ({0})")]
    Answer(#[from] serde_json::Error),
}

/// The status of the agent that runs on a state folder.
pub fn ask(state_dir: &Path) -> Result<AgentStatus, AskError> {
    let socket = crate::state_dir::socket_path(state_dir);
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NotRunning { path: state_dir.to_owned() }
        }
        _ => AskError::Io { path: socket.clone(), source },
    };
    let stream = UnixStream::connect(&socket).map_err(io)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(io)?;
    let mut text = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut text).map_err(io)?;
    Ok(serde_json::from_slice(&text)?)
}
