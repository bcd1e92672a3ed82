//! What is read from a source is counted, and comes no faster than it may.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use walhub_common::Level;
use walhub_store::destinations::DestinationError;
use walhub_store::destinations::error::Operation;
use walhub_store::restore::around::{Hooks, Request};

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

/// Around a source.
#[derive(Clone, Debug)]
pub(super) struct Metered(pub(super) Arc<Meter>);

impl Hooks for Metered {
    async fn asked<T: Send>(
        &self,
        request: &Request<'_>,
        answer: impl Future<Output = Result<T, DestinationError>> + Send,
    ) -> Result<T, DestinationError> {
        let levels = if request.operation == Operation::List { Level::all().count() } else { 1 };
        self.0.requests.fetch_add(levels as u64, Ordering::Relaxed);
        answer.await
    }

    async fn came(&self, bytes: usize) {
        tokio::time::sleep(self.0.took(bytes)).await;
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
