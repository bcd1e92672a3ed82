//! The lane of one destination: which database is served when, and what a failure means for whom.
//!
//! New transactions are looked for at most once per sync interval, and only when something was buffered; the first ones
//! after a pause go at once. A failure of the destination opens the circuit: nothing is tried until its pause has passed,
//! then one turn alone decides. A failure of one database lets the others go on.

use super::Shared;
use super::error::{Concerns, TurnError};
use super::turn::{Progress, Turn, Venue};
use crate::buffer::DatabaseId;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::{Backoff, Class};
use walhub_store::destinations::DynDestination;

/// Databases served at once by one lane.
const CONCURRENCY: usize = 4;

const TRANSIENT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
const THROTTLED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Only a person can mend it; it is tried again so that nothing has to be restarted afterwards.
const PERMANENT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Pauses after failures; each class has its own pace.
struct Pauses {
    class: Class,
    backoff: Backoff,
    /// `None` while the next attempt is under way.
    until: Option<Instant>,
}

impl Pauses {
    fn after(class: Class) -> Self {
        let (min, max) = match class {
            Class::Throttled => THROTTLED,
            Class::Permanent => PERMANENT,
            Class::Transient | Class::Unknown | Class::Cancelled => TRANSIENT,
        };
        let mut pauses = Self { class, backoff: Backoff::new(min, max), until: None };
        pauses.lengthen();
        pauses
    }

    fn lengthen(&mut self) {
        self.until = Some(Instant::now() + self.backoff.next_delay());
    }

    /// The next pause of a failure that goes on.
    fn again(previous: Option<Pauses>, class: Class) -> Self {
        match previous {
            Some(mut pauses) if pauses.class == class => {
                pauses.lengthen();
                pauses
            }
            _ => Self::after(class),
        }
    }

    fn over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}

type Finished = (Progress, Result<Turn, TurnError>);

/// See the module doc.
pub(super) struct Lane {
    shared: Arc<Shared>,
    index: usize,
    interval: Duration,
    stop: CancellationToken,
    /// Databases that are not in flight.
    idle: HashMap<DatabaseId, Progress>,
    queue: VecDeque<DatabaseId>,
    queued: HashSet<DatabaseId>,
    in_flight: FuturesUnordered<BoxFuture<'static, Finished>>,
    away: HashSet<DatabaseId>,
    blocked: HashMap<DatabaseId, Pauses>,
    circuit: Option<Pauses>,
    flush_at: Option<Instant>,
    last_flush: Option<Instant>,
}

impl Lane {
    pub(super) fn new(
        shared: Arc<Shared>,
        index: usize,
        interval: Duration,
        stop: CancellationToken,
    ) -> Self {
        let mut lane = Self {
            shared,
            index,
            interval,
            stop,
            idle: HashMap::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            in_flight: FuturesUnordered::new(),
            away: HashSet::new(),
            blocked: HashMap::new(),
            circuit: None,
            flush_at: None,
            last_flush: None,
        };
        lane.post_health(false, "it has not answered yet");
        // What it held when the hub last ran shows, and counts, from the start.
        lane.scan();
        lane
    }

    fn destination(&self) -> &DynDestination {
        &self.shared.destinations[self.index]
    }

    fn post_health(&self, healthy: bool, error: &str) {
        self.shared.board.post_health(self.index, |health| {
            health.healthy = healthy;
            error.clone_into(&mut health.last_error);
        });
    }

    /// Serves the destination until it is stopped; current turns are awaited.
    pub(super) async fn run(mut self) {
        if !self.probe().await {
            return;
        }
        let stop = self.stop.clone();
        let mut changed = self.shared.buffer.changed();
        self.scan();
        loop {
            self.start_turns();
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(finished) = self.in_flight.next(), if !self.in_flight.is_empty() => self.finished(finished),
                // Nobody listens while a flush is due anyway: a busy buffer does not wake the lane per transaction.
                news = changed.changed(), if self.flush_at.is_none() => match news {
                    Ok(()) => self.flush_soon(),
                    Err(_) => break,
                },
                () = sleep_until(wake) => self.woken(),
            }
        }
        while let Some(finished) = self.in_flight.next().await {
            self.finished(finished);
        }
    }

    /// Waits until the destination proves usable; false when stopped before.
    async fn probe(&mut self) -> bool {
        let mut pauses: Option<Pauses> = None;
        loop {
            let probe = self.destination().probe(&self.stop).await;
            let (name, location) = (self.destination().name(), self.destination().location());
            let error = match probe {
                Ok(()) => {
                    tracing::info!(destination = %name, %location, "destination is ready");
                    self.post_health(true, "");
                    return true;
                }
                Err(_) if self.stop.is_cancelled() => return false,
                Err(error) => error,
            };
            if pauses.is_none() {
                tracing::error!(destination = %name, %location, %error, "destination cannot be used, it is tried again");
            }
            self.post_health(false, &error.to_string());
            let next = Pauses::again(pauses, error.class());
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = sleep_until(next.until) => {}
            }
            pauses = Some(next);
        }
    }

    fn flush_soon(&mut self) {
        let now = Instant::now();
        let due = self.last_flush.map_or(now, |last| (last + self.interval).max(now));
        self.flush_at = Some(self.flush_at.map_or(due, |at| at.min(due)));
    }

    /// When something is due by time alone.
    fn wake(&self) -> Option<Instant> {
        let circuit = match &self.circuit {
            Some(pauses) if self.in_flight.is_empty() && !self.queue.is_empty() => pauses.until,
            _ => None,
        };
        let blocked = self.blocked.values().filter_map(|pauses| pauses.until).min();
        [self.flush_at, circuit, blocked].into_iter().flatten().min()
    }

    fn woken(&mut self) {
        let now = Instant::now();
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.last_flush = Some(now);
            self.scan();
        }
        let mut due = Vec::new();
        for (id, pauses) in &mut self.blocked {
            if pauses.until.take_if(|until| *until <= now).is_some() {
                due.push(*id);
            }
        }
        for id in due {
            self.enqueue(id);
        }
    }

    /// Queues every database that has more than the destination.
    fn scan(&mut self) {
        let shared = self.shared.clone();
        for database in shared.buffer.databases() {
            if self.away.contains(&database.id) {
                continue;
            }
            let (index, name) = (self.index, shared.destinations[self.index].name());
            let progress = self.idle.entry(database.id).or_insert_with(|| {
                let cursor = shared.buffer.cursor(name, database.id);
                shared.board.post_copy(index, database.id, cursor);
                Progress::new(database.id, database.key.clone(), cursor)
            });
            let behind = database.position.map(|pos| pos.txid) > progress.cursor;
            if behind && !self.blocked.contains_key(&database.id) {
                self.enqueue(database.id);
            }
        }
    }

    fn enqueue(&mut self, id: DatabaseId) {
        if self.queued.insert(id) {
            self.queue.push_back(id);
        }
    }

    fn start_turns(&mut self) {
        let allowed = match &self.circuit {
            None => CONCURRENCY,
            Some(pauses) => usize::from(pauses.over(Instant::now())),
        };
        while self.in_flight.len() < allowed {
            let Some(id) = self.queue.pop_front() else { return };
            self.queued.remove(&id);
            let Some(mut progress) = self.idle.remove(&id) else { continue };
            self.away.insert(id);
            let (shared, lane) = (self.shared.clone(), self.index);
            self.in_flight.push(Box::pin(async move {
                let result = Venue { shared: &shared, lane }.turn(&mut progress).await;
                (progress, result)
            }));
        }
    }

    fn finished(&mut self, (mut progress, result): Finished) {
        let id = progress.id;
        self.away.remove(&id);
        match result {
            Ok(turn) => self.succeeded(&progress, turn),
            Err(error) => self.failed(&mut progress, &error),
        }
        self.idle.insert(id, progress);
    }

    fn succeeded(&mut self, progress: &Progress, turn: Turn) {
        let id = progress.id;
        if self.circuit.take().is_some() {
            tracing::info!(destination = %self.destination().name(), "destination works again");
        }
        if self.blocked.remove(&id).is_some() {
            self.shared.board.post_fault(self.index, id, None);
        }
        self.shared.board.post_health(self.index, |health| {
            health.healthy = true;
            health.last_error.clear();
            if let Some(bytes) = turn.created {
                health.puts += 1;
                health.put_bytes += bytes;
            }
        });
        if turn.more {
            self.enqueue(id);
        } else if self.shared.buffer.find(&progress.key).and_then(|held| held.position).map(|pos| pos.txid)
            > progress.cursor
        {
            // It came while the turn ran, and the news of it may have been heard already.
            self.flush_soon();
        }
    }

    fn failed(&mut self, progress: &mut Progress, error: &TurnError) {
        let name = self.destination().name().clone();
        if error.unsettles() {
            progress.unsettle();
        }
        match error.concerns() {
            Concerns::Nobody => {}
            Concerns::Lane => {
                if self.circuit.is_none() {
                    tracing::warn!(destination = %name, %error, "destination fails, it is tried again");
                }
                // Turns that were under way together fail together: that is one failure.
                let now = Instant::now();
                if self.circuit.as_ref().is_none_or(|pauses| pauses.over(now)) {
                    self.circuit = Some(Pauses::again(self.circuit.take(), error.class()));
                }
                self.post_health(false, &error.to_string());
                if self.queued.insert(progress.id) {
                    self.queue.push_front(progress.id);
                }
            }
            Concerns::Database => {
                let previous = self.blocked.remove(&progress.id);
                if previous.is_none() {
                    tracing::error!(destination = %name, database = %progress.key, %error, "a database does not get on at a destination");
                }
                self.blocked.insert(progress.id, Pauses::again(previous, error.class()));
                self.shared.board.post_fault(self.index, progress.id, Some(error.to_string()));
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
