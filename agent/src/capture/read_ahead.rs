//! Published frames in memory: what one read of the log brought, for the transactions in it.
//!
//! Invariants: the frames follow one another and are of one generation; nobody writes a published frame, so what was verified
//! here stays true for as long as it is held. Memory: what its users ask for; it is given back when the log was read to its
//! end, but for one buffer per thread.

use std::cell::Cell;
use walhub_common::wal::{FRAME_HEADER_BYTES, FrameHeader, FrameNo, Salts};
use walhub_common::{Checksum, Pgno};

/// A buffer larger than this is not kept for the next one.
const SPARE_BYTES: usize = 768 * 1024;

thread_local! {
    /// The buffer of the last [`ReadAhead`] that was forgotten, as most live for one window of a stream.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Frames that were read from the log and are published, so nobody may change them: many transactions are read at once.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    salts: Option<Salts>,
    /// Number of the first frame in `bytes`.
    first: FrameNo,
    frame_bytes: usize,
    /// Its first `filled` bytes are frames.
    bytes: Vec<u8>,
    filled: usize,
}

impl ReadAhead {
    /// Reading goes on at `next`; what was read of another place is forgotten.
    pub(super) fn begin(&mut self, salts: Salts, next: FrameNo, frame_bytes: usize) {
        let known =
            self.salts == Some(salts) && self.frame_bytes == frame_bytes && self.frame(next).is_some();
        if !known {
            if self.bytes.is_empty() {
                self.bytes = SPARE.take();
            }
            self.filled = 0;
            (self.salts, self.first, self.frame_bytes) = (Some(salts), next, frame_bytes);
        }
    }

    /// Forgets everything and gives the memory back.
    pub(super) fn forget(&mut self) {
        let bytes = std::mem::take(self).bytes;
        if (1..=SPARE_BYTES).contains(&bytes.len()) {
            SPARE.set(bytes);
        }
    }

    /// True when the frames from `from` to the one before `next` may stay while these bytes are read.
    pub(super) fn has_room(&self, bytes: usize, from: FrameNo, next: FrameNo, most: usize) -> bool {
        next == from || (next.get() - from.get()) as usize * self.frame_bytes + bytes <= most
    }

    /// Drops the frames before `from`.
    pub(super) fn make_room(&mut self, from: FrameNo) {
        let end = self.first.get() + (self.filled / self.frame_bytes) as u32;
        let gone = (from.get().min(end) - self.first.get()) as usize * self.frame_bytes;
        self.bytes.copy_within(gone..self.filled, 0);
        self.filled -= gone;
        self.first = FrameNo(from.get().min(end));
    }

    /// Appends what `read` fills; nothing when it fails or says that the log ends before.
    pub(super) fn read<E>(
        &mut self,
        bytes: usize,
        read: impl FnOnce(&mut [u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let end = self.filled + bytes;
        if self.bytes.len() < end {
            if end <= SPARE_BYTES {
                // The next window reads as much.
                self.bytes.reserve_exact(end - self.bytes.len());
            }
            self.bytes.resize(end, 0);
        }
        let done = read(&mut self.bytes[self.filled..end]);
        if matches!(done, Ok(true)) {
            self.filled = end;
        }
        done
    }

    /// A frame, header and page.
    pub(super) fn frame(&self, frame: FrameNo) -> Option<&[u8]> {
        let nth = frame.get().checked_sub(self.first.get())? as usize;
        self.bytes[..self.filled].get(nth * self.frame_bytes..(nth + 1) * self.frame_bytes)
    }

    /// Checksum of the page in a frame that is held.
    pub(super) fn checksum(&self, pgno: Pgno, frame: FrameNo) -> Checksum {
        Checksum::of_page(pgno, self.page(frame).expect("BUG: a frame that is not held"))
    }

    /// The page checksums of all frames from `from` on.
    pub(super) fn checksums(&self, from: FrameNo) -> Vec<Checksum> {
        let frames = (from.get()..).map_while(|number| self.frame(FrameNo(number)));
        let pages = frames.map(|bytes| bytes.split_first_chunk().expect("BUG: shorter than a frame header"));
        let checksum =
            |(header, page)| Checksum::of_page(Pgno::new(FrameHeader::parse(header).pgno)?, page).into();
        pages.map_while(checksum).collect()
    }

    /// The page of a frame.
    pub(super) fn page(&self, frame: FrameNo) -> Option<&[u8]> {
        self.frame(frame).map(|bytes| &bytes[FRAME_HEADER_BYTES..])
    }
}
