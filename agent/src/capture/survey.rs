//! SURVEY: how a live database differs from a state that it is to be brought back to, and the pin that keeps the answer good.
//!
//! Every page of the live image is read and summed, so that a page which rotted on disk counts as different although nobody
//! wrote it. The state that was surveyed, the one at the place in the log, is then **pinned**: while nothing is copied into
//! the file it stays readable, whatever applications commit. A page that was as wanted and is written afterwards is taken from
//! there, and need not be fetched.
//!
//! Invariants
//! - While a pin holds, [`Capture::maintain`] copies nothing. Whatever copies all the same (the log is half as long as it
//!   may be, an operator asks, a pause) drops the pin first.
//! - A log that began anew since the pin was complete in the file then: the pinned state is the file alone.
//! - A pin ends with the [`Wanted`] that it was made for.

use super::error::CaptureError;
use super::header::Header;
use super::image::Image;
use super::wanted::Wanted;
use super::{Capture, Standing};
use std::sync::{Arc, Weak};
use walhub_common::wal::{FRAME_HEADER_BYTES, WalPosition};
use walhub_common::{Checksum, PageSet, PageSize, Pgno};

/// The state that was surveyed.
#[derive(Debug)]
pub(super) struct Pin {
    wanted: Weak<Wanted>,
    wal: WalPosition,
    commit: u32,
    /// Pages that are not what was captured of them.
    pub(super) rotten: Vec<Pgno>,
}

impl Pin {
    /// True for the pin that was made for this state.
    pub(super) fn is_for(&self, wanted: &Arc<Wanted>) -> bool {
        Weak::as_ptr(&self.wanted) == Arc::as_ptr(wanted)
    }
}

/// How it differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Surveyed {
    /// Pages that are as wanted, or were fetched already: what is not in here must be fetched.
    pub settled: PageSet,
    /// Pages that must be written, fetched ones included.
    pub differing: u32,
    /// Pages that are not what was captured of them: they rotted on disk.
    pub rotten: u32,
    /// What the log grows by when all of them are written.
    pub log_bytes: u64,
    /// What the file grows by afterwards.
    pub file_bytes: u64,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoSurvey {
    /// There is no place in the log.
    #[error("the database is not aligned with its page map yet")]
    Unaligned,
    /// Connections keep the page size for life.
    #[error("its pages were {} bytes then, those of the live database are {} bytes", there.get(), here.get())]
    PageSize {
        /// Live.
        here: PageSize,
        /// At the point asked for.
        there: PageSize,
    },
}

impl Capture {
    /// Compares the live state with `wanted` and pins it. Reads the whole database; nobody is kept out meanwhile.
    pub fn survey(&mut self, wanted: &Arc<Wanted>) -> Result<Result<Surveyed, NoSurvey>, CaptureError> {
        let result = self.try_survey(wanted);
        self.settle(result)
    }

    fn try_survey(&mut self, wanted: &Arc<Wanted>) -> Result<Result<Surveyed, NoSurvey>, CaptureError> {
        self.must_own_lock()?;
        self.pin = None;
        let header = self.header()?;
        let (Some(cursor), Some(tracked)) = (self.cursor, &self.tracked) else {
            return Ok(Err(NoSurvey::Unaligned));
        };
        if self.standing != Standing::Aligned
            || (header.salts != cursor.wal.salts && cursor.wal.frame > cursor.backfilled)
        {
            return Ok(Err(NoSurvey::Unaligned));
        }
        let (here, there) = (cursor.page_size, wanted.page_size());
        if here != there {
            return Ok(Err(NoSurvey::PageSize { here, there }));
        }
        let commit = tracked.map.commit();
        let mut pin = Pin { wanted: Arc::downgrade(wanted), wal: cursor.wal, commit, rotten: Vec::new() };
        let image = self.pinned(&header, &pin, here)?;
        let sums = wanted.sums();
        let (mut settled, mut differing, mut rotten) = (PageSet::empty(wanted.commit()), 0, Vec::new());
        let mut note = |pgno: Pgno, equal: bool| {
            differing += u32::from(!equal);
            if equal || wanted.has(pgno) {
                settled.insert(pgno);
            }
        };
        image.read(image.all_pages(), |pgno, page| {
            let live = Some(Checksum::of_page(pgno, page));
            let known = tracked.map.get(pgno).map_err(CaptureError::Staged)?;
            if known != live {
                rotten.push(pgno);
            }
            if pgno.get() <= wanted.commit() {
                let asked = sums.get(pgno).map_err(CaptureError::Staged)?;
                note(pgno, asked == live && asked == known);
            }
            Ok(())
        })?;
        tracked.map.grown(wanted.commit()).for_each(|pgno| note(pgno, false));
        settled.insert(here.lock_page());
        drop(sums);
        let found = Surveyed {
            settled,
            differing,
            rotten: u32::try_from(rotten.len()).unwrap_or(u32::MAX),
            // Page 1 is always written.
            log_bytes: (u64::from(differing) + 1) * (u64::from(here.get()) + FRAME_HEADER_BYTES as u64),
            file_bytes: u64::from(wanted.commit().saturating_sub(commit)) * u64::from(here.get()),
        };
        pin.rotten = rotten;
        self.pin = Some(pin);
        Ok(Ok(found))
    }

    /// True while copies into the file are put off for the sake of a pin.
    pub(super) fn is_pinned(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.wanted.strong_count() > 0) && !self.is_pressed()
    }

    /// The pinned state.
    pub(super) fn pinned(
        &self,
        header: &Header,
        pin: &Pin,
        page_size: PageSize,
    ) -> Result<Image<'_>, CaptureError> {
        if header.salts == pin.wal.salts {
            Image::at(&self.files, header, pin.wal.frame, pin.wal.checksum, page_size, pin.commit)
        } else {
            Ok(Image::of_file(&self.files, page_size, pin.commit))
        }
    }
}
