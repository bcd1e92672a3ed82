//! TAIL: committed transactions, one at a time.

use super::error::{Broken, CaptureError};
use super::header::Header;
use super::image::{Image, RUN_BYTES, place};
use super::segment::{self, Origin, SegmentMeta, Sink};
use super::{Capture, Cursor, Next, Standing, Tracked};
use crate::page_map::Change;
use std::iter;
use walhub_common::clock::now_ms;
use walhub_common::wal::{FRAME_HEADER_BYTES, FrameNo, Grouper, Transaction, WalPosition, WalReader};
use walhub_common::{Checksum, PageSize, Pgno, Pos, TxidRange};

/// Frames of a transaction are kept in memory up to here; those of a larger one are read twice.
const HELD_BYTES: usize = 4 * 1024 * 1024;
/// Most transactions are this small.
const FIRST_READ_FRAMES: usize = 4;

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

    /// Squash mode: moves the page map over everything committed without handing it out. The frames count as captured,
    /// the transactions keep their TXIDs and become one delta later. Says how many restore points were given up.
    pub fn skip(&mut self) -> Result<u64, CaptureError> {
        let result = self.try_skip();
        self.settle(result)
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
        let position =
            Pos { txid: tracked.position.txid.next(), checksum: tracked.map.preview(&changes, commit) };
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
            segment::write(sink, &meta, origin, |put| {
                for ((pgno, checksum), source) in changes.iter().zip(&sources) {
                    match source {
                        Source::Frame(frame) => match read.held(*frame, cursor.page_size) {
                            Some(held) => put(*pgno, held)?,
                            None => {
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
    fn read_transaction(&self, header: &Header, cursor: &Cursor) -> Result<ReadTransaction, CaptureError> {
        let mut reader = WalReader::resume(cursor.page_size, cursor.big_endian, cursor.wal);
        let mut grouper = Grouper::new(cursor.page_size);
        let frame_bytes = reader.frame_bytes();
        let mut checksums = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        let (mut held, mut at, mut wanted) = (true, 0, FIRST_READ_FRAMES);
        while reader.position().frame < header.last {
            let left = (header.last.get() - reader.position().frame.get()) as usize;
            let bytes = left.min(wanted) * frame_bytes;
            wanted = (wanted * 4).min((RUN_BYTES / frame_bytes).max(1));
            if held && at + bytes > HELD_BYTES.max(frame_bytes) {
                held = false;
                buffer = Vec::new();
            }
            if !held {
                at = 0;
            }
            buffer.resize(at + bytes, 0);
            if !self.files.read_wal(reader.offset(), &mut buffer[at..])? {
                return Err(Broken::NoCommit(header.last).into());
            }
            for frame_bytes in buffer[at..].chunks_exact(frame_bytes) {
                let (number, frame) = reader.push(frame_bytes)?;
                checksums.push(Checksum::of_page(frame.pgno, &frame_bytes[FRAME_HEADER_BYTES..]));
                let Some(transaction) = grouper.push(number, frame) else {
                    continue;
                };
                let end = reader.position();
                if end.frame == header.last && end.checksum != header.checksum {
                    return Err(Broken::Published(end.frame).into());
                }
                let frames = held.then_some(buffer);
                return Ok(ReadTransaction { transaction, end, checksums, frames });
            }
            at += bytes;
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
    /// The frames themselves, when they are few.
    frames: Option<Vec<u8>>,
}

impl ReadTransaction {
    fn held(&self, frame: FrameNo, page_size: PageSize) -> Option<&[u8]> {
        let nth = (frame.get() - self.transaction.first.get()) as usize;
        let start = nth * (FRAME_HEADER_BYTES + page_size.bytes()) + FRAME_HEADER_BYTES;
        Some(&self.frames.as_ref()?[start..start + page_size.bytes()])
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
