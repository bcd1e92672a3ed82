//! What compaction did and does, for the status.

use crate::buffer::DatabaseId;
use crate::copies::LaneId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::{Level, Txid};

/// Counters since start, and the state of now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Files of levels 1 to 8 that were made.
    pub files: u64,
    /// Snapshots that were made.
    pub snapshots: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Files put, all destinations together.
    pub puts: u64,
    /// Attempts that failed, to make a file or to put one.
    pub failures: u64,
    /// Files that a destination did not get because too much waited for it.
    pub skipped: u64,
    /// Files that were not put to a destination because nothing there leads to their beginning.
    pub useless: u64,
    /// Files that were brought to a destination later, from another one.
    pub brought: u64,
    /// Listings of a destination to see whether a file is of use there.
    pub lookups: u64,
    /// When the newest file was made, Unix ms; 0: none was.
    pub last_ms: i64,
    /// Files that wait for a destination, counted for each.
    pub waiting: u64,
    /// Bytes of files on the hub's disk that wait for a destination.
    pub waiting_bytes: u64,
    /// The newest failure; empty when what failed worked since.
    pub last_error: String,
}

/// The newest files of a database at a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Newest {
    /// End of the newest file of any level from 1 on.
    pub compacted: Option<Txid>,
    /// Its time, Unix ms.
    pub compacted_ms: i64,
    /// End of the newest snapshot.
    pub snapshot: Option<Txid>,
    /// Its time, Unix ms.
    pub snapshot_ms: i64,
}

#[derive(Debug, Default)]
struct State {
    totals: Totals,
    newest: BTreeMap<(DatabaseId, LaneId), Newest>,
}

/// Shared by those who make files, those who put them, and the status. No lock is held across a wait.
#[derive(Debug, Default)]
pub struct Report(Mutex<State>);

impl Report {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters.
    pub fn totals(&self) -> Totals {
        self.lock().totals.clone()
    }

    /// Of one database at one destination.
    pub fn newest(&self, database: DatabaseId, lane: LaneId) -> Newest {
        self.lock().newest.get(&(database, lane)).copied().unwrap_or_default()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.lock().totals);
    }

    pub(super) fn failed(&self, error: String) {
        self.count(|totals| {
            totals.failures += 1;
            totals.last_error = error;
        });
    }

    /// A file lies at a destination.
    pub(super) fn holds(&self, database: DatabaseId, lane: LaneId, level: Level, txid: Txid, time_ms: i64) {
        let mut state = self.lock();
        let newest = state.newest.entry((database, lane)).or_default();
        if level == Level::SNAPSHOT && newest.snapshot < Some(txid) {
            (newest.snapshot, newest.snapshot_ms) = (Some(txid), time_ms);
        }
        if newest.compacted < Some(txid) {
            (newest.compacted, newest.compacted_ms) = (Some(txid), time_ms);
        }
    }
}
