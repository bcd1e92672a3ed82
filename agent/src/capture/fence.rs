//! FENCE and SHRINK: checkpoints under the writer lock, taken by ourselves when nothing else lets the log restart, or
//! because an operator asks.
//!
//! **FENCE**: with writers that never pause, a backfill is never complete and the log never restarts. So the writer lock is
//! taken for a few milliseconds when the log nears its limit: the last transactions go into memory, the page map is saved, everything is copied. The
//! network is not involved: what was taken into memory is handed out afterwards.
//!
//! **SHRINK**: the same, then SQLite's TRUNCATE with no patience at all: the log begins anew and its file is empty.
//!
//! Invariants
//! - Nobody waits for the writer lock through us but for [`Reach::wait`], and nothing is held meanwhile.
//! - Under the lock at most [`Reach::bytes`] of log are captured, for [`Reach::time`]: too much is refused before the lock is
//!   asked for. Only the hard limit of the log ([`Capture::make_room`]) lets writers wait for more.
//! - The lock is given back on every way out, a panic included (`Files` is dropped then).

use super::error::{Broken, CaptureError};
use super::header::Header;
use super::segment::Kept;
use super::tail::{Ahead, Take};
use super::{Capture, Next, Standing};
use crate::watchdog;
use std::time::{Duration, Instant};
use walhub_common::wal::FrameNo;

/// Between two tries for the writer lock.
const STEP: Duration = Duration::from_micros(100);

/// How far a checkpoint under the writer lock may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Time to get the lock.
    pub(super) wait: Duration,
    /// Log that is captured while it is held...
    bytes: u64,
    /// ...and for how long; what was captured until then is not lost.
    time: Duration,
    /// Transactions are passed over instead of taken into memory: their restore points are given up.
    give_up: bool,
}

impl Reach {
    /// The log is about to pass its limit.
    pub(super) const PRESSED: Reach = Reach {
        wait: Duration::from_millis(150),
        bytes: 16 << 20,
        time: Duration::from_millis(100),
        give_up: false,
    };
    /// It would pass its limit otherwise: writers wait for as long as it takes.
    pub(super) const LIMIT: Reach =
        Reach { wait: Duration::from_millis(500), bytes: u64::MAX, time: Duration::MAX, give_up: true };
    /// A state of before is put in place: writers wait for that anyway.
    pub(super) fn replacing(wait: Duration) -> Reach {
        Reach { wait, bytes: 16 << 20, time: Duration::from_secs(1), give_up: false }
    }
    /// A person waits for it.
    const ASKED: Reach =
        Reach { wait: Duration::from_secs(2), bytes: 16 << 20, time: Duration::from_secs(1), give_up: false };
}

/// A checkpoint under the writer lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpointed {
    /// Every committed frame is in the database file now. `false`: a reader is still in the log.
    pub complete: bool,
    /// The log file is empty now.
    pub truncated: bool,
    /// How long writers were kept out.
    pub held: Duration,
}

/// Why there was none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoCheckpoint {
    /// A writer kept the lock.
    #[error("a transaction of the application held the writer lock all the time")]
    WriterBusy,
    /// Reading the rest would have kept writers out for too long.
    #[error("{0} bytes of the log have not been read yet")]
    Behind(u64),
    /// There is no place in the log to go on from.
    #[error("the database is not aligned with its page map yet")]
    Unaligned,
}

type Outcome = Result<Result<Checkpointed, NoCheckpoint>, CaptureError>;

impl Capture {
    /// FENCE, or SHRINK, now. What is committed should have been read before: the rest is read while writers wait.
    ///
    /// Waits two seconds for the writer lock, and then writers wait for the copying of what was not copied yet.
    /// Transactions may be left to be handed out: [`Capture::header_moved`] says so.
    pub fn checkpoint(&mut self, shrink: bool) -> Outcome {
        let result = if self.yielded {
            Err(CaptureError::Yielded)
        } else if self.standing != Standing::Aligned {
            Ok(Err(NoCheckpoint::Unaligned))
        } else {
            self.fence(Reach::ASKED, shrink)
        };
        self.settle(result)
    }

    pub(super) fn fence(&mut self, reach: Reach, shrink: bool) -> Outcome {
        self.unmark();
        self.look_at_locks()?;
        if let Some(behind) = self.behind()?.filter(|behind| *behind > reach.bytes) {
            return Ok(Err(NoCheckpoint::Behind(behind)));
        }
        match self.with_writer_lock(reach.wait, |capture| capture.fenced(reach, shrink))? {
            None => Ok(Err(NoCheckpoint::WriterBusy)),
            Some((done, held)) => {
                Ok(done?.map(|(complete, truncated)| Checkpointed { complete, truncated, held }))
            }
        }
    }

    /// Works while writers are kept out, and says for how long they were; `None` when the lock was not free for `wait`.
    pub(super) fn with_writer_lock<T>(
        &mut self,
        wait: Duration,
        work: impl FnOnce(&mut Capture) -> T,
    ) -> Result<Option<(T, Duration)>, CaptureError> {
        let begun = Instant::now();
        while !self.files.try_lock_writer()? {
            if begun.elapsed() >= wait {
                return Ok(None);
            }
            std::thread::sleep(STEP);
        }
        let locked = Instant::now();
        let done = watchdog::with_writer_lock(|| work(self));
        self.files.unlock_writer();
        Ok(Some((done, locked.elapsed())))
    }

    /// Bytes of the log that were not read yet, and of what is in memory already; `None` without a place in the log.
    fn behind(&mut self) -> Result<Option<u64>, CaptureError> {
        let header = self.header()?;
        let kept: u64 = self.kept.iter().map(Kept::bytes).sum();
        Ok(self.cursor.map(|cursor| {
            let current = cursor.anchored && cursor.wal.salts == header.salts;
            let read = if current { cursor.wal.frame } else { FrameNo::START };
            header.last.end(cursor.page_size).saturating_sub(read.end(cursor.page_size)) + kept
        }))
    }

    /// Under the writer lock: complete, truncated.
    fn fenced(
        &mut self,
        reach: Reach,
        shrink: bool,
    ) -> Result<Result<(bool, bool), NoCheckpoint>, CaptureError> {
        // Nobody can change it while the lock is held.
        let header = self.header()?;
        if let Err(refused) = self.take_rest(&header, reach)? {
            return Ok(Err(refused));
        }
        if let Some(tracked) = &mut self.tracked {
            tracked.ledger.settle_all();
        }
        self.save()?;
        if shrink {
            return self.truncate(&header).map(Ok);
        }
        if header.last == FrameNo::START {
            return Ok(Ok((true, false)));
        }
        let header = self.backfill()?;
        Ok(Ok((header.backfilled == header.last, false)))
    }

    /// Under the writer lock: what was committed up to `header` and not read yet goes into memory.
    pub(super) fn take_rest(
        &mut self,
        header: &Header,
        reach: Reach,
    ) -> Result<Result<(), NoCheckpoint>, CaptureError> {
        if let Some(behind) = self.behind()?.filter(|behind| *behind > reach.bytes) {
            return Ok(Err(NoCheckpoint::Behind(behind)));
        }
        let begun = Instant::now();
        loop {
            let cursor = match self.ahead(header)? {
                Ahead::Nothing => return Ok(Ok(())),
                Ahead::Transaction(cursor) => cursor,
                Ahead::Lost => {
                    self.let_go();
                    return Ok(Err(NoCheckpoint::Unaligned));
                }
            };
            if reach.give_up {
                if !matches!(self.advance(header, cursor, Take::One, None)?, Next::Sent(_)) {
                    return Ok(Err(NoCheckpoint::Unaligned));
                }
                continue;
            }
            if begun.elapsed() >= reach.time {
                return Ok(Err(NoCheckpoint::Behind(self.behind()?.unwrap_or(0))));
            }
            let kept = Kept::collect(|sink| match self.advance(header, cursor, Take::One, Some(sink))? {
                Next::Sent(meta) => Ok(Some(meta)),
                Next::UpToDate | Next::Lost(_) => Ok(None),
            })?;
            match kept {
                Some(kept) => self.kept.push_back(kept),
                None => return Ok(Err(NoCheckpoint::Unaligned)),
            }
        }
    }

    fn truncate(&mut self, before: &Header) -> Result<(bool, bool), CaptureError> {
        self.pin = None;
        let done = self.files.truncate();
        let header = self.header()?;
        let Some(cursor) = &mut self.cursor else { unreachable!("BUG: a checkpoint without a place") };
        if header.salts != before.salts {
            // The log began anew, so everything was copied; what was captured is everything.
            cursor.backfilled = cursor.wal.frame;
            return Ok((true, done.is_ok()));
        }
        match done {
            Err(e) if !e.is_busy() => Err(e.into()),
            _ if header.last == FrameNo::START => Ok((true, done.is_ok())),
            _ => {
                self.backfilled_to(&header)?;
                Ok((header.backfilled == header.last, false))
            }
        }
    }

    /// I3, and that the file is still the one under its name.
    pub(super) fn look_at_locks(&self) -> Result<(), CaptureError> {
        if self.files.has_moved()? {
            return Err(CaptureError::Moved);
        }
        if !self.files.holds_shared()? {
            return Err(Broken::SharedLock.into());
        }
        Ok(())
    }
}
