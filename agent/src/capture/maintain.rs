//! BACKFILL and DETACH, and when a FENCE must come: the checkpoints that the application no longer does.
//!
//! **BACKFILL**: a read mark on R at the published end, wait until everything up to it is acked, save the page map, let SQLite
//! copy. The mark caps the copy at a captured frame (I1) and keeps the log from restarting meanwhile; it delays nobody, as
//! the application's own checkpoints are busy anyway. It is given up when acks stay away.
//!
//! **The log begins anew without FENCE** whenever a backfill comes to the end of the log before the next commit does. Writers
//! that commit less often than a copy takes leave that gap all the time. For writers that come in bursts the rest is
//! copied when they rest: a log of several times `checkpoint_frames` without a commit for [`REST`]. Only writers that
//! never pause for as long as a copy and two syncs take let the log grow, up to the half of its limit.
//!
//! **In a stream of commits** no copy comes to the end, so it makes nothing shorter: all it does is to leave less to FENCE. There
//! copies come ever more rarely, until the log is near the half of its limit. What else a checkpoint does for an application
//! that does not sync each commit, it does as often as ever: every `checkpoint_frames` the log is synced, without a mark or a
//! lock.
//!
//! **FENCE is rare**, because it is the only thing an application can notice: while the writer lock is held a program with a
//! busy timeout waits for some milliseconds, one without fails with SQLITE_BUSY. So it is not used to keep a log short, only to
//! keep it under its limit: never below the half of it.
//!
//! **The limit of the log**, in steps: from a quarter on a backfill does not wait for acks (what was handed out is in memory).
//! From the half on FENCE comes first: a bulk pass takes as long as writers need to write as much again. When the reading
//! is too far behind even for that, [`Maintained::Overrun`] asks the owner for [`Capture::make_room`].
//!
//! **Held back**: copies end before the captured end time and again, or everything is copied and the next writers still do
//! not begin the log anew: some reader outside never lets go of its read mark (Litestream does that for life). No checkpoint
//! helps then, so FENCE comes ever more rarely, and [`Capture::held_back`] says so.
//!
//! Bounds: a mark is held for [`MARK_PATIENCE`] at most. Attempts are rate-limited by frames, not by time, so an idle
//! database costs nothing.

use super::error::{Broken, CaptureError};
use super::fence::{NoCheckpoint, Reach};
use super::header::Header;
use super::holders::Holders;
use super::{Capture, Standing};
use std::time::{Duration, Instant};
use walhub_common::Pos;
use walhub_common::wal::FrameNo;

/// How long a read mark waits for acks.
const MARK_PATIENCE: Duration = Duration::from_secs(5);
/// A FENCE that did not help makes the next one wait for up to this many doublings of frames...
const FENCE_BACKOFF: u32 = 6;
/// ...or, when the log is near its limit, for this time at most.
const FENCE_AGAIN: Duration = Duration::from_secs(10);
/// A writer that did not commit for so long rests.
const REST: Duration = Duration::from_millis(200);
/// So many times `checkpoint_frames` are a long log: a rest is used to bring it to its end.
const LONG: u32 = 3;
/// So many frames that came during a copy are a stream: a pause as long as a copy is hardly among them.
const STREAM: u32 = 4;
/// A copy in a stream makes the next one wait for up to this many doublings of `checkpoint_frames`...
const COPY_BACKOFF: u32 = 3;
/// ...in a log shorter than this share of its limit: FENCE comes at the half, and finds little left to copy.
const COPY_BACKOFF_BELOW: (u64, u64) = (3, 8);
/// A log that does not begin anew for this time, although it could this often, is held back by a reader.
const HELD_PATIENCE: Duration = Duration::from_secs(5);
const HELD_TIMES: u32 = 2;

/// What [`Capture::maintain`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maintained {
    /// Nothing was due.
    Nothing,
    /// A read mark is held; call again when acks arrived.
    Waiting,
    /// The log was synced.
    Synced,
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
    /// The log is near its limit, and too much of it was not read for a FENCE: [`Capture::make_room`] helps.
    Overrun,
}

/// A reader that never lets go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldBy {
    /// Processes with read marks.
    pub holders: Holders,
    /// One of them is Litestream; or nobody can be named, and Litestream's tables are there.
    pub litestream: bool,
}

/// Book-keeping of the checkpoints.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    mark: Option<Mark>,
    /// Published end at the last attempt of this generation.
    last_try: FrameNo,
    /// Copies in a row during which writers did not pause.
    streamed: u32,
    /// The log was synced up to here, beside what the last attempt did.
    synced: FrameNo,
    /// The end of the log when it was last read to it, and since when that is its end.
    read_to: Option<(FrameNo, Instant)>,
    /// Published end at which FENCE may try again.
    fence_from: u32,
    /// Fences in a row after which the log did not restart.
    fences: u32,
    /// When the last one was.
    fenced: Option<Instant>,
    /// Published end at which everything was copied: the next frame should be the first of a new generation.
    complete_at: Option<FrameNo>,
    /// Since when, and how often, the log of this generation could have begun anew and did not.
    held: Option<(Instant, u32)>,
    /// Since when, and how often in a row, a copy ended before the captured end.
    short: Option<(Instant, u32)>,
}

/// A read mark that is held.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The mark is at this frame, or before it.
    frame: FrameNo,
    since: Instant,
}

/// Transactions between two positions.
fn given_up(before: Option<Pos>, after: Option<Pos>) -> u64 {
    let txid = |at: Option<Pos>| at.map_or(0, |at| at.txid.get());
    txid(after).saturating_sub(txid(before))
}

fn once_more(since: &mut Option<(Instant, u32)>) {
    let (_, times) = since.get_or_insert_with(|| (Instant::now(), 0));
    *times += 1;
}

impl Upkeep {
    pub(super) fn new_generation(&mut self) {
        *self = Upkeep::default();
    }

    fn was_held(&mut self) {
        once_more(&mut self.held);
    }

    /// The log ends at `last`. When it was copied before that, it did not begin anew: a writer or reader was still in it.
    fn goes_on_at(&mut self, last: FrameNo) {
        if self.complete_at.take_if(|at| last > *at).is_some() {
            self.was_held();
        }
    }

    /// The log was read to its end.
    pub(super) fn read_to(&mut self, end: FrameNo) {
        if self.read_to.is_none_or(|(before, _)| before != end) {
            self.read_to = Some((end, Instant::now()));
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.mark.is_some()
    }
}

impl Capture {
    /// Checkpoints when that is due: BACKFILL, and FENCE when the log nears its limit. Cheap when nothing is due. Call it
    /// when the log was read to its end, when acks arrived, and when the writers rest ([`Capture::rests`]).
    ///
    /// A FENCE leaves transactions to be handed out: [`Capture::header_moved`] says so.
    pub fn maintain(&mut self) -> Result<Maintained, CaptureError> {
        let result = self.try_maintain();
        self.settle(result)
    }

    fn try_maintain(&mut self) -> Result<Maintained, CaptureError> {
        if self.standing != Standing::Aligned || self.yielded {
            return Ok(Maintained::Nothing);
        }
        let header = self.header()?;
        if !self.is_current(&header) {
            // The log restarted; reading on notices it first.
            return Ok(Maintained::Nothing);
        }
        self.upkeep.goes_on_at(header.last);
        if self.fence_comes_first(&header) {
            return self.fence_now(Reach::PRESSED);
        }
        if self.is_pinned() {
            return Ok(Maintained::Nothing);
        }
        match self.upkeep.mark {
            Some(mark) => self.finish_backfill(mark),
            None if self.backfill_is_due(&header) => match self.mark()? {
                Some(mark) => self.finish_backfill(mark),
                None => Ok(Maintained::Nothing),
            },
            None if self.sync_is_due(&header) => {
                self.files.sync_wal()?;
                self.upkeep.synced = header.last;
                Ok(Maintained::Synced)
            }
            None => Ok(Maintained::Nothing),
        }
    }

    /// True when [`Capture::maintain`] would make use of a pause of the writers now. Costs two dozen loads from memory.
    pub fn rests(&self) -> bool {
        let header = self.files.header().verify();
        header.is_some_and(|h| self.is_current(&h) && self.upkeep.mark.is_none() && self.is_rest(&h))
    }

    /// Brings the log back under its limit, whatever writers do: everything committed is passed over ([`Capture::skip`]), then
    /// copied under the writer lock. Says how many restore points were given up.
    ///
    /// `hurry`: writers are faster than the reading, so nothing is done that they could make use of.
    pub fn make_room(&mut self, hurry: bool) -> Result<u64, CaptureError> {
        let result = self.try_make_room(hurry);
        self.settle(result)
    }

    fn try_make_room(&mut self, hurry: bool) -> Result<u64, CaptureError> {
        let before = self.position();
        self.kept.clear();
        if !hurry {
            self.skip()?;
        }
        let header = self.header()?;
        if self.standing != Standing::Aligned || !self.is_current(&header) {
            return Ok(given_up(before, self.position()));
        }
        self.upkeep.goes_on_at(header.last);
        if self.upkeep.complete_at == Some(header.last) {
            // The next writer begins the log anew.
            return Ok(given_up(before, self.position()));
        }
        let not_copied = header.last.get().saturating_sub(header.backfilled.get());
        // Without writers in a hurry the bulk is copied without keeping them out.
        if !hurry
            && not_copied > header.last.get() / 4
            && self.upkeep.mark.is_none()
            && let Some(mark) = self.mark()?
        {
            self.skip()?;
            self.finish_backfill(mark)?;
        }
        if self.wal_bytes() > self.options.wal_limit_bytes / 2 && self.upkeep.complete_at.is_none() {
            self.fence_now(Reach::LIMIT)?;
        }
        Ok(given_up(before, self.position()))
    }

    /// FENCE now: everything committed is copied under the writer lock and nothing is given up, so that the log may begin
    /// anew. [`Maintained::Overrun`]: too much was not read yet.
    pub fn clear_log(&mut self) -> Result<Maintained, CaptureError> {
        let result = self.try_clear_log();
        self.settle(result)
    }

    fn try_clear_log(&mut self) -> Result<Maintained, CaptureError> {
        let header = self.header()?;
        let done = self.upkeep.complete_at == Some(header.last);
        if self.standing != Standing::Aligned || self.yielded || done || !self.is_current(&header) {
            return Ok(Maintained::Nothing);
        }
        self.fence_now(Reach::PRESSED)
    }

    /// True from the half of the limit on: the log must begin anew soon, whatever it costs.
    pub fn is_pressed(&self) -> bool {
        self.wal_bytes() > self.options.wal_limit_bytes / 2
    }

    /// Who the reader is, as far as it can be told. Costs a look at the schema and at the system's list of locks.
    pub fn held_by(&self) -> HeldBy {
        let holders = Holders::of_marks(self.files.path());
        let litestream = holders.has("litestream")
            || (holders == Holders::default() && self.files.has_table("_litestream_seq").unwrap_or(false));
        HeldBy { holders, litestream }
    }

    /// For how long a reader outside has kept the log from beginning anew; `None` when none does.
    pub fn held_back(&self) -> Option<Duration> {
        [self.upkeep.held, self.upkeep.short]
            .into_iter()
            .flatten()
            .filter(|(since, times)| *times >= HELD_TIMES && since.elapsed() >= HELD_PATIENCE)
            .map(|(since, _)| since.elapsed())
            .max()
    }

    /// True when the header is of the generation that is followed.
    fn is_current(&self, header: &Header) -> bool {
        self.cursor.is_some_and(|c| c.anchored && c.wal.salts == header.salts)
    }

    /// True when [`Capture::maintain`] would do something now. Costs two dozen loads from memory.
    pub fn upkeep_is_due(&self) -> bool {
        // While it is torn a writer is at work, and the log is looked at again anyway.
        let Some(header) = &self.files.header().verify() else { return false };
        let by_mark = match self.upkeep.mark {
            Some(mark) => {
                self.is_captured(mark) || self.may_settle(mark) || mark.since.elapsed() >= MARK_PATIENCE
            }
            None => self.backfill_is_due(header) || self.sync_is_due(header),
        };
        let overdue = || self.upkeep.complete_at.is_some_and(|at| header.last > at);
        let copies = || !self.is_pinned() && by_mark;
        self.is_current(header) && (overdue() || self.fence_comes_first(header) || copies())
    }

    fn backfill_is_due(&self, header: &Header) -> bool {
        let new = header.last.get().saturating_sub(self.upkeep.last_try.get());
        let enough = new >= self.copy_distance();
        header.backfilled < header.last && (enough || self.is_rest(header))
    }

    /// Frames from one copy to the next.
    fn copy_distance(&self) -> u32 {
        let (share, of) = COPY_BACKOFF_BELOW;
        let frames = self.options.checkpoint_frames.max(1);
        match self.wal_bytes() < self.options.wal_limit_bytes / of * share {
            true => frames.saturating_mul(1 << self.upkeep.streamed.min(COPY_BACKOFF)),
            false => frames,
        }
    }

    /// True when a copy would be due, did it not wait for more: a copy begins with a sync.
    fn sync_is_due(&self, header: &Header) -> bool {
        let done = self.upkeep.last_try.max(self.upkeep.synced);
        header.backfilled < header.last
            && header.last.get().saturating_sub(done.get()) >= self.options.checkpoint_frames.max(1)
    }

    /// A long log, not copied to its end, and no commit for a while.
    fn is_rest(&self, header: &Header) -> bool {
        let long = self.options.checkpoint_frames.max(1).saturating_mul(LONG);
        let since = self.upkeep.read_to.filter(|(end, _)| *end == header.last).map(|(_, since)| since);
        header.last.get() > long
            && header.backfilled < header.last
            && self.upkeep.last_try < header.last
            && since.is_some_and(|since| since.elapsed() >= REST)
    }

    /// Opens the read mark.
    fn mark(&mut self) -> Result<Option<Mark>, CaptureError> {
        self.look_at_locks()?;
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

    /// True when everything up to the mark is captured.
    fn is_captured(&self, mark: Mark) -> bool {
        let captured = self.tracked.as_ref().and_then(|t| t.ledger.captured().wal);
        captured.is_some_and(|c| Some(c.salts) == self.cursor.map(|c| c.wal.salts) && c.frame >= mark.frame)
    }

    /// True when acks are no longer waited for: everything up to the mark was read, and the log grows long.
    fn may_settle(&self, mark: Mark) -> bool {
        self.cursor.is_some_and(|c| c.wal.frame >= mark.frame)
            && self.wal_bytes() > self.options.wal_limit_bytes / 4
    }

    fn finish_backfill(&mut self, mark: Mark) -> Result<Maintained, CaptureError> {
        if self.may_settle(mark)
            && let Some(tracked) = &mut self.tracked
        {
            tracked.ledger.settle_all();
        }
        if !self.is_captured(mark) {
            if mark.since.elapsed() >= MARK_PATIENCE {
                self.unmark();
                return Ok(Maintained::Nothing);
            }
            return Ok(Maintained::Waiting);
        }
        self.save()?;
        let header = self.backfill()?;
        self.unmark();
        if header.backfilled < mark.frame {
            once_more(&mut self.upkeep.short);
        } else {
            self.upkeep.short = None;
        }
        let complete = header.backfilled == header.last;
        if complete {
            self.upkeep.complete_at = Some(header.last);
        }
        let meanwhile = header.last.get().saturating_sub(mark.frame.get());
        self.upkeep.streamed = if meanwhile >= STREAM { self.upkeep.streamed + 1 } else { 0 };
        Ok(Maintained::Backfilled { complete })
    }

    pub(super) fn unmark(&mut self) {
        self.upkeep.mark = None;
        self.files.release();
    }

    /// Lets SQLite copy frames, as far as readers allow, and checks how far it went. R's mark or the writer lock must keep
    /// the log from restarting.
    pub(super) fn backfill(&mut self) -> Result<Header, CaptureError> {
        self.pin = None;
        let copied = self.files.backfill();
        let header = self.header()?;
        self.backfilled_to(&header)?;
        match copied {
            Err(e) if !e.is_busy() => Err(e.into()),
            _ => Ok(header),
        }
    }

    /// I8, after a checkpoint in the generation of `header`.
    pub(super) fn backfilled_to(&mut self, header: &Header) -> Result<(), CaptureError> {
        let saved = self.store.anchor().wal;
        let Some(cursor) = &mut self.cursor else { unreachable!("BUG: a backfill without a place") };
        let saved = saved.filter(|s| s.salts == header.salts).map_or(FrameNo::START, |s| s.frame);
        if header.backfilled > saved && header.backfilled > cursor.backfilled {
            return Err(Broken::Unsaved { backfilled: header.backfilled, saved }.into());
        }
        cursor.backfilled = header.backfilled;
        Ok(())
    }

    fn fence_comes_first(&self, header: &Header) -> bool {
        let again = self.upkeep.fenced.is_none_or(|at| at.elapsed() >= FENCE_AGAIN);
        self.is_pressed() && (header.last.get() >= self.upkeep.fence_from || again)
    }

    fn fence_now(&mut self, reach: Reach) -> Result<Maintained, CaptureError> {
        let fenced = self.fence(reach, false)?;
        if let Err(NoCheckpoint::Behind(_)) = fenced
            && self.is_pressed()
        {
            // Nobody was kept out: the next try is free.
            return Ok(Maintained::Overrun);
        }
        let header = self.header()?;
        self.fence_later(header.last);
        let Ok(done) = fenced else {
            return Ok(Maintained::Backfilled { complete: false });
        };
        if done.complete {
            // Unless somebody wrote since the lock was given back.
            self.upkeep.complete_at = (header.backfilled == header.last).then_some(header.last);
        } else {
            // No writer was there, so a reader is in the way.
            self.upkeep.was_held();
        }
        Ok(Maintained::Fenced { complete: done.complete, held: done.held })
    }

    fn fence_later(&mut self, at: FrameNo) {
        let frames =
            self.options.checkpoint_frames.max(1).saturating_mul(1 << self.upkeep.fences.min(FENCE_BACKOFF));
        self.upkeep.fence_from = at.get().saturating_add(frames);
        self.upkeep.fences += 1;
        self.upkeep.fenced = Some(Instant::now());
    }

    /// DETACH: what is acked is saved. No last checkpoint: a complete one would let the next writer restart the log, and an
    /// agent that comes back soon would find a gap instead of its place.
    pub(super) fn final_pass(&mut self) -> Result<(), CaptureError> {
        self.unmark();
        match self.standing {
            Standing::Aligned => {
                self.try_keep_place()?;
                self.save()
            }
            Standing::Gap | Standing::Fresh => self.save_rolled(),
        }
    }
}
