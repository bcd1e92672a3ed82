//! Builds a database file and proves that it is the one that was captured.
//!
//! A [`PageSink`] takes compressed pages in any order, each once: the way of every restore ([`fill`](fill::fill)). An [`Applier`] takes whole LTX
//! files oldest first, for histories whose pages nobody has sorted out (imports). Both write into
//! `<output>.walhub-restore.tmp`, and only after everything verified the file gets its final name.
//!
//! Invariants
//! - The output name never holds a partial or unverified database, whatever fails and whenever the process dies.
//! - Files for an [`Applier`] must form one unbroken run of one database; a growing database must bring every new page.
//! - The database checksum is computed from the very pages that were written; it is compared after every file that
//!   knows it and at the end with what the caller expects. A difference is an error.
//! - Memory: a bit for each page of the database (an [`Applier`]: 8 bytes) and a few batches of pages, whatever is claimed.
//!
//! Threads: the caller's reads, expands and checks the file, a second sums and writes pages, a third syncs meanwhile.
//!
//! Non-goals: which files to take is planned elsewhere; no network, no async.

mod applier;
mod delta;
#[cfg(test)]
mod delta_tests;
mod error;
pub mod feed;
pub mod fill;
pub mod frames;
mod held;
mod image_file;
mod in_use;
mod journal;
mod output;
pub mod sink;
#[cfg(test)]
mod sink_tests;
mod syncer;
#[cfg(test)]
mod tests;
mod workers;
mod writer;

pub use applier::Applier;
pub use delta::Delta;
pub use error::RestoreError;
pub use fill::{Unfilled, fill};
pub use in_use::holder;
pub use sink::{PageSender, PageSink, Point};

use crate::{Checksum, PageSize, Pos, TxidRange};
use std::path::PathBuf;

/// How far a restore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Files applied to their end.
    pub files: u64,
    /// Bytes of LTX read.
    pub bytes_in: u64,
    /// Pages handed to the disk; a page that many files hold counts each time.
    pub pages_written: u64,
}

/// Against what the restored image was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// Equal to the database checksum taken at the source.
    Source,
    /// Every file was whole, but nobody recorded a database checksum: the files were not written by walhub.
    FilesOnly,
}

/// What a restore made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The database file.
    pub path: PathBuf,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages of the database.
    pub pages: u32,
    /// Length of the file.
    pub bytes: u64,
    /// Transactions that went into it, from the first file's first to the last file's last.
    pub range: TxidRange,
    /// Time of the newest transaction, Unix ms, as its file states it.
    pub timestamp_ms: i64,
    /// Database checksum of the image.
    pub checksum: Checksum,
    /// What the checksum was held against.
    pub proof: Proof,
    /// Totals.
    pub progress: Progress,
}

impl Report {
    /// The position the image stands at.
    pub fn position(&self) -> Pos {
        Pos { txid: self.range.max(), checksum: self.checksum }
    }
}
