//! Puts finished files to destinations: one task per destination, so that none waits for another.
//!
//! # Invariants
//! - A file is put only where the lane has brought everything up to its end, so no destination ever shows a hole; and only where
//!   something leads to its beginning, so its end is a restore point there (mostly known, see [`crate::copies::points`]; else the
//!   destination is listed once). Of one database the files go in the order in which they were made: one leads to the next.
//! - Puts are create-only and repeated until their outcome is known. A file of the same name, lineage and checksum that is there
//!   already is as good.
//! - Bytes that wait per destination are bounded: what does not fit is skipped there and told; it is brought there later
//!   ([`super::backfill`]).

use super::report::Report;
use super::tail::{TailError, Tails};
use super::whereabouts::Whereabouts;
use crate::buffer::DatabaseId;
use crate::copies::{Board, LaneId, Place, Points, Turn};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::Txid;
use walhub_common::backoff::{Backoff, Class};
use walhub_common::ltx::{HEADER_BYTES, Header};
use walhub_common::task::TaskGroup;
use walhub_store::destinations::{Body, DestinationError, Fault, FileKey, PutMeta};

/// Bytes that wait for one destination; with half of that, one file more may, however large.
const MAX_WAITING_BYTES: u64 = 2 << 30;
/// Files that wait for one destination.
const MAX_WAITING_FILES: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A finished file on the hub's disk, removed with its value.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) database: DatabaseId,
    pub(super) key: FileKey,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) meta: PutMeta,
    pub(super) lineage: u64,
    pub(super) whereabouts: Whereabouts,
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
        let room = has_room(before) || before + bytes <= MAX_WAITING_BYTES;
        let Some(permit) = queue.sender.try_reserve().ok().filter(|_| room) else {
            self.report.count(|totals| totals.skipped += 1);
            return false;
        };
        queue.waiting.fetch_add(bytes, Ordering::Relaxed);
        output.whereabouts.sent(lane);
        self.unfinished.send_modify(|count| *count += 1);
        self.report.count(|totals| {
            totals.waiting += 1;
            totals.waiting_bytes += bytes;
        });
        permit.send(output);
        true
    }

    /// True when a file of any size is taken for the destination of `lane`.
    pub(super) fn has_room(&self, lane: LaneId) -> bool {
        self.queues.get(&lane).is_none_or(|queue| {
            has_room(queue.waiting.load(Ordering::Relaxed)) && queue.sender.capacity() > 0
        })
    }

    /// Files that are not put everywhere yet.
    #[cfg(any(test, feature = "testutil"))]
    pub(super) fn unfinished(&self) -> watch::Receiver<usize> {
        self.unfinished.subscribe()
    }
}

fn has_room(waiting: u64) -> bool {
    waiting <= MAX_WAITING_BYTES / 2
}

/// The files of one database on their way.
struct Line {
    files: VecDeque<Arc<Output>>,
    due: Instant,
    backoff: Backoff,
    failed: bool,
}

impl Line {
    fn new() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { files: VecDeque::new(), due: Instant::now(), backoff, failed: false }
    }
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
        let mut lines: BTreeMap<DatabaseId, Line> = BTreeMap::new();
        loop {
            let next = lines.iter().min_by_key(|(_, line)| line.due).map(|(id, line)| (*id, line.due));
            let room = lines.values().map(|line| line.files.len()).sum::<usize>() < MAX_WAITING_FILES;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = sleep_until(next.map(|(_, due)| due)) => {}
                output = queue.recv(), if room => {
                    let Some(output) = output else { return };
                    lines.entry(output.database).or_insert_with(Line::new).files.push_back(output);
                    continue;
                }
            }
            let Some((id, line)) = next.and_then(|(id, _)| Some((id, lines.get_mut(&id)?))) else { continue };
            let Some(output) = line.files.front().cloned() else { continue };
            match self.attempt(&output, &mut line.failed).await {
                Attempt::Done => {
                    self.finished(&output);
                    line.files.pop_front();
                    *line = Line { files: std::mem::take(&mut line.files), ..Line::new() };
                    if line.files.is_empty() {
                        lines.remove(&id);
                    }
                }
                Attempt::Again => line.due = Instant::now() + line.backoff.next_delay(),
            }
        }
    }

    fn finished(&self, output: &Output) {
        self.waiting.fetch_sub(output.bytes, Ordering::Relaxed);
        self.unfinished.send_modify(|count| *count -= 1);
        self.report.count(|totals| {
            totals.waiting -= 1;
            totals.waiting_bytes -= output.bytes;
        });
    }

    async fn attempt(&self, output: &Output, failed: &mut bool) -> Attempt {
        let Output { database, key, path, meta, whereabouts, .. } = output;
        let roster = self.board.roster();
        let row = self.board.row(*database, &key.database);
        let place = roster.place(self.lane).filter(|_| row.terms.serves(self.lane));
        let Some(place) = place else {
            whereabouts.failed(self.lane);
            return Attempt::Done;
        };
        // Beyond what the lane has brought it would show a hole.
        if row.held(self.lane) < Some(key.range.max()) {
            return Attempt::Again;
        }
        let Some(turn) = self.board.points().begin_put(self.lane, *database) else { return Attempt::Again };
        // Once it is there, only what follows is tried again.
        let put = match whereabouts.is_at(self.lane) {
            true => Ok(()),
            false => match self.leads(place, output, &turn).await {
                Ok(true) => {
                    let put = place.destination.put(key, Body::File(path.clone()), *meta, &self.abort).await;
                    put.map(|_| self.arrived(output, *failed))
                }
                Ok(false) => {
                    let destination = place.name();
                    tracing::debug!(%destination, file = %key, "nothing there leads to the beginning of a compacted file");
                    whereabouts.useless(self.lane);
                    self.report.count(|totals| totals.useless += 1);
                    return Attempt::Done;
                }
                Err(error) => Err(error),
            },
        };
        let error = match put {
            Ok(()) => match self.leave_alone(place, output, row.held(self.lane), &turn).await {
                Ok(attempt) => return attempt,
                Err(error) => error,
            },
            Err(error) => error,
        };
        if error.class() == Class::Cancelled {
            return Attempt::Again;
        }
        if let Fault::Conflict(_) = error.fault {
            match self.is_as_good(place, output).await {
                Ok(true) => {
                    self.arrived(output, *failed);
                    return Attempt::Done;
                }
                Ok(false) => whereabouts.useless(self.lane),
                Err(_) => return Attempt::Again,
            }
        }
        if !*failed {
            tracing::warn!(%error, "a compacted file cannot be put");
        }
        *failed = true;
        self.report.failed(error.to_string());
        match error.fault {
            // Another file of this name is there, or it is refused: that does not change soon.
            Fault::Conflict(_) | Fault::Rejected(_) => {
                whereabouts.failed(self.lane);
                Attempt::Done
            }
            _ => Attempt::Again,
        }
    }

    fn arrived(&self, output: &Output, failed: bool) {
        let Output { database, key, meta, whereabouts, .. } = output;
        whereabouts.arrived(self.lane);
        self.board.points().reached(self.lane, *database, key.level, key.range.max());
        self.report.holds(*database, self.lane, key.level, key.range.max(), meta.time_ms);
        self.report.count(|totals| {
            totals.puts += 1;
            if failed {
                totals.last_error.clear();
            }
        });
    }

    /// When nothing newer is there it may stay so for long, and somebody may want to go on from it.
    async fn leave_alone(
        &self,
        place: &Place,
        output: &Output,
        held: Option<Txid>,
        turn: &Turn,
    ) -> Result<Attempt, DestinationError> {
        let (database, newest) = (&output.key.database, output.key.range.max());
        if held != Some(newest) {
            return Ok(Attempt::Done);
        }
        match self.tails.part(place, database, newest, turn).await {
            Ok(()) => Ok(Attempt::Done),
            Err(TailError::Read) => Ok(Attempt::Again),
            Err(TailError::Destination(error)) => Err(error),
            Err(error) => {
                tracing::warn!(%database, %error, "stock Litestream cannot go on from here");
                Ok(Attempt::Done)
            }
        }
    }

    /// Does a restore point there lead to this file?
    async fn leads(&self, place: &Place, output: &Output, turn: &Turn) -> Result<bool, DestinationError> {
        let (points, id, range) = (self.board.points(), output.database, output.key.range);
        if let Some(known) = points.leads(self.lane, id, range) {
            return Ok(known);
        }
        let files = place.destination.list_all(&output.key.database, &self.abort).await?;
        self.report.count(|totals| totals.lookups += 1);
        turn.learn(&files);
        Ok(points.leads(self.lane, id, range).unwrap_or_else(|| Points::lead(&files, range)))
    }

    /// Is what lies there under this name the same transactions of the same history?
    async fn is_as_good(&self, place: &Place, output: &Output) -> Result<bool, DestinationError> {
        let start = place.destination.read_start(&output.key, HEADER_BYTES, &self.abort).await?;
        Ok(Header::decode(&start).is_ok_and(|header| {
            header.range == output.key.range
                && header.node_id == output.lineage
                && header.provenance.map(|provenance| provenance.post) == output.meta.post
        }))
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
