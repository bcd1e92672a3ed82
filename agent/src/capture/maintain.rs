//! BACKFILL, FENCE and DETACH: the checkpoints that the application no longer does.
//!
//! **BACKFILL**: a read mark on R at the published end, wait until everything up to it is acked, save the page map, let SQLite
//! copy. The mark caps the copy at a captured frame (I1) and keeps the log from restarting meanwhile; it delays nobody, as
//! the application's own checkpoints are busy anyway. It is given up when acks stay away.
//!
//! **FENCE**: with writers that never pause, a backfill is never complete and the log never restarts. Then the writer lock
//! is taken for a few milliseconds: the last transactions go into memory, page map saved, everything copied. The network
//! is not involved: what was taken into memory is handed out afterwards.
//!
//! Bounds: waiting for the writer lock [`FENCE_WAIT`], frames captured under it [`FENCE_BYTES`]; a mark is held for
//! [`MARK_PATIENCE`] at most. Attempts are rate-limited by frames, not by time, so an idle database costs nothing.

use super::error::{Broken, CaptureError, SqliteError};
use super::header::Header;
use super::segment::Kept;
use super::{Capture, Standing};
use std::time::{Duration, Instant};
use walhub_common::wal::FrameNo;

/// How long a read mark waits for acks.
const MARK_PATIENCE: Duration = Duration::from_secs(5);
/// How long FENCE tries to get the writer lock.
const FENCE_WAIT: Duration = Duration::from_millis(150);
const FENCE_STEP: Duration = Duration::from_micros(100);
/// Log that FENCE captures while it holds the writer lock.
const FENCE_BYTES: u64 = 2 * 1024 * 1024;
/// A failed FENCE makes the next one wait for up to this many times more frames.
const FENCE_BACKOFF: u32 = 6;

/// What [`Capture::maintain`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maintained {
    /// Nothing was due.
    Nothing,
    /// A read mark is held; call again when acks arrived.
    Waiting,
    /// Frames were copied into the database.
    Backfilled {
        /// Every committed frame was: the next writer restarts the log.
        complete: bool,
    },
    /// The same under the writer lock.
    Fenced {
        /// Every committed frame was.
        complete: bool,
        /// How long writers were kept out.
        held: Duration,
    },
}

/// Book-keeping of the checkpoints.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    mark: Option<Mark>,
    /// Published end at the last attempt of this generation.
    last_try: FrameNo,
    /// True when a backfill of this generation came to its end.
    passed: bool,
    /// Published end at which FENCE may try again.
    fence_from: u32,
    /// Fences in a row after which the log did not restart.
    fences: u32,
}

/// A read mark that is held.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The mark is at this frame, or before it.
    frame: FrameNo,
    since: Instant,
}

impl Upkeep {
    pub(super) fn new_generation(&mut self) {
        *self = Upkeep::default();
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.mark.is_some()
    }
}

impl Capture {
    /// Checkpoints when that is due: BACKFILL, and FENCE when the log does not restart by itself. Cheap when nothing is
    /// due. Call it when the log was read to its end, and when acks arrived.
    ///
    /// A FENCE leaves transactions to be handed out: [`Capture::header_moved`] says so.
    pub fn maintain(&mut self) -> Result<Maintained, CaptureError> {
        let result = self.try_maintain();
        self.settle(result)
    }

    fn try_maintain(&mut self) -> Result<Maintained, CaptureError> {
        if self.standing != Standing::Aligned {
            return Ok(Maintained::Nothing);
        }
        let header = self.header()?;
        if !self.is_current(&header) {
            // The log restarted; reading on notices it first.
            return Ok(Maintained::Nothing);
        }
        let done = match self.upkeep.mark {
            Some(mark) => self.finish_backfill(mark)?,
            None if self.backfill_is_due(&header) => match self.mark()? {
                Some(mark) => self.finish_backfill(mark)?,
                None => Maintained::Nothing,
            },
            None => return Ok(Maintained::Nothing),
        };
        if matches!(done, Maintained::Backfilled { complete: false }) && self.fence_is_due()? {
            return self.fence();
        }
        Ok(done)
    }

    /// True when the header is of the generation that is followed.
    fn is_current(&self, header: &Header) -> bool {
        self.cursor.is_some_and(|c| c.anchored && c.wal.salts == header.salts)
    }

    fn backfill_is_due(&self, header: &Header) -> bool {
        let new = header.last.get().saturating_sub(self.upkeep.last_try.get());
        header.backfilled < header.last && new >= self.options.checkpoint_frames.max(1)
    }

    /// Opens the read mark.
    fn mark(&mut self) -> Result<Option<Mark>, CaptureError> {
        if self.files.has_moved()? {
            return Err(CaptureError::Moved);
        }
        if !self.files.holds_shared()? {
            return Err(Broken::SharedLock.into());
        }
        if let Err(e) = self.files.open_guard() {
            self.files.release();
            return if e.is_busy() { Ok(None) } else { Err(e.into()) };
        }
        let header = self.header()?;
        if !self.is_current(&header) {
            self.files.release();
            return Ok(None);
        }
        let mark = Mark { frame: header.last, since: Instant::now() };
        self.upkeep.mark = Some(mark);
        self.upkeep.last_try = header.last;
        Ok(Some(mark))
    }

    fn finish_backfill(&mut self, mark: Mark) -> Result<Maintained, CaptureError> {
        let captured = self.tracked.as_ref().and_then(|t| t.ledger.captured().wal);
        let all = captured
            .is_some_and(|c| Some(c.salts) == self.cursor.map(|c| c.wal.salts) && c.frame >= mark.frame);
        if !all {
            if mark.since.elapsed() >= MARK_PATIENCE {
                self.unmark();
                return Ok(Maintained::Nothing);
            }
            return Ok(Maintained::Waiting);
        }
        self.save()?;
        let header = self.backfill()?;
        self.unmark();
        self.upkeep.passed = true;
        Ok(Maintained::Backfilled { complete: header.backfilled == header.last })
    }

    fn unmark(&mut self) {
        self.upkeep.mark = None;
        self.files.release();
    }

    /// Lets SQLite copy frames, as far as R's transaction allows, and checks how far it went.
    fn backfill(&mut self) -> Result<Header, CaptureError> {
        let copied = self.files.backfill();
        let header = self.header()?;
        let saved = self.store.anchor().wal;
        let Some(cursor) = &mut self.cursor else { unreachable!("BUG: a backfill without a place") };
        // R keeps the log from restarting, so the header is of the same generation.
        let saved = saved.filter(|s| s.salts == header.salts).map_or(FrameNo::START, |s| s.frame);
        if header.backfilled > saved && header.backfilled > cursor.backfilled {
            return Err(Broken::Unsaved { backfilled: header.backfilled, saved }.into());
        }
        cursor.backfilled = header.backfilled;
        match copied {
            Err(e) if !e.is_busy() => Err(e.into()),
            _ => Ok(header),
        }
    }

    fn fence_is_due(&mut self) -> Result<bool, CaptureError> {
        let header = self.header()?;
        let frames = header.last.get();
        let due = self.options.checkpoint_frames.max(1).saturating_mul(3);
        let pressing = self.wal_bytes() > self.options.wal_limit_bytes;
        Ok(self.upkeep.passed && frames > due && (pressing || frames >= self.upkeep.fence_from))
    }

    fn fence(&mut self) -> Result<Maintained, CaptureError> {
        let begun = Instant::now();
        loop {
            match self.files.open_fence() {
                Ok(()) => break,
                Err(e) if e.is_busy() && begun.elapsed() < FENCE_WAIT => std::thread::sleep(FENCE_STEP),
                Err(e) => return self.fence_failed(Some(e)),
            }
        }
        let locked = Instant::now();
        let fenced = self.fenced();
        self.files.release();
        let held = locked.elapsed();
        match fenced? {
            Some(header) => {
                let complete = header.backfilled == header.last;
                // Complete, and still no restart by the next fence: some reader never lets go of its mark.
                self.fence_later(header.last);
                Ok(Maintained::Fenced { complete, held })
            }
            None => self.fence_failed(None),
        }
    }

    fn fence_failed(&mut self, error: Option<SqliteError>) -> Result<Maintained, CaptureError> {
        self.files.release();
        let header = self.header()?;
        self.fence_later(header.last);
        match error {
            Some(e) if !e.is_busy() => Err(e.into()),
            _ => Ok(Maintained::Backfilled { complete: false }),
        }
    }

    fn fence_later(&mut self, at: FrameNo) {
        let frames =
            self.options.checkpoint_frames.max(1).saturating_mul(1 << self.upkeep.fences.min(FENCE_BACKOFF));
        self.upkeep.fence_from = at.get().saturating_add(frames);
        self.upkeep.fences += 1;
    }

    /// Under the writer lock. `None`: too much to capture in so short a time.
    fn fenced(&mut self) -> Result<Option<Header>, CaptureError> {
        let header = self.header()?;
        let Some(cursor) = self.cursor.filter(|_| self.is_current(&header)) else {
            return Ok(None);
        };
        let behind = header.last.end(cursor.page_size).saturating_sub(cursor.wal.frame.end(cursor.page_size));
        if behind > FENCE_BYTES {
            return Ok(None);
        }
        while let Some(cursor) = self.cursor.filter(|c| c.wal.frame < header.last) {
            let kept = Kept::collect(|sink| match self.advance(&header, cursor, Some(sink))? {
                super::Next::Sent(meta) => Ok(Some(meta)),
                super::Next::UpToDate | super::Next::Lost(_) => Ok(None),
            })?;
            match kept {
                Some(kept) => self.kept.push_back(kept),
                None => return Ok(None),
            }
        }
        if let Some(tracked) = &mut self.tracked {
            tracked.ledger.settle_all();
        }
        self.save()?;
        self.backfill().map(Some)
    }

    /// DETACH: what is acked is saved. No last checkpoint: a complete one would let the next writer restart the log, and an
    /// agent that comes back soon would find a gap instead of its place.
    pub(super) fn final_pass(&mut self) -> Result<(), CaptureError> {
        self.unmark();
        match self.standing {
            Standing::Aligned => self.save(),
            Standing::Gap | Standing::Fresh => self.save_rolled(),
        }
    }
}
