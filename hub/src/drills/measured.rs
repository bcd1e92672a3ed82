//! A source that counts what is read from it, and reads no faster than it may.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Level};
use walhub_store::destinations::{DestinationError, FileKey, Listed};
use walhub_store::restore::{DynSource, Source, SourceName};

/// What was read.
#[derive(Debug)]
pub(super) struct Meter {
    bytes: AtomicU64,
    requests: AtomicU64,
    /// Bytes per second.
    limit: Option<u64>,
    /// When what was read so far is paid for.
    paid: Mutex<Instant>,
}

impl Meter {
    /// Nothing yet.
    pub(super) fn new(limit: Option<u64>) -> Arc<Self> {
        let (bytes, requests) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { bytes, requests, limit, paid: Mutex::new(Instant::now()) })
    }

    /// Bytes, and requests.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    fn asked(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Counts bytes that came; how long to wait before more are taken.
    fn took(&self, bytes: usize) -> Duration {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(limit) = self.limit else { return Duration::ZERO };
        let now = Instant::now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now) + Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64);
        paid.saturating_duration_since(now)
    }
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct Measured {
    inner: DynSource,
    meter: Arc<Meter>,
}

impl Measured {
    pub(super) fn new(inner: DynSource, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

#[async_trait]
impl Source for Measured {
    fn name(&self) -> &SourceName {
        self.inner.name()
    }

    fn lists_exact_times(&self) -> bool {
        self.inner.lists_exact_times()
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.meter.asked(Level::all().count() as u64);
        self.inner.list(database, cancel).await
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn ranged(&self) -> bool {
        self.inner.ranged()
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.meter.asked(1);
        let bytes = self.inner.read_at(key, range, cancel).await?;
        tokio::time::sleep(self.meter.took(bytes.len())).await;
        Ok(bytes)
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        self.meter.asked(1);
        let (stream, meter) = (self.inner.open(key, offset, cancel).await?, self.meter.clone());
        let paced = stream.then(move |piece| {
            let wait = piece.as_ref().map_or(Duration::ZERO, |piece| meter.took(piece.len()));
            async move {
                tokio::time::sleep(wait).await;
                piece
            }
        });
        Ok(paced.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_keeps_to_the_limit_on_average() {
        let began = Instant::now();
        let meter = Meter::new(Some(1000));
        let mut wait = Duration::ZERO;
        for _ in 0..50 {
            wait = meter.took(100);
        }
        assert!(began.elapsed() + wait >= Duration::from_secs(5), "{wait:?}");
        assert!(wait <= Duration::from_secs(5), "{wait:?}");
        assert_eq!(meter.totals(), (5000, 0));
        let free = Meter::new(None);
        assert_eq!(free.took(1 << 30), Duration::ZERO);
    }
}
