//! YIELD: the application gets its checkpoints back for a while, and nothing else is let go.
//!
//! SHARED on the database stays (I3): the WAL is not deleted, the journal mode not changed. The place in the log is kept in
//! memory. Afterwards the log is either still the one of that place, which only grew, or what was missed is found by a
//! heal; so nothing needs to be captured meanwhile.

use super::attach::{find, lock};
use super::error::{AttachError, CaptureError};
use super::{Capture, Standing};
use walhub_common::wal::FrameNo;

impl Capture {
    /// Saves what is acked and gives the checkpoint lock back. Until [`Capture::reclaim`] nothing is read. When it fails,
    /// the lock is still held.
    pub fn yield_lock(&mut self) -> Result<(), CaptureError> {
        if self.yielded {
            return Ok(());
        }
        self.pin = None;
        let saved = self.final_pass();
        self.settle(saved)?;
        self.files.unlock_checkpoint();
        self.yielded = true;
        Ok(())
    }

    /// True between [`Capture::yield_lock`] and [`Capture::reclaim`].
    pub fn is_yielded(&self) -> bool {
        self.yielded
    }

    /// Takes the checkpoint lock again and finds out where the page map stands; blocks for two seconds at most.
    /// [`AttachError::Absent`]: somebody else has it now.
    pub fn reclaim(&mut self) -> Result<(), AttachError> {
        if !self.yielded {
            return Ok(());
        }
        self.look_at_locks()?;
        lock(&mut self.files)?;
        self.yielded = false;
        self.seen = None;
        self.upkeep.new_generation();
        let aligned = self.realign();
        Ok(self.settle(aligned)?)
    }

    /// Nothing is read while the application may checkpoint.
    pub(super) fn must_own_lock(&self) -> Result<(), CaptureError> {
        if self.yielded { Err(CaptureError::Yielded) } else { Ok(()) }
    }

    fn realign(&mut self) -> Result<(), CaptureError> {
        let Some(cursor) = self.cursor.filter(|_| self.standing == Standing::Aligned) else {
            return Ok(());
        };
        let header = self.header()?;
        if !cursor.anchored && header.salts == cursor.wal.salts && header.last == FrameNo::START {
            return Ok(());
        }
        match find(&self.files, &header, cursor.wal, cursor.page_size)? {
            Some(found) => self.cursor = Some(found),
            None => self.let_go(),
        }
        Ok(())
    }
}
