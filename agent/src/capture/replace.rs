//! REPLACE: an older state of a live database becomes its newest transaction.
//!
//! Under the writer lock: what was committed and not read yet goes into memory (it stays in the history, its last transaction
//! is the restore point of what is replaced), then one ordinary SQLite transaction writes the pages that differ, through
//! the table `sqlite_dbpage`, cuts the file, and commits. Other connections see the old state, then the new one, never a
//! mix; a reader that has a snapshot keeps it. The capture meets the transaction like any other: it is the next TXID.
//!
//! Proof, before the commit: every page that is written has the checksum it had then; all others have it by the page map,
//! which the survey has held against the file itself; and the sum of all is that of the position. After the commit the same is
//! found once more from the frames in the log. Page 1 alone differs from then, in the fields that [`super::page_one`] names.
//!
//! Invariants
//! - Nothing is copied into the file here, so that the pinned state stays readable until the commit.
//! - Whatever fails before the commit rolls back; a process that dies rolls back as well. The commit is SQLite's.
//! - The log is synced while it is written, so that the last sync, under the lock, has little to do.
//!
//! Bounds: the log grows by the pages that differ ([`super::Surveyed::log_bytes`]), for the transaction must be whole in it.

use super::error::{CaptureError, SqliteError};
use super::fence::{NoCheckpoint, Reach};
use super::header::Header;
use super::image::Image;
use super::page_one::{self, Unfit};
use super::survey::Pin;
use super::tail::Ahead;
use super::wanted::Wanted;
use super::{Capture, Standing};
use crate::watchdog;
use rusqlite::Connection;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use walhub_common::{Checksum, PageSize, Pgno, Pos};

/// Log that is written between two syncs.
const SYNC_BYTES: usize = 16 << 20;
const WRITE_PAGE: &str = "INSERT INTO sqlite_dbpage(pgno, data) VALUES (?1, ?2)";
/// This page and all behind it go. Takes effect only when no page is written after it, and in a statement of one row: after
/// one of several SQLite takes the new size for the old one, and cuts nothing.
const CUT: &str = "INSERT INTO sqlite_dbpage(pgno, data) VALUES (?1, NULL)";

/// The state asked for is the newest one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// The state before, a restore point of its own.
    pub before: Pos,
    /// The transaction that brought it back, which is handed out next; `None` when nothing differed.
    pub after: Option<Pos>,
    /// Pages written.
    pub pages: u32,
    /// The log shows, page by page, that it is what was asked for. Anything else is a fault of this program.
    pub proven: bool,
    /// How long writers were kept out.
    pub held: Duration,
}

/// Why it is not. The database is as it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotReplaced {
    /// A writer kept the lock.
    #[error("a transaction of the application held the writer lock all the time")]
    WriterBusy,
    /// Much was committed and not read yet: read on, then try again.
    #[error("{0} bytes of the log have not been read yet")]
    Behind(u64),
    /// The pinned state is gone: survey again.
    #[error("the log had to be copied into the file since the database was compared")]
    Overtaken,
    /// There is no place in the log.
    #[error("the database is not aligned with its page map yet")]
    Unaligned,
    /// Open connections could not go on.
    #[error("{0}")]
    Unfit(#[from] Unfit),
    /// A page that was kept is not what was asked for any more.
    #[error("the pages do not add up to the position asked for: {0} instead of {1}")]
    Unproven(Checksum, Checksum),
    /// SQLite, or the disk below it.
    #[error(transparent)]
    Sqlite(SqliteError),
}

impl From<NoCheckpoint> for NotReplaced {
    fn from(refused: NoCheckpoint) -> NotReplaced {
        match refused {
            NoCheckpoint::WriterBusy => NotReplaced::WriterBusy,
            NoCheckpoint::Behind(bytes) => NotReplaced::Behind(bytes),
            NoCheckpoint::Unaligned => NotReplaced::Unaligned,
        }
    }
}

/// Why a write transaction did not come to its end.
enum Failed {
    Refused(NotReplaced),
    Capture(CaptureError),
}

impl From<CaptureError> for Failed {
    fn from(error: CaptureError) -> Failed {
        Failed::Capture(error)
    }
}

impl From<NotReplaced> for Failed {
    fn from(refused: NotReplaced) -> Failed {
        Failed::Refused(refused)
    }
}

fn sql(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Failed {
    move |error| NotReplaced::Sqlite(SqliteError::from_rusqlite(action, &error)).into()
}

type Outcome = Result<Result<Replaced, NotReplaced>, CaptureError>;

impl Capture {
    /// Makes `wanted` the newest transaction. [`Capture::survey`] must have been asked for it, and what it named as not settled
    /// must have been fetched. Waits for the writer lock as long as `wait`; writers wait for as long as the writing takes.
    ///
    /// Transactions are left to be handed out: [`Capture::header_moved`] says so.
    pub fn replace(&mut self, wanted: &Arc<Wanted>, wait: Duration) -> Outcome {
        let result = self.try_replace(wanted, wait);
        self.settle(result)
    }

    /// Writes the whole state that is wanted into `to`, an empty file, to be looked at before anything is changed. As for
    /// [`Capture::replace`], it must have been surveyed, and fetched.
    pub fn assemble(
        &mut self,
        wanted: &Arc<Wanted>,
        to: &File,
    ) -> Result<Result<(), NotReplaced>, CaptureError> {
        let result = self.try_assemble(wanted, to);
        let result = match result {
            Ok(()) => Ok(Ok(())),
            Err(Failed::Refused(refused)) => Ok(Err(refused)),
            Err(Failed::Capture(error)) => Err(error),
        };
        self.settle(result)
    }

    fn try_assemble(&mut self, wanted: &Arc<Wanted>, to: &File) -> Result<(), Failed> {
        self.must_own_lock()?;
        let header = self.header()?;
        let Some(pin) = self.pin.as_ref().filter(|pin| pin.is_for(wanted)) else {
            return Err(NotReplaced::Overtaken.into());
        };
        let staged = |e| Failed::Capture(CaptureError::Staged(e));
        let mut source = Source { capture: self, header: &header, pin, wanted, image: None };
        let size = wanted.page_size();
        let mut page = vec![0; size.bytes()];
        for pgno in wanted.pages() {
            source.read(pgno, &mut page)?;
            to.write_all_at(&page, size.offset(pgno)).map_err(staged)?;
        }
        Ok(())
    }

    fn try_replace(&mut self, wanted: &Arc<Wanted>, wait: Duration) -> Outcome {
        self.must_own_lock()?;
        if self.standing != Standing::Aligned {
            return Ok(Err(NotReplaced::Unaligned));
        }
        if !self.pin.as_ref().is_some_and(|pin| pin.is_for(wanted)) {
            return Ok(Err(NotReplaced::Overtaken));
        }
        self.unmark();
        self.look_at_locks()?;
        let reach = Reach::replacing(wait);
        let Some((done, held)) =
            self.with_writer_lock(reach.wait, |capture| capture.replaced(wanted, reach))?
        else {
            return Ok(Err(NotReplaced::WriterBusy));
        };
        let (before, pages, committed) = match done {
            Ok(done) => done,
            Err(Failed::Refused(refused)) => return Ok(Err(refused)),
            Err(Failed::Capture(error)) => return Err(error),
        };
        // Nothing counts on the state of before any more.
        self.pin = None;
        let Some(committed) = committed else {
            return Ok(Ok(Replaced { before, after: None, pages, proven: true, held }));
        };
        let (after, proven) = self.confirm(&committed, wanted)?;
        Ok(Ok(Replaced { before, after: Some(after), pages, proven, held }))
    }

    /// Under the writer lock: the position before, how many pages were written, and the header that published them; `None`
    /// when there was nothing to write.
    fn replaced(&mut self, wanted: &Wanted, reach: Reach) -> Result<(Pos, u32, Option<Header>), Failed> {
        // Nobody can change it while the lock is held.
        let header = self.header()?;
        self.take_rest(&header, reach)?.map_err(NotReplaced::from)?;
        let pin = self.pin.as_ref().ok_or(NotReplaced::Overtaken)?;
        let plan = self.plan(&header, pin, wanted)?;
        let before = self.tracked.as_ref().map(|t| t.position).ok_or(NotReplaced::Unaligned)?;
        if plan.nothing {
            return Ok((before, 0, None));
        }
        let write = |connection: &Connection| {
            // The connection went by the path: it must lead to the file that is followed.
            self.look_at_locks()?;
            self.write(connection, &header, pin, wanted, &plan)
        };
        self.files.with_writer(write).map_err(NotReplaced::Sqlite)??;
        let pages = u32::try_from(plan.pages.len()).unwrap_or(u32::MAX);
        // While nobody writes it is whole; what it publishes stays in the log until it is copied.
        Ok((before, pages, Some(self.header()?)))
    }

    /// What has to be written over the state of `header`, which is that of the page map, and the proof that it gives what is
    /// wanted.
    fn plan(&self, header: &Header, pin: &Pin, wanted: &Wanted) -> Result<Plan, Failed> {
        let Some(tracked) = &self.tracked else { return Err(NotReplaced::Unaligned.into()) };
        let staged = |e| Failed::Capture(CaptureError::Staged(e));
        let sums = wanted.sums();
        let mut rotten = pin.rotten.iter().copied().peekable();
        let (mut pages, mut changes) = (Vec::new(), Vec::new());
        for pgno in wanted.pages() {
            while rotten.next_if(|page| *page < pgno).is_some() {}
            let asked = sums.get(pgno).map_err(staged)?;
            let differs = tracked.map.get(pgno).map_err(staged)? != asked || rotten.peek() == Some(&pgno);
            if !differs && pgno != Pgno::FIRST {
                continue;
            }
            let Some(asked) = asked else { continue };
            pages.push(pgno);
            changes.push((pgno, asked));
        }
        drop(sums);
        let sum = tracked.map.preview(&changes, wanted.commit()).map_err(staged)?;
        if sum != wanted.position().checksum {
            return Err(NotReplaced::Unproven(sum, wanted.position().checksum).into());
        }
        let page_size = wanted.page_size();
        let mut live = vec![0; page_size.bytes()];
        let commit = tracked.map.commit();
        let image = Image::published(&self.files, header)?;
        image.read(std::iter::once(Pgno::FIRST), |_, page| {
            live.copy_from_slice(page);
            Ok(())
        })?;
        drop(image);
        let mut first = vec![0; page_size.bytes()];
        Source { capture: self, header, pin, wanted, image: None }.read(Pgno::FIRST, &mut first)?;
        let nothing = pages.len() == 1 && commit == wanted.commit() && page_one::same(&first, &live);
        let cookie = page_one::adapt(&mut first, &live, wanted.commit()).map_err(NotReplaced::Unfit)?;
        let moves_pages = page_one::has_auto_vacuum(&live);
        Ok(Plan { pages, first, cookie, cut: commit > wanted.commit(), moves_pages, nothing })
    }

    /// One transaction.
    fn write(
        &self,
        connection: &Connection,
        header: &Header,
        pin: &Pin,
        wanted: &Wanted,
        plan: &Plan,
    ) -> Result<(), Failed> {
        let run = |action, text: &str| connection.execute_batch(text).map_err(sql(action));
        // A schema that cannot be read must not keep it from being replaced.
        run("prepare to write", "PRAGMA writable_schema=ON; PRAGMA synchronous=FULL")?;
        match connection.execute_batch("BEGIN IMMEDIATE") {
            Err(e) if SqliteError::from_rusqlite("begin", &e).is_busy() => {
                return Err(NotReplaced::WriterBusy.into());
            }
            begun => begun.map_err(sql("begin a transaction"))?,
        }
        if plan.moves_pages {
            // In this transaction alone, as page 1 is written anew: the commit must not move pages.
            run("keep pages where they are", "PRAGMA auto_vacuum=INCREMENTAL")?;
        }
        let mut write = connection.prepare(WRITE_PAGE).map_err(sql("open sqlite_dbpage"))?;
        let mut cut = connection.prepare(CUT).map_err(sql("open sqlite_dbpage"))?;
        let mut source = Source { capture: self, header, pin, wanted, image: None };
        let mut page = vec![0; wanted.page_size().bytes()];
        let mut unsynced = 0;
        for pgno in plan.pages.iter().filter(|pgno| **pgno != Pgno::FIRST) {
            watchdog::beat();
            source.read(*pgno, &mut page)?;
            write.execute((pgno.get(), &page)).map_err(sql("write a page"))?;
            unsynced += page.len();
            if unsynced >= SYNC_BYTES {
                self.files.sync_wal().map_err(NotReplaced::Sqlite)?;
                unsynced = 0;
            }
        }
        write.execute((1, &plan.first)).map_err(sql("write the first page"))?;
        drop(write);
        if plan.cut {
            cut.execute([i64::from(wanted.commit()) + 1]).map_err(sql("cut the database"))?;
        }
        drop(cut);
        // The very last: a statement that began after it would read the schema, through pages that changed below SQLite.
        run("raise the schema cookie", &format!("PRAGMA schema_version={}", plan.cookie.cast_signed()))?;
        run("commit", "COMMIT")
    }

    /// The transaction that was just committed, as the log has it.
    fn confirm(&mut self, header: &Header, wanted: &Wanted) -> Result<(Pos, bool), CaptureError> {
        let Ahead::Transaction(cursor) = self.ahead(header)? else {
            return Err(CaptureError::NoPageMap);
        };
        let (changes, commit) = self.peek(header, cursor)?;
        let Some(tracked) = &self.tracked else { return Err(CaptureError::NoPageMap) };
        let sum = tracked.map.preview(&changes, commit).map_err(CaptureError::Staged)?;
        let asked = wanted.sums().get(Pgno::FIRST).map_err(CaptureError::Staged)?;
        let is = changes.first().filter(|(pgno, _)| *pgno == Pgno::FIRST).map(|(_, sum)| *sum);
        let expected = match (asked, is) {
            (Some(asked), Some(is)) => Some(wanted.position().checksum.toggle(asked).toggle(is)),
            _ => None,
        };
        let proven = commit == wanted.commit() && expected == Some(sum);
        Ok((Pos { txid: tracked.position.txid.next(), checksum: sum }, proven))
    }
}

/// What is to be written.
struct Plan {
    /// Ascending, page 1 first.
    pages: Vec<Pgno>,
    /// Page 1 as it will be, with the schema cookie of the live database.
    first: Vec<u8>,
    /// The schema cookie that it gets at last.
    cookie: u32,
    /// The database becomes smaller.
    cut: bool,
    /// The live database moves pages when it commits.
    moves_pages: bool,
    /// It is what is wanted already.
    nothing: bool,
}

/// Pages of the state that is wanted: fetched, or pinned.
struct Source<'a> {
    capture: &'a Capture,
    header: &'a Header,
    pin: &'a Pin,
    wanted: &'a Wanted,
    image: Option<Image<'a>>,
}

impl Source<'_> {
    /// Reads a page and checks it.
    fn read(&mut self, pgno: Pgno, out: &mut [u8]) -> Result<(), Failed> {
        let staged = |e| Failed::Capture(CaptureError::Staged(e));
        let size: PageSize = self.wanted.page_size();
        if self.wanted.has(pgno) {
            self.wanted.read(pgno, out).map_err(staged)?;
        } else {
            let image = match &self.image {
                Some(image) => image,
                None => self.image.insert(self.capture.pinned(self.header, self.pin, size)?),
            };
            image.read(std::iter::once(pgno), |_, page| {
                out.copy_from_slice(page);
                Ok(())
            })?;
        }
        let asked = self.wanted.sums().get(pgno).map_err(staged)?;
        if asked != Some(Checksum::of_page(pgno, out)) {
            return Err(NotReplaced::Overtaken.into());
        }
        Ok(())
    }
}
