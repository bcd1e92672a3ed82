//! What can be wrong with an LTX file.

use crate::{Pgno, TxidRange};

/// A file that is not the LTX it should be, or a stream that broke.
#[derive(Debug, thiserror::Error)]
pub enum LtxError {
    /// The header breaks a rule of the format.
    #[error("ltx header: {0}")]
    Header(&'static str),
    /// A page frame breaks a rule of the format.
    #[error("ltx page {pgno}: {reason}")]
    Page {
        /// Page number as read.
        pgno: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// The page index does not describe the frames that were read.
    #[error("ltx page index does not match the pages")]
    Index,
    /// The trailer breaks a rule of the format.
    #[error("ltx trailer: {0}")]
    Trailer(&'static str),
    /// The bytes were changed.
    #[error("ltx file checksum is {found:016x}, the content gives {computed:016x}")]
    Checksum {
        /// As stored.
        found: u64,
        /// As computed.
        computed: u64,
    },
    /// The file ends early.
    #[error("ltx file ends in the middle")]
    Truncated,
    /// Bytes follow the trailer.
    #[error("ltx file has bytes after its trailer")]
    TrailingBytes,
    /// The file is larger than a limit.
    #[error("ltx file exceeds {what} of {limit}")]
    TooLarge {
        /// Which limit.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Files to merge are of two page sizes: the application changed it in between.
    #[error("the page size changes between the files of {first} and {second}")]
    PageSizeChange {
        /// Of one size.
        first: TxidRange,
        /// The next, of another.
        second: TxidRange,
    },
    /// Files that do not form one run of one database.
    #[error("ltx files cannot be merged: {reason} ({first:?}, {second:?})")]
    Merge {
        /// What does not fit.
        reason: &'static str,
        /// The older file.
        first: TxidRange,
        /// The newer file.
        second: TxidRange,
    },
    /// The encoder was used against the rules of the format.
    #[error("cannot encode page {pgno:?}: {reason}")]
    Encode {
        /// Page in question.
        pgno: Option<Pgno>,
        /// The rule.
        reason: &'static str,
    },
    /// The stream below failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl LtxError {
    /// A short read is a truncated file, anything else stays an I/O error.
    pub(crate) fn from_read(error: std::io::Error) -> LtxError {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => LtxError::Truncated,
            _ => LtxError::Io(error),
        }
    }
}
