//! Places that keep copies.
//!
//! # Contract (every destination passes the same suite against its real server)
//! - [`Destination::put`] is atomic, durable and create-only: afterwards the file is complete or absent; an existing
//!   file is never changed. An existing file of equal content is success ([`Put::AlreadyThere`]); other content is
//!   [`Fault::Conflict`]. So a put whose outcome is unknown may simply be repeated.
//! - [`Destination::list`] shows every completed put, sorted by range; unknown names are ignored.
//! - Every call ends soon after its token is cancelled; then it is unknown whether a put happened, never whether it was
//!   half. Dropping the future instead may leave a temporary file or an unfinished upload behind, until the next start.
//! - Paths and bytes are exactly Litestream's (module [`walhub_common::ltx::name`]).
//! - Deleting what is not there is success. A delete that fails may have deleted some of what it was given; it may be
//!   repeated.
//! - Objects that are no LTX files (module [`object`]) are kept apart from them: no listing of files shows one.
//!
//! Non-goals: no retry, no schedule (the lanes own both), no buffer.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{Checksum, DatabaseKey, DestinationName, Level, TxidRange};

mod bucket;
pub mod check;
pub mod cloud;
pub mod config;
#[cfg(any(test, feature = "testutil"))]
pub mod contract;
pub mod error;
#[cfg(any(test, feature = "testutil"))]
pub mod faulty;
pub mod file;
pub mod limited;
pub mod object;
pub mod s3;
mod source;
pub mod url;

pub use config::DestinationConfig;
pub use error::{DestinationError, Fault};
pub use object::{ListedObject, ObjectPath, PutMode};

/// Bytes of a file or an object on their way in, in order, in pieces of any size.
pub type ByteStream = BoxStream<'static, Result<Bytes, DestinationError>>;

/// Names one LTX file of one database.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileKey {
    /// Its database.
    pub database: DatabaseKey,
    /// Its level.
    pub level: Level,
    /// Its transactions.
    pub range: TxidRange,
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} level {} file {}", self.database, self.level, self.range)
    }
}

/// One listed LTX file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its level.
    pub level: Level,
    /// Its transactions.
    pub range: TxidRange,
    /// Bytes.
    pub size: u64,
    /// Time of its newest transaction, Unix ms, as far as a listing tells (a file's mtime; an object's LastModified).
    pub time_ms: i64,
}

/// The bytes of a put.
#[derive(Clone, Debug)]
pub enum Body {
    /// Small: in memory.
    Bytes(Bytes),
    /// Large: a local file, which the put neither changes nor removes. The caller must not change its bytes; it may
    /// remove it once the put has returned.
    File(std::path::PathBuf),
}

/// What a put did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// The file was created.
    Created,
    /// An equal file was there already (an earlier attempt had succeeded).
    AlreadyThere,
}

/// Facts sent along with a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PutMeta {
    /// Time of the newest transaction, Unix ms: the file's mtime, or the object's `litestream-timestamp`.
    pub time_ms: i64,
    /// Database checksum after the file.
    pub post: Option<Checksum>,
}

/// The seam. See the module doc for the contract.
#[async_trait]
pub trait Destination: Send + Sync + std::fmt::Debug {
    /// Name in the configuration.
    fn name(&self) -> &DestinationName;

    /// `file`, `s3`, `gcs`, `abs`.
    fn kind(&self) -> &'static str;

    /// Path or bucket and prefix, for people; no secrets.
    fn location(&self) -> String;

    /// The packs of a destination that keeps new files in packs.
    fn packs(&self) -> Option<&crate::pack::PackedDestination> {
        None
    }

    /// Stores a file: see the contract.
    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError>;

    /// All files of one level of a database, sorted by (min, max).
    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError>;

    /// All files of a database, sorted by level and range. An object store answers in one request per thousand files, where a
    /// listing of each level would take ten.
    async fn list_all(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let mut all = Vec::new();
        for level in Level::all() {
            all.extend(self.list(database, level, cancel).await?);
        }
        Ok(all)
    }

    /// The bytes of a file in `range`, in one request and one piece of memory; what of it lies past the file's end is
    /// left out.
    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError>;

    /// The first `length` bytes of a file, fewer when it is shorter: enough for its header, at the price of one small
    /// request.
    async fn read_start(
        &self,
        key: &FileKey,
        length: usize,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.read_at(key, 0..length.max(1) as u64, cancel).await
    }

    /// A file's bytes from `offset` on, in order, in pieces of any size; none when `offset` is at its end or behind it.
    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError>;

    /// Deletes files; those that are not there are no fault. Many go in one request where the destination can do that.
    /// [`Fault::Locked`]: the lock of an object, or a legal hold, forbids it for at least one; all others are gone then.
    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError>;

    /// The databases that have at least one LTX file here, sorted. Expensive: about a request per database.
    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError>;

    /// Stores an object: with [`PutMode::Create`] exactly as a file is put, with [`PutMode::Replace`] whatever is there.
    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError>;

    /// An object's bytes of `range`, whose end may be `u64::MAX`; what of it lies past the object's end is left out.
    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError>;

    /// The last `bytes` bytes of an object, all of it when it is shorter, in one request ([`object::collect`] joins
    /// them).
    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError>;

    /// One page (one request, [`object::PAGE_ENTRIES`] entries at most) of the objects below `folder`, at any depth:
    /// those whose path comes after `after` in byte order, sorted. A page without entries is the end. An object put
    /// meanwhile may be missing; every other one is there.
    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError>;

    /// Deletes objects, as [`Destination::delete`] does files.
    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError>;

    /// Proves that the destination can be written, read, listed, and that its fence (create-only puts) works; leaves
    /// nothing behind.
    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError>;
}

/// A destination behind a pointer.
pub type DynDestination = Arc<dyn Destination>;
