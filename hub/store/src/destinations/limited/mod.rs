//! A decorator that keeps any destination within limits: requests per second, bytes sent per second; and that counts
//! its requests, so that whoever schedules work can keep to a day's budget.
//!
//! Bodies are sent whole: a file larger than a second's worth of bytes goes at full speed, and what follows waits until the
//! average is right again. Requests are counted as calls are known to make them; a server that answers late is asked again
//! by nobody here.
//!
//! Non-goal: refusing anything. A restore may need what a budget no longer allows.

mod meter;
mod pacer;

pub use meter::{Day, Kind, Meter, Requests, left_of_day};

use super::error::{Context, Operation};
use super::source::Source;
use super::{
    Body, ByteStream, Destination, DestinationError, DynDestination, Fault, FileKey, Listed, ListedObject,
    ObjectPath, Put, PutMeta, PutMode,
};
use async_trait::async_trait;
use bytes::Bytes;
use pacer::Pacer;
use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level, clock};

/// Bodies larger than this go in parts of about this size, each of them a request.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Names in one page of a listing, and in one deletion.
const PAGE: u64 = 1000;

/// Limits; `None` is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Requests per second, on average.
    pub requests_per_second: Option<u64>,
    /// Bytes sent per second, on average.
    pub upload_per_second: Option<u64>,
}

/// See the module doc.
#[derive(Debug)]
pub struct Limited {
    inner: DynDestination,
    meter: Arc<Meter>,
    requests: Option<Mutex<Pacer>>,
    bytes: Option<Mutex<Pacer>>,
}

impl Limited {
    /// Wraps `inner`; its requests are counted by `meter`.
    pub fn new(inner: DynDestination, limits: Limits, meter: Arc<Meter>) -> Self {
        let pacer = |per_second: Option<u64>| per_second.map(|rate| Mutex::new(Pacer::new(rate)));
        let (requests, bytes) = (pacer(limits.requests_per_second), pacer(limits.upload_per_second));
        Self { inner, meter, requests, bytes }
    }

    fn count(&self, kind: Kind, requests: u64) {
        self.meter.count(kind, requests, clock::now_ms());
    }

    /// Counts requests that are to be sent, and waits until they may be.
    async fn enter(
        &self,
        operation: Operation,
        subject: impl Display + Send,
        (kind, requests): (Kind, u64),
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let sent = if bytes == 0 { Duration::ZERO } else { pace(self.bytes.as_ref(), bytes) };
        let wait = pace(self.requests.as_ref(), requests).max(sent);
        if !wait.is_zero() {
            let cancelled = || Context::new(self.inner.name(), operation, &subject).error(Fault::Cancelled);
            tokio::select! {
                () = cancel.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.count(kind, requests);
        Ok(())
    }

    async fn enter_put(
        &self,
        subject: impl Display + Send,
        body: &Body,
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        // A body that cannot be read is the put's own fault.
        let size = Source::of(body).await.map_or(0, |source| source.size);
        let requests = if size <= PART_BYTES { 1 } else { 2 + size.div_ceil(PART_BYTES) };
        self.enter(Operation::Put, subject, (Kind::Put, requests), size, cancel).await
    }
}

fn pace(pacer: Option<&Mutex<Pacer>>, units: u64) -> Duration {
    pacer.map_or(Duration::ZERO, |pacer| {
        pacer.lock().unwrap_or_else(PoisonError::into_inner).take(units, Instant::now())
    })
}

#[async_trait]
impl Destination for Limited {
    fn name(&self) -> &DestinationName {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        self.enter_put(key, &body, cancel).await?;
        self.inner.put(key, body, meta, cancel).await
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.enter(Operation::List, database, (Kind::List, 1), 0, cancel).await?;
        let files = self.inner.list(database, level, cancel).await?;
        self.count(Kind::List, files.len() as u64 / PAGE);
        Ok(files)
    }

    async fn list_all(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.enter(Operation::List, database, (Kind::List, 1), 0, cancel).await?;
        let files = self.inner.list_all(database, cancel).await?;
        self.count(Kind::List, files.len() as u64 / PAGE);
        Ok(files)
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.enter(Operation::Open, key, (Kind::Get, 1), 0, cancel).await?;
        self.inner.read_at(key, range, cancel).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        self.enter(Operation::Open, key, (Kind::Get, 1), 0, cancel).await?;
        self.inner.open(key, offset, cancel).await
    }

    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError> {
        let requests = (Kind::Delete, (keys.len() as u64).div_ceil(PAGE));
        self.enter(Operation::Delete, "files", requests, 0, cancel).await?;
        self.inner.delete(keys, cancel).await
    }

    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError> {
        self.enter(Operation::List, "the databases", (Kind::List, 1), 0, cancel).await?;
        let databases = self.inner.list_databases(cancel).await?;
        self.count(Kind::List, databases.len() as u64);
        Ok(databases)
    }

    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        self.enter_put(path, &body, cancel).await?;
        self.inner.put_object(path, body, mode, cancel).await
    }

    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        self.enter(Operation::Open, path, (Kind::Get, 1), 0, cancel).await?;
        self.inner.open_object(path, range, cancel).await
    }

    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        self.enter(Operation::Open, path, (Kind::Get, 1), 0, cancel).await?;
        self.inner.open_object_end(path, bytes, cancel).await
    }

    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError> {
        self.enter(Operation::List, folder, (Kind::List, 1), 0, cancel).await?;
        self.inner.list_objects(folder, after, cancel).await
    }

    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let requests = (Kind::Delete, (paths.len() as u64).div_ceil(PAGE));
        self.enter(Operation::Delete, "objects", requests, 0, cancel).await?;
        self.inner.delete_objects(paths, cancel).await
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        // Twice the same put, a look at it, and away with it.
        for kind in [Kind::Put, Kind::Put, Kind::List, Kind::Get] {
            self.count(kind, 1);
        }
        self.enter(Operation::Probe, self.inner.location(), (Kind::Delete, 1), 0, cancel).await?;
        self.inner.probe(cancel).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destinations::config::FileConfig;
    use crate::destinations::file::FileDestination;
    use walhub_common::TxidRange;

    fn limited(folder: &std::path::Path, limits: Limits) -> (Limited, Arc<Meter>) {
        let name = DestinationName::new("disk").unwrap();
        let config = FileConfig { path: folder.to_owned() };
        let meter = Arc::new(Meter::default());
        (Limited::new(Arc::new(FileDestination::new(name, &config)), limits, meter.clone()), meter)
    }

    async fn put(to: &Limited, n: u64, bytes: usize) {
        let database = "node/app.db".parse().unwrap();
        let key = FileKey { database, level: Level::RAW, range: TxidRange::from_raw(n, n).unwrap() };
        let meta = PutMeta { time_ms: 0, post: None };
        to.put(&key, Body::Bytes(vec![7; bytes].into()), meta, &CancellationToken::new()).await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_counted_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let (to, meter) = limited(folder.path(), Limits::default());
        put(&to, 1, 10).await;
        put(&to, 2, 20 << 20).await;
        to.list(&"node/app.db".parse().unwrap(), Level::RAW, &CancellationToken::new()).await.unwrap();
        let expected = Requests { puts: 1 + 5, lists: 1, ..Requests::default() };
        assert_eq!(meter.today(clock::now_ms()), expected);
    }

    #[tokio::test]
    async fn a_rate_holds_and_a_wait_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { requests_per_second: Some(20), upload_per_second: None };
        let (to, _) = limited(folder.path(), limits);
        let start = Instant::now();
        for n in 1..=31 {
            put(&to, n, 1).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
        let limits = Limits { requests_per_second: None, upload_per_second: Some(1000) };
        let (to, _) = limited(folder.path(), limits);
        put(&to, 100, 100_000).await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        let path = ObjectPath::new("walhub/x").unwrap();
        let late =
            to.put_object(&path, Body::Bytes(Bytes::from_static(b"x")), PutMode::Create, &cancel).await;
        assert!(matches!(late.unwrap_err().fault, Fault::Cancelled));
    }
}
