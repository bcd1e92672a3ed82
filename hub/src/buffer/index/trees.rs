//! The part of the index that lies in sled.

use super::super::cursor::Moved;
use super::super::log::head::At;
use super::super::log::recover::{Checkpoint, IndexPlan, Indexer};
use super::super::log::snapshot::Cursors;
use super::super::{BufferError, DatabaseId, Place, SegmentMeta, SegmentRef};
use super::mover::BATCH;
use super::{MAX_TXID, Written};
use crate::db::key::checkpoint::{CheckpointKey, CheckpointValue};
use crate::db::key::cursor::CursorKey;
use crate::db::key::segment::{SegmentKey, SegmentValue};
use crate::db::{Db, DbError, Tree};
use std::path::Path;
use walhub_common::{Pos, Txid, clock};

/// Segments, cursors, and how far the log is indexed.
#[derive(Debug)]
pub(super) struct Trees {
    db: Db,
    segments: Tree<SegmentKey, SegmentValue>,
    cursors: Tree<CursorKey, Txid>,
    checkpoint: Tree<CheckpointKey, CheckpointValue>,
}

impl Trees {
    /// Opens the store, or an empty one in its place.
    pub(super) fn open(path: &Path) -> Result<Self, DbError> {
        let db = Db::open(path, clock::now_ms())?;
        Ok(Self {
            segments: db.tree("segments")?,
            cursors: db.tree("cursors")?,
            checkpoint: db.tree("checkpoint")?,
            db,
        })
    }

    pub(super) fn flush(&self) -> Result<(), DbError> {
        self.db.flush()
    }

    pub(super) fn checkpoint(&self) -> Result<Option<Checkpoint>, DbError> {
        let found = self.checkpoint.get(&CheckpointKey)?;
        Ok(found.map(|c| Checkpoint { log_id: c.log_id, file: c.file, salt: c.salt, offset: c.offset }))
    }

    pub(super) fn set_checkpoint(&self, at: Checkpoint) -> Result<(), DbError> {
        let Checkpoint { log_id, file, salt, offset } = at;
        self.checkpoint.insert(&CheckpointKey, &CheckpointValue { log_id, file, salt, offset })
    }

    pub(super) fn cursors(&self) -> Result<Cursors, DbError> {
        let mut cursors = Cursors::new();
        for (key, txid) in self.cursors.all()? {
            cursors.entry(key.lane).or_default().insert(DatabaseId(key.database), txid);
        }
        Ok(cursors)
    }

    pub(super) fn replace_cursors(&self, cursors: &Cursors) -> Result<(), DbError> {
        self.cursors.clear()?;
        for (lane, of) in cursors {
            for (id, txid) in of {
                self.cursors.insert(&CursorKey { lane: lane.clone(), database: id.0 }, txid)?;
            }
        }
        Ok(())
    }

    pub(super) fn put_cursors(&self, moved: &[Moved]) -> Result<(), DbError> {
        for (lane, id, txid) in moved {
            let key = CursorKey { lane: lane.clone(), database: id.0 };
            match txid {
                Some(txid) => self.cursors.insert(&key, txid)?,
                None => self.cursors.remove(&key)?,
            }
        }
        Ok(())
    }

    pub(super) fn put(&self, entries: &[Written]) -> Result<(), DbError> {
        for Written { database, segment, .. } in entries {
            let key = SegmentKey { database: database.0, min: segment.meta.range.min() };
            self.segments.insert(&key, &to_value(segment))?;
        }
        Ok(())
    }

    /// Puts a segment in the place of all those within its range.
    pub(super) fn replace(&self, id: DatabaseId, segment: &SegmentRef) -> Result<(), DbError> {
        let key = |min| SegmentKey { database: id.0, min };
        let range = segment.meta.range;
        self.segments.insert(&key(range.min()), &to_value(segment))?;
        if range.min() == range.max() {
            return Ok(());
        }
        self.forget(|keys| {
            self.segments.scan(&key(range.min().next()), &key(range.max()), |key, _| {
                keys.push(key);
                keys.len() < BATCH
            })
        })
    }

    /// Forgets one segment, if it is still the one that begins at `first`.
    pub(super) fn remove(&self, id: DatabaseId, min: Txid, first: At) -> Result<(), DbError> {
        let key = SegmentKey { database: id.0, min };
        match self.segments.get(&key)? {
            Some(held) if held.first == first => self.segments.remove(&key),
            _ => Ok(()),
        }
    }

    /// The last segment with a first transaction of `txid` or before.
    pub(super) fn at_or_before(&self, id: DatabaseId, txid: Txid) -> Result<Option<SegmentRef>, DbError> {
        let key = |min| SegmentKey { database: id.0, min };
        let mut found = None;
        self.segments.scan_back(&key(Txid::FIRST), &key(txid), |_, value| {
            found = Some(to_ref(&value));
            false
        })?;
        Ok(found)
    }

    /// Every segment, by database and transaction, as long as `take` says so.
    pub(super) fn every(&self, mut take: impl FnMut(DatabaseId, SegmentRef) -> bool) -> Result<(), DbError> {
        let (from, to) =
            (SegmentKey { database: 0, min: Txid::FIRST }, SegmentKey { database: u64::MAX, min: MAX_TXID });
        self.segments.scan(&from, &to, |key, value| take(DatabaseId(key.database), to_ref(&value)))
    }

    pub(super) fn get(&self, id: DatabaseId, min: Txid) -> Result<Option<SegmentRef>, DbError> {
        let found = self.segments.get(&SegmentKey { database: id.0, min })?;
        Ok(found.map(|value| to_ref(&value)))
    }

    /// Segments with a first transaction from `from` to `to`, in order, as long as `take` says so.
    pub(super) fn scan(
        &self,
        id: DatabaseId,
        from: Txid,
        to: Txid,
        mut take: impl FnMut(SegmentRef) -> bool,
    ) -> Result<(), DbError> {
        let key = |min| SegmentKey { database: id.0, min };
        self.segments.scan(&key(from), &key(to), |_, value| take(to_ref(&value)))
    }

    pub(super) fn forget_before(&self, id: DatabaseId, oldest: u64) -> Result<(), DbError> {
        let key = |min| SegmentKey { database: id.0, min };
        self.forget(|keys| {
            self.segments.scan(&key(Txid::FIRST), &key(MAX_TXID), |key, value| {
                let gone = value.first.0 < oldest;
                if gone {
                    keys.push(key);
                }
                gone && keys.len() < BATCH
            })
        })
    }

    pub(super) fn forget_after(&self, id: DatabaseId, position: Option<Pos>) -> Result<(), DbError> {
        let key = |min| SegmentKey { database: id.0, min };
        self.forget(|keys| {
            self.segments.scan_back(&key(Txid::FIRST), &key(MAX_TXID), |key, value| {
                let ahead = position.is_none_or(|p| value.range.max() > p.txid);
                if ahead {
                    keys.push(key);
                }
                ahead && keys.len() < BATCH
            })
        })
    }

    fn forget(&self, find: impl Fn(&mut Vec<SegmentKey>) -> Result<(), DbError>) -> Result<(), DbError> {
        loop {
            let mut keys = Vec::new();
            find(&mut keys)?;
            if keys.is_empty() {
                return Ok(());
            }
            for key in &keys {
                self.segments.remove(key)?;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Result<Vec<(DatabaseId, SegmentRef)>, DbError> {
        let all = self.segments.all()?;
        Ok(all.iter().map(|(key, value)| (DatabaseId(key.database), to_ref(value))).collect())
    }
}

/// Puts the segments that recovery finds into sled.
#[derive(Debug)]
pub(in crate::buffer) struct Rebuild<'a> {
    trees: &'a Trees,
    entries: Vec<Written>,
}

impl<'a> Rebuild<'a> {
    pub(super) fn new(trees: &'a Trees) -> Self {
        Self { trees, entries: Vec::new() }
    }

    /// Puts in what is left.
    pub(super) fn finish(&mut self) -> Result<(), DbError> {
        self.entries.sort_by_key(Written::key);
        self.trees.put(&self.entries)?;
        self.entries.clear();
        Ok(())
    }
}

impl Indexer for Rebuild<'_> {
    fn plan(&mut self, plan: IndexPlan) -> Result<(), BufferError> {
        if plan.rebuild {
            self.trees.checkpoint.clear()?;
            self.trees.segments.clear()?;
        }
        Ok(())
    }

    fn segment(&mut self, written: Written) -> Result<(), BufferError> {
        if written.rewritten {
            self.finish()?;
            return Ok(self.trees.replace(written.database, &written.segment)?);
        }
        self.entries.push(written);
        if self.entries.len() == BATCH {
            self.finish()?;
        }
        Ok(())
    }
}

fn to_value(segment: &SegmentRef) -> SegmentValue {
    let SegmentMeta { range, pre, post, time_ms, agent_time_ms } = segment.meta;
    let Place { first, last, chunks } = segment.place;
    SegmentValue { range, pre, post, time_ms, agent_time_ms, bytes: segment.bytes, first, last, chunks }
}

fn to_ref(value: &SegmentValue) -> SegmentRef {
    let SegmentValue { range, pre, post, time_ms, agent_time_ms, bytes, first, last, chunks } = *value;
    let meta = SegmentMeta { range, pre, post, time_ms, agent_time_ms };
    SegmentRef { meta, bytes, place: Place { first, last, chunks } }
}
