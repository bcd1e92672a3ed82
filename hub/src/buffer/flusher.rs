//! Group commit: everything that waits is written in one go and synced once, by one thread that owns the log's end.
//!
//! # Invariants
//! - What is accepted is checked and queued under one lock, so the log has each database's chunks in the order in which
//!   they were accepted.
//! - No reply before the sync that covers it; the index knows a segment between the two; watchers hear of it after.
//! - When a group fails, all that waits fails with it and every database falls back to what is on disk: nothing that was
//!   accepted after the failed chunk can be taken for its continuation.
//! - Bounded: a permit for its bytes goes with every queued chunk.

use super::cursor::CursorTable;
use super::failure::Failure;
use super::index::Index;
use super::log::file::Files;
use super::log::record::Payload;
use super::log::snapshot::State;
use super::log::writer::{Item, WriteError, Writer, Written, chunk_bytes};
use super::registry::{Registration, Registry};
use super::room::Room;
use super::waiting::{Reply, Waiting};
use super::{Bounds, BufferError, Chunk, DatabaseId, Registered, Usage};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use walhub_common::{DatabaseKey, Pos, limits};

/// Bytes that may wait for the writer.
const QUEUE_BYTES: u32 = 32 * 1024 * 1024;
/// What an entry weighs beside its data.
const ENTRY_BYTES: u32 = 512;
/// Bytes written in one go: bounds how long a small segment waits behind bulk.
const GROUP_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes written without a sync when nobody waits for one.
const UNSYNCED_BYTES: u64 = 8 * 1024 * 1024;

/// The queue before the log, and the databases behind it.
#[derive(Debug)]
pub(super) struct Flusher {
    queue: Mutex<Queue>,
    work: Condvar,
    permits: Arc<Semaphore>,
    files: Arc<Files>,
    bounds: Bounds,
    changed: watch::Sender<u64>,
    oldest_open: AtomicU64,
    segments: AtomicU64,
    segment_bytes: AtomicU64,
    syncs: AtomicU64,
    room: Room,
}

#[derive(Debug)]
struct Queue {
    registry: Registry,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    health: Health,
    failures: u64,
}

#[derive(Debug)]
enum Health {
    Up,
    Broken(Failure),
    Closed,
}

impl Flusher {
    /// Over these databases and files.
    pub(super) fn new(registry: Registry, files: Arc<Files>, bounds: Bounds) -> Self {
        let queue = Queue { registry, waiting: VecDeque::new(), bytes: 0, health: Health::Up, failures: 0 };
        Self {
            queue: Mutex::new(queue),
            work: Condvar::new(),
            permits: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
            files,
            bounds,
            changed: watch::Sender::new(0),
            oldest_open: AtomicU64::new(u64::MAX),
            segments: AtomicU64::new(0),
            segment_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            room: Room::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the databases.
    pub(super) fn registry<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.lock().registry)
    }

    /// Counts durable segments.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The oldest file that an unfinished segment lies in, `u64::MAX` when there is none.
    pub(super) fn oldest_open(&self) -> u64 {
        self.oldest_open.load(Ordering::Acquire)
    }

    /// Bytes and counters.
    pub(super) fn usage(&self) -> Usage {
        let (full, refused, squashed) = self.room.counts();
        Usage {
            full,
            refused,
            squashed,
            bytes: self.files.total_bytes(),
            max_bytes: self.bounds.max,
            segments: self.segments.load(Ordering::Relaxed),
            segment_bytes: self.segment_bytes.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
        }
    }

    /// Whether there was room.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Bytes that will be written if a chunk of `data` bytes comes now.
    pub(super) fn waiting_bytes(&self, data: usize) -> u64 {
        self.lock().bytes + chunk_bytes(data) as u64
    }

    /// Fails when the buffer takes nothing.
    pub(super) fn check_open(&self) -> Result<(), BufferError> {
        match self.lock().health {
            Health::Closed => Err(BufferError::Closed),
            Health::Up | Health::Broken(_) => Ok(()),
        }
    }

    /// Queues a chunk, and waits until it is durable if it is its segment's last one. Calls for one database take their
    /// turn, also while `make_room` is asked, which says whether there may be room for that many bytes now.
    pub(super) async fn append<F>(
        &self,
        chunk: &Chunk,
        make_room: impl Fn(usize) -> F,
    ) -> Result<(), BufferError>
    where
        F: Future<Output = Result<bool, BufferError>>,
    {
        let gate = self.registry(|r| r.gate(chunk.database))?;
        let turn = gate.lock().await;
        if chunk.data.len() > limits::MAX_CHUNK_BYTES {
            return Err(BufferError::TooLarge(chunk.data.len()));
        }
        let payload = Payload::of(&chunk.data);
        let permit = self.permit(payload.bytes).await?;
        let (reply, durable) = match chunk.last.then(oneshot::channel) {
            Some((reply, durable)) => (Some(reply), Some(durable)),
            None => (None, None),
        };
        let mut ticket = Some((permit, reply));
        // Others may take the room that is made; then there is more to be made, or it is full indeed.
        while let Err(error) = self.queue(chunk, payload, &mut ticket) {
            if !matches!(error, BufferError::Full { .. }) {
                return Err(error);
            }
            if !make_room(chunk.data.len()).await? {
                self.room.refused();
                return Err(error);
            }
        }
        self.room.found();
        drop(turn);
        match durable {
            Some(durable) => durable.await.unwrap_or(Err(BufferError::Closed)),
            None => Ok(()),
        }
    }

    async fn permit(&self, bytes: u32) -> Result<OwnedSemaphorePermit, BufferError> {
        let permits = Arc::clone(&self.permits);
        permits.acquire_many_owned(bytes + ENTRY_BYTES).await.map_err(|_| BufferError::Closed)
    }

    fn queue(
        &self,
        chunk: &Chunk,
        payload: Payload,
        ticket: &mut Option<(OwnedSemaphorePermit, Option<Reply<()>>)>,
    ) -> Result<(), BufferError> {
        let mut queue = self.lock();
        queue.takes_anything()?;
        queue.registry.check(chunk)?;
        let bytes = queue.registry.open_bytes(chunk) + chunk.data.len() as u64;
        if bytes > self.bounds.segment {
            return Err(BufferError::SegmentTooLarge { bytes, max: self.bounds.segment });
        }
        self.check_room(&queue, chunk_bytes(chunk.data.len()), self.bounds.take)?;
        queue.registry.accept(chunk);
        let (permit, reply) = ticket.take().expect("BUG: a chunk is queued once");
        queue.push(Waiting::Chunk { chunk: chunk.clone(), payload, permit, reply });
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    fn check_room(&self, queue: &Queue, bytes: usize, bound: u64) -> Result<(), BufferError> {
        let used = self.files.total_bytes() + queue.bytes;
        if used + bytes as u64 > bound {
            return Err(BufferError::Full { used, max: self.bounds.max });
        }
        Ok(())
    }

    /// Queues a chunk of a segment that stands for others, unless a group has failed since there were `failures`: those
    /// before it may be gone. It may use the room that is kept for that. What becomes of it shows with the next
    /// [`Flusher::barrier`].
    pub(super) fn rewrite(&self, chunk: Chunk, failures: u64) -> Result<(), BufferError> {
        let payload = Payload::of(&chunk.data);
        let mut queue = self.lock();
        queue.takes_anything()?;
        queue.check_since(failures)?;
        self.check_room(&queue, chunk_bytes(chunk.data.len()), self.bounds.max)?;
        queue.push(Waiting::Rewrite { chunk, payload });
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    /// Gives up an unfinished segment that was to stand for others.
    pub(super) fn abandon_rewrite(&self, id: DatabaseId) {
        self.lock().push(Waiting::AbandonRewrite(id));
        self.work.notify_one();
    }

    /// Waits until everything queued before is on disk and in the index, and fails when not all of it is: when a group
    /// has failed since there were `failures`. Blocking.
    pub(super) fn barrier(&self, failures: u64) -> Result<(), BufferError> {
        let (reply, done) = oneshot::channel();
        let mut queue = self.lock();
        queue.takes_anything()?;
        queue.push(Waiting::Barrier(reply));
        drop(queue);
        self.work.notify_one();
        done.blocking_recv().unwrap_or(Err(BufferError::Closed))?;
        self.lock().check_since(failures)
    }

    /// Groups that could not be written so far.
    pub(super) fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// Registers a database, durably.
    pub(super) async fn register(
        &self,
        key: &DatabaseKey,
        lineage: u64,
        path: &str,
    ) -> Result<Registered, BufferError> {
        let durable = {
            let mut queue = self.lock();
            queue.takes_anything()?;
            let head = match queue.registry.register(key, lineage, path) {
                Registration::Known(known) => return Ok(known),
                Registration::Write(head) => head,
            };
            let (reply, durable) = oneshot::channel();
            queue.push(Waiting::Database { head, reply });
            durable
        };
        self.work.notify_one();
        durable.await.unwrap_or(Err(BufferError::Closed))
    }

    /// Moves a database to a position from elsewhere, durably.
    pub(super) async fn adopt(
        &self,
        id: DatabaseId,
        position: Pos,
        time_ms: i64,
    ) -> Result<Registered, BufferError> {
        let durable = {
            let mut queue = self.lock();
            queue.takes_anything()?;
            let head = queue.registry.adopt(id, position)?;
            let (reply, durable) = oneshot::channel();
            queue.push(Waiting::Adopt { head, position, time_ms, reply });
            durable
        };
        self.work.notify_one();
        durable.await.unwrap_or(Err(BufferError::Closed))
    }

    /// Gives up an unfinished segment.
    pub(super) fn abandon(&self, id: DatabaseId) -> Result<(), BufferError> {
        let mut queue = self.lock();
        queue.takes_anything()?;
        if queue.registry.abandon(id)? {
            queue.push(Waiting::Abandon(id));
            drop(queue);
            self.work.notify_one();
        }
        Ok(())
    }

    /// The thread that writes, until [`Flusher::close`]. When it panics nothing more is taken, and nobody waits for it.
    pub(super) fn run(&self, writer: Writer, index: &Index, cursors: &CursorTable) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.write_groups(writer, index, cursors)));
        if let Err(panic) = ended {
            let source = io::Error::other("the thread that writes has panicked");
            self.fail(Vec::new(), WriteError { doing: "write the log", source, broken: true });
            resume_unwind(panic);
        }
    }

    fn write_groups(&self, mut writer: Writer, index: &Index, cursors: &CursorTable) {
        loop {
            index.wait_for_room();
            let Some(group) = self.take(writer.room()) else { break };
            let items: Vec<Item<'_>> = group.iter().map(Waiting::item).collect();
            let sync = group.iter().any(Waiting::waits_for_sync) || writer.unsynced_bytes() >= UNSYNCED_BYTES;
            let written = writer.write(&items, sync, || self.snapshot(cursors));
            drop(items);
            self.oldest_open.store(writer.oldest_open_file().unwrap_or(u64::MAX), Ordering::Release);
            self.syncs.store(writer.syncs(), Ordering::Relaxed);
            match written {
                Ok(done) => {
                    if let Some(end) = writer.end() {
                        index.publish(&done, end);
                    }
                    self.complete(group, &done);
                }
                Err(error) => self.fail(group, error),
            }
        }
        if let Err(error) = writer.seal() {
            tracing::warn!(error = %error.source, "the last log file could not be completed; it is settled at the next start");
        }
    }

    fn snapshot(&self, cursors: &CursorTable) -> State {
        self.lock().registry.snapshot(cursors.snapshot())
    }

    /// Everything that waits, up to a bound; waits for something. `None` when closed and empty.
    fn take(&self, room: u64) -> Option<Vec<Waiting>> {
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && !matches!(queue.health, Health::Closed);
        let queue = self.work.wait_while(self.lock(), idle);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        let mut group = Vec::with_capacity(queue.waiting.len());
        let (mut bytes, bound) = (0, GROUP_BYTES.min(room));
        while let Some(next) = queue.waiting.pop_front() {
            bytes += next.item().bytes() as u64;
            if bytes > bound && !group.is_empty() {
                queue.waiting.push_front(next);
                break;
            }
            queue.bytes -= next.item().bytes() as u64;
            group.push(next);
        }
        (!group.is_empty()).then_some(group)
    }

    fn complete(&self, group: Vec<Waiting>, done: &[Written]) {
        let mut registered = Vec::new();
        let fresh = || done.iter().filter(|written| !written.rewritten);
        let mut news = fresh().count() as u64;
        let mut queue = self.lock();
        // A position is adopted while nothing of its database waits, so segments in the same group come after it.
        for waiting in &group {
            match waiting {
                Waiting::Database { head, .. } => registered.push(queue.registry.registered(head)),
                Waiting::Adopt { head, position, time_ms, .. } => {
                    registered.push(queue.registry.adopted(head.id, *position, *time_ms));
                    news += 1;
                }
                Waiting::Chunk { .. }
                | Waiting::Abandon(_)
                | Waiting::Rewrite { .. }
                | Waiting::AbandonRewrite(_)
                | Waiting::Barrier(_) => {}
            }
        }
        for written in fresh() {
            queue.registry.completed(written.database, &written.segment.meta);
        }
        drop(queue);
        self.segments.fetch_add(fresh().count() as u64, Ordering::Relaxed);
        self.segment_bytes.fetch_add(fresh().map(|written| written.segment.bytes).sum(), Ordering::Relaxed);
        let mut registered = registered.into_iter();
        for waiting in group {
            // A caller that has gone away hears nothing.
            match waiting {
                Waiting::Chunk { reply: Some(reply), permit, .. } => {
                    drop(permit);
                    let _ = reply.send(Ok(()));
                }
                Waiting::Database { reply, .. } | Waiting::Adopt { reply, .. } => {
                    let registered = registered.next().expect("BUG: one for each registration");
                    let _ = reply.send(Ok(registered));
                }
                Waiting::Barrier(reply) => drop(reply.send(Ok(()))),
                Waiting::Chunk { reply: None, .. }
                | Waiting::Abandon(_)
                | Waiting::Rewrite { .. }
                | Waiting::AbandonRewrite(_) => {}
            }
        }
        if news > 0 {
            self.changed.send_modify(|count| *count += news);
        }
    }

    fn fail(&self, group: Vec<Waiting>, error: WriteError) {
        let WriteError { doing, source, broken } = error;
        let failure = Failure::new(doing, &source);
        if broken {
            tracing::error!(error = %source, doing, "the buffer takes nothing more until the hub is restarted");
        } else {
            tracing::warn!(error = %source, doing, "the buffer refuses segments for now");
        }
        let waiting = {
            let mut queue = self.lock();
            queue.failures += 1;
            queue.registry.fall_back(&failure);
            if broken && matches!(queue.health, Health::Up) {
                queue.health = Health::Broken(failure.clone());
            }
            queue.bytes = 0;
            std::mem::take(&mut queue.waiting)
        };
        for waiting in group.into_iter().chain(waiting) {
            waiting.fail(&failure);
        }
    }

    /// Takes nothing more; [`Flusher::run`] ends when what waits is written.
    pub(super) fn close(&self) {
        self.lock().health = Health::Closed;
        self.permits.close();
        self.work.notify_all();
    }
}

impl Queue {
    fn takes_anything(&self) -> Result<(), BufferError> {
        match &self.health {
            Health::Up => Ok(()),
            Health::Broken(failure) => Err(failure.to_error()),
            Health::Closed => Err(BufferError::Closed),
        }
    }

    fn check_since(&self, failures: u64) -> Result<(), BufferError> {
        if self.failures == failures {
            return Ok(());
        }
        let source = io::Error::other("a write to the log failed");
        Err(BufferError::Io { doing: "make room in the log", source })
    }

    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.item().bytes() as u64;
        self.waiting.push_back(waiting);
    }
}
