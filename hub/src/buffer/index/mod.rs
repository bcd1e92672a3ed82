//! Where each segment lies: the newest ones in memory, all others in sled, moved over by a thread of its own off the
//! ack path.
//!
//! # Invariants
//! - A segment is found from the moment it is published; a reader looks in memory first and in sled afterwards, so one
//!   that is just being moved is seen in at least one place.
//! - The checkpoint in sled is behind everything that a flush has made safe: it is set after the flush.
//! - Bounded: the publisher waits when too many segments have not been moved yet.
//! - sled may fail at any time: it is opened anew, and what it missed is read from the log again.

mod mover;
mod trees;

use super::log::head::At;
use super::log::probe::Probe;
use super::log::recover::Checkpoint;
use super::log::snapshot::Cursors;
use super::log::writer::Written;
use super::{BufferError, DatabaseId, SegmentRef};
use crate::db::DbError;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
pub(super) use trees::Rebuild;
use trees::Trees;
use walhub_common::{Pos, Txid};

/// Segments that may wait in memory.
const MAX_RECENT: usize = 64 * 1024;
/// Segments looked at together in memory.
const SCAN: usize = 1024;

const MAX_TXID: Txid = match Txid::new(u64::MAX) {
    Some(txid) => txid,
    None => unreachable!(),
};

impl From<DbError> for BufferError {
    fn from(error: DbError) -> Self {
        BufferError::Index(error.to_string())
    }
}

/// The index of one log.
#[derive(Debug)]
pub(super) struct Index {
    path: std::path::PathBuf,
    /// `None` while sled is being opened anew, and after the end.
    trees: RwLock<Option<Trees>>,
    probe: Probe,
    recent: Mutex<Recent>,
    /// Held while segments are moved.
    moving: Mutex<()>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Recent {
    /// Published and not yet known to be in sled.
    segments: BTreeMap<(DatabaseId, Txid), SegmentRef>,
    /// Those of them that wait to be moved, in log order.
    waiting: Vec<Written>,
    /// Where the log ended when the newest of them was published.
    published: Option<Checkpoint>,
    /// As `published`, of what is in sled.
    moved: Option<Checkpoint>,
    /// The publisher waits no more: what is left is bounded by its queue.
    draining: bool,
    closing: bool,
}

impl Index {
    /// Over the store in `path`; what it holds is checked by the recovery that follows.
    pub(super) fn open(path: &Path, probe: Probe) -> Result<Self, DbError> {
        Ok(Self {
            path: path.to_owned(),
            trees: RwLock::new(Some(Trees::open(path)?)),
            probe,
            recent: Mutex::default(),
            moving: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&Trees) -> Result<T, DbError>) -> Result<T, DbError> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        work(trees.as_ref().ok_or(DbError::Closed)?)
    }

    /// As [`Index::with`], while nobody else looks.
    fn alone<T>(&self, work: impl FnOnce(&Trees) -> Result<T, DbError>) -> Result<T, DbError> {
        let trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        work(trees.as_ref().ok_or(DbError::Closed)?)
    }

    fn set_trees(&self, trees: Option<Trees>) {
        *self.trees.write().unwrap_or_else(PoisonError::into_inner) = trees;
    }

    /// How far the log is indexed; nothing when that cannot be read.
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        self.with(Trees::checkpoint).unwrap_or_default()
    }

    /// For what recovery finds.
    pub(super) fn rebuild<T>(
        &self,
        work: impl FnOnce(&mut Rebuild<'_>) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        let mut rebuild = Rebuild::new(trees.as_ref().ok_or(DbError::Closed)?);
        let done = work(&mut rebuild)?;
        rebuild.finish()?;
        Ok(done)
    }

    /// The cursors as written down; none when they cannot be read.
    pub(super) fn cursors(&self) -> Option<Cursors> {
        self.with(Trees::cursors).ok()
    }

    /// Writes all cursors down, in place of those that are there.
    pub(super) fn write_cursors(&self, cursors: &Cursors) -> Result<(), DbError> {
        self.with(|trees| trees.replace_cursors(cursors))
    }

    /// The end of recovery: the log is indexed up to `end`.
    pub(super) fn recovered(&self, end: Option<Checkpoint>) -> Result<(), DbError> {
        let mut recent = self.lock();
        recent.moved = end;
        recent.published = end;
        drop(recent);
        self.flush()
    }

    /// Publishes segments that became durable, in log order; `end` is where the log ends behind them.
    /// One that is rewritten is seen when it is moved; until then those that it stands for are.
    pub(super) fn publish(&self, segments: &[Written], end: Checkpoint) {
        let mut recent = self.lock();
        for written in segments {
            if !written.rewritten {
                recent.segments.insert(written.key(), written.segment.clone());
            }
            recent.waiting.push(written.clone());
        }
        recent.published = Some(end);
        let enough = recent.waiting.len() >= mover::BATCH;
        drop(recent);
        if enough {
            self.wake.notify_all();
        }
    }

    /// Waits until there is room for more.
    pub(super) fn wait_for_room(&self) {
        let full = |recent: &mut Recent| recent.waiting.len() >= MAX_RECENT && !recent.draining;
        drop(self.wake.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets the publisher go on, come what may: the end is near.
    pub(super) fn stop_waiting(&self) {
        self.lock().draining = true;
        self.wake.notify_all();
    }

    /// The file up to which, not including it, sled knows everything.
    pub(super) fn moved_file(&self) -> u64 {
        self.lock().moved.map_or(0, |at| at.file)
    }

    /// One segment, by its first transaction.
    pub(super) fn get(&self, id: DatabaseId, min: Txid) -> Result<Option<SegmentRef>, DbError> {
        if let Some(found) = self.lock().segments.get(&(id, min)) {
            return Ok(Some(found.clone()));
        }
        self.with(|trees| trees.get(id, min))
    }

    /// Segments of a database with a first transaction of `from` or later, in order, as long as `take` says so.
    pub(super) fn scan(
        &self,
        id: DatabaseId,
        mut from: Txid,
        mut take: impl FnMut(SegmentRef) -> bool,
    ) -> Result<(), DbError> {
        loop {
            // First memory, then sled before it: what is moved in between is seen twice and never missed.
            let recent = self.recent_from(id, from, SCAN);
            let to = match recent.first().map(|s| s.meta.range.min()) {
                Some(min) if min == from => None,
                Some(min) => Txid::new(min.get() - 1),
                None => Some(MAX_TXID),
            };
            let mut more = true;
            if let Some(to) = to {
                self.with(|trees| {
                    trees.scan(id, from, to, |segment| {
                        more = take(segment);
                        more
                    })
                })?;
            }
            let last = recent.last().map(|s| s.meta.range.max());
            let all = recent.len() < SCAN;
            if !more || !recent.into_iter().all(&mut take) || all {
                return Ok(());
            }
            let Some(last) = last.filter(|last| *last < MAX_TXID) else { return Ok(()) };
            from = last.next();
        }
    }

    fn recent_from(&self, id: DatabaseId, from: Txid, max: usize) -> Vec<SegmentRef> {
        let recent = self.lock();
        recent.segments.range((id, from)..=(id, MAX_TXID)).take(max).map(|(_, s)| s.clone()).collect()
    }

    /// The segment that `txid` lies in.
    pub(super) fn covering(&self, id: DatabaseId, txid: Txid) -> Result<Option<SegmentRef>, DbError> {
        let recent = {
            let recent = self.lock();
            recent.segments.range((id, Txid::FIRST)..=(id, txid)).next_back().map(|(_, s)| s.clone())
        };
        let found = match recent {
            Some(found) => Some(found),
            None => self.with(|trees| trees.at_or_before(id, txid))?,
        };
        Ok(found.filter(|segment| segment.meta.range.max() >= txid))
    }

    /// Every segment that has been moved to sled.
    pub(super) fn every(&self, take: impl FnMut(DatabaseId, SegmentRef) -> bool) -> Result<(), DbError> {
        self.with(|trees| trees.every(take))
    }

    /// Forgets these segments, given by first transaction and place, where they are still known by that.
    pub(super) fn forget(&self, gone: &[(DatabaseId, Txid, At)]) -> Result<(), DbError> {
        self.with(|trees| gone.iter().try_for_each(|(id, min, first)| trees.remove(*id, *min, *first)))
    }

    /// Forgets the segments of a database that start in a file before `oldest`.
    pub(super) fn forget_before(&self, id: DatabaseId, oldest: u64) -> Result<(), DbError> {
        self.with(|trees| trees.forget_before(id, oldest))
    }

    /// Forgets the segments of a database that end after `position`: sled can be ahead of the log after a power cut.
    pub(super) fn forget_after(&self, id: DatabaseId, position: Option<Pos>) -> Result<(), DbError> {
        self.with(|trees| trees.forget_after(id, position))
    }

    /// Every segment in sled; for tests.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(DatabaseId, SegmentRef)> {
        self.with(Trees::all).unwrap()
    }
}
