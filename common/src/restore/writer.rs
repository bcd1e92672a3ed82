//! The second thread of a restore: sums pages, writes them in runs, keeps the page checksums.

use super::RestoreError;
use super::syncer::Syncer;
use crate::{Checksum, PageSize, Pgno, Txid};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes of pages in one batch: large enough for few system calls, small enough to stay in a core's cache.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches that may wait for the writer.
const QUEUE: usize = 4;

/// Pages on their way to the file, in the order they are to be written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pages: Vec<Pgno>,
    bytes: Vec<u8>,
}

impl Batch {
    pub(super) fn push(&mut self, pgno: Pgno, page: &[u8]) {
        self.pages.push(pgno);
        self.bytes.extend_from_slice(page);
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES
    }

    pub(super) fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.bytes.clear();
    }
}

/// The end of one file, and what it says about the database.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) name: String,
    pub(super) txid: Txid,
    pub(super) commit: u32,
    /// Database checksum before the file, when it starts exactly where the last one ended.
    pub(super) pre: Option<Checksum>,
    /// Database checksum after the file.
    pub(super) post: Option<Checksum>,
}

#[derive(Debug)]
enum Job {
    Pages(PageSize, Batch),
    StartOver,
    Mark(Mark),
}

/// The image after the last job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Image {
    pub(super) checksum: Checksum,
    /// True when the last file said what the checksum must be.
    pub(super) proven: bool,
}

/// The caller's end of the thread. Dropping it ends the thread after the jobs that wait.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<SyncSender<Job>>,
    used: Receiver<Batch>,
    thread: Option<JoinHandle<Result<Image, RestoreError>>>,
}

impl Writer {
    pub(super) fn start(file: File, path: PathBuf) -> io::Result<Writer> {
        let (jobs, work) = sync_channel(QUEUE);
        // One place more than batches can be under way: giving one back never waits.
        let (give_back, used) = sync_channel(QUEUE + 2);
        let syncer = Syncer::start(file.try_clone()?)?;
        let state = State {
            file,
            path,
            syncer,
            sums: Vec::new(),
            sum: Checksum::EMPTY,
            at_mark: None,
            proven: false,
        };
        let thread = std::thread::Builder::new()
            .name("restore-writer".to_owned())
            .spawn(move || state.run(&work, &give_back))?;
        Ok(Writer { jobs: Some(jobs), used, thread: Some(thread) })
    }

    /// Queues a batch, waiting when the queue is full; `batch` is empty afterwards.
    pub(super) fn pages(&mut self, page_size: PageSize, batch: &mut Batch) -> Result<(), RestoreError> {
        let next = self.used.try_recv().unwrap_or_default();
        self.send(Job::Pages(page_size, std::mem::replace(batch, next)))
    }

    /// The pages that follow are those of another image; nothing of this one stays.
    pub(super) fn start_over(&mut self) -> Result<(), RestoreError> {
        self.send(Job::StartOver)
    }

    pub(super) fn mark(&mut self, mark: Mark) -> Result<(), RestoreError> {
        self.send(Job::Mark(mark))
    }

    /// Waits for everything queued.
    pub(super) fn finish(&mut self) -> Result<Image, RestoreError> {
        self.jobs = None;
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Err(RestoreError::Abandoned),
        }
    }

    fn send(&mut self, job: Job) -> Result<(), RestoreError> {
        let jobs = self.jobs.as_ref().ok_or(RestoreError::Abandoned)?;
        if jobs.send(job).is_err() {
            // The thread ends early only with an error; joining tells which.
            return self.finish().and(Err(RestoreError::Abandoned));
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct State {
    file: File,
    path: PathBuf,
    syncer: Syncer,
    /// Checksum per page; [`Checksum::EMPTY`] where there is none yet (and for the lock page, always).
    sums: Vec<Checksum>,
    sum: Checksum,
    /// Database checksum at the last mark.
    at_mark: Option<Checksum>,
    proven: bool,
}

impl State {
    fn run(mut self, work: &Receiver<Job>, give_back: &SyncSender<Batch>) -> Result<Image, RestoreError> {
        for job in work {
            match job {
                Job::Pages(page_size, mut batch) => {
                    self.sum_up(page_size, &batch);
                    self.write(page_size, &batch).map_err(RestoreError::io("write", &self.path))?;
                    self.syncer.wrote(batch.bytes.len() as u64);
                    batch.clear();
                    let _ = give_back.try_send(batch);
                }
                Job::StartOver => {
                    self.file.set_len(0).map_err(RestoreError::io("truncate", &self.path))?;
                    self.sums.clear();
                    self.sum = Checksum::EMPTY;
                }
                Job::Mark(mark) => self.mark(&mark)?,
            }
        }
        self.syncer.finish().map_err(RestoreError::io("sync", &self.path))?;
        Ok(Image { checksum: self.sum, proven: self.proven })
    }

    fn sum_up(&mut self, page_size: PageSize, batch: &Batch) {
        for (pgno, page) in batch.pages.iter().zip(batch.bytes.chunks_exact(page_size.bytes())) {
            // The caller lets the database grow page by page: this grows by what was really received.
            if pgno.index() >= self.sums.len() {
                self.sums.resize(pgno.index() + 1, Checksum::EMPTY);
            }
            let new = Checksum::of_page(*pgno, page);
            let old = std::mem::replace(&mut self.sums[pgno.index()], new);
            self.sum = self.sum.toggle(old).toggle(new);
        }
    }

    /// One system call per run of neighbours.
    fn write(&self, page_size: PageSize, batch: &Batch) -> io::Result<()> {
        let mut bytes = &batch.bytes[..];
        for run in batch.pages.chunk_by(|a, b| a.get() + 1 == b.get()) {
            let (run_bytes, rest) = bytes.split_at(run.len() * page_size.bytes());
            self.file.write_all_at(run_bytes, page_size.offset(run[0]))?;
            bytes = rest;
        }
        Ok(())
    }

    fn mark(&mut self, mark: &Mark) -> Result<(), RestoreError> {
        if let (Some(expected), Some(found)) = (mark.pre, self.at_mark) {
            compare(expected, found, || format!("before {}", mark.name))?;
        }
        for gone in self.sums.drain((mark.commit as usize).min(self.sums.len())..) {
            self.sum = self.sum.toggle(gone);
        }
        if let Some(expected) = mark.post {
            compare(expected, self.sum, || format!("after transaction {} ({})", mark.txid, mark.name))?;
        }
        self.proven = mark.post.is_some();
        self.at_mark = Some(self.sum);
        Ok(())
    }
}

fn compare(expected: Checksum, found: Checksum, place: impl FnOnce() -> String) -> Result<(), RestoreError> {
    if expected == found {
        return Ok(());
    }
    Err(RestoreError::Mismatch { place: place(), expected, found })
}
