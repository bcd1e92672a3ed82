//! The thread that moves segments from memory to sled, flushes, and opens sled anew when it has failed.

use super::super::cursor::CursorTable;
use super::super::log::file::Files;
use super::super::log::probe::Step;
use super::super::log::recover::reindex;
use super::super::log::writer::Written;
use super::trees::{Rebuild, Trees};
use super::{BufferError, Index, Recent};
use crate::db::DbError;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Segments moved at once.
pub(super) const BATCH: usize = 8 * 1024;
/// How long segments gather before they are moved.
const GATHER: Duration = Duration::from_millis(50);
/// How often sled is flushed while there is something to flush.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

impl Index {
    /// Moves and flushes, until [`Index::close`].
    pub(in crate::buffer) fn run(&self, cursors: &CursorTable, files: &Files) {
        let mut last_flush = Instant::now();
        let mut unflushed = false;
        let mut failed = false;
        loop {
            let closing = self.wait_for_work(unflushed && !failed);
            let flush = closing || last_flush.elapsed() >= FLUSH_EVERY;
            let worked = if failed { self.reopen(cursors, files) } else { Ok(()) };
            let worked = worked.and_then(|()| self.work(cursors, flush, &mut unflushed));
            if flush {
                last_flush = Instant::now();
            }
            match &worked {
                Ok(()) if failed => tracing::info!("the index is written again"),
                Err(error) if !failed => {
                    tracing::error!(%error, "the index cannot be written; the log goes on without it for a while");
                }
                Ok(()) | Err(_) => {}
            }
            failed = worked.is_err();
            if closing {
                return self.set_trees(None);
            }
        }
    }

    /// Ends [`Index::run`] after a last flush.
    pub(in crate::buffer) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    fn wait_for_work(&self, soon: bool) -> bool {
        let timeout = if soon { GATHER } else { FLUSH_EVERY };
        let nothing_to_do = |recent: &mut Recent| !recent.closing && recent.waiting.len() < BATCH;
        let waited = self.wake.wait_timeout_while(self.lock(), timeout, nothing_to_do);
        waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    fn work(&self, cursors: &CursorTable, flush: bool, unflushed: &mut bool) -> Result<(), BufferError> {
        *unflushed |= self.move_segments()?;
        if !flush {
            return Ok(());
        }
        let moved = cursors.take_unwritten();
        if !moved.is_empty() {
            self.with(|trees| trees.put_cursors(&moved))?;
            *unflushed = true;
        }
        if *unflushed {
            self.flush()?;
            *unflushed = false;
        }
        Ok(())
    }

    /// Moves all that waits; after it sled knows all that was published before.
    pub(in crate::buffer) fn move_segments(&self) -> Result<bool, DbError> {
        let _alone = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut moved = false;
        loop {
            let (mut entries, end) = {
                let mut recent = self.lock();
                if recent.waiting.is_empty() {
                    moved |= recent.moved != recent.published;
                    recent.moved = recent.published;
                    return Ok(moved);
                }
                let rewritten = recent.waiting.iter().take(BATCH).position(|written| written.rewritten);
                let count = rewritten.map_or_else(|| recent.waiting.len().min(BATCH), |at| at.max(1));
                let end = if count == recent.waiting.len() { recent.published } else { recent.moved };
                (recent.waiting[..count].to_vec(), end)
            };
            let count = entries.len();
            match &entries[..] {
                // Nobody may look while the old form goes.
                [one] if one.rewritten => self.alone(|trees| trees.replace(one.database, &one.segment))?,
                _ => {
                    entries.sort_unstable_by_key(Written::key);
                    self.with(|trees| trees.put(&entries))?;
                }
            }
            moved = true;
            let mut recent = self.lock();
            recent.waiting.drain(..count);
            recent.moved = end;
            for written in &entries {
                if recent.segments.get(&written.key()) == Some(&written.segment) {
                    recent.segments.remove(&written.key());
                }
            }
            drop(recent);
            self.wake.notify_all();
        }
    }

    /// Makes what is in sled safe, then says so there.
    pub(in crate::buffer) fn flush(&self) -> Result<(), DbError> {
        let moved = self.lock().moved;
        self.probe.at(Step::FlushIndex).map_err(|e| DbError::Sled(e.to_string()))?;
        self.with(|trees| {
            trees.flush()?;
            moved.map_or(Ok(()), |at| trees.set_checkpoint(at))
        })
    }

    /// Opens sled anew, and puts in again what came after its checkpoint.
    fn reopen(&self, cursors: &CursorTable, files: &Files) -> Result<(), BufferError> {
        self.set_trees(None);
        let trees = Trees::open(&self.path)?;
        let moved = self.lock().moved;
        if let Some(moved) = moved {
            let mut rebuild = Rebuild::new(&trees);
            reindex(files, trees.checkpoint().unwrap_or_default(), moved, &mut rebuild)?;
            rebuild.finish()?;
        }
        trees.replace_cursors(&cursors.snapshot())?;
        self.set_trees(Some(trees));
        Ok(())
    }
}
