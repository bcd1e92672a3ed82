//! The real buffer: segment log and index as one [`WalBuffer`].
//!
//! The data folder holds `lock`, `log/` and `sled/`. Only `log/` matters: `sled/` is made anew from it when it is missing.

use super::cursor::CursorTable;
use super::flusher::Flusher;
use super::index::Index;
use super::log::file::Files;
use super::log::probe::Probe;
use super::log::reader::SegmentReader;
use super::log::recover::recover;
use super::log::writer::Writer;
use super::registry::Registry;
use super::squash::{Losses, Merger, NoMerger};
use super::tail::wanted;
use super::trim::{Trimmed, Trimmer};
use super::{
    Bounds, BufferError, Chunk, DatabaseId, GivenUp, OUTSIDE, Payloads, Registered, SegmentRef, Takers,
    Usage, WalBuffer, WhenFull, lineage_for,
};
use async_trait::async_trait;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::watch;
use walhub_common::folder_lock::FolderLock;
use walhub_common::{DatabaseKey, DestinationName, Pos, Txid};

/// Largest log file.
const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Smallest default log file.
const MIN_FILE_BYTES: u64 = 256 * 1024;

/// How to open a buffer.
#[derive(Clone, Debug)]
pub struct Options {
    /// The hub's data folder; made when it is missing.
    pub data_dir: PathBuf,
    /// Bound of the log on disk.
    pub max_bytes: u64,
    /// Size of a log file, the grain in which space is given back.
    pub file_bytes: u64,
    /// What to do at the bound.
    pub when_full: WhenFull,
    /// Merges segments, for [`WhenFull::Squash`].
    pub merger: Arc<dyn Merger>,
    /// Where bytes lie that are not in the log.
    pub payloads: Option<Arc<dyn Payloads>>,
    /// The lock of the data folder, of a caller that holds it for more than the buffer; taken when there is none.
    pub lock: Option<Arc<FolderLock>>,
    /// For tests.
    pub probe: Probe,
}

impl Options {
    /// That blocks when it is full, with files of 64 MiB, or a sixteenth of a small bound.
    pub fn new(data_dir: impl Into<PathBuf>, max_bytes: u64) -> Self {
        let file_bytes = (max_bytes / 16).clamp(MIN_FILE_BYTES, FILE_BYTES);
        Self {
            data_dir: data_dir.into(),
            max_bytes,
            file_bytes,
            when_full: WhenFull::default(),
            merger: Arc::new(NoMerger),
            payloads: None,
            lock: None,
            probe: Probe::default(),
        }
    }
}

/// The buffer on disk. Dropping it without [`WalBuffer::close`] still writes what was accepted.
#[derive(Debug)]
pub struct DiskBuffer {
    inner: Arc<Inner>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Inner {
    files: Arc<Files>,
    index: Index,
    cursors: CursorTable,
    flusher: Flusher,
    trimmer: Mutex<Trimmer>,
    /// Held by the append that makes room: the others wait for it without a thread.
    making_room: tokio::sync::Mutex<()>,
    bounds: Bounds,
    when_full: WhenFull,
    merger: Arc<dyn Merger>,
    losses: Mutex<Losses>,
    payloads: Option<Arc<dyn Payloads>>,
}

/// What ends with the buffer.
#[derive(Debug)]
struct Running {
    writer: JoinHandle<()>,
    mover: JoinHandle<()>,
    /// Held as long as the folder is ours.
    lock: Arc<FolderLock>,
}

impl DiskBuffer {
    /// Opens the buffer, after reading as much of the log as the index has not seen. Blocking.
    pub fn open(options: Options) -> Result<Self, BufferError> {
        let started = Instant::now();
        let Options { data_dir, max_bytes, file_bytes, when_full, merger, payloads, lock, probe } = options;
        let bounds = Bounds::of(max_bytes);
        let lock = match lock {
            Some(lock) => lock,
            None => Arc::new(lock_folder(&data_dir)?),
        };
        let files = Files::open(&data_dir.join("log"), probe.clone())
            .map_err(|source| BufferError::Io { doing: "open the log folder", source })?;
        let files = Arc::new(files);
        let index = Index::open(&data_dir.join("sled"), probe.clone())?;
        let checkpoint = index.checkpoint();
        let recovered = index.rebuild(|indexer| recover(&files, &probe, checkpoint, indexer))?;
        let newer = index.cursors().filter(|_| recovered.index.cursors_are_newer);
        let cursors = newer.unwrap_or_else(|| recovered.state.cursors.clone());
        index.write_cursors(&cursors)?;
        let oldest = files.oldest().unwrap_or(0);
        for (id, database) in &recovered.state.databases {
            index.forget_before(*id, oldest)?;
            index.forget_after(*id, database.position)?;
        }
        index.recovered(recovered.end)?;
        let (databases, rebuilt) = (recovered.state.databases.len(), recovered.index.rebuild);
        let bytes = files.total_bytes();
        tracing::info!(databases, bytes, rebuilt, elapsed = ?started.elapsed(), "buffer open");
        let writer =
            Writer::new(Arc::clone(&files), probe, recovered.log_id, recovered.last_number, file_bytes);
        let inner = Arc::new(Inner {
            flusher: Flusher::new(Registry::new(&recovered.state), Arc::clone(&files), bounds),
            files,
            index,
            cursors: CursorTable::new(cursors),
            trimmer: Mutex::default(),
            making_room: tokio::sync::Mutex::default(),
            bounds,
            when_full,
            merger,
            losses: Mutex::default(),
            payloads,
        });
        let running = Running::start(&inner, writer, lock)?;
        Ok(Self { inner, running: Mutex::new(Some(running)) })
    }

    fn take_running(&self) -> Option<Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Running {
    fn start(inner: &Arc<Inner>, writer: Writer, lock: Arc<FolderLock>) -> Result<Self, BufferError> {
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let failed = |source| BufferError::Io { doing: "start a thread", source };
        let on = Arc::clone(inner);
        let mover =
            thread("walhub-index").spawn(move || on.index.run(&on.cursors, &on.files)).map_err(failed)?;
        let on = Arc::clone(inner);
        let spawned = thread("walhub-log").spawn(move || on.flusher.run(writer, &on.index, &on.cursors));
        match spawned {
            Ok(writer) => Ok(Self { writer, mover, lock }),
            Err(e) => {
                inner.index.close();
                Err(failed(e))
            }
        }
    }

    /// Waits until all that was accepted is written and the index is flushed; the buffer needs the folder no more then.
    fn finish(self, inner: &Inner) {
        inner.flusher.close();
        inner.index.stop_waiting();
        let writer = self.writer.join();
        inner.index.close();
        for (thread, ended) in [("log", writer), ("index", self.mover.join())] {
            if ended.is_err() {
                tracing::error!(thread, "a thread of the buffer has panicked");
            }
        }
        drop(self.lock);
    }
}

impl Drop for DiskBuffer {
    fn drop(&mut self) {
        if let Some(running) = self.take_running() {
            running.finish(&self.inner);
        }
    }
}

impl Inner {
    fn check_known(&self, database: DatabaseId) -> Result<(), BufferError> {
        self.flusher.check_open()?;
        let known = self.flusher.registry(|r| r.get(database).is_some());
        known.then_some(()).ok_or(BufferError::UnknownDatabase(database))
    }

    /// The segment with the length of its LTX bytes, wherever they lie; `None` when they were given back.
    fn whole(&self, database: DatabaseId, mut segment: SegmentRef) -> Option<SegmentRef> {
        if let Some(payloads) = &self.payloads
            && segment.bytes == OUTSIDE.len() as u64
        {
            segment.bytes = payloads.bytes(database, segment.meta.range)?;
        }
        Some(segment)
    }

    fn open(&self, database: DatabaseId, segment: &SegmentRef) -> Result<Box<dyn Read + Send>, BufferError> {
        let range = segment.meta.range;
        if let Some(payloads) = &self.payloads
            && payloads.bytes(database, range) == Some(segment.bytes)
        {
            let opened = payloads.open(database, range);
            let opened =
                opened.map_err(|source| BufferError::Io { doing: "open a sealed snapshot", source })?;
            return opened.ok_or_else(|| BufferError::Trimmed { database, txid: range.min() });
        }
        Ok(Box::new(self.segment_reader(database, segment)?))
    }

    fn trimmer(&self) -> MutexGuard<'_, Trimmer> {
        self.trimmer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a chunk of `bytes`. False when nothing more can go.
    fn make_room(&self, bytes: usize) -> Result<bool, BufferError> {
        let waiting = self.flusher.waiting_bytes(bytes);
        let Some(target) = self.bounds.take.checked_sub(waiting) else { return Ok(false) };
        self.trimmer().make_room(&self.trimmed(), target)
    }

    fn trim(&self, takers: Arc<dyn Takers>) -> Result<(), BufferError> {
        let mut trimmer = self.trimmer();
        trimmer.set_takers(takers);
        trimmer.trim(&self.trimmed(), self.bounds.max / 5 * 4).map(drop)
    }

    #[cfg(test)]
    fn squash_one(&self, id: DatabaseId) -> Result<(), BufferError> {
        let _alone = self.trimmer();
        super::trim::squash::squash_one(&self.trimmed(), &*super::EveryDatabase::by(&[]), id)
    }

    fn trimmed(&self) -> Trimmed<'_> {
        Trimmed {
            files: &self.files,
            index: &self.index,
            cursors: &self.cursors,
            flusher: &self.flusher,
            bounds: self.bounds,
            when_full: self.when_full,
            merger: &*self.merger,
            losses: &self.losses,
            outside: self.payloads.is_some(),
        }
    }

    fn segment_reader(&self, id: DatabaseId, segment: &SegmentRef) -> Result<SegmentReader, BufferError> {
        match SegmentReader::open(&self.files, id, segment) {
            // It may have been copied to another place since it was found.
            Err(gone @ BufferError::Trimmed { .. }) => match self.index.get(id, segment.meta.range.min())? {
                Some(now) if now.meta == segment.meta && now.place != segment.place => {
                    SegmentReader::open(&self.files, id, &now)
                }
                _ => Err(gone),
            },
            opened => opened,
        }
    }
}

/// Runs file work where it disturbs no other task.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BufferError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BufferError::Closed)
}

/// Makes the data folder if it is missing, and takes its lock.
pub fn lock_folder(data_dir: &Path) -> Result<FolderLock, BufferError> {
    let io = |doing| move |source| BufferError::Io { doing, source };
    fs::create_dir_all(data_dir).map_err(io("make the data folder"))?;
    let lock = FolderLock::take(&data_dir.join("lock")).map_err(io("lock the data folder"))?;
    lock.ok_or_else(|| BufferError::InUse(data_dir.to_owned()))
}

#[async_trait]
impl WalBuffer for DiskBuffer {
    async fn register(
        &self,
        key: &DatabaseKey,
        lineage: Option<u64>,
        path: &str,
    ) -> Result<Registered, BufferError> {
        self.inner.flusher.register(key, lineage_for(lineage), path).await
    }

    async fn adopt(
        &self,
        database: DatabaseId,
        position: Pos,
        time_ms: i64,
    ) -> Result<Registered, BufferError> {
        self.inner.flusher.adopt(database, position, time_ms).await
    }

    fn find(&self, key: &DatabaseKey) -> Option<Registered> {
        self.inner.flusher.registry(|r| r.find(key).cloned())
    }

    fn databases(&self) -> Vec<Registered> {
        self.inner.flusher.registry(super::registry::Registry::all)
    }

    async fn append(&self, chunk: Chunk) -> Result<(), BufferError> {
        let make_room = |bytes| {
            let inner = Arc::clone(&self.inner);
            async move {
                let _alone = inner.making_room.lock().await;
                let on = Arc::clone(&inner);
                blocking(move || on.make_room(bytes)).await?
            }
        };
        self.inner.flusher.append(&chunk, make_room).await
    }

    async fn abandon(&self, database: DatabaseId) -> Result<(), BufferError> {
        self.inner.flusher.abandon(database)
    }

    fn read(
        &self,
        database: DatabaseId,
        after: Option<Txid>,
        max_bytes: u64,
    ) -> Result<Vec<SegmentRef>, BufferError> {
        self.inner.flusher.check_open()?;
        let position = self.inner.flusher.registry(|r| r.get(database).map(|d| d.position));
        let position = position.ok_or(BufferError::UnknownDatabase(database))?;
        let Some(next) = wanted(after, position) else { return Ok(Vec::new()) };
        let (mut found, mut bytes, mut expected) = (Vec::new(), 0, next);
        self.inner.index.scan(database, next, |segment: SegmentRef| {
            let Some(segment) = self.inner.whole(database, segment) else { return false };
            bytes += segment.bytes;
            let fits = found.is_empty() || bytes <= max_bytes;
            let here = self.inner.files.holds(segment.place.first.0);
            let take = segment.meta.range.min() == expected && fits && here;
            if take {
                expected = segment.meta.range.max().next();
                found.push(segment);
            }
            take
        })?;
        if found.is_empty() {
            return Err(BufferError::Trimmed { database, txid: next });
        }
        Ok(found)
    }

    fn list(
        &self,
        database: DatabaseId,
        after: Option<Txid>,
        max: usize,
    ) -> Result<Vec<SegmentRef>, BufferError> {
        self.inner.flusher.check_open()?;
        if self.inner.flusher.registry(|r| r.get(database).is_none()) {
            return Err(BufferError::UnknownDatabase(database));
        }
        let mut found = Vec::new();
        if max > 0 {
            self.inner.index.scan(database, Txid::following(after), |segment| {
                if self.inner.files.holds(segment.place.first.0) {
                    found.extend(self.inner.whole(database, segment));
                }
                found.len() < max
            })?;
        }
        Ok(found)
    }

    fn covering(&self, database: DatabaseId, txid: Txid) -> Result<Option<SegmentRef>, BufferError> {
        self.inner.flusher.check_open()?;
        let found = self.inner.index.covering(database, txid)?;
        let found = found.filter(|segment| self.inner.files.holds(segment.place.first.0));
        Ok(found.and_then(|segment| self.inner.whole(database, segment)))
    }

    fn open(&self, database: DatabaseId, segment: &SegmentRef) -> Result<Box<dyn Read + Send>, BufferError> {
        self.inner.flusher.check_open()?;
        self.inner.open(database, segment)
    }

    fn cursor(&self, lane: &DestinationName, database: DatabaseId) -> Option<Txid> {
        self.inner.cursors.get(lane, database)
    }

    fn set_cursor(
        &self,
        lane: &DestinationName,
        database: DatabaseId,
        txid: Txid,
    ) -> Result<(), BufferError> {
        self.inner.check_known(database)?;
        self.inner.cursors.set(lane, database, txid);
        Ok(())
    }

    fn clear_cursor(&self, lane: &DestinationName, database: DatabaseId) -> Result<(), BufferError> {
        self.inner.check_known(database)?;
        self.inner.cursors.clear(lane, database);
        Ok(())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.inner.flusher.changed()
    }

    async fn trim(&self, takers: Arc<dyn Takers>) -> Result<(), BufferError> {
        self.inner.flusher.check_open()?;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.trim(takers)).await?
    }

    fn usage(&self) -> Usage {
        self.inner.flusher.usage()
    }

    fn given_up(&self, database: DatabaseId) -> GivenUp {
        let losses = self.inner.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.get(&database).copied().unwrap_or_default()
    }

    async fn close(&self) -> Result<(), BufferError> {
        let Some(running) = self.take_running() else { return Ok(()) };
        let inner = Arc::clone(&self.inner);
        blocking(move || running.finish(&inner)).await
    }
}

#[cfg(test)]
#[path = "disk_tests/mod.rs"]
mod tests;
