//! Writes segments into the log once more, at its end: as they are, or several as one. Blocking.
//!
//! Invariant: what a segment stands for stays in the log until the segment is on disk and the index knows it; a crash in
//! between leaves the old form.

use super::flusher::Flusher;
use super::{BufferError, Chunk, DatabaseId, SegmentMeta};
use bytes::Bytes;
use std::io::{self, Write};
use walhub_common::limits::MAX_CHUNK_BYTES;

/// Bytes on their way to the disk at once.
const UNSYNCED_BYTES: u64 = 8 * 1024 * 1024;

/// A round of writing; nothing of it counts before [`Rewriter::finish`].
#[derive(Debug)]
pub(super) struct Rewriter<'a> {
    flusher: &'a Flusher,
    failures: u64,
    unsynced: u64,
}

impl<'a> Rewriter<'a> {
    /// Nothing yet.
    pub(super) fn new(flusher: &'a Flusher) -> Self {
        Self { flusher, failures: flusher.failures(), unsynced: 0 }
    }

    /// Begins a segment.
    pub(super) fn segment<'b>(&'b mut self, database: DatabaseId, meta: SegmentMeta) -> Sink<'a, 'b> {
        Sink {
            rewriter: self,
            database,
            meta,
            number: 0,
            bytes: 0,
            data: Vec::new(),
            failed: None,
            ended: false,
        }
    }

    /// Waits until everything so far is on disk and published.
    pub(super) fn finish(&mut self) -> Result<(), BufferError> {
        self.unsynced = 0;
        self.flusher.barrier(self.failures)
    }

    fn push(&mut self, chunk: Chunk) -> Result<(), BufferError> {
        self.unsynced += chunk.data.len() as u64;
        self.flusher.rewrite(chunk, self.failures)?;
        if self.unsynced >= UNSYNCED_BYTES { self.finish() } else { Ok(()) }
    }
}

/// Takes the bytes of one segment. Dropped without [`Sink::end`] the segment does not exist.
#[derive(Debug)]
pub(super) struct Sink<'a, 'b> {
    rewriter: &'b mut Rewriter<'a>,
    database: DatabaseId,
    meta: SegmentMeta,
    number: u32,
    bytes: u64,
    data: Vec<u8>,
    failed: Option<BufferError>,
    ended: bool,
}

impl Sink<'_, '_> {
    fn send(&mut self, last: bool) -> Result<(), BufferError> {
        let data = Bytes::from(std::mem::take(&mut self.data));
        self.bytes += data.len() as u64;
        let (database, meta, number) = (self.database, self.meta, self.number);
        self.number += 1;
        self.rewriter.push(Chunk { database, meta, number, last, data })
    }

    /// Ends the segment; its bytes.
    pub(super) fn end(mut self) -> Result<u64, BufferError> {
        self.send(true)?;
        self.ended = true;
        Ok(self.bytes)
    }

    /// Why a write failed.
    pub(super) fn failure(&mut self) -> Option<BufferError> {
        self.failed.take()
    }
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk goes when more comes, so that the last one is never empty.
        if self.data.len() == MAX_CHUNK_BYTES
            && let Err(error) = self.send(false)
        {
            let text = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(text));
        }
        let count = bytes.len().min(MAX_CHUNK_BYTES - self.data.len());
        self.data.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sink<'_, '_> {
    fn drop(&mut self) {
        if !self.ended && self.number > 0 {
            self.rewriter.flusher.abandon_rewrite(self.database);
        }
    }
}
