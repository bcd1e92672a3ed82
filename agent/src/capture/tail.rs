//! TAIL: committed transactions, one at a time, or those that are there together.
//!
//! Joined transactions ([`Capture::next_joined`]) keep their numbers and share one segment, in which each page they wrote
//! lies once. Every frame is read and verified all the same; what is saved is the work for versions that nobody will
//! restore. Not joined are: a transaction that makes the database smaller, with any other; more log than [`JOINED_BYTES`];
//! and whatever cannot be read now, which is met again as the beginning of the next segment.

use super::error::{Broken, CaptureError};
use super::header::{self, Header};
use super::image::{Image, place};
use super::segment::{self, Origin, SegmentMeta, Sink};
use super::{Capture, Cursor, Next, Standing, Tracked};
use crate::page_map::Change;
use std::iter;
use walhub_common::clock::now_ms;
use walhub_common::wal::{FRAME_HEADER_BYTES, FrameNo, Grouper, Transaction, WalPosition, WalReader};
use walhub_common::{Checksum, PageSize, Pgno, Pos};

/// Frames of a transaction are kept in memory up to here; those of a larger one are read twice.
const HELD_BYTES: usize = 4 * 1024 * 1024;
/// Log that is read at once. Below the size from which the allocator maps memory for each buffer anew.
const READ_BYTES: usize = 120 * 1024;
/// Log that becomes one segment at most.
const JOINED_BYTES: usize = 768 * 1024;
/// What is at hand ([`Capture::at_hand`]) is at most this much log.
const AT_HAND_BYTES: u64 = 768 * 1024;

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
        let result = self.try_next(sink, Take::One);
        self.settle(result)
    }

    /// As [`Capture::next`], with the committed transactions after it in the same segment, as many as there are and may be
    /// joined: the restore points between them are given up.
    pub fn next_joined(&mut self, sink: &mut dyn Sink) -> Result<Next, CaptureError> {
        let result = self.try_next(sink, Take::Joined);
        self.settle(result)
    }

    /// Bytes of log for [`Capture::next_at_hand`] to read, at most [`AT_HAND_BYTES`]; `None` when more is there, or more than
    /// reading is needed.
    pub fn at_hand(&self) -> Option<u64> {
        let header = self.files.header().verify()?;
        self.ahead_at_hand(&header).filter(|bytes| *bytes <= AT_HAND_BYTES)
    }

    /// As [`Capture::next`] or [`Capture::next_joined`], when that takes no longer than reading and encoding `most` bytes of log
    /// that were just written: no lock is taken, and nothing is written. `None`: not now.
    pub fn next_at_hand(
        &mut self,
        sink: &mut dyn Sink,
        joined: bool,
        most: u64,
    ) -> Result<Option<Next>, CaptureError> {
        let Some(header) = self.files.header().verify() else { return Ok(None) };
        if self.ahead_at_hand(&header).is_none_or(|bytes| bytes > most) {
            return Ok(None);
        }
        let take = if joined { Take::Joined } else { Take::One };
        let result = self.must_own_lock().and_then(|()| self.next_until(&header, sink, take));
        self.settle(result).map(Some)
    }

    /// Bytes from the cursor to the end of the log, when nothing but reading lies between.
    fn ahead_at_hand(&self, header: &Header) -> Option<u64> {
        let cursor = self.cursor.filter(|c| c.anchored && self.kept.is_empty() && !self.yielded)?;
        let current = header.salts == cursor.wal.salts && header.last >= cursor.wal.frame;
        let end = |frame: FrameNo| frame.end(cursor.page_size);
        current.then(|| end(header.last) - end(cursor.wal.frame))
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

    fn try_next(&mut self, sink: &mut dyn Sink, take: Take) -> Result<Next, CaptureError> {
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
        self.next_until(&header, sink, take)
    }

    fn next_until(&mut self, header: &Header, sink: &mut dyn Sink, take: Take) -> Result<Next, CaptureError> {
        match self.ahead(header)? {
            Ahead::Nothing => {
                self.seen = Some(header.words);
                self.upkeep.read_to(header.last);
                self.read_ahead.forget();
                Ok(Next::UpToDate)
            }
            Ahead::Transaction(cursor) => self.advance(header, cursor, take, Some(sink)),
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
                Ahead::Transaction(cursor) => match self.advance(header, cursor, Take::One, None)? {
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

    /// Reads what follows the cursor and hands it out.
    pub(super) fn advance(
        &mut self,
        header: &Header,
        cursor: Cursor,
        take: Take,
        sink: Option<&mut dyn Sink>,
    ) -> Result<Next, CaptureError> {
        let read = match self.read(header, &cursor, take) {
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
        let range = tracked.position.txid.run_after(read.count);
        let position = Pos { txid: range.max(), checksum };
        let meta = SegmentMeta {
            range,
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
                            Some(held) if read.checksums.is_none() => put(*pgno, held)?,
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
        self.book(position, read.count, commit, changes, read.end)?;
        Ok(Next::Sent(meta))
    }

    /// The pages of the transaction after `cursor`, which is not handed out, and the size of the database after it.
    pub(super) fn peek(
        &mut self,
        header: &Header,
        cursor: Cursor,
    ) -> Result<(Vec<Change>, u32), CaptureError> {
        let read = self.read(header, &cursor, Take::One)?;
        let Some(tracked) = &self.tracked else { unreachable!("BUG: a cursor without a page map") };
        let (changes, _) = self.sources(header, tracked, &read, cursor.page_size)?;
        Ok((changes, read.transaction.commit))
    }

    /// The transaction after the cursor, or all that may be joined.
    fn read(&mut self, header: &Header, cursor: &Cursor, take: Take) -> Result<Read, CaptureError> {
        let mut reader = WalReader::resume(cursor.page_size, cursor.big_endian, cursor.wal);
        let first = cursor.wal.frame.next();
        self.read_ahead.begin(header.salts, first, reader.frame_bytes());
        let mut frames = Frames { first, most: HELD_BYTES, checksums: None };
        let Some(transaction) = self.read_transaction(header, &mut reader, &mut frames)? else {
            return Err(Broken::NoCommit(header.last).into());
        };
        let mut read =
            Read { transaction, count: 1, end: reader.position(), checksums: frames.checksums.take() };
        let mut size = self.tracked.as_ref().map_or(0, |tracked| tracked.map.commit());
        let mut later = Vec::new();
        if take == Take::Joined && read.checksums.is_none() && read.transaction.commit >= size {
            size = read.transaction.commit;
            frames.most = JOINED_BYTES;
            while read.end.frame < header.last
                && let Ok(Some(next)) = self.read_transaction(header, &mut reader, &mut frames)
                && next.commit >= size
            {
                size = next.commit;
                read.count += 1;
                read.end = reader.position();
                later.push(next);
            }
        }
        read.transaction.join(later);
        Ok(read)
    }

    /// I4: frames up to the next commit, verified, none beyond the published end. `None`: more than the read-ahead may hold,
    /// and it already holds a transaction.
    fn read_transaction(
        &mut self,
        header: &Header,
        reader: &mut WalReader,
        frames: &mut Frames,
    ) -> Result<Option<Transaction>, CaptureError> {
        let mut grouper = Grouper::new(reader.page_size());
        let frame_bytes = reader.frame_bytes();
        let ahead = &mut self.read_ahead;
        let begun = reader.position().frame.next();
        while reader.position().frame < header.last {
            let next = reader.position().frame.next();
            if ahead.frame(next).is_none() {
                let left = (header.last.get() - reader.position().frame.get()) as usize;
                let bytes = left.min((READ_BYTES / frame_bytes).max(1)) * frame_bytes;
                if frames.checksums.is_none() && !ahead.has_room(bytes, frames.first, next, frames.most) {
                    if begun > frames.first {
                        return Ok(None);
                    }
                    frames.checksums = Some(ahead.checksums(frames.first));
                }
                ahead.make_room(if frames.checksums.is_none() { frames.first } else { next });
                let offset = reader.offset();
                if !ahead.read(bytes, |out| self.files.read_wal(offset, out))? {
                    return Err(Broken::NoCommit(header.last).into());
                }
            }
            let frame_bytes = ahead.frame(next).expect("BUG: the frame was just read");
            let (number, frame) = reader.push(frame_bytes)?;
            if let Some(checksums) = &mut frames.checksums {
                checksums.push(Checksum::of_page(frame.pgno, &frame_bytes[FRAME_HEADER_BYTES..]));
            }
            let Some(transaction) = grouper.push(number, frame) else {
                continue;
            };
            let end = reader.position();
            if end.frame == header.last && end.checksum != header.checksum {
                return Err(Broken::Published(end.frame).into());
            }
            return Ok(Some(transaction));
        }
        Err(Broken::NoCommit(header.last).into())
    }

    /// The pages of a transaction and where to take them from. Pages by which the database grew but which nobody wrote are
    /// as the live image has them.
    fn sources(
        &self,
        header: &Header,
        tracked: &Tracked,
        read: &Read,
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
                let checksum = match &read.checksums {
                    Some(checksums) => checksums[(frame.get() - transaction.first.get()) as usize],
                    None => self.read_ahead.checksum(pgno, frame),
                };
                changes.push((pgno, checksum));
                sources.push(Source::Frame(frame));
            }
        }
        Ok((changes, sources))
    }
}

/// How much becomes one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Take {
    /// One transaction.
    One,
    /// Those that are there, as far as they may be joined.
    Joined,
}

/// One transaction or several joined ones, as read from the log.
struct Read {
    transaction: Transaction,
    /// How many.
    count: u64,
    end: WalPosition,
    /// Page checksum of every frame, from the first; `None` when all frames lie in the read-ahead.
    checksums: Option<Vec<Checksum>>,
}

/// The frames of a segment while they are read.
struct Frames {
    first: FrameNo,
    /// Bytes of them that are held.
    most: usize,
    /// As in [`Read`].
    checksums: Option<Vec<Checksum>>,
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
