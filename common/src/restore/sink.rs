//! The writing half of a restore: compressed pages in any order become the database file, on all cores.
//!
//! ```text
//! Frames ─▶ bounded queue ─▶ N threads: hold single pages ▸ expand ▸ sum ▸ positioned write ─▶ one more: sync, journal
//! ```
//! Invariants
//! - The output name never holds a partial or unverified database, whatever fails and whenever the process dies.
//! - Every page is written once: a page that comes twice, or that the database does not have, is an error.
//! - The database checksum is computed from the very pages that were written.
//! - What a killed restore has written is used by the next one to the same point: a journal beside the temporary file says
//!   which pages lie there. It is trusted for nothing: the pages are summed again, and the whole is compared.
//! - Memory: a bit for each page, for each thread a queued piece and a megabyte, and an eighth of the database, but
//!   between 8 and 128 MiB, for single pages that wait for their neighbours.
//!
//! Non-goals: which pages come from where; no network. Only [`PageSender::send`] is for async code, all else blocks.

use super::feed::FeedClosed;
use super::frames::Frames;
use super::image_file::ImageFile;
use super::journal;
use super::output::{Output, with_suffix};
use super::workers::{Core, spawn};
use super::{Progress, Proof, Report, RestoreError};
use crate::{Checksum, PageSet, PageSize, Txid, TxidRange};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Most threads that expand and write.
const MAX_THREADS: usize = 8;
/// A restore that was broken off with less than this begins anew: that is faster than to look at what is there.
const WORTH_KEEPING: u64 = 64 * 1024 * 1024;
/// Room of so many bytes in a row that was reserved, and not written when a restore was broken off, is given back.
const WORTH_GIVING_BACK: u64 = 64 * 1024;

/// The database as it is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// After which transaction.
    pub txid: Txid,
    /// Database checksum at the source, if somebody took one.
    pub checksum: Option<Checksum>,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages.
    pub commit: u32,
    /// Time of the transaction, Unix ms.
    pub timestamp_ms: i64,
}

impl Point {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        u64::from(self.commit) * u64::from(self.page_size.get())
    }
}

/// Refuses an output that would be refused at the end anyway: an existing file unless `overwrite`, one with a log or
/// journal beside it, one that a process has open.
pub fn check_output(path: &Path, overwrite: bool) -> Result<(), RestoreError> {
    super::output::check_target(path, overwrite.into())
}

/// A restore under way. Dropping it takes away what it wrote, but for what [`PageSink::break_off`] keeps.
#[derive(Debug)]
pub struct PageSink {
    output: Output,
    /// `None`: nothing is kept for another restore.
    journal: Option<PathBuf>,
    core: Arc<Core>,
    frames: Option<mpsc::Sender<Frames>>,
    due: Option<SyncSender<()>>,
    threads: Vec<JoinHandle<Result<(), RestoreError>>>,
    syncer: Option<JoinHandle<io::Result<()>>>,
    resumed: u32,
}

/// The end for pages; every clone must be dropped before the restore is finished.
#[derive(Clone, Debug)]
pub struct PageSender(mpsc::Sender<Frames>);

impl PageSender {
    /// Hands pages over; waits while the disk or the cores are slower. An error means that the restore has failed:
    /// [`PageSink::finish`] says why.
    pub async fn send(&self, frames: Frames) -> Result<(), FeedClosed> {
        self.0.send(frames).await.map_err(|_| FeedClosed)
    }
}

impl PageSink {
    /// Prepares a restore of `point` into `path`, as [`check_output`] allows it, making its folder when there is none.
    /// Goes on with what a killed or broken restore of the same point left there.
    pub fn create(path: &Path, overwrite: bool, point: Point) -> Result<PageSink, RestoreError> {
        Self::begin(path, overwrite, point, Some(with_suffix(path, ".walhub-restore.journal")))
    }

    /// As [`PageSink::create`], but every page is to come now, whatever lies there, and nothing is left for another restore.
    pub fn create_anew(path: &Path, overwrite: bool, point: Point) -> Result<PageSink, RestoreError> {
        Self::begin(path, overwrite, point, None)
    }

    fn begin(
        path: &Path,
        overwrite: bool,
        point: Point,
        journal: Option<PathBuf>,
    ) -> Result<PageSink, RestoreError> {
        if point.commit == 0 {
            return Err(RestoreError::Empty);
        }
        let output = Output::open(path, overwrite.into())?;
        let file = output.handle()?;
        let found = journal.as_ref().and_then(|journal| journal::resume(journal, &file, &point));
        let (written, sum) = match found {
            Some(found) => found,
            None => {
                // Before the file has its length: it is not to say of zeros that they are pages.
                journal.as_deref().inspect(|journal| forget(journal));
                output.clear()?;
                (PageSet::empty(point.commit), Checksum::EMPTY)
            }
        };
        let file = ImageFile::new(file, output.temp(), point.bytes());
        let file = file.map_err(RestoreError::io("make room in", output.temp()))?;
        let resumed = written.len();
        let core = Arc::new(Core::new(file, output.temp().to_owned(), point, written, sum));
        // Half of them wait for the disk.
        let threads = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MAX_THREADS);
        let (frames, queue) = mpsc::channel(threads);
        let (due, requests) = sync_channel(1);
        let failed = RestoreError::io("start a thread for", output.temp());
        let started = spawn(&core, queue, &due, threads).and_then(|threads| {
            let (core, journal) = (core.clone(), journal.clone());
            let syncer = std::thread::Builder::new()
                .name("restore-syncer".to_owned())
                .spawn(move || keep_durable(&core, journal.as_deref(), &requests))?;
            Ok((threads, syncer))
        });
        let (threads, syncer) = started.map_err(failed)?;
        let (frames, due, syncer) = (Some(frames), Some(due), Some(syncer));
        Ok(PageSink { output, journal, core, frames, due, threads, syncer, resumed })
    }

    /// The pages that are there already, from an earlier restore.
    pub fn present(&self) -> PageSet {
        self.core.state().written.clone()
    }

    /// How many of them.
    pub fn resumed(&self) -> u32 {
        self.resumed
    }

    /// Where pages go.
    pub fn sender(&self) -> PageSender {
        PageSender(self.frames.clone().expect("BUG: a sink has its queue until its end"))
    }

    /// The file while it is made.
    pub fn temp(&self) -> &Path {
        self.output.temp()
    }

    /// Waits for what was sent.
    fn join(&mut self) -> Result<(), RestoreError> {
        (self.frames, self.due) = (None, None);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(ended);
        }
        if let Some(syncer) = self.syncer.take() {
            // The system reports a lost write only once: an error seen there must not be dropped.
            let ended = syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let ended = ended.map_err(RestoreError::io("sync", self.output.temp()));
            result = result.and(ended);
        }
        result
    }

    /// Waits for what was sent, verifies the image, lets `check` look at it, makes it durable and gives it its name.
    /// `files` is what the report shall say about files; an error of `check` leaves no file.
    pub fn finish(
        mut self,
        files: u64,
        check: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Report, RestoreError> {
        let ended = self.join().and_then(|()| self.verify(check));
        self.forget_journal();
        let (checksum, proof) = ended?;
        let point = *self.core.point();
        self.output.publish(point.bytes())?;
        let range = TxidRange::new(Txid::FIRST, point.txid).expect("BUG: no transaction is before the first");
        let (bytes_in, pages_written) = self.core.counted();
        Ok(Report {
            path: self.output.path().to_owned(),
            page_size: point.page_size,
            pages: point.commit,
            bytes: point.bytes(),
            range,
            timestamp_ms: point.timestamp_ms,
            checksum,
            proof,
            progress: Progress { files, bytes_in, pages_written },
        })
    }

    fn verify(
        &self,
        check: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<(Checksum, Proof), RestoreError> {
        let point = self.core.point();
        let (written, sum) = {
            let state = self.core.state();
            (state.written.clone(), state.sum)
        };
        let mut present = written;
        present.insert(point.page_size.lock_page());
        if let Some(gap) = present.gaps().next() {
            let name = "the stream of pages".to_owned();
            return Err(RestoreError::MissingPage { name, pgno: *gap.start() });
        }
        if let Some(expected) = point.checksum.filter(|expected| *expected != sum) {
            let place = format!("at transaction {}", point.txid);
            return Err(RestoreError::Mismatch { place, expected, found: sum });
        }
        check(self.output.temp()).map_err(RestoreError::Check)?;
        Ok((sum, if point.checksum.is_some() { Proof::Source } else { Proof::FilesOnly }))
    }

    /// Ends without a database, because no more pages come. Keeps what was written for the next try when that is worth
    /// it, and says so; else nothing is left.
    pub fn break_off(mut self) -> Result<bool, RestoreError> {
        if let Err(error) = self.join() {
            self.forget_journal();
            return Err(error);
        }
        let point = *self.core.point();
        let state = self.core.state();
        let bytes = u64::from(state.written.len()) * u64::from(point.page_size.get());
        let worth = self.journal.as_deref().filter(|_| bytes >= WORTH_KEEPING);
        let kept = worth.is_some_and(|journal| {
            // As while it runs: the journal never says more than what outlives a power cut.
            self.core.file().sync_data().is_ok() && journal::write(journal, &point, &state.written).is_ok()
        });
        if kept {
            self.give_back(&state.written);
        }
        drop(state);
        if kept {
            self.output.keep();
        } else {
            self.forget_journal();
        }
        Ok(kept)
    }

    /// What is kept takes no more room than what came.
    fn give_back(&self, written: &PageSet) {
        let page_bytes = u64::from(self.core.point().page_size.get());
        for gap in written.gaps() {
            let (start, end) =
                ((u64::from(*gap.start()) - 1) * page_bytes, u64::from(*gap.end()) * page_bytes);
            if end - start >= WORTH_GIVING_BACK {
                self.core.file().give_back(start, end - start);
            }
        }
    }

    fn forget_journal(&self) {
        self.journal.as_deref().inspect(|journal| forget(journal));
    }
}

fn forget(journal: &Path) {
    // Nobody believes it: where it cannot be removed, no more than time is lost.
    let _ = std::fs::remove_file(journal);
}

impl Drop for PageSink {
    fn drop(&mut self) {
        if self.frames.is_some() {
            let _ = self.join();
            self.forget_journal();
        }
    }
}

/// On each request: what was written before lies on the disk afterwards, and the journal says so.
fn keep_durable(core: &Core, journal: Option<&Path>, requests: &Receiver<()>) -> io::Result<()> {
    for () in requests {
        let written = core.state().written.clone();
        core.file().sync_data()?;
        // Without a journal a killed restore begins anew, nothing worse.
        let _ = journal.map(|journal| journal::write(journal, core.point(), &written));
    }
    Ok(())
}
