//! Transactions on the node's own disk while the hub cannot take them and their WAL must be recycled.
//!
//! The WAL is the first spool, and costs the flash nothing. Only when it has passed `wal-limit` are its transactions
//! copied here, so that it may restart. Past `spool-max`, or when the spool grew larger than the database itself, the
//! spool is *squashed*: one delta takes the place of all its segments. The data is kept, restore points are not.
//!
//! Invariants:
//! - the batches of one spool follow one another, in TXID and in checksum;
//! - a batch is synced before its transactions count as captured, so before their frames may be overwritten;
//! - what the hub has acked is removed; what does not connect to the hub's position is never sent.
//!
//! Losing a spool loses restore points and no data: the page map can always make a delta.
//! Non-goals: when to spool and when to send (`database`).

mod batch;
mod room;

pub use room::Room;

use crate::capture::{SegmentMeta, Sink};
use crate::disk::Disk;
use crate::ship::window::Coverage;
use batch::{Batch, Reader, SUFFIX, Writer};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub_common::ltx::{HEADER_BYTES, Header};
use walhub_common::{Pos, Txid};

/// A batch is sealed at about this size.
pub const BATCH_BYTES: u64 = 8 << 20;
const NOT_THERE: &str = "it does not hold the hub's position";
/// A spool is never too large for its database below this.
const FLOOR_BYTES: u64 = 4 << 20;

/// The spool of one database.
#[derive(Debug)]
pub struct Spool {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    room: Arc<Room>,
    batches: VecDeque<Batch>,
    /// Bytes of the delta that the last squash left.
    squashed: u64,
    /// Room of the batches that a squash in progress may use.
    lent: u64,
    /// Nothing more is spooled until hub and node agree again: what would come does not connect.
    suspended: bool,
}

impl Spool {
    /// Takes up what an earlier run left. Files that do not belong to one chain, or are no spool files, are removed.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path, room: Arc<Room>) -> io::Result<Spool> {
        let mut spool = Spool {
            disk,
            folder: folder.to_owned(),
            room,
            batches: VecDeque::new(),
            squashed: 0,
            lent: 0,
            suspended: false,
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(spool),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let path = folder.join(&name);
            if !name.to_string_lossy().ends_with(SUFFIX) {
                spool.disk.remove(&path)?;
                continue;
            }
            match Batch::of(&path) {
                Ok(batch) if name.to_string_lossy() == batch.name() => found.push(batch),
                result => {
                    let reason =
                        result.map_or_else(|e| e.to_string(), |_| "its name is not its content".into());
                    tracing::warn!(file = %path.display(), reason, "removed a spool file that cannot be used; its restore points are lost, no data is");
                    spool.disk.remove(&path)?;
                }
            }
        }
        // Of files that overlap, the larger was made of the others.
        found.sort_unstable_by_key(|b| (b.range.min(), std::cmp::Reverse(b.range.max())));
        for batch in found {
            if spool.end().is_some_and(|end| batch.range.max() <= end.txid) {
                spool.disk.remove(&folder.join(batch.name()))?;
                continue;
            }
            spool.room.count(batch.bytes);
            spool.push(batch);
        }
        Ok(spool)
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|b| b.bytes).sum()
    }

    /// Position before the first segment; `None` when that starts a history, or there is none.
    pub fn start(&self) -> Option<Pos> {
        self.batches.front().and_then(Batch::start)
    }

    /// Position after the last segment.
    pub fn end(&self) -> Option<Pos> {
        self.batches.back().map(Batch::end)
    }

    /// Transactions in it that are not restore points of their own any more.
    pub fn lost_restore_points(&self) -> u64 {
        self.batches.iter().map(|b| b.range.count().saturating_sub(b.segments)).sum()
    }

    /// True when transactions may be spooled.
    pub fn takes(&self) -> bool {
        !self.suspended && self.room.limit() > 0
    }

    /// Spools nothing more until [`Spool::resume`].
    pub fn suspend(&mut self) {
        self.take_back();
        self.suspended = true;
    }

    fn take_back(&mut self) {
        self.room.count(std::mem::take(&mut self.lent));
    }

    /// True when it should be squashed before more is spooled, given the bytes of the database.
    pub fn is_full(&self, database_bytes: u64) -> bool {
        let bound = database_bytes.max(FLOOR_BYTES).max(self.squashed.saturating_mul(3) / 2);
        self.bytes() > bound || self.room.free() < BATCH_BYTES.min(self.room.limit() / 4)
    }

    /// True when sending it would cost more than sending the whole database.
    pub fn outgrew(&self, database_bytes: u64) -> bool {
        self.batches.len() > 1 && self.bytes() > database_bytes.max(FLOOR_BYTES)
    }

    /// Ends [`Spool::suspend`].
    pub fn resume(&mut self) {
        self.suspended = false;
    }

    /// The hub has everything up to `txid` on its disk.
    pub fn acked(&mut self, txid: Txid) {
        while let Some(batch) = self.batches.pop_front_if(|b| b.range.max() <= txid) {
            self.forget(&batch);
        }
        if self.batches.is_empty() {
            self.squashed = 0;
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        for batch in std::mem::take(&mut self.batches) {
            self.forget(&batch);
        }
        self.squashed = 0;
    }

    /// What the spool can do for a hub at `hub`.
    pub fn coverage(&self, hub: Option<Pos>) -> Coverage {
        let known = |b: &Batch| [b.start(), Some(b.end())].into_iter().flatten().collect::<Vec<_>>();
        if let Some(hub) = hub
            && let Some(ours) = self.batches.iter().flat_map(known).find(|ours| ours.txid == hub.txid)
            && ours.checksum != hub.checksum
        {
            return Coverage::Fork { ours };
        }
        match self.holding(hub) {
            Some(_) => Coverage::Resendable,
            None => Coverage::Nothing,
        }
    }

    /// Which batch holds the transaction after `hub`.
    fn holding(&self, hub: Option<Pos>) -> Option<usize> {
        let next = Txid::following(hub.map(|p| p.txid));
        self.batches.iter().position(|b| b.range.min() <= next && next <= b.range.max())
    }

    /// Starts a batch.
    pub fn begin(&self) -> io::Result<NewBatch> {
        Writer::new(self.disk.clone(), self.folder.clone(), self.room.clone()).map(NewBatch)
    }

    /// Starts the delta that will [`Spool::replace`] everything. It may use the room of what it replaces: until that is
    /// removed, the disk holds both.
    pub fn begin_in_place(&mut self) -> io::Result<NewBatch> {
        self.take_back();
        self.lent = self.bytes();
        self.room.give_back(self.lent);
        self.begin()
    }

    /// Seals a batch behind the others: safe when this returns. Returns its end, if anything was in it. A batch that does
    /// not continue the spool takes its place.
    pub fn append(&mut self, batch: NewBatch) -> io::Result<Option<Pos>> {
        let Some(batch) = batch.0.seal()? else { return Ok(None) };
        self.push(batch);
        Ok(Some(batch.end()))
    }

    /// Seals a delta that stands for everything in the spool, and removes the rest.
    pub fn replace(&mut self, delta: NewBatch) -> io::Result<Option<Pos>> {
        let Some(batch) = delta.0.seal()? else { return Ok(None) };
        self.take_back();
        self.clear();
        self.squashed = batch.bytes;
        self.batches.push_back(batch);
        Ok(Some(batch.end()))
    }

    fn push(&mut self, batch: Batch) {
        let continues = self
            .batches
            .back()
            .is_none_or(|last| batch.range.follows(Some(last.range.max())) && batch.pre == Some(last.post));
        if !continues {
            self.clear();
        }
        self.batches.push_back(batch);
    }

    fn forget(&self, batch: &Batch) {
        self.room.give_back(batch.bytes);
        if let Err(e) = self.disk.remove(&self.folder.join(batch.name())) {
            tracing::warn!(folder = %self.folder.display(), file = batch.name(), error = %e, "a spool file could not be removed");
        }
    }

    /// The segments after `hub`, up to the end of one batch. `Ok(None)`: it does not hold them.
    pub fn segments_after(&self, hub: Option<Pos>) -> io::Result<Option<Segments>> {
        let Some(batch) = self.holding(hub).and_then(|i| self.batches.get(i)) else { return Ok(None) };
        let reader = Reader::open(&self.folder.join(batch.name()), batch)?;
        Ok(Some(Segments { reader, at: batch.start(), hub }))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.take_back();
        // The files stay; another Spool will count them.
        self.batches.iter().for_each(|batch| self.room.give_back(batch.bytes));
    }
}

/// A batch that is being written; takes segments as a [`Sink`]. Dropped, it leaves nothing.
pub struct NewBatch(Writer);

impl NewBatch {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

impl Sink for NewBatch {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.0.begin(meta)
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        self.0.chunk(data, last)
    }
}

/// Segments of one batch after a position.
pub struct Segments {
    reader: Reader,
    /// Position before the next segment.
    at: Option<Pos>,
    hub: Option<Pos>,
}

impl Segments {
    /// Hands out the next segment after the hub's position; `None` at the end of the batch. `Err` inside: the hub knows
    /// another transaction under that TXID. Errors of the sink come through as they are.
    pub fn send_next(&mut self, sink: &mut dyn Sink) -> io::Result<Option<Result<SegmentMeta, Pos>>> {
        loop {
            let Some((first, mut last)) = self.reader.next()? else {
                // The hub may stand inside a squashed run of transactions.
                return if self.at == self.hub { Ok(None) } else { Err(invalid(NOT_THERE)) };
            };
            let meta = meta_of(&first)?;
            let skipped = self.hub.is_some_and(|hub| meta.range.min() <= hub.txid);
            if !skipped && self.at != self.hub {
                return match self.at {
                    Some(ours) if self.hub.is_some_and(|hub| hub.txid == ours.txid) => Ok(Some(Err(ours))),
                    _ => Err(invalid(NOT_THERE)),
                };
            }
            if !skipped {
                sink.begin(&meta)?;
                sink.chunk(first, last)?;
            }
            while !last {
                let (data, is_last) = self.reader.next()?.ok_or_else(|| invalid("half a segment"))?;
                last = is_last;
                if !skipped {
                    sink.chunk(data, last)?;
                }
            }
            self.at = Some(meta.position());
            if !skipped {
                self.hub = self.at;
                return Ok(Some(Ok(meta)));
            }
        }
    }
}

/// The facts of a segment from the start of its LTX file.
fn meta_of(bytes: &[u8]) -> io::Result<SegmentMeta> {
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| invalid("a segment without its header"))?;
    let header = Header::decode(header).map_err(|e| invalid(&e.to_string()))?;
    SegmentMeta::of(&header).ok_or_else(|| invalid("a segment that this agent did not make"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a spool file cannot be used: {what}"))
}

#[cfg(test)]
mod tests;
