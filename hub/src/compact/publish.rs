//! Puts finished files to destinations: one task per destination, so that none waits for another.
//!
//! Invariants: a file is put only where the lane has brought everything up to its end, so no destination ever shows a
//! hole; puts are create-only and repeated until their outcome is known. Bytes that wait per destination are bounded:
//! what does not fit is skipped there and told: the files of the level above, or the next snapshot, stand in for it.

use super::report::Report;
use super::tail::{TailError, Tails};
use crate::buffer::DatabaseId;
use crate::copies::{Board, LaneId};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::{Backoff, Class};
use walhub_common::task::TaskGroup;
use walhub_store::destinations::{Body, Fault, FileKey, PutMeta};

/// Bytes that wait for one destination; one file alone may be larger.
const MAX_WAITING_BYTES: u64 = 2 << 30;
/// Files that wait for one destination.
const MAX_WAITING_FILES: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Lanes that hold a file.
pub(super) type Holders = Arc<Mutex<BTreeSet<LaneId>>>;

/// A finished file on the hub's disk, removed with its value.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) database: DatabaseId,
    pub(super) key: FileKey,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) meta: PutMeta,
    pub(super) holders: Holders,
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}

struct Queue {
    sender: mpsc::Sender<Arc<Output>>,
    waiting: Arc<AtomicU64>,
}

/// See the module doc.
pub(super) struct Publisher {
    board: Arc<Board>,
    report: Arc<Report>,
    tails: Arc<Tails>,
    tasks: TaskGroup,
    abort: CancellationToken,
    queues: HashMap<LaneId, Queue>,
    unfinished: watch::Sender<usize>,
}

impl Publisher {
    pub(super) fn new(
        board: Arc<Board>,
        report: Arc<Report>,
        tails: Arc<Tails>,
        tasks: TaskGroup,
        abort: CancellationToken,
    ) -> Self {
        Self { board, report, tails, tasks, abort, queues: HashMap::new(), unfinished: watch::Sender::new(0) }
    }

    /// Puts `output` to the destination of `lane` as soon as that may have it; false when too much waits there.
    pub(super) fn send(&mut self, lane: LaneId, output: Arc<Output>) -> bool {
        let bytes = output.bytes;
        let queue = self.queues.entry(lane).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(MAX_WAITING_FILES);
            let waiting = Arc::new(AtomicU64::new(0));
            let task = Task {
                lane,
                board: self.board.clone(),
                report: self.report.clone(),
                tails: self.tails.clone(),
                stop: self.tasks.token().clone(),
                abort: self.abort.clone(),
                waiting: waiting.clone(),
                unfinished: self.unfinished.clone(),
            };
            self.tasks.spawn(task.run(receiver));
            Queue { sender, waiting }
        });
        let before = queue.waiting.load(Ordering::Relaxed);
        let room = before == 0 || before + bytes <= MAX_WAITING_BYTES;
        let Some(permit) = queue.sender.try_reserve().ok().filter(|_| room) else {
            self.report.count(|totals| totals.skipped += 1);
            return false;
        };
        queue.waiting.fetch_add(bytes, Ordering::Relaxed);
        self.unfinished.send_modify(|count| *count += 1);
        self.report.count(|totals| totals.waiting_bytes += bytes);
        permit.send(output);
        true
    }

    /// Files that are not put everywhere yet.
    #[cfg(any(test, feature = "testutil"))]
    pub(super) fn unfinished(&self) -> watch::Receiver<usize> {
        self.unfinished.subscribe()
    }
}

/// A file on its way.
struct Waiting {
    output: Arc<Output>,
    due: Instant,
    backoff: Backoff,
    failed: bool,
}

/// What came of an attempt.
enum Attempt {
    /// Nothing more to do.
    Done,
    /// Not yet.
    Again,
}

struct Task {
    lane: LaneId,
    board: Arc<Board>,
    report: Arc<Report>,
    tails: Arc<Tails>,
    stop: CancellationToken,
    abort: CancellationToken,
    waiting: Arc<AtomicU64>,
    unfinished: watch::Sender<usize>,
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Arc<Output>>) {
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        loop {
            let due = waiting.iter().map(|file| file.due).min();
            let room = waiting.len() < MAX_WAITING_FILES;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(due) => {}
                next = queue.recv(), if room => {
                    let Some(output) = next else { return };
                    let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                    waiting.push_back(Waiting { output, due: Instant::now(), backoff, failed: false });
                    continue;
                }
            }
            let now = Instant::now();
            let Some(at) = waiting.iter().position(|file| file.due <= now) else { continue };
            let Some(mut file) = waiting.remove(at) else { continue };
            match self.attempt(&mut file).await {
                Attempt::Done => self.finished(&file.output),
                Attempt::Again => {
                    file.due = Instant::now() + file.backoff.next_delay();
                    waiting.push_back(file);
                }
            }
        }
    }

    fn finished(&self, output: &Output) {
        self.waiting.fetch_sub(output.bytes, Ordering::Relaxed);
        self.unfinished.send_modify(|count| *count -= 1);
        self.report.count(|totals| totals.waiting_bytes -= output.bytes);
    }

    async fn attempt(&self, file: &mut Waiting) -> Attempt {
        let Output { database, key, path, meta, holders, .. } = &*file.output;
        let roster = self.board.roster();
        let Some(place) = roster.place(self.lane) else { return Attempt::Done };
        let row = self.board.row(*database, &key.database);
        if !row.terms.serves(self.lane) {
            return Attempt::Done;
        }
        // Beyond what the lane has brought it would show a hole.
        if row.held(self.lane) < Some(key.range.max()) {
            return Attempt::Again;
        }
        let error = match place.destination.put(key, Body::File(path.clone()), *meta, &self.abort).await {
            Ok(_) => {
                holders.lock().unwrap_or_else(PoisonError::into_inner).insert(self.lane);
                self.report.holds(*database, self.lane, key.level, key.range.max(), meta.time_ms);
                self.report.count(|totals| {
                    totals.puts += 1;
                    if file.failed {
                        totals.last_error.clear();
                    }
                });
                // Nothing newer is there: it may stay so for long, and somebody may want to go on from it.
                let newest = key.range.max();
                if row.held(self.lane) != Some(newest) {
                    return Attempt::Done;
                }
                match self.tails.part(place, &key.database, newest).await {
                    Ok(()) => return Attempt::Done,
                    Err(TailError::Read) => return Attempt::Again,
                    Err(TailError::Destination(error)) => error,
                    Err(error) => {
                        tracing::warn!(database = %key.database, %error, "stock Litestream cannot go on from here");
                        return Attempt::Done;
                    }
                }
            }
            Err(error) => error,
        };
        if error.class() == Class::Cancelled {
            return Attempt::Again;
        }
        if !file.failed {
            tracing::warn!(%error, "a compacted file cannot be put");
        }
        file.failed = true;
        self.report.failed(error.to_string());
        // Another file of this name is there, or it is refused: that does not change by itself, and the files of the level
        // above stand in for it.
        match error.fault {
            Fault::Conflict(_) | Fault::Rejected(_) => Attempt::Done,
            _ => Attempt::Again,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
