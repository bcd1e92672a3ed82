//! The threads of a restore by pages: each expands, sums and writes what it takes from the queue.

use super::RestoreError;
use super::frames::Frames;
use super::held::{Held, Owned};
use super::image_file::{AlignedBuffer, ImageFile, LONG_BYTES};
use super::sink::Point;
use crate::{Checksum, PageSet, Pgno};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Bytes of neighbouring pages written at once.
const WRITE_BYTES: usize = 1024 * 1024;
/// Bytes written between two syncs, at least: what a killed restore may do again.
const SYNC_BYTES: u64 = 32 * 1024 * 1024;
/// And at least this part of the file, so that writing the journal again and again costs little.
const SYNC_SHARE: u64 = 64;
/// This part of the database may be held until neighbours come...
const HELD_SHARE: u64 = 8;
/// ...but no less and no more than so many bytes.
const HELD_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=128 << 20;

/// What the threads share.
#[derive(Debug)]
pub(super) struct Core {
    file: ImageFile,
    path: PathBuf,
    point: Point,
    state: Mutex<State>,
    held: Mutex<Held>,
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
    pub(super) fn new(file: ImageFile, path: PathBuf, point: Point, written: PageSet, sum: Checksum) -> Core {
        let state = Mutex::new(State { written, sum });
        let held = (point.bytes() / HELD_SHARE).clamp(*HELD_BYTES.start(), *HELD_BYTES.end());
        let held = Mutex::new(Held::new(held as usize));
        let (bytes_in, pages, since_sync) = Default::default();
        Core { file, path, point, state, held, bytes_in, pages, since_sync }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn point(&self) -> &Point {
        &self.point
    }

    pub(super) fn file(&self) -> &ImageFile {
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
        let buffer = AlignedBuffer::new(WRITE_BYTES.max(core.point.page_size.bytes()));
        let mut worker = Worker { core, due, buffer };
        std::thread::Builder::new().name(format!("restore-{number}")).spawn(move || {
            let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let frames = lock().blocking_recv();
                let done = match &frames {
                    Some(frames) => worker.take(frames),
                    None => worker.write_held(),
                };
                if let Err(error) = done {
                    lock().close();
                    return Err(error);
                }
                if frames.is_none() {
                    return Ok(());
                }
            }
        })
    };
    (0..threads).map(start).collect()
}

struct Worker {
    core: Arc<Core>,
    due: SyncSender<()>,
    buffer: AlignedBuffer,
}

impl Worker {
    /// Writes the long runs, with the held pages that lie between them, and holds the rest.
    fn take(&mut self, frames: &Frames) -> Result<(), RestoreError> {
        let point = *self.core.point();
        let unexpected = |pgno: Pgno| pgno.get() > point.commit || pgno == point.page_size.lock_page();
        if let Some((pgno, _)) = frames.iter().find(|(pgno, _)| unexpected(*pgno)) {
            return Err(RestoreError::Unexpected(pgno.get()));
        }
        let closing = self.core.held().closing(frames);
        let mut pages: Vec<(Pgno, &[u8])> = frames.iter().collect();
        let taken = pages.iter().map(|(_, block)| block.len() as u64).sum();
        if !closing.is_empty() {
            pages.extend(closing.iter().map(borrowed));
            pages.sort_by_key(|(pgno, _)| *pgno);
        }
        for run in pages.chunk_by(|a, b| a.0.get() + 1 == b.0.get()) {
            if run.len() * point.page_size.bytes() < LONG_BYTES {
                self.hold(run)?;
            } else {
                self.write(run)?;
            }
        }
        self.core.bytes_in.fetch_add(taken, Ordering::Relaxed);
        Ok(())
    }

    fn hold(&mut self, run: &[(Pgno, &[u8])]) -> Result<(), RestoreError> {
        let mut held = self.core.held();
        for (pgno, block) in run {
            if !held.keep(*pgno, block) {
                return Err(RestoreError::Unexpected(pgno.get()));
            }
        }
        let full = held.is_full();
        drop(held);
        if full { self.write_held() } else { Ok(()) }
    }

    /// Writes what is held, each thread a part.
    fn write_held(&mut self) -> Result<(), RestoreError> {
        let most = WRITE_BYTES / self.core.point.page_size.bytes();
        loop {
            let pages: Vec<Owned> = self.core.held().first(most);
            if pages.is_empty() {
                return Ok(());
            }
            let pages: Vec<(Pgno, &[u8])> = pages.iter().map(borrowed).collect();
            pages.chunk_by(|a, b| a.0.get() + 1 == b.0.get()).try_for_each(|run| self.write(run))?;
        }
    }

    /// Writes neighbours, and only then counts them.
    fn write(&mut self, pages: &[(Pgno, &[u8])]) -> Result<(), RestoreError> {
        let page_size = self.core.point.page_size;
        let page_bytes = page_size.bytes();
        for run in pages.chunks((WRITE_BYTES / page_bytes).max(1)) {
            let mut sum = Checksum::EMPTY;
            for ((pgno, block), page) in run.iter().zip(self.buffer.bytes_mut().chunks_exact_mut(page_bytes))
            {
                if lz4_flex::block::decompress_into(block, page).ok() != Some(page_bytes) {
                    return Err(RestoreError::Block(pgno.get()));
                }
                sum = sum.toggle(Checksum::of_page(*pgno, page));
            }
            let bytes = &self.buffer.bytes()[..run.len() * page_bytes];
            let written = self.core.file.write_all_at(bytes, page_size.offset(run[0].0));
            written.map_err(RestoreError::io("write", &self.core.path))?;
            self.wrote(run, sum)?;
        }
        Ok(())
    }

    fn wrote(&self, run: &[(Pgno, &[u8])], sum: Checksum) -> Result<(), RestoreError> {
        let mut state = self.core.state();
        for (pgno, _) in run {
            if !state.written.insert(*pgno) {
                return Err(RestoreError::Unexpected(pgno.get()));
            }
        }
        state.sum = state.sum.toggle(sum);
        drop(state);
        self.core.pages.fetch_add(run.len() as u64, Ordering::Relaxed);
        let bytes = run.len() as u64 * u64::from(self.core.point.page_size.get());
        let step = SYNC_BYTES.max(self.core.point.bytes() / SYNC_SHARE);
        if self.core.since_sync.fetch_add(bytes, Ordering::Relaxed) + bytes >= step {
            self.core.since_sync.store(0, Ordering::Relaxed);
            // Full: the sync that waits there covers these bytes as well.
            let _ = self.due.try_send(());
        }
        Ok(())
    }
}

fn borrowed(page: &Owned) -> (Pgno, &[u8]) {
    (page.0, &page.1)
}
