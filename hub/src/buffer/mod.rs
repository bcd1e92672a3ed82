//! The hub's durable buffer: where a segment must lie before the hub acks it.
//!
//! # Contract (every implementation passes the same suite)
//! - One writer path, many readers. [`WalBuffer::append`] returns only after the fsync that covers the chunk (for all
//!   chunks but a segment's last it may return earlier: a segment without its last chunk does not exist).
//! - Segments of one database are contiguous: the caller ([`crate::ingest`]) decides next/duplicate/gap/fork; the buffer
//!   checks `pre` and `min` once more against its own position and refuses a violation as a bug.
//! - What was appended is readable in order, until it is trimmed; trimming never passes a cursor.
//! - A database moves forward by its segments, or by a position that is adopted from a destination: a hub that lost its
//!   disk, or came back with an old one, goes on where its copies end.
//! - When it is at its bound it refuses more ([`WhenFull::Block`]), or makes room at the expense of restore points
//!   ([`WhenFull::Squash`]): never at the expense of what a position promises. Either way it never takes more than its
//!   bound.
//! - After a crash at any instant the buffer reopens with every acknowledged segment, and no half of an unfinished one.
//! - A segment's bytes may lie outside of the log ([`Payloads`]). Once they were given back, it counts as trimmed.
//!
//! Non-goals: no knowledge of destinations beyond the names of cursors; no LTX parsing.

mod cursor;
pub mod disk;
mod failure;
mod flusher;
mod index;
pub mod log;
pub mod memory;
mod registry;
mod rewrite;
mod room;
pub mod squash;
mod tail;
mod trim;
mod waiting;

#[cfg(any(test, feature = "testutil"))]
pub mod contract;
#[cfg(any(test, feature = "testutil"))]
pub mod full;
#[cfg(any(test, feature = "testutil"))]
pub mod model;

use async_trait::async_trait;
use bytes::Bytes;
pub use squash::{GivenUp, WhenFull};
use std::io::Read;
use std::sync::Arc;
use tokio::sync::watch;
use walhub_common::{Checksum, DatabaseKey, DestinationName, Pos, Txid, TxidRange};

/// Number of a database inside this hub's buffer; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatabaseId(pub u64);

/// What the buffer knows of one database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Its number here.
    pub id: DatabaseId,
    /// Its name.
    pub key: DatabaseKey,
    /// Identity of its history, never 0.
    pub lineage: u64,
    /// Buffered position: everything up to here is on disk.
    pub position: Option<Pos>,
    /// Hub time of that position, Unix ms; 0 when there is none.
    pub time_ms: i64,
    /// Path on the node, as last announced.
    pub path: String,
}

/// Facts of one segment, equal in all its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentMeta {
    /// Transactions.
    pub range: TxidRange,
    /// Database checksum before; `None` when the segment starts a history (min TXID 1).
    pub pre: Option<Checksum>,
    /// Database checksum after.
    pub post: Checksum,
    /// Hub time, Unix ms, never smaller than that of the segment before.
    pub time_ms: i64,
    /// Agent time, Unix ms: recorded, not trusted.
    pub agent_time_ms: i64,
}

/// One piece of a segment on its way in.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Its database.
    pub database: DatabaseId,
    /// The segment.
    pub meta: SegmentMeta,
    /// From 0.
    pub number: u32,
    /// True for the last one.
    pub last: bool,
    /// LTX bytes.
    pub data: Bytes,
}

/// A buffered segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentRef {
    /// Its facts.
    pub meta: SegmentMeta,
    /// LTX bytes in all.
    pub bytes: u64,
    /// Where it lies (opaque to callers).
    pub place: Place,
}

/// Where a segment's chunks lie in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Log file and byte offset of the first chunk's record.
    pub first: (u64, u64),
    /// Log file and byte offset of the last chunk's record.
    pub last: (u64, u64),
    /// Number of chunks.
    pub chunks: u32,
}

/// What went wrong in the buffer.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The bound of the buffer is reached and nothing may be trimmed.
    #[error("the buffer is full: {used} of {max} bytes wait for a destination")]
    Full {
        /// Bytes in use.
        used: u64,
        /// The bound.
        max: u64,
    },
    /// The caller broke the order of a database's segments.
    #[error("segment {range:?} does not follow {position:?} of {database:?}")]
    OutOfOrder {
        /// Which database.
        database: DatabaseId,
        /// What came.
        range: TxidRange,
        /// Where the buffer stands.
        position: Option<Pos>,
    },
    /// A segment that can never pass.
    #[error(
        "a segment of {bytes} bytes or more cannot pass: the hub's buffer takes segments of at most {max} bytes; raise \
         buffer.max-bytes"
    )]
    SegmentTooLarge {
        /// Bytes that have come, with those refused.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Another process holds the data folder.
    #[error("another hub uses {0}")]
    InUse(std::path::PathBuf),
    /// A chunk is larger than [`walhub_common::limits::MAX_CHUNK_BYTES`].
    #[error("a chunk of {0} bytes is too large")]
    TooLarge(usize),
    /// No such database.
    #[error("database {0:?} is not registered")]
    UnknownDatabase(DatabaseId),
    /// The segment is no longer in the buffer.
    #[error("transaction {txid} of {database:?} has been trimmed from the buffer")]
    Trimmed {
        /// Which database.
        database: DatabaseId,
        /// The first missing transaction.
        txid: Txid,
    },
    /// A record's bytes are not what was written.
    #[error("buffer file {file} is corrupt at byte {offset}: {reason}")]
    Corrupt {
        /// Log file.
        file: u64,
        /// Byte offset.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The disk failed. After a failed fsync the buffer takes nothing more until it is reopened.
    #[error("buffer {doing}: {source}")]
    Io {
        /// The step.
        doing: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The index could not be read or written.
    #[error("buffer index: {0}")]
    Index(String),
    /// The buffer is shutting down.
    #[error("the buffer is closed")]
    Closed,
}

/// What a buffer of a certain size does with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bounds {
    /// Bytes that are never passed.
    max: u64,
    /// New segments are taken up to here; the rest is kept for segments that are written once more to make room.
    take: u64,
    /// The largest segment.
    segment: u64,
    /// When room is made at the expense of restore points, it is made down to here.
    low: u64,
}

impl Bounds {
    fn of(max: u64) -> Self {
        Self { max, take: max / 8 * 7, segment: max / 4 * 3, low: max / 4 * 3 }
    }
}

/// Data of a segment whose LTX bytes lie outside of the log: see [`Payloads`]. Shorter than any LTX file.
pub const OUTSIDE: &[u8] = b"sealed";

/// Where LTX bytes lie that are not in the log: those of segments whose only chunk holds [`OUTSIDE`].
pub trait Payloads: Send + Sync + std::fmt::Debug {
    /// LTX bytes of the segment; `None` when they were given back.
    fn bytes(&self, database: DatabaseId, range: TxidRange) -> Option<u64>;

    /// The LTX bytes; `None` when they were given back. They stay readable while the reader lives. Blocking.
    fn open(&self, database: DatabaseId, range: TxidRange) -> std::io::Result<Option<Box<dyn Read + Send>>>;
}

/// Bytes in use and counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes of log files on disk.
    pub bytes: u64,
    /// The bound.
    pub max_bytes: u64,
    /// Segments appended since open.
    pub segments: u64,
    /// Segment bytes appended since open.
    pub segment_bytes: u64,
    /// fsyncs since open.
    pub syncs: u64,
    /// The last append found no room.
    pub full: bool,
    /// Appends that found no room since open.
    pub refused: u64,
    /// Segments that were merged to make room since open.
    pub squashed: u64,
}

/// The lineage of a new database: the one asked for, else a random one; never 0.
fn lineage_for(asked: Option<u64>) -> u64 {
    asked.filter(|lineage| *lineage != 0).unwrap_or_else(|| rand::random_range(1..=u64::MAX))
}

/// Which lanes must have taken a database's segments before they may be given back.
pub trait Takers: Send + Sync + std::fmt::Debug {
    /// The lanes of `database`. None at all: nobody has copied it, nothing of it may go.
    fn of(&self, database: DatabaseId) -> Arc<[DestinationName]>;

    /// Another number whenever an answer may have changed.
    fn revision(&self) -> u64;

    /// True when what `lane` has taken can be had from there: another lane that lacks it may be brought up from there.
    fn answers(&self, lane: &DestinationName) -> bool {
        let _ = lane;
        false
    }

    /// Runs of transactions of `database` that stay whatever lanes have taken; the end of each stays a restore point.
    fn kept(&self, database: DatabaseId) -> Vec<TxidRange> {
        let _ = database;
        Vec::new()
    }

    /// Without the room that kept runs take, more would have to be refused: nothing is kept from now on.
    fn give_up_kept(&self) {}
}

/// Whether a segment of these transactions is part of a run that stays.
fn is_kept(runs: &[TxidRange], range: TxidRange) -> bool {
    runs.iter().any(|&run| run.min() <= range.max() && range.min() <= run.max())
}

/// The same lanes for every database.
#[derive(Clone, Debug)]
pub struct EveryDatabase(Arc<[DestinationName]>);

impl EveryDatabase {
    /// These lanes.
    pub fn by(lanes: &[DestinationName]) -> Arc<dyn Takers> {
        Arc::new(Self(lanes.into()))
    }
}

impl Takers for EveryDatabase {
    fn of(&self, _: DatabaseId) -> Arc<[DestinationName]> {
        self.0.clone()
    }

    fn revision(&self) -> u64 {
        0
    }
}

/// The seam. See the module doc for the contract.
#[async_trait]
pub trait WalBuffer: Send + Sync {
    /// Registers a database or finds it again. `lineage` is adopted by a new database; `None` draws one. Durable when
    /// it returns.
    async fn register(
        &self,
        key: &DatabaseKey,
        lineage: Option<u64>,
        path: &str,
    ) -> Result<Registered, BufferError>;

    /// Moves a database forward to a position that a destination holds, without the segments that lead there: what is
    /// read and listed of it has a hole then. Durable when it returns. Refused as [`BufferError::OutOfOrder`] when the
    /// database stands there or further, or while anything of it is under way.
    async fn adopt(
        &self,
        database: DatabaseId,
        position: Pos,
        time_ms: i64,
    ) -> Result<Registered, BufferError>;

    /// One database by name.
    fn find(&self, key: &DatabaseKey) -> Option<Registered>;

    /// All databases, by name.
    fn databases(&self) -> Vec<Registered>;

    /// Appends a chunk. For the last chunk of a segment: returns after the fsync that covers the whole segment, which
    /// then is the database's position. Cancelling the future leaves it unknown whether the chunk was written.
    ///
    /// Calls for one database take effect in the order in which their futures were first polled, so a caller may have
    /// many of them under way and one fsync covers all. When one fails, those behind it of the same database fail too.
    /// Chunk 0 starts a segment and drops an unfinished one. After `Full` the same chunk may be tried again.
    async fn append(&self, chunk: Chunk) -> Result<(), BufferError>;

    /// Drops an unfinished segment of `database`, if any.
    async fn abandon(&self, database: DatabaseId) -> Result<(), BufferError>;

    /// Segments of `database` that start after `after`, in order, contiguous, at most `max_bytes` of LTX (but at least
    /// one segment if there is any). `Trimmed` when no segment held starts with the next transaction: it is gone, or
    /// `after` lies inside a segment. Empty when `after` is the position, or past it.
    fn read(
        &self,
        database: DatabaseId,
        after: Option<Txid>,
        max_bytes: u64,
    ) -> Result<Vec<SegmentRef>, BufferError>;

    /// All segments of `database` still here, in order, at most `max` of them, starting after `after`; unlike
    /// [`WalBuffer::read`] it starts at the oldest one held when `after` lies before it.
    fn list(
        &self,
        database: DatabaseId,
        after: Option<Txid>,
        max: usize,
    ) -> Result<Vec<SegmentRef>, BufferError>;

    /// The segment that `txid` lies in, if it is here.
    fn covering(&self, database: DatabaseId, txid: Txid) -> Result<Option<SegmentRef>, BufferError>;

    /// The LTX bytes of a segment. Blocking reads; every record's checksum is verified. The bytes stay readable while
    /// the reader lives.
    fn open(&self, database: DatabaseId, segment: &SegmentRef) -> Result<Box<dyn Read + Send>, BufferError>;

    /// Up to where `lane` has taken `database`.
    fn cursor(&self, lane: &DestinationName, database: DatabaseId) -> Option<Txid>;

    /// Moves a cursor, forwards or back. Not synced: after a crash it may be older, never newer.
    fn set_cursor(&self, lane: &DestinationName, database: DatabaseId, txid: Txid)
    -> Result<(), BufferError>;

    /// `lane` has taken nothing of `database` any more. Not synced: a crash soon after may bring the cursor back.
    fn clear_cursor(&self, lane: &DestinationName, database: DatabaseId) -> Result<(), BufferError>;

    /// Changes whenever a segment became durable (the value only counts).
    fn changed(&self) -> watch::Receiver<u64>;

    /// Gives back log files that every one of `takers` has passed, oldest first, while the buffer is over the mark
    /// at which it wants room. They are remembered, for an append that finds the buffer at its bound. A lane without a
    /// cursor for a database has passed none of it.
    async fn trim(&self, takers: Arc<dyn Takers>) -> Result<(), BufferError>;

    /// Bytes and counters.
    fn usage(&self) -> Usage;

    /// What making room has cost `database` since the buffer was opened.
    fn given_up(&self, database: DatabaseId) -> GivenUp;

    /// Flushes and closes; later calls answer `Closed`.
    async fn close(&self) -> Result<(), BufferError>;
}
