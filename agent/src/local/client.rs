//! Asks a running agent.

use super::protocol::{Answer, Problem, Request};
use super::status::AgentStatus;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Beyond the time that the request itself may take.
const GRACE: Duration = Duration::from_secs(10);
/// Largest answer: 20,000 databases with long paths fit.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no agent runs on the state folder {}; start it with `walhub-agent run --config FILE`", path.display())]
    NotRunning {
        /// The folder.
        path: PathBuf,
    },
    /// The socket is another user's, or the agent does not answer.
    #[error("{}: {source}; ask as the agent's own user, or as root", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent ended, or is frozen.
    #[error("the agent ended the conversation without an answer; see its log")]
    NoAnswer,
    /// Not an answer.
    #[error("the agent answered something else; is it of another version? ({0})")]
    Answer(#[from] serde_json::Error),
    /// The agent said no.
    #[error("{}{}", .0.message, .0.what_to_do.as_ref().map_or_else(String::new, |what| format!("; {what}")))]
    Refused(Problem),
}

/// A conversation with the agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// To the agent that runs on a state folder.
    pub fn connect(state_dir: &Path) -> Result<Client, AskError> {
        let path = crate::state_dir::socket_path(state_dir);
        match UnixStream::connect(&path) {
            Ok(stream) => Ok(Client { path, stream: BufReader::new(stream) }),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    AskError::NotRunning { path: state_dir.to_owned() }
                }
                _ => AskError::Io { path, source },
            }),
        }
    }

    /// One request and its result.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, AskError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let patience = Duration::from_millis(request.timeout_ms()) + GRACE;
        let mut text = Vec::new();
        let talk = (|| {
            self.stream.get_ref().set_read_timeout(Some(patience))?;
            self.stream.get_mut().write_all(&line)?;
            (&mut self.stream).take(MAX_ANSWER_BYTES).read_until(b'\n', &mut text)
        })();
        talk.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::BrokenPipe => {
                AskError::NoAnswer
            }
            _ => AskError::Io { path: self.path.clone(), source },
        })?;
        if text.is_empty() {
            return Err(AskError::NoAnswer);
        }
        let answer: Answer = serde_json::from_slice(&text)?;
        match answer.error {
            Some(problem) if !answer.ok => Err(AskError::Refused(problem)),
            _ => Ok(serde_json::from_value(answer.result.unwrap_or_default())?),
        }
    }

    /// The status.
    pub fn status(&mut self) -> Result<AgentStatus, AskError> {
        self.ask(&Request::Status)
    }
}
