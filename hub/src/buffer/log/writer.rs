//! The writing end of the log: groups of records, file changes, and what follows a failure. One owner, one thread.

use super::file::{FILE_HEADER_BYTES, FileHeader, Files};
use super::head::{At, Before, ChunkHead, DatabaseHead, Head};
use super::probe::{Probe, Step};
use super::record::{Payload, encode, record_bytes};
use super::recover::Checkpoint;
use super::replay::segment;
use super::snapshot::State;
use crate::buffer::{Chunk, DatabaseId, SegmentMeta, SegmentRef};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use walhub_common::{Pos, Txid, clock};

/// Slices that one write call takes.
const MAX_SLICES: usize = 1024;
/// Payloads below this are copied beside their headers: cheaper than a slice of their own.
const COPY_BELOW: usize = 4096;

/// What a group consists of.
#[derive(Debug)]
pub(in crate::buffer) enum Item<'a> {
    /// A chunk whose order was checked.
    Chunk(&'a Chunk, Payload),
    /// A registration.
    Database(&'a DatabaseHead),
    /// A position from elsewhere, and its hub time.
    Adopt(&'a DatabaseHead, Pos, i64),
    /// Whatever of a segment of this database has been written is given up.
    Abandon(DatabaseId),
    /// A chunk of a segment that stands for others within its range.
    Rewrite(&'a Chunk, Payload),
    /// As [`Item::Abandon`], of such a segment.
    AbandonRewrite(DatabaseId),
    /// Nothing: somebody waits for what is before it.
    Barrier,
}

/// A segment that a group completes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Written {
    /// Its database.
    pub(in crate::buffer) database: DatabaseId,
    /// What it is and where it lies.
    pub(in crate::buffer) segment: SegmentRef,
    /// It stands for those within its range that were there before.
    pub(in crate::buffer) rewritten: bool,
}

impl Item<'_> {
    /// A bound of what it takes in the log.
    pub(in crate::buffer) fn bytes(&self) -> usize {
        match self {
            Item::Chunk(chunk, _) | Item::Rewrite(chunk, _) => chunk_bytes(chunk.data.len()),
            Item::Database(head) | Item::Adopt(head, ..) => record_bytes(724 + head.path.len(), 0),
            Item::Abandon(_) | Item::AbandonRewrite(_) | Item::Barrier => 0,
        }
    }
}

/// A bound of what a chunk of `data` bytes takes in the log.
pub(in crate::buffer) fn chunk_bytes(data: usize) -> usize {
    record_bytes(104, data)
}

impl Written {
    /// Its database and first transaction.
    pub(in crate::buffer) fn key(&self) -> (DatabaseId, Txid) {
        (self.database, self.segment.meta.range.min())
    }
}

/// Why a group was not written. In both cases nothing of it will be found when the log is read again, unless the
/// process ends before the next group: then what is whole counts, as after any crash.
#[derive(Debug)]
pub(in crate::buffer) struct WriteError {
    /// The step.
    pub(in crate::buffer) doing: &'static str,
    /// The cause.
    pub(in crate::buffer) source: io::Error,
    /// True when nothing more may be written until the log is opened anew.
    pub(in crate::buffer) broken: bool,
}

/// The owner of the log's end.
#[derive(Debug)]
pub(in crate::buffer) struct Writer {
    files: Arc<Files>,
    probe: Probe,
    log_id: u64,
    next_number: u64,
    file_bytes: u64,
    active: Option<Active>,
    /// Unfinished segments; true for those that are rewritten.
    open: HashMap<(DatabaseId, bool), Open>,
    syncs: u64,
}

#[derive(Debug)]
struct Active {
    number: u64,
    salt: u64,
    file: File,
    path: PathBuf,
    begin: u64,
    end: u64,
    synced: u64,
}

#[derive(Debug)]
struct Open {
    meta: SegmentMeta,
    first: At,
    previous: At,
    bytes: u64,
}

enum Piece<'a> {
    Copied(Range<usize>),
    Payload(&'a [u8]),
}

impl Writer {
    /// Continues a log whose newest file is `last_number`, in a file of its own. The file is made with the first group.
    pub(in crate::buffer) fn new(
        files: Arc<Files>,
        probe: Probe,
        log_id: u64,
        last_number: u64,
        file_bytes: u64,
    ) -> Self {
        Self {
            files,
            probe,
            log_id,
            next_number: last_number + 1,
            file_bytes,
            active: None,
            open: HashMap::new(),
            syncs: 0,
        }
    }

    /// Bytes that the next group may have without starting a new file; a single item may have more.
    pub(in crate::buffer) fn room(&self) -> u64 {
        self.active.as_ref().map_or(self.file_bytes, |a| self.file_bytes.saturating_sub(a.end - a.begin))
    }

    /// The oldest file that an unfinished segment lies in.
    pub(in crate::buffer) fn oldest_open_file(&self) -> Option<u64> {
        self.open.values().map(|open| open.first.0).min()
    }

    /// Syncs so far.
    pub(in crate::buffer) fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Bytes written and not synced.
    pub(in crate::buffer) fn unsynced_bytes(&self) -> u64 {
        self.active.as_ref().map_or(0, |a| a.end - a.synced)
    }

    /// The end of the log; `None` before the first group, and after a failure.
    pub(in crate::buffer) fn end(&self) -> Option<Checkpoint> {
        let log_id = self.log_id;
        self.active.as_ref().map(|a| Checkpoint { log_id, file: a.number, salt: a.salt, offset: a.end })
    }

    /// Writes a group, and syncs it when asked. Gives the segments that it completes, in order. `snapshot` gives the
    /// state before the group, for a new file.
    pub(in crate::buffer) fn write(
        &mut self,
        group: &[Item<'_>],
        sync: bool,
        snapshot: impl FnOnce() -> State,
    ) -> Result<Vec<Written>, WriteError> {
        let written = self.try_write(group, sync, snapshot);
        if written.is_err() {
            self.open.clear();
        }
        written
    }

    fn try_write(
        &mut self,
        group: &[Item<'_>],
        sync: bool,
        snapshot: impl FnOnce() -> State,
    ) -> Result<Vec<Written>, WriteError> {
        let bytes: u64 = group.iter().map(|item| item.bytes() as u64).sum();
        if bytes > 0 {
            self.make_room(bytes, snapshot)?;
        }
        let Some(active) = &mut self.active else {
            // Nothing to write; and without a file that is being written no segment is unfinished.
            return Ok(Vec::new());
        };
        let mut copied = Vec::new();
        let mut pieces = Vec::with_capacity(group.len());
        let mut done = Vec::new();
        let mut end = active.end;
        for item in group {
            let at = (active.number, end);
            let start = copied.len();
            match item {
                Item::Chunk(chunk, payload) | Item::Rewrite(chunk, payload) => {
                    let rewritten = matches!(item, Item::Rewrite(..));
                    let head = chunk_head(&mut self.open, chunk, rewritten, at);
                    encode(&mut copied, &Head::Chunk(head), *payload, active.salt, active.synced);
                    if chunk.last {
                        let segment = segment(&head, payload.bytes, at);
                        done.push(Written { database: chunk.database, segment, rewritten });
                    }
                    if chunk.data.len() < COPY_BELOW {
                        copied.extend_from_slice(&chunk.data);
                        push_copied(&mut pieces, start..copied.len());
                    } else {
                        push_copied(&mut pieces, start..copied.len());
                        pieces.push(Piece::Payload(&chunk.data));
                        end += chunk.data.len() as u64;
                    }
                }
                Item::Database(head) => {
                    let head = Head::Database((*head).clone());
                    encode(&mut copied, &head, Payload::of(b""), active.salt, active.synced);
                    push_copied(&mut pieces, start..copied.len());
                }
                Item::Adopt(head, position, time_ms) => {
                    let (database, position) = ((*head).clone(), Some(*position));
                    let head = Head::State { database, position, time_ms: *time_ms };
                    encode(&mut copied, &head, Payload::of(b""), active.salt, active.synced);
                    push_copied(&mut pieces, start..copied.len());
                }
                Item::Abandon(id) => {
                    self.open.remove(&(*id, false));
                }
                Item::AbandonRewrite(id) => {
                    self.open.remove(&(*id, true));
                }
                Item::Barrier => {}
            }
            end += (copied.len() - start) as u64;
        }
        self.put(&copied, &pieces, end)?;
        if sync {
            self.sync()?;
        }
        Ok(done)
    }

    fn put(&mut self, copied: &[u8], pieces: &[Piece<'_>], end: u64) -> Result<(), WriteError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let slices = pieces.iter().map(|piece| match piece {
            Piece::Copied(range) => IoSlice::new(&copied[range.clone()]),
            Piece::Payload(bytes) => IoSlice::new(bytes),
        });
        let mut slices: Vec<_> = slices.collect();
        let step = Step::Write { path: &active.path, offset: active.end, bytes: end - active.end };
        let written = self
            .probe
            .at(step)
            .and_then(|()| active.file.seek(SeekFrom::Start(active.end)))
            .and_then(|_| write_all_vectored(&mut active.file, &mut slices));
        if let Err(source) = written {
            return Err(self.cut("write the log", source));
        }
        active.end = end;
        self.files.set_bytes(active.number, end);
        Ok(())
    }

    /// Makes everything written durable.
    pub(in crate::buffer) fn sync(&mut self) -> Result<(), WriteError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.synced == active.end {
            return Ok(());
        }
        let synced = self.probe.at(Step::Sync(&active.path)).and_then(|()| active.file.sync_data());
        match synced {
            Ok(()) => {}
            // Space that was promised and is not there: nothing was lost that the kernel had accepted for good.
            Err(e) if out_of_space(&e) => return Err(self.cut("sync the log", e)),
            Err(source) => return Err(WriteError { doing: "sync the log", source, broken: true }),
        }
        active.synced = active.end;
        self.syncs += 1;
        let step = Step::Synced { path: &active.path, end: active.end };
        self.probe.at(step).map_err(|source| WriteError { doing: "sync the log", source, broken: true })
    }

    /// Cuts the file to what is synced, and leaves it. When that fails too nothing more may be written.
    fn cut(&mut self, doing: &'static str, source: io::Error) -> WriteError {
        let Some(active) = self.active.take() else { return WriteError { doing, source, broken: false } };
        let cut = self.files.truncate(active.number, &active.file, active.synced);
        if let Err(e) = &cut {
            tracing::error!(error = %e, path = %active.path.display(), "cannot cut the log back after a failed write");
        }
        WriteError { doing, source, broken: cut.is_err() }
    }

    /// Completes the current file: what it holds is on disk, and it is as long as that.
    pub(in crate::buffer) fn seal(&mut self) -> Result<(), WriteError> {
        self.sync()?;
        let Some(active) = self.active.take() else { return Ok(()) };
        // A longer file costs nothing but the look of it.
        if let Err(e) = self.files.truncate(active.number, &active.file, active.end) {
            tracing::warn!(error = %e, path = %active.path.display(), "cannot cut a complete log file");
        }
        Ok(())
    }

    fn make_room(&mut self, bytes: u64, snapshot: impl FnOnce() -> State) -> Result<(), WriteError> {
        let fits = |a: &Active| a.end == a.begin || a.end - a.begin + bytes <= self.file_bytes;
        if self.active.as_ref().is_some_and(fits) {
            return Ok(());
        }
        self.seal()?;
        let salt = rand::random();
        let header =
            FileHeader { log_id: self.log_id, number: self.next_number, salt, created_ms: clock::now_ms() };
        let start = snapshot().encode(salt);
        let end = FILE_HEADER_BYTES + start.len() as u64;
        let file = self
            .files
            .create(&header, &start, end + self.file_bytes)
            .map_err(|source| WriteError { doing: "start a log file", source, broken: false })?;
        self.next_number += 1;
        let path = self.files.path(header.number);
        self.active = Some(Active { number: header.number, salt, file, path, begin: end, end, synced: end });
        Ok(())
    }
}

fn chunk_head(
    open: &mut HashMap<(DatabaseId, bool), Open>,
    chunk: &Chunk,
    rewritten: bool,
    at: At,
) -> ChunkHead {
    let key = (chunk.database, rewritten);
    let before = (chunk.number > 0).then(|| {
        let open = open.get(&key).filter(|o| o.meta == chunk.meta);
        let open = open.expect("BUG: a chunk without those before it was let through");
        Before { first: open.first, previous: open.previous, bytes: open.bytes }
    });
    if chunk.last {
        open.remove(&key);
    } else {
        let (first, bytes) = before.map_or((at, 0), |b| (b.first, b.bytes));
        let bytes = bytes + chunk.data.len() as u64;
        open.insert(key, Open { meta: chunk.meta, first, previous: at, bytes });
    }
    ChunkHead {
        database: chunk.database,
        meta: chunk.meta,
        number: chunk.number,
        last: chunk.last,
        before,
        rewritten,
    }
}

fn push_copied(pieces: &mut Vec<Piece<'_>>, range: Range<usize>) {
    match pieces.last_mut() {
        Some(Piece::Copied(last)) if last.end == range.start => last.end = range.end,
        _ => pieces.push(Piece::Copied(range)),
    }
}

fn write_all_vectored(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        let count = slices.len().min(MAX_SLICES);
        match file.write_vectored(&slices[..count]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
