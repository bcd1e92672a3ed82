//! Where one compacted file lies, or is on its way to: shared by whoever made it and those who put it.

use crate::copies::LaneId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Attempts to bring a file to a destination that refuses it, until the next start.
const ATTEMPTS: u8 = 3;

#[derive(Debug, Default)]
struct Lanes {
    held: BTreeSet<LaneId>,
    waiting: BTreeSet<LaneId>,
    useless: BTreeSet<LaneId>,
    sent: BTreeMap<LaneId, u8>,
}

/// See the module doc. Clones are the same file.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts(Arc<Mutex<Lanes>>);

impl Whereabouts {
    /// A file that these destinations list.
    pub(super) fn held_by(lanes: BTreeSet<LaneId>) -> Self {
        Self(Arc::new(Mutex::new(Lanes { held: lanes, ..Lanes::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when it lies there.
    pub(super) fn is_at(&self, lane: LaneId) -> bool {
        self.lock().held.contains(&lane)
    }

    /// True when it is on its way to some destination.
    pub(super) fn is_under_way(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// True when it should be brought there: it is neither there nor on its way, is of use, and was not refused too often.
    pub(super) fn is_missing_at(&self, lane: LaneId) -> bool {
        let lanes = self.lock();
        let settled = [&lanes.held, &lanes.waiting, &lanes.useless].into_iter().any(|of| of.contains(&lane));
        !settled && lanes.sent.get(&lane).is_none_or(|sent| *sent < ATTEMPTS)
    }

    /// It is on its way there.
    pub(super) fn sent(&self, lane: LaneId) {
        let mut lanes = self.lock();
        lanes.waiting.insert(lane);
        *lanes.sent.entry(lane).or_default() += 1;
    }

    /// It has arrived.
    pub(super) fn arrived(&self, lane: LaneId) {
        let mut lanes = self.lock();
        lanes.waiting.remove(&lane);
        lanes.held.insert(lane);
    }

    /// It did not get there; another time perhaps.
    pub(super) fn failed(&self, lane: LaneId) {
        self.lock().waiting.remove(&lane);
    }

    /// Nothing leads to it there, or another file has its name.
    pub(super) fn useless(&self, lane: LaneId) {
        let mut lanes = self.lock();
        lanes.waiting.remove(&lane);
        lanes.useless.insert(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_refused_is_brought_a_few_times_only() {
        let file = Whereabouts::held_by(BTreeSet::from([0]));
        assert!(file.is_at(0) && !file.is_missing_at(0));
        for _ in 0..ATTEMPTS {
            assert!(file.is_missing_at(1));
            file.sent(1);
            assert!(!file.is_missing_at(1), "it is on its way");
            file.failed(1);
        }
        assert!(!file.is_missing_at(1));
        file.sent(2);
        file.useless(2);
        assert!(!file.is_missing_at(2) && !file.is_at(2));
        file.sent(3);
        file.arrived(3);
        assert!(file.is_at(3));
    }
}
