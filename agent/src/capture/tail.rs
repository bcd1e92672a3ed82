//! TAIL: committed transactions, one at a time.

use super::error::{Broken, CaptureError};
use super::header::{self, Header};
use super::image::{Image, place};
use super::segment::{self, Origin, SegmentMeta, Sink};
use super::{Capture, Cursor, Next, Standing, Tracked};
use crate::page_map::Change;
use std::iter;
use walhub_common::clock::now_ms;
use walhub_common::wal::{FRAME_HEADER_BYTES, FrameNo, Grouper, Salts, Transaction, WalPosition, WalReader};
use walhub_common::{Checksum, PageSize, Pgno, Pos, TxidRange};

/// Frames of a transaction are kept in memory up to here; those of a larger one are read twice.
const HELD_BYTES: usize = 4 * 1024 * 1024;
/// Log that is read at once. Below the size from which the allocator maps memory for each buffer anew.
const READ_BYTES: usize = 120 * 1024;
/// What is at hand ([`Capture::is_at_hand`]) is at most this much log.
pub const AT_HAND_BYTES: u64 = 256 * 1024;

/// Beyond every page.
const END: Pgno = Pgno::new(u32::MAX).expect("BUG: not zero");

/// How the cursor relates to a header.
pub(super) enum Ahead {
    /// Nothing to read.
    Nothing,
    /// A transaction lies between cursor and header.
    Transaction(Cursor),
    /// The cursor's frames are gone.
    Lost,
}

impl Capture {
    /// Hands out the next committed transaction.
    ///
    /// After an error of the sink the same transaction comes again. A few microseconds plus the sink for a small
    /// transaction; a large one is streamed in bounded memory.
    pub fn next(&mut self, sink: &mut dyn Sink) -> Result<Next, CaptureError> {
        let result = self.try_next(sink);
        self.settle(result)
    }

    /// True when [`Capture::next`], called until it has nothing more, takes no longer than reading and encoding
    /// [`AT_HAND_BYTES`] that were just written: no lock is taken, nothing is written, and no checkpoint is due.
    pub fn is_at_hand(&self) -> bool {
        let Some(cursor) = self.cursor.filter(|_| self.kept.is_empty() && !self.yielded) else {
            return false;
        };
        let Some(header) = self.files.header().verify() else { return false };
        let at = cursor.wal.frame;
        let ahead = header.last.end(cursor.page_size).saturating_sub(at.end(cursor.page_size));
        cursor.anchored
            && header.salts == cursor.wal.salts
            && header.last >= at
            && ahead <= AT_HAND_BYTES
            && !self.upkeep_is_due(&header)
    }

    /// Squash mode: moves the page map over everything committed without handing it out. The frames count as captured,
    /// the transactions keep their TXIDs and become one delta later. Says how many restore points were given up.
    pub fn skip(&mut self) -> Result<u64, CaptureError> {
        let result = self.try_skip();
        self.settle(result)
    }

    /// True when the log restarted since it was read last. Costs twelve loads from memory.
    pub fn restarted(&self) -> bool {
        self.cursor.is_some_and(|c| c.wal.salts != header::salts(&self.files.glance()))
    }

    /// Follows the log into a new generation without reading it, so that its place is found again after a crash. For the
    /// time in which nobody calls [`Capture::next`].
    pub fn keep_place(&mut self) -> Result<(), CaptureError> {
        let result = self.try_keep_place();
        self.settle(result)
    }

    pub(super) fn try_keep_place(&mut self) -> Result<(), CaptureError> {
        if self.standing == Standing::Aligned && self.restarted() {
            let header = self.header()?;
            self.ahead(&header)?;
        }
        Ok(())
    }

    fn try_next(&mut self, sink: &mut dyn Sink) -> Result<Next, CaptureError> {
        self.must_own_lock()?;
        if let Some(kept) = self.kept.front() {
            kept.send(sink).map_err(CaptureError::Sink)?;
            let meta = kept.meta;
            self.kept.pop_front();
            return Ok(Next::Sent(meta));
        }
        if self.standing != Standing::Aligned {
            return Ok(Next::Lost(self.standing));
        }
        let header = self.header()?;
        match self.ahead(&header)? {
            Ahead::Nothing => {
                self.seen = Some(header.words);
                self.upkeep.read_to(header.last);
                self.read_ahead = ReadAhead::default();
                Ok(Next::UpToDate)
            }
            Ahead::Transaction(cursor) => self.advance(&header, cursor, Some(sink)),
            Ahead::Lost => Ok(self.lost()),
        }
    }

    fn try_skip(&mut self) -> Result<u64, CaptureError> {
        self.must_own_lock()?;
        let mut skipped = self.kept.len() as u64;
        self.kept.clear();
        if self.standing == Standing::Aligned {
            let header = self.header()?;
            skipped += self.catch_up(&header)?.unwrap_or(0);
            if let Some(tracked) = &mut self.tracked {
                tracked.ledger.settle_all();
            }
        }
        Ok(skipped)
    }

    /// Moves the page map to `header` without handing anything out; `None` when the frames are gone.
    pub(super) fn catch_up(&mut self, header: &Header) -> Result<Option<u64>, CaptureError> {
        let mut passed = 0;
        loop {
            match self.ahead(header)? {
                Ahead::Nothing => return Ok(Some(passed)),
                Ahead::Transaction(cursor) => match self.advance(header, cursor, None)? {
                    Next::Sent(_) => passed += 1,
                    Next::UpToDate | Next::Lost(_) => return Ok(None),
                },
                Ahead::Lost => {
                    self.lost();
                    return Ok(None);
                }
            }
        }
    }

    fn lost(&mut self) -> Next {
        self.let_go();
        Next::Lost(self.standing)
    }

    /// Compares cursor and header, and follows the log into a new generation.
    pub(super) fn ahead(&mut self, header: &Header) -> Result<Ahead, CaptureError> {
        let Some(cursor) = &mut self.cursor else {
            return Ok(Ahead::Lost);
        };
        let at = cursor.wal.frame;
        if header.salts != cursor.wal.salts || !cursor.anchored {
            if at < cursor.backfilled {
                // Backfilled by the application while no agent was there, and restarted before it could be read.
                return Ok(Ahead::Lost);
            }
            if at > cursor.backfilled {
                return Err(Broken::Restart { captured: at, backfilled: cursor.backfilled }.into());
            }
            if header.last == FrameNo::START {
                return Ok(Ahead::Nothing);
            }
            return self.enter_generation(header).map(Ahead::Transaction);
        }
        if header.backfilled > cursor.backfilled {
            return Err(Broken::ForeignBackfill { known: cursor.backfilled, found: header.backfilled }.into());
        }
        // Lower after a recovery of the wal-index.
        cursor.backfilled = header.backfilled;
        if header.last < at {
            return Ok(Ahead::Lost);
        }
        if header.last > at {
            return Ok(Ahead::Transaction(*cursor));
        }
        if at > FrameNo::START && header.checksum != cursor.wal.checksum {
            return Err(Broken::Published(at).into());
        }
        cursor.check_count(header.changes)?;
        Ok(Ahead::Nothing)
    }

    /// I5. The whole old generation is captured; the page map is saved as the state before frame 1 of the new one, so that
    /// a later attach finds its place.
    fn enter_generation(&mut self, header: &Header) -> Result<Cursor, CaptureError> {
        let (Some(tracked), Some(old)) = (&mut self.tracked, self.cursor) else {
            unreachable!("BUG: a new generation without a place")
        };
        let start = place(&self.files, header, old.page_size, FrameNo::START)?;
        tracked.ledger.settle_all();
        tracked.ledger.moved_to(start);
        self.save()?;
        let cursor = Cursor {
            wal: start,
            anchored: true,
            big_endian: header.big_endian,
            backfilled: FrameNo::START,
            ..old
        };
        self.cursor = Some(cursor);
        self.files.release();
        self.upkeep.new_generation();
        Ok(cursor)
    }

    /// Reads the transaction after the cursor and hands it out.
    pub(super) fn advance(
        &mut self,
        header: &Header,
        cursor: Cursor,
        sink: Option<&mut dyn Sink>,
    ) -> Result<Next, CaptureError> {
        let read = match self.read_transaction(header, &cursor) {
            Err(CaptureError::Broken(broken)) => {
                // Frames that were backfilled before the attach may be overwritten while they are read.
                return match self.header()?.salts == header.salts {
                    true => Err(broken.into()),
                    false => Ok(self.lost()),
                };
            }
            read => read?,
        };
        let Some(tracked) = &self.tracked else { unreachable!("BUG: a cursor without a page map") };
        let (changes, sources) = self.sources(header, tracked, &read, cursor.page_size)?;
        let commit = read.transaction.commit;
        let checksum = tracked.map.preview(&changes, commit).map_err(CaptureError::Staged)?;
        let position = Pos { txid: tracked.position.txid.next(), checksum };
        let meta = SegmentMeta {
            range: TxidRange::single(position.txid),
            pre: Some(tracked.position.checksum),
            post: position.checksum,
            page_size: cursor.page_size,
            commit,
            agent_time_ms: now_ms(),
        };
        if let Some(sink) = sink {
            let origin = Origin::frames(cursor.page_size, read.transaction.first, &read.end);
            let mut page = Vec::new();
            segment::write(sink, &meta, origin, self.options.compression, |put| {
                for ((pgno, checksum), source) in changes.iter().zip(&sources) {
                    match source {
                        Source::Frame(frame) => match self.read_ahead.page(*frame) {
                            Some(held) if read.held => put(*pgno, held)?,
                            _ => {
                                page.resize(cursor.page_size.bytes(), 0);
                                self.files.read_wal(frame.page_offset(cursor.page_size), &mut page)?;
                                put(*pgno, same(*pgno, &page, *checksum)?)?;
                            }
                        },
                        Source::Filled(filled) => put(*pgno, filled)?,
                    }
                }
                Ok(())
            })?;
        }
        self.book(position, commit, changes, read.end)?;
        Ok(Next::Sent(meta))
    }

    /// I4: frames up to the first commit, verified, none beyond the published end.
    fn read_transaction(
        &mut self,
        header: &Header,
        cursor: &Cursor,
    ) -> Result<ReadTransaction, CaptureError> {
        let mut reader = WalReader::resume(cursor.page_size, cursor.big_endian, cursor.wal);
        let mut grouper = Grouper::new(cursor.page_size);
        let frame_bytes = reader.frame_bytes();
        let ahead = &mut self.read_ahead;
        let first = cursor.wal.frame.next();
        ahead.begin(header.salts, first, frame_bytes);
        let mut checksums = Vec::new();
        let mut held = true;
        while reader.position().frame < header.last {
            let next = reader.position().frame.next();
            if ahead.frame(next).is_none() {
                let left = (header.last.get() - reader.position().frame.get()) as usize;
                let bytes = left.min((READ_BYTES / frame_bytes).max(1)) * frame_bytes;
                held &= ahead.make_room(bytes, if held { first } else { next });
                let offset = reader.offset();
                if !ahead.read(bytes, |out| self.files.read_wal(offset, out))? {
                    return Err(Broken::NoCommit(header.last).into());
                }
            }
            let frame_bytes = ahead.frame(next).expect("BUG: the frame was just read");
            let (number, frame) = reader.push(frame_bytes)?;
            checksums.push(Checksum::of_page(frame.pgno, &frame_bytes[FRAME_HEADER_BYTES..]));
            let Some(transaction) = grouper.push(number, frame) else {
                continue;
            };
            let end = reader.position();
            if end.frame == header.last && end.checksum != header.checksum {
                return Err(Broken::Published(end.frame).into());
            }
            return Ok(ReadTransaction { transaction, end, checksums, held });
        }
        Err(Broken::NoCommit(header.last).into())
    }

    /// The pages of a transaction and where to take them from. Pages by which the database grew but which nobody wrote are
    /// as the live image has them.
    fn sources(
        &self,
        header: &Header,
        tracked: &Tracked,
        read: &ReadTransaction,
        page_size: PageSize,
    ) -> Result<(Vec<Change>, Vec<Source>), CaptureError> {
        let transaction = &read.transaction;
        let mut changes = Vec::with_capacity(transaction.pages.len());
        let mut sources = Vec::with_capacity(transaction.pages.len());
        let mut image = None;
        let mut grown = tracked.map.grown(transaction.commit).peekable();
        let written = transaction.pages.iter().map(|(pgno, frame)| (*pgno, Some(*frame)));
        for (pgno, frame) in written.chain(iter::once((END, None))) {
            while let Some(missing) = grown.next_if(|g| *g < pgno) {
                let image = match &image {
                    Some(image) => image,
                    None => &*image.insert(Image::at(
                        &self.files,
                        header,
                        read.end.frame,
                        read.end.checksum,
                        page_size,
                        transaction.commit,
                    )?),
                };
                image.read(iter::once(missing), |pgno, page| {
                    changes.push((pgno, Checksum::of_page(pgno, page)));
                    sources.push(Source::Filled(page.into()));
                    Ok(())
                })?;
            }
            grown.next_if_eq(&pgno);
            if let Some(frame) = frame {
                let nth = (frame.get() - transaction.first.get()) as usize;
                changes.push((pgno, read.checksums[nth]));
                sources.push(Source::Frame(frame));
            }
        }
        Ok((changes, sources))
    }
}

/// A transaction as read from the log.
struct ReadTransaction {
    transaction: Transaction,
    end: WalPosition,
    /// Page checksum of every frame, from the first.
    checksums: Vec<Checksum>,
    /// True when all its frames lie in the read-ahead.
    held: bool,
}

/// Frames that were read from the log and are published, so nobody may change them: many transactions are read at once.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    salts: Option<Salts>,
    /// Number of the first frame in `bytes`.
    first: FrameNo,
    frame_bytes: usize,
    bytes: Vec<u8>,
}

impl ReadAhead {
    /// Reading goes on at `next`; what was read of another place is forgotten.
    fn begin(&mut self, salts: Salts, next: FrameNo, frame_bytes: usize) {
        let known =
            self.salts == Some(salts) && self.frame_bytes == frame_bytes && self.frame(next).is_some();
        if !known {
            self.bytes.clear();
            (self.salts, self.first, self.frame_bytes) = (Some(salts), next, frame_bytes);
        }
    }

    /// Makes room behind the last frame, which is the one before the next that is read. Frames before `from` go; when
    /// those from there on are more than [`HELD_BYTES`] together with the new ones, they go as well, and `false` says so.
    fn make_room(&mut self, bytes: usize, from: FrameNo) -> bool {
        let end = self.first.get() + (self.bytes.len() / self.frame_bytes) as u32;
        let gone = (from.get().min(end) - self.first.get()) as usize * self.frame_bytes;
        self.bytes.drain(..gone);
        self.first = FrameNo(from.get().min(end));
        if !self.bytes.is_empty() && self.bytes.len() + bytes > HELD_BYTES {
            self.bytes.clear();
            self.first = FrameNo(end);
            return false;
        }
        true
    }

    /// Appends what `read` fills; nothing when it fails or says that the log ends before.
    fn read<E>(&mut self, bytes: usize, read: impl FnOnce(&mut [u8]) -> Result<bool, E>) -> Result<bool, E> {
        let had = self.bytes.len();
        self.bytes.resize(had + bytes, 0);
        let done = read(&mut self.bytes[had..]);
        if !matches!(done, Ok(true)) {
            self.bytes.truncate(had);
        }
        done
    }

    /// A frame, header and page.
    fn frame(&self, frame: FrameNo) -> Option<&[u8]> {
        let nth = frame.get().checked_sub(self.first.get())? as usize;
        self.bytes.get(nth * self.frame_bytes..(nth + 1) * self.frame_bytes)
    }

    /// The page of a frame.
    fn page(&self, frame: FrameNo) -> Option<&[u8]> {
        self.frame(frame).map(|bytes| &bytes[FRAME_HEADER_BYTES..])
    }
}

enum Source {
    Frame(FrameNo),
    Filled(Box<[u8]>),
}

/// A page that was read a second time must be the page that was read first.
pub(super) fn same(pgno: Pgno, page: &[u8], checksum: Checksum) -> Result<&[u8], CaptureError> {
    if Checksum::of_page(pgno, page) == checksum { Ok(page) } else { Err(Broken::UnstablePage(pgno).into()) }
}

impl Cursor {
    /// I6, at a place where cursor and header agree.
    fn check_count(&mut self, changes: u32) -> Result<(), Broken> {
        // A recovery of the wal-index begins to count anew.
        if let Some(counted) = self.counted.filter(|c| *c <= changes) {
            let counted = changes - counted;
            if counted > self.commits {
                return Err(Broken::Commits { counted, captured: self.commits });
            }
        }
        (self.counted, self.commits) = (Some(changes), 0);
        Ok(())
    }
}
