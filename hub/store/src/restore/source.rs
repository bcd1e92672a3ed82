//! Where files of a restore are read from: a destination, or the hub's own buffer (which the hub adapts itself).

use crate::destinations::{DestinationError, DynDestination, FileKey, Listed};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName};

/// Name of a destination, or [`BUFFER`].
pub type SourceName = DestinationName;

/// Name of the hub's buffer as a source; no destination may be called so.
pub const BUFFER: &str = "buffer";

/// A place that files can be read from.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Its name in plans and errors.
    fn name(&self) -> &SourceName;

    /// True when the times of [`Source::list`] are those of the transactions, so that no header need be read.
    fn lists_exact_times(&self) -> bool;

    /// All files of a database, of every level.
    async fn list(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError>;

    /// What a request to it costs, and how fast it answers, as far as its kind tells (`file`, `s3`, `gcs`, `abs`).
    fn kind(&self) -> &'static str;

    /// True when a part of a large file costs about what the part is long. Others are read from front to back.
    fn ranged(&self) -> bool {
        true
    }

    /// See [`crate::destinations::Destination::read_at`].
    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError>;

    /// See [`crate::destinations::Destination::open`].
    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError>;
}

/// A source behind a pointer.
pub type DynSource = Arc<dyn Source>;

/// A destination as a source.
#[derive(Debug, Clone)]
pub struct DestinationSource(pub DynDestination);

#[async_trait]
impl Source for DestinationSource {
    fn name(&self) -> &SourceName {
        self.0.name()
    }

    fn lists_exact_times(&self) -> bool {
        // A bucket lists upload times, and a folder that was copied may have lost its own.
        false
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.0.list_all(database, cancel).await
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.0.read_at(key, range, cancel).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        self.0.open(key, offset, cancel).await
    }
}
