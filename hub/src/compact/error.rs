//! Why a database does not get on, for the log and the status.

use crate::buffer::BufferError;
use walhub_store::compact::CompactError;
use walhub_store::destinations::DestinationError;

/// Why a database did not get on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("reading the buffer: {0}")]
    Buffer(#[from] BufferError),
    #[error("making {what}: {error}")]
    Compact { what: String, error: CompactError },
    #[error("no destination that answers, nor the buffer, holds what {0} is made of")]
    NoInputs(String),
    #[error(
        "making {what} needs about {needed} bytes on the hub's disk, {free} are free; make room there, walhub goes on by \
         itself then"
    )]
    NoRoom { what: String, needed: u64, free: u64 },
    #[error("internal error of the hub: {0}")]
    Internal(String),
}
