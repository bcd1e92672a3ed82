//! The threads of a restore by pages: each expands, sums and writes what it takes from the queue.

use super::RestoreError;
use super::frames::Frames;
use super::sink::Point;
use crate::{Checksum, PageSet, Pgno};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Bytes of neighbouring pages written at once.
const WRITE_BYTES: usize = 1024 * 1024;
/// Bytes written between two syncs, at least.
const SYNC_BYTES: u64 = 32 * 1024 * 1024;
/// And at least this part of the file, so that writing the journal again and again costs little.
const SYNC_SHARE: u64 = 64;

/// What the threads share.
#[derive(Debug)]
pub(super) struct Core {
    file: File,
    path: PathBuf,
    point: Point,
    state: Mutex<State>,
    bytes_in: AtomicU64,
    pages: AtomicU64,
    since_sync: AtomicU64,
}

/// How far it is.
#[derive(Debug)]
pub(super) struct State {
    /// Pages that lie in the file.
    pub(super) written: PageSet,
    /// XOR of their checksums.
    pub(super) sum: Checksum,
}

impl Core {
    pub(super) fn new(file: File, path: PathBuf, point: Point, written: PageSet, sum: Checksum) -> Core {
        let state = Mutex::new(State { written, sum });
        let (bytes_in, pages, since_sync) = Default::default();
        Core { file, path, point, state, bytes_in, pages, since_sync }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn point(&self) -> &Point {
        &self.point
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes and pages that came.
    pub(super) fn counted(&self) -> (u64, u64) {
        (self.bytes_in.load(Ordering::Relaxed), self.pages.load(Ordering::Relaxed))
    }
}

/// Starts `threads` threads over one queue. The first error closes the queue.
pub(super) fn spawn(
    core: &Arc<Core>,
    queue: mpsc::Receiver<Frames>,
    due: &SyncSender<()>,
    threads: usize,
) -> io::Result<Vec<JoinHandle<Result<(), RestoreError>>>> {
    let queue = Arc::new(Mutex::new(queue));
    let start = |number| {
        let (core, queue, due) = (core.clone(), queue.clone(), due.clone());
        let mut worker = Worker { core, due, buffer: vec![0; 0], run: Vec::new(), sum: Checksum::EMPTY };
        std::thread::Builder::new().name(format!("restore-{number}")).spawn(move || {
            let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let Some(frames) = lock().blocking_recv() else { return Ok(()) };
                if let Err(error) = worker.take(&frames) {
                    lock().close();
                    return Err(error);
                }
            }
        })
    };
    (0..threads).map(start).collect()
}

struct Worker {
    core: Arc<Core>,
    due: SyncSender<()>,
    buffer: Vec<u8>,
    /// Neighbouring pages in the buffer.
    run: Vec<Pgno>,
    sum: Checksum,
}

impl Worker {
    fn take(&mut self, frames: &Frames) -> Result<(), RestoreError> {
        let point = *self.core.point();
        let page_bytes = point.page_size.bytes();
        let run_pages = (WRITE_BYTES / page_bytes).max(1);
        if self.buffer.is_empty() {
            self.buffer = vec![0; run_pages * page_bytes];
        }
        let mut taken = 0;
        for (pgno, block) in frames.iter() {
            if pgno.get() > point.commit || pgno == point.page_size.lock_page() {
                return Err(RestoreError::Unexpected(pgno.get()));
            }
            let follows = self.run.last().is_none_or(|last| last.get() + 1 == pgno.get());
            if !follows || self.run.len() == run_pages {
                self.write()?;
            }
            let page = &mut self.buffer[self.run.len() * page_bytes..][..page_bytes];
            if lz4_flex::block::decompress_into(block, page).ok() != Some(page_bytes) {
                return Err(RestoreError::Block(pgno.get()));
            }
            self.sum = self.sum.toggle(Checksum::of_page(pgno, page));
            self.run.push(pgno);
            taken += block.len() as u64;
        }
        self.core.bytes_in.fetch_add(taken, Ordering::Relaxed);
        self.write()
    }

    /// Writes the run, and only then counts its pages.
    fn write(&mut self) -> Result<(), RestoreError> {
        let Some(first) = self.run.first() else { return Ok(()) };
        let page_size = self.core.point.page_size;
        let bytes = self.run.len() * page_size.bytes();
        let written = self.core.file.write_all_at(&self.buffer[..bytes], page_size.offset(*first));
        written.map_err(RestoreError::io("write", &self.core.path))?;
        let mut state = self.core.state();
        for pgno in &self.run {
            if !state.written.insert(*pgno) {
                return Err(RestoreError::Unexpected(pgno.get()));
            }
        }
        state.sum = state.sum.toggle(self.sum);
        drop(state);
        self.core.pages.fetch_add(self.run.len() as u64, Ordering::Relaxed);
        self.sum = Checksum::EMPTY;
        self.run.clear();
        let step = SYNC_BYTES.max(self.core.point.bytes() / SYNC_SHARE);
        if self.core.since_sync.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64 >= step {
            self.core.since_sync.store(0, Ordering::Relaxed);
            // Full: the sync that waits there covers these bytes as well.
            let _ = self.due.try_send(());
        }
        Ok(())
    }
}
