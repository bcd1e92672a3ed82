//! Whether there was room for what came last, and what that cost: counters since the buffer was opened.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Room {
    full: AtomicBool,
    refused: AtomicU64,
    squashed: AtomicU64,
}

impl Room {
    /// A chunk found room.
    pub(super) fn found(&self) {
        // Every append comes by, and mostly there is nothing to change.
        if self.full.load(Ordering::Relaxed) {
            self.full.store(false, Ordering::Relaxed);
        }
    }

    /// A chunk was refused.
    pub(super) fn refused(&self) {
        self.full.store(true, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// So many segments became fewer.
    pub(super) fn squashed(&self, segments: u64) {
        self.squashed.fetch_add(segments, Ordering::Relaxed);
    }

    /// The last chunk was refused; chunks refused; segments squashed.
    pub(super) fn counts(&self) -> (bool, u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (self.full.load(Ordering::Relaxed), count(&self.refused), count(&self.squashed))
    }
}
