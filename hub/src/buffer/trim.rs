//! Giving space back: the oldest log file goes when every lane has taken all that lies in it.

use super::cursor::CursorTable;
use super::index::Index;
use super::log::file::{Files, LogFile};
use super::log::head::{At, Before, Head};
use super::log::scan::{Found, Scanner};
use super::{BufferError, DatabaseId, SegmentMeta, Takers};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use walhub_common::Txid;

/// Decides and does it. One at a time.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    takers: Option<Arc<dyn Takers>>,
    /// What the oldest file holds, so that asking again costs nothing.
    oldest: Option<Held>,
    /// The count of cursor moves, and the revision of the takers, at which nothing could be done.
    stuck_at: Option<(u64, u64)>,
}

/// The last transaction of each database that lies in a file.
#[derive(Debug)]
struct Held {
    file: u64,
    last: BTreeMap<DatabaseId, Txid>,
}

/// What a trim looks at.
#[derive(Debug)]
pub(super) struct Trimmed<'a> {
    /// The log files.
    pub(super) files: &'a Files,
    /// Where segments lie.
    pub(super) index: &'a Index,
    /// Where lanes stand.
    pub(super) cursors: &'a CursorTable,
    /// Files from this one on are needed by the writer.
    pub(super) keep_from: u64,
}

impl Trimmer {
    /// Sets who must have passed a file.
    pub(super) fn set_takers(&mut self, takers: Arc<dyn Takers>) {
        if self.takers.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &takers)) {
            self.takers = Some(takers);
            self.stuck_at = None;
        }
    }

    /// Unlinks old files until at most `target` bytes are left, or the next one is still needed: then false.
    pub(super) fn trim(&mut self, on: &Trimmed<'_>, target: u64) -> Result<bool, BufferError> {
        let Some(takers) = self.takers.clone() else { return Ok(on.files.total_bytes() <= target) };
        while on.files.total_bytes() > target {
            let Some(oldest) = on.files.oldest() else { break };
            let at = (on.cursors.moves(), takers.revision());
            if oldest >= on.keep_from || self.stuck_at == Some(at) {
                break;
            }
            // What sled does not know yet cannot be forgotten there.
            if oldest >= on.index.moved_file() {
                on.index.move_segments()?;
                if oldest >= on.index.moved_file() {
                    break;
                }
            }
            if !self.passed(on, oldest, &*takers)? {
                self.stuck_at = Some(at);
                break;
            }
            self.unlink(on, oldest)?;
        }
        Ok(on.files.total_bytes() <= target)
    }

    fn passed(&mut self, on: &Trimmed<'_>, file: u64, takers: &dyn Takers) -> Result<bool, BufferError> {
        if self.oldest.as_ref().is_none_or(|held| held.file != file) {
            let last = match on.files.get(file) {
                Ok(Some(log)) => held_by(&log, on.index)?,
                Ok(None) => BTreeMap::new(),
                Err(source) => return Err(BufferError::Io { doing: "open a log file", source }),
            };
            self.oldest = Some(Held { file, last });
        }
        let held = self.oldest.as_ref().expect("BUG: just set");
        Ok(held.last.iter().all(|(id, txid)| on.cursors.all_passed(&takers.of(*id), *id, *txid)))
    }

    fn unlink(&mut self, on: &Trimmed<'_>, file: u64) -> Result<(), BufferError> {
        on.files.unlink(file).map_err(|source| BufferError::Io { doing: "unlink a log file", source })?;
        let held = self.oldest.take().expect("BUG: the file was looked at");
        for id in held.last.keys() {
            on.index.forget_before(*id, file + 1)?;
        }
        tracing::debug!(file, databases = held.last.len(), "gave a log file back");
        Ok(())
    }
}

/// Complete segments that lie in a file, wholly or in part, by their last transaction.
fn held_by(file: &LogFile, index: &Index) -> Result<BTreeMap<DatabaseId, Txid>, BufferError> {
    let mut last: BTreeMap<DatabaseId, Txid> = BTreeMap::new();
    let mut unfinished: HashMap<DatabaseId, (SegmentMeta, At)> = HashMap::new();
    let mut hold = |id: DatabaseId, meta: &SegmentMeta| {
        let txid = meta.range.max();
        last.entry(id).and_modify(|last| *last = txid.max(*last)).or_insert(txid);
    };
    let io = |source: io::Error| BufferError::Io { doing: "read a log file", source };
    let mut scanner = Scanner::new(file).map_err(io)?;
    while let Some(found) = scanner.next().map_err(io)? {
        let Found::Record(record) = found else { continue };
        let Head::Chunk(chunk) = record.header.head else { continue };
        if chunk.last {
            unfinished.remove(&chunk.database);
            hold(chunk.database, &chunk.meta);
        } else {
            let first =
                chunk.before.map_or((file.header.number, record.offset), |Before { first, .. }| first);
            unfinished.insert(chunk.database, (chunk.meta, first));
        }
    }
    // The rest goes on in the next file, or was given up.
    for (id, (meta, first)) in unfinished {
        let known = index.get(id, meta.range.min())?;
        if known.is_some_and(|segment| segment.meta == meta && segment.place.first == first) {
            hold(id, &meta);
        }
    }
    Ok(last)
}
