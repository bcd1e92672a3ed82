//! STAGE: the first snapshot of a large database, in parts.
//!
//! Each call of [`Capture::stage`] walks over the live image once, beginning where the last one ended, compares every page
//! with what the hub holds ([`Staged`]), and sends what differs in parts of a few megabytes. Parts are worth
//! something on their own: after a break only what was not staged is sent again.
//!
//! While a walk lasts the checkpoint lock keeps the image as it is, so a walk that gets all the way around has seen one state
//! of the database, and after it the hub holds every page of that state: the last file says so, and the capture follows the
//! log from there. The log grows meanwhile. When it grows too long the walk stops and [`Capture::shorten_log`] checkpoints;
//! that changes the image, which is why the next walk compares everything again. Nobody else needs the lock for that: no
//! frame has been promised to anyone before the snapshot is complete, so all of them may be copied.
//!
//! Memory: one run of pages and one chunk, whatever the size of the database; the page map comes at the end, most of it in its
//! own scratch file.

use super::attach::cursor_at;
use super::error::{Broken, CaptureError};
use super::header::{Header, last_frame, same_generation};
use super::image::{Image, RUN_BYTES};
use super::segment::{self, Origin, SegmentMeta, Sink};
use super::staged::Staged;
use super::{Capture, Standing};
use crate::page_map::PageMap;
use std::cell::Cell;
use std::io;
use std::time::Duration;
use walhub_common::clock::now_ms;
use walhub_common::wal::FrameNo;
use walhub_common::{Checksum, PageSize, Pgno, Txid, TxidRange};

/// How long [`Capture::shorten_log`] waits for the writer lock.
const WRITER_WAIT: Duration = Duration::from_millis(150);
/// Checkpoints without the writer lock before one with it.
const PASSES: usize = 4;
/// Log left to copy at which writers are made to wait for the rest.
const LITTLE: u32 = 512;
/// Chunks of parts: each is copied a few times on its way out, so small ones keep memory low.
const CHUNK_BYTES: usize = RUN_BYTES;
/// Pages whose checksums are read from [`Staged`] at once for the page map.
const TABLE_RUN: usize = 8192;

/// Where the files of a first snapshot go.
pub trait Parts {
    /// The next file is a part, its number the only transaction of its range.
    fn part(&mut self) -> &mut dyn Sink;
    /// The next file is the last: with the parts it makes the segment that its [`SegmentMeta`] describes.
    fn last(&mut self) -> &mut dyn Sink;
}

/// Who says how fast the walk may go.
pub trait Pace {
    /// A run of so many bytes was compared, and sent where it differed. May sleep; an error stops the walk.
    fn rest(&mut self, bytes: u64) -> io::Result<()>;
    /// Pages that the hub will hold when everything sent has arrived, and all.
    fn progress(&mut self, staged: u32, all: u32);
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// All the way around: the last file was sent, and the capture is [`Standing::Aligned`].
    Complete(SegmentMeta),
    /// The log grew too long: [`Capture::shorten_log`], then walk on.
    LogFull,
}

impl Capture {
    /// Bytes of all pages of the live database.
    pub fn image_bytes(&mut self) -> Result<u64, CaptureError> {
        let result =
            self.image_size().map(|(page_size, commit)| u64::from(commit) * page_size.bytes() as u64);
        self.settle(result)
    }

    fn image_size(&mut self) -> Result<(PageSize, u32), CaptureError> {
        self.must_own_lock()?;
        let header = self.header()?;
        Image::size(&self.files, &header)
    }

    /// Walks over the live image once; see the module doc. Lets go of the place in the log, if there is one.
    pub fn stage(
        &mut self,
        staged: &mut Staged,
        parts: &mut dyn Parts,
        pace: &mut dyn Pace,
    ) -> Result<Walk, CaptureError> {
        let result = self.try_stage(staged, parts, pace);
        self.settle(result)
    }

    /// Brings the log into the database file, so that it begins anew with the next commit. False when a reader or a writer
    /// was in the way.
    pub fn shorten_log(&mut self) -> Result<bool, CaptureError> {
        let result = self.try_shorten();
        self.settle(result)
    }

    fn try_stage(
        &mut self,
        staged: &mut Staged,
        parts: &mut dyn Parts,
        pace: &mut dyn Pace,
    ) -> Result<Walk, CaptureError> {
        self.must_own_lock()?;
        self.let_go();
        let header = self.header()?;
        let image = Image::published(&self.files, &header)?;
        let level = self.options.compression;
        let (page_size, commit) = (image.page_size(), image.commit());
        if staged.fit(page_size).map_err(scratch)? {
            tracing::info!(path = %self.options.path.display(), "the page size changed; the first snapshot begins anew");
        }
        let room = Room { header: &header, page_size, bytes: self.room(staged) };
        let sum = Cell::new(Checksum::EMPTY);
        let begin = if (1..=commit).contains(&staged.at) { staged.at } else { 1 };
        for (from, to) in [(begin, commit), (1, begin - 1)] {
            let mut at = from;
            while at <= to {
                if self.files.has_moved()? {
                    return Err(CaptureError::Moved);
                }
                let mut run = Run::read(&image, staged, &mut at, to, &sum)?;
                if run.pages.is_empty() {
                    pace.rest(run.bytes).map_err(CaptureError::Sink)?;
                } else {
                    let number = staged.take_number();
                    let meta = part(number, &image)?;
                    segment::write_as(
                        parts.part(),
                        &meta,
                        meta.range,
                        Origin::IMAGE,
                        level,
                        CHUNK_BYTES,
                        |put| {
                            let mut bytes = 0;
                            loop {
                                run.each(page_size, &mut *put)?;
                                bytes += run.data.len();
                                pace.rest(run.bytes).map_err(CaptureError::Sink)?;
                                if at > to
                                    || bytes + RUN_BYTES > staged.part_bytes
                                    || room.is_used(&self.files)
                                {
                                    return Ok(());
                                }
                                run = Run::read(&image, staged, &mut at, to, &sum)?;
                            }
                        },
                    )?;
                    staged.part_sent();
                }
                pace.progress(staged.pages().min(commit), commit);
                staged.at = at;
                let around = to == begin - 1 || begin == 1;
                if room.is_used(&self.files) && !(around && at > to) {
                    if staged.compared > 2 * u64::from(commit) {
                        staged.setbacks += 1;
                    }
                    return Ok(Walk::LogFull);
                }
            }
        }
        let position = self.tracked.as_ref().map(|t| t.position.txid);
        let range = TxidRange::new(Txid::FIRST, Txid::following(position)).expect("BUG: from the first");
        let (post, agent_time_ms) = (sum.get(), now_ms());
        let meta = SegmentMeta { range, pre: None, post, page_size, commit, agent_time_ms };
        let number = part(staged.take_number(), &image)?.range;
        segment::write_as(parts.last(), &meta, number, Origin::IMAGE, level, CHUNK_BYTES, |put| {
            image.read(std::iter::once(Pgno::FIRST), put)
        })?;
        drop(image);
        self.adopt_staged(&header, &meta, staged)?;
        Ok(Walk::Complete(meta))
    }

    /// Log that may come while a walk lasts. A walk that cannot end within the limit although little is left to send gets
    /// more each time: otherwise a database that is written faster than it can be read would never be safe.
    fn room(&self, staged: &Staged) -> u64 {
        let limit = self.options.wal_limit_bytes;
        let room = limit.saturating_mul(1 << staged.setbacks.min(20));
        if room > limit {
            tracing::warn!(
                path = %self.options.path.display(), bytes = room,
                "the database is written so fast that its log is let grow past its limit for the first snapshot"
            );
        }
        room
    }

    /// The page map becomes what was staged, its place the header of the walk.
    fn adopt_staged(
        &mut self,
        header: &Header,
        meta: &SegmentMeta,
        staged: &Staged,
    ) -> Result<(), CaptureError> {
        let SegmentMeta { page_size, commit, .. } = *meta;
        let mut failed = None;
        let checksums = table(staged, meta, &mut failed);
        let map = PageMap::whole(page_size, commit, meta.range.max(), checksums, self.map_room());
        if let Some(error) = failed {
            return Err(scratch(error));
        }
        let map = map.map_err(Broken::Growth)?;
        if map.checksum() != meta.post {
            return Err(scratch(io::Error::other("the checksums are not those that were written")));
        }
        let cursor = cursor_at(&self.files, header, page_size)?;
        self.stand_at(map, cursor, meta.position(), false)
    }

    fn try_shorten(&mut self) -> Result<bool, CaptureError> {
        self.must_own_lock()?;
        if self.standing == Standing::Aligned {
            return Ok(false);
        }
        let mut left = self.copy_log()?;
        for _ in 1..PASSES {
            if left <= LITTLE {
                break;
            }
            left = self.copy_log()?;
        }
        // Writers that never pause: the rest is copied while they wait.
        match self.with_writer_lock(WRITER_WAIT, Capture::copy_log)? {
            None => Ok(false),
            Some((left, _)) => Ok(left? == 0),
        }
    }

    /// Copies what may be copied; frames that are left.
    fn copy_log(&mut self) -> Result<u32, CaptureError> {
        match self.files.backfill() {
            Err(e) if !e.is_busy() => return Err(e.into()),
            _ => {}
        }
        let header = self.header()?;
        Ok(header.last.get() - header.backfilled.get())
    }
}

/// The checksums of all pages, ascending, without the lock page; ends early when they cannot be read.
fn table<'a>(
    staged: &'a Staged,
    meta: &SegmentMeta,
    failed: &'a mut Option<io::Error>,
) -> impl Iterator<Item = Checksum> + 'a {
    let commit = meta.commit as usize;
    let runs = (0..commit).step_by(TABLE_RUN).map_while(move |from| {
        let first = Pgno::new(from as u32 + 1).expect("BUG: from 1");
        staged.read(first, TABLE_RUN.min(commit - from)).map_err(|e| *failed = Some(e)).ok()
    });
    runs.flatten().filter_map(Checksum::new)
}

fn part(number: u64, image: &Image<'_>) -> Result<SegmentMeta, CaptureError> {
    let number = Txid::new(number).expect("BUG: parts are counted from 2");
    Ok(SegmentMeta {
        range: TxidRange::single(number),
        pre: None,
        post: Checksum::EMPTY,
        page_size: image.page_size(),
        commit: image.commit(),
        agent_time_ms: now_ms(),
    })
}

fn scratch(error: io::Error) -> CaptureError {
    CaptureError::Staged(error)
}

/// How long the log may become during a walk.
struct Room<'a> {
    header: &'a Header,
    page_size: PageSize,
    bytes: u64,
}

impl Room<'_> {
    fn is_used(&self, files: &super::vfs::Files) -> bool {
        let words = files.glance();
        let last = FrameNo(last_frame(&words)).end(self.page_size);
        // A log that was all copied before the walk begins anew with the first commit.
        let before =
            if same_generation(&words, &self.header.words) { self.header.last } else { FrameNo::START };
        last.saturating_sub(before.end(self.page_size)) > self.bytes
    }
}

/// Neighbouring pages that were read and compared.
struct Run {
    /// Bytes of all pages read.
    bytes: u64,
    /// Pages that differ from what is staged, and their content.
    pages: Vec<Pgno>,
    data: Vec<u8>,
}

impl Run {
    /// Reads pages from `at` on, not past `to`; `at` moves behind them. What differs counts as staged from here on.
    fn read(
        image: &Image<'_>,
        staged: &mut Staged,
        at: &mut u32,
        to: u32,
        sum: &Cell<Checksum>,
    ) -> Result<Run, CaptureError> {
        let size = image.page_size().bytes();
        let count = ((RUN_BYTES / size).max(1) as u32).min(to - *at + 1);
        let (from, lock) = (*at, image.page_size().lock_page());
        let first = Pgno::new(from).expect("BUG: from 1");
        let mut sums = staged.read(first, count as usize).map_err(scratch)?;
        let mut run = Run { bytes: u64::from(count) * size as u64, pages: Vec::new(), data: Vec::new() };
        let pages = (from..from + count).filter_map(Pgno::new).filter(|pgno| *pgno != lock);
        image.read(pages, |pgno, page| {
            let checksum = Checksum::of_page(pgno, page);
            sum.set(sum.get().toggle(checksum));
            let known = &mut sums[(pgno.get() - from) as usize];
            if *known != checksum.get() {
                *known = checksum.get();
                run.pages.push(pgno);
                run.data.extend_from_slice(page);
            }
            Ok(())
        })?;
        if !run.pages.is_empty() {
            staged.write(first, &sums).map_err(scratch)?;
        }
        staged.compared += u64::from(count);
        *at = from + count;
        Ok(run)
    }

    fn each(&self, page_size: PageSize, put: &mut segment::Put<'_>) -> Result<(), CaptureError> {
        self.pages
            .iter()
            .zip(self.data.chunks_exact(page_size.bytes()))
            .try_for_each(|(pgno, page)| put(*pgno, page))
    }
}
