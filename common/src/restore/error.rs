//! What can stop a restore, each with what to do about it.

use crate::ltx::LtxError;
use crate::{Checksum, Txid};
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no restored database. Unless said otherwise the temporary file is gone and the output untouched.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The output exists and must not be replaced.
    #[error("{} already exists: choose another output, or allow it to be overwritten", .0.display())]
    Exists(PathBuf),
    /// A log or journal beside the output would be replayed into the restored database.
    #[error(
        "{} exists: SQLite would apply it to the restored database; end the application that uses it, then move it away",
        .0.display()
    )]
    Companion(PathBuf),
    /// A process has the output open, and would go on writing to what is about to be replaced.
    #[error("{} is open in {process}: end it, or choose another output", path.display())]
    InUse {
        /// The output.
        path: PathBuf,
        /// Which process.
        process: String,
    },
    /// A page came that the database does not have, or that was there.
    #[error("page {0} came twice, or is none of this database: the stream of pages is damaged; try again")]
    Unexpected(u32),
    /// A page does not expand.
    #[error("page {0} is damaged where it was read from")]
    Block(u32),
    /// What the caller wanted to be true of the image is not.
    #[error("the database is the one of the source, but {0}; it was not given its name")]
    Check(String),
    /// Somebody else writes the same output.
    #[error("{} is locked: another restore into this output is running; wait for it, or end it", .0.display())]
    Busy(PathBuf),
    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is damaged, or its stream broke.
    #[error("{name}: {source}{}", advice(source))]
    Input {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: LtxError,
    },
    /// The file does not continue those before it.
    #[error(
        "{name} holds transactions {min} to {max}, but the one after {last} is needed: a file between them is missing"
    )]
    Gap {
        /// The file.
        name: String,
        /// Its first transaction.
        min: Txid,
        /// Its last transaction.
        max: Txid,
        /// Last transaction applied.
        last: Txid,
    },
    /// The file needs a page that nobody brought.
    #[error(
        "{name} needs page {pgno}, which is neither in it nor in a file before it: start from an earlier snapshot"
    )]
    MissingPage {
        /// The file.
        name: String,
        /// The page.
        pgno: u32,
    },
    /// The image is not the one that was captured.
    #[error(
        "the database is not what it was at the source {place}: checksum {found} instead of {expected}; do not use it, restore from another destination or to another time"
    )]
    Mismatch {
        /// Before or after which transaction of which file.
        place: String,
        /// At the source.
        expected: Checksum,
        /// Of the image.
        found: Checksum,
    },
    /// No file was applied, or they end with a database without pages.
    #[error("the files hold no pages: there is nothing to restore")]
    Empty,
    /// The applier was used after an error.
    #[error("an earlier file could not be applied")]
    Abandoned,
}

impl RestoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
        let path = path.to_owned();
        move |source| RestoreError::Io { action, path, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room, or choose another output",
        io::ErrorKind::PermissionDenied => "; run as a user who may write there, or choose another output",
        io::ErrorKind::ReadOnlyFilesystem => "; choose another output",
        _ => "",
    }
}

fn advice(error: &LtxError) -> &'static str {
    match error {
        LtxError::Io(_) => "; try again",
        _ => "; restore from another destination",
    }
}
