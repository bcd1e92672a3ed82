//! Why a database does not get on at a destination, and whom that concerns.

use crate::buffer::BufferError;
use walhub_common::Txid;
use walhub_common::backoff::Class;
use walhub_common::ltx::LtxError;
use walhub_store::destinations::check::Cause;
use walhub_store::destinations::{DestinationError, Fault};

/// What stopped a turn.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    /// The destination failed.
    #[error(transparent)]
    Destination(DestinationError),
    /// The buffer could not be read.
    #[error("reading the buffer: {0}")]
    Buffer(#[from] BufferError),
    /// Buffered segments do not make a file.
    #[error("merging buffered segments: {0}")]
    Ltx(#[from] LtxError),
    /// A file in the making could not be written.
    #[error("writing a temporary file of the hub: {0}")]
    Temp(#[from] std::io::Error),
    /// The destination's files are not of this history.
    #[error(
        "it holds another history of this database ({0}); nothing was overwritten: move those files away, or give \
         the destination another path"
    )]
    History(String),
    /// Nobody has the transactions any more.
    #[error(
        "transactions from {txid} on are no longer in the hub's buffer, and no other destination could give them{}",
        .sibling.as_ref().map_or_else(String::new, |error| format!(" ({error})"))
    )]
    Missing {
        /// The first that is needed.
        txid: Txid,
        /// Why another destination could not help, when it failed.
        sibling: Option<Box<DestinationError>>,
    },
    /// Another destination's file is not what its name says, or of another history.
    #[error("a file of another destination cannot be copied: {0}")]
    Sibling(String),
    /// A task of the hub failed.
    #[error("internal error of the hub: {0}")]
    Internal(String),
}

/// Whom an error concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Concerns {
    /// The destination as a whole: all its databases wait.
    Lane,
    /// This database alone: the others go on.
    Database,
    /// Nobody: the hub is shutting down.
    Nobody,
}

impl TurnError {
    pub(super) fn concerns(&self) -> Concerns {
        match self {
            TurnError::Buffer(BufferError::Closed) => Concerns::Nobody,
            TurnError::Destination(error) => match error.fault {
                Fault::Cancelled => Concerns::Nobody,
                Fault::Conflict(_)
                | Fault::NotFound
                | Fault::Corrupt(_)
                | Fault::Locked(_)
                | Fault::Body(_)
                | Fault::Rejected(_) => Concerns::Database,
                _ => Concerns::Lane,
            },
            _ => Concerns::Database,
        }
    }

    /// In a word, for counters; a destination's own in those of `hubctl destinations check`.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            TurnError::Destination(error) => Cause::of(&error.fault).as_str(),
            TurnError::History(_) => "other history",
            TurnError::Missing { .. } => "missing",
            TurnError::Sibling(_) => "sibling",
            TurnError::Buffer(_) | TurnError::Ltx(_) | TurnError::Temp(_) | TurnError::Internal(_) => "hub",
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            TurnError::Destination(error) => error.class(),
            TurnError::Temp(_) | TurnError::Internal(_) | TurnError::Buffer(BufferError::Io { .. }) => {
                Class::Transient
            }
            TurnError::Missing { sibling: Some(error), .. } => error.class(),
            _ => Class::Permanent,
        }
    }

    /// The bucket or folder is not there: what was in it is not believed to be, even when it is back.
    pub(super) fn place_is_gone(&self) -> bool {
        matches!(self, TurnError::Destination(error) if matches!(error.fault, Fault::Gone(_)))
    }

    /// What is at the destination is not what this lane believes: look again before the next attempt.
    pub(super) fn unsettles(&self) -> bool {
        match self {
            TurnError::Destination(error) => matches!(error.fault, Fault::Conflict(_) | Fault::Gone(_)),
            TurnError::History(_) => true,
            _ => false,
        }
    }
}
