//! The disk that all spools of one agent share: a count of bytes against `spool-max`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module doc.
#[derive(Debug)]
pub struct Room {
    limit: u64,
    used: AtomicU64,
}

impl Room {
    /// `limit` bytes; 0: nothing is ever spooled.
    pub fn new(limit: u64) -> Arc<Room> {
        Arc::new(Room { limit, used: AtomicU64::new(0) })
    }

    /// The bound, bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use by all spools.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Takes room, unless that would pass the bound.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let grown = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
    }

    /// Counts what is on disk already, even past the bound.
    pub(super) fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives room back.
    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}
