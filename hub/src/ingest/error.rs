//! What a session may say no to: one database ([`Refusal`]) or the whole stream ([`SessionError`]).

use crate::buffer::BufferError;
use crate::fleet::epochs::{ClaimError, Stale};
use walhub_common::ids::NameError;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::{Pos, TxidRange};
use walhub_proto::convert::WireError;
use walhub_proto::v1::RefusalCode;

/// Why one database is refused. The stream goes on with the others.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    /// With this code and text.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The message breaks the protocol.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Malformed, message)
    }

    /// Beyond a limit.
    pub fn oversized(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Oversized, message)
    }

    /// Not the LTX file it claims to be.
    pub fn corrupted(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Corrupted, message)
    }

    /// Another history.
    pub fn fork(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Fork, message)
    }

    /// Transactions are missing.
    pub fn gap(range: TxidRange, position: Option<Pos>) -> Self {
        let held = position.map_or_else(|| "nothing".to_owned(), |pos| format!("up to {}", pos.txid.get()));
        let (min, max) = (range.min().get(), range.max().get());
        Self::new(
            RefusalCode::Gap,
            format!(
                "segment {min}-{max} leaves a gap: the hub holds {held}; open the database again and resend"
            ),
        )
    }

    /// The hub cannot take it now.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::Busy, message)
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::malformed(error.to_string())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::malformed(error.to_string())
    }
}

/// Why a stream ended before its agent closed it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream did not begin as the protocol wants.
    #[error("the stream must begin with Hello of protocol version 1: {0}")]
    BadHello(&'static str),
    /// A message in the middle of the stream breaks the protocol for all databases.
    #[error("{0}")]
    BadMessage(&'static str),
    /// A message beyond every limit.
    #[error("a message is larger than the hub takes; chunks have at most {MAX_CHUNK_BYTES} bytes of data")]
    Oversized,
    /// An older image of the node.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The hub could not record the node's epoch.
    #[error("the hub cannot take nodes now: {0}")]
    Epochs(String),
    /// A newer stream of the same agent.
    #[error("a newer stream of this node has replaced this one")]
    Replaced,
    /// The hub is going down.
    #[error("the hub is shutting down; connect again")]
    Shutdown,
    /// The hub's disk cannot be trusted with more.
    #[error("the hub cannot store segments now: {0}")]
    Buffer(BufferError),
    /// The agent's connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// A task of the hub failed.
    #[error("internal error of the hub: {0}")]
    Internal(String),
}

impl From<ClaimError> for SessionError {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Stale(stale) => Self::Stale(stale),
            ClaimError::Io(_) => Self::Epochs(error.to_string()),
        }
    }
}
