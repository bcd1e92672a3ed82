//! Why a database cannot be captured, now or any more.

use super::holders::Holders;
use crate::page_map::store::StateError;
use crate::page_map::{MissingPage, Unapplied};
use rusqlite::ffi;
use std::io;
use walhub_common::ltx::LtxError;
use walhub_common::wal::{FrameNo, HeaderError, Stop};
use walhub_common::{Pgno, Pos, Txid};

/// The database is not there, or not in a state that can be captured. Nothing is wrong with the agent; try again when
/// something about the files changed, and now and then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// No file.
    #[error("the file does not exist; it is picked up when it is created")]
    Missing,
    /// A file without content, as SQLite leaves it before the first table is made.
    #[error("the file is empty; it is picked up when the application has made it a WAL database")]
    Empty,
    /// A file that is no database.
    #[error("the file is not a SQLite database (or it is encrypted); check the path")]
    NotADatabase,
    /// A database in another journal mode.
    #[error("journal mode is {journal_mode}, not WAL; run PRAGMA journal_mode=WAL once in the application")]
    NotWal {
        /// What the header of the file says.
        journal_mode: &'static str,
    },
    /// Rights are missing.
    #[error(
        "no permission: {0}; the agent needs to read and write the file, its -wal, its -shm and their folder"
    )]
    Permission(String),
    /// The application keeps everybody out.
    #[error("the application holds it in locking_mode=EXCLUSIVE; it is picked up when that ends")]
    Exclusive,
    /// The checkpoint lock is held.
    #[error(
        "its checkpoint lock is held by {0}: another agent follows it, or a very long checkpoint runs; one agent alone can \
         follow a database, so take it out of the other one's configuration"
    )]
    TakenByAnotherAgent(Holders),
    /// Anything else the system says.
    #[error("{0}")]
    Io(String),
}

/// Why an attach failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not now.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// The agent's own state or machine.
    #[error(transparent)]
    Failed(#[from] CaptureError),
}

/// A promise of the protocol that did not hold. The capture lets go of its place in the WAL by itself; a heal makes the
/// replica right again. It should never happen and must be reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// I1: somebody else copied frames into the database although this process owns the checkpoint lock.
    #[error("I1: frames up to {found} were backfilled, only {known} by this agent")]
    ForeignBackfill {
        /// Known to be backfilled.
        known: FrameNo,
        /// What the wal-index says.
        found: FrameNo,
    },
    /// I2: the log restarted although frames after the captured ones were never backfilled by us, or not to the end.
    #[error("I2: the log restarted at frame {captured}, of which {backfilled} were backfilled")]
    Restart {
        /// Last captured frame.
        captured: FrameNo,
        /// Last backfilled frame.
        backfilled: FrameNo,
    },
    /// I3: the lock that keeps the WAL alive is gone.
    #[error("I3: the shared lock on the database is gone")]
    SharedLock,
    /// I4: a published frame does not continue the chain.
    #[error("I4: {0}")]
    Chain(#[from] Stop),
    /// I4: the chain verifies but is not the one that was published.
    #[error("I4: the running checksum at frame {0} is not the published one")]
    Published(FrameNo),
    /// I4: the published end is in the middle of a transaction, or the file ends before it.
    #[error("I4: the log has no whole transaction up to the published frame {0}")]
    NoCommit(FrameNo),
    /// I5: the file header is not that of the published generation.
    #[error("I5: the header of the log: {0}")]
    LogHeader(#[from] HeaderError),
    /// I5: the file header is of another generation or page size.
    #[error("I5: the header of the log is of another generation")]
    OtherGeneration,
    /// I6: SQLite counted more commits than were captured.
    #[error("I6: SQLite counted {counted} commits, {captured} were captured")]
    Commits {
        /// By the wal-index.
        counted: u32,
        /// By us.
        captured: u32,
    },
    /// I8: frames were backfilled beyond the saved page map.
    #[error("I8: frames up to {backfilled} were backfilled, the page map was saved at {saved}")]
    Unsaved {
        /// Backfilled.
        backfilled: FrameNo,
        /// Saved.
        saved: FrameNo,
    },
    /// A page that was read twice within one operation was not the same.
    #[error("page {0} changed while it was read")]
    UnstablePage(Pgno),
    /// The growth rule of I7.
    #[error("I7: {0}")]
    Growth(#[from] MissingPage),
}

/// What can go wrong while a database is captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// SQLite or the file system below it.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// The page map cannot be saved or read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The sink refused; nothing moved, the same call gives the same segment again.
    #[error("sink: {0}")]
    Sink(#[source] io::Error),
    /// The scratch file of a first snapshot, or of a large page map.
    #[error("the scratch file in the state folder: {0}")]
    Staged(#[source] io::Error),
    /// A segment could not be encoded or read.
    #[error(transparent)]
    Ltx(LtxError),
    /// A promise of the protocol did not hold; see [`Broken`].
    #[error("capture invariant broken: {0}")]
    Broken(Broken),
    /// The wal-index is torn and the writer lock needed to repair it is taken. Passes by itself.
    #[error("the wal-index is torn and cannot be repaired yet")]
    Torn,
    /// The checkpoint lock was given back: reclaim it first.
    #[error("the database is paused")]
    Yielded,
    /// The path leads to another file now: detach and attach again.
    #[error("the database file was replaced or removed")]
    Moved,
    /// The hub's position is not behind: there is no delta to it.
    #[error("no delta from {hub:?} to {position:?}")]
    NoDelta {
        /// The hub's.
        hub: Option<Pos>,
        /// Ours.
        position: Option<Pos>,
    },
    /// A heal needs a page map.
    #[error("there is no page map to compare with")]
    NoPageMap,
    /// Page checksums of the hub do not continue the page map.
    #[error("cannot roll forward from {position:?}: {reason}")]
    RollForward {
        /// Last transaction of the page map.
        position: Option<Txid>,
        /// What does not fit.
        reason: String,
    },
    /// The pages that the hub changed since our position do not lead from there to its own.
    #[error("the history that the hub holds up to {hub} does not go through {ours}, where this node stands")]
    OtherHistory {
        /// Ours.
        ours: Pos,
        /// The hub's.
        hub: Pos,
    },
}

impl From<Broken> for CaptureError {
    fn from(broken: Broken) -> Self {
        CaptureError::Broken(broken)
    }
}

impl From<Unapplied> for CaptureError {
    fn from(unapplied: Unapplied) -> Self {
        match unapplied {
            Unapplied::Missing(page) => CaptureError::Broken(Broken::Growth(page)),
            Unapplied::Scratch(error) => CaptureError::Staged(error),
        }
    }
}

impl From<Stop> for CaptureError {
    fn from(stop: Stop) -> Self {
        CaptureError::Broken(stop.into())
    }
}

/// A call into SQLite that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{action}: {message} (sqlite code {code})")]
pub struct SqliteError {
    /// What was tried.
    pub action: &'static str,
    /// Extended result code.
    pub code: i32,
    /// SQLite's words.
    pub message: String,
}

impl SqliteError {
    pub(super) fn new(action: &'static str, code: i32) -> Self {
        Self { action, code, message: ffi::code_to_str(code).to_owned() }
    }

    pub(super) fn from_rusqlite(action: &'static str, error: &rusqlite::Error) -> Self {
        let code = error.sqlite_error().map_or(ffi::SQLITE_ERROR, |e| e.extended_code);
        Self { action, code, message: error.to_string() }
    }

    /// The primary result code, such as `SQLITE_BUSY`.
    pub fn primary(&self) -> i32 {
        self.code & 0xff
    }

    /// Somebody else holds a lock; trying again later may work.
    pub fn is_busy(&self) -> bool {
        matches!(self.primary(), ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_PROTOCOL)
    }

    /// Rights are missing.
    pub fn is_permission(&self) -> bool {
        matches!(
            self.primary(),
            ffi::SQLITE_PERM | ffi::SQLITE_READONLY | ffi::SQLITE_CANTOPEN | ffi::SQLITE_AUTH
        )
    }

    /// The file holds no database.
    pub fn is_not_a_database(&self) -> bool {
        matches!(self.primary(), ffi::SQLITE_NOTADB | ffi::SQLITE_CORRUPT)
    }
}
