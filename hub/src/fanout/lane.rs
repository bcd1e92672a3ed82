//! The lane of one destination: which database is served when, and what a failure means for whom.
//!
//! New transactions are looked for at most once per sync interval, and only when something was buffered
//! ([`super::schedule`]). A failure of the destination opens the circuit: nothing is tried until its pause has passed, then
//! one turn alone decides, which asks for a byte before it sends much. A failure of one database lets the others go on.
//! A new roster changes which databases are served, and how often; what is under way goes on.

use super::error::{Concerns, TurnError};
use super::pauses::Pauses;
use super::schedule::Schedule;
use super::spending::Spending;
use super::tray::{Sealed, Tray};
use super::turn::{Progress, Turn};
use super::{Trust, Venue};
use crate::buffer::{DatabaseId, Registered};
use crate::copies::{Place, Roster};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName};
use walhub_store::destinations::{DestinationError, Put};
use walhub_store::pack;

mod packs;

/// What has come to its end.
enum Finished {
    /// A database's turn.
    Turn(Progress, Result<Turn, TurnError>),
    /// The put of a pack.
    Pack(Sealed, Result<Put, TurnError>),
}

/// See the module doc.
pub(super) struct Lane {
    venue: Arc<Venue>,
    roster: watch::Receiver<Arc<Roster>>,
    trust: Trust,
    stop: CancellationToken,
    /// Databases that are not in flight.
    idle: HashMap<DatabaseId, Progress>,
    /// Databases that go elsewhere.
    foreign: HashSet<DatabaseId>,
    queue: VecDeque<DatabaseId>,
    queued: HashSet<DatabaseId>,
    in_flight: FuturesUnordered<BoxFuture<'static, Finished>>,
    away: HashSet<DatabaseId>,
    /// Those that were away when the place itself was gone.
    doubted: HashSet<DatabaseId>,
    /// Databases whose files wait for a pack are away as well.
    tray: Tray,
    blocked: HashMap<DatabaseId, Pauses>,
    circuit: Option<Pauses>,
    schedule: Schedule,
    spending: Spending,
}

impl Lane {
    pub(super) fn new(venue: Arc<Venue>, trust: Trust, stop: CancellationToken) -> Self {
        let roster = venue.board.roster_changes();
        let spending = Spending::new(venue.place.entry.limits.requests_per_day);
        let mut lane = Self {
            spending,
            venue,
            roster,
            trust,
            stop,
            idle: HashMap::new(),
            foreign: HashSet::new(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            in_flight: FuturesUnordered::new(),
            away: HashSet::new(),
            doubted: HashSet::new(),
            tray: Tray::default(),
            blocked: HashMap::new(),
            circuit: None,
            schedule: Schedule::default(),
        };
        lane.venue.board.post_health(lane.venue.place.lane, |health| {
            (health.healthy, health.cause) = (false, "no answer yet");
            "it has not answered yet".clone_into(&mut health.last_error);
        });
        lane.set_intervals();
        // What it held when the hub last ran shows, and counts, from the start.
        lane.scan(None);
        // What it is given to serve from now on it has to be asked about.
        lane.trust = Trust::Listings;
        lane
    }

    fn name(&self) -> &DestinationName {
        self.venue.place.name()
    }

    /// Says so, and believes nothing of a place that is gone.
    fn place_failed(&mut self, error: &TurnError) {
        self.venue.board.post_health(self.venue.place.lane, |health| {
            (health.healthy, health.last_error, health.cause) = (false, error.to_string(), error.cause());
            *health.failures.entry(error.cause()).or_default() += 1;
        });
        if error.place_is_gone() {
            self.distrust_all();
        }
    }

    fn post_works(&self, put: Option<(u64, u64)>) {
        self.venue.board.post_health(self.venue.place.lane, |health| {
            (health.healthy, health.cause) = (true, "");
            health.last_error.clear();
            let (objects, bytes) = put.unwrap_or_default();
            health.puts += objects;
            health.put_bytes += bytes;
        });
    }

    /// Serves the destination until it is stopped; current turns are awaited.
    pub(super) async fn run(mut self) {
        if !self.probe().await {
            return;
        }
        let stop = self.stop.clone();
        let mut changed = self.venue.buffer.changed();
        self.schedule.news(Instant::now());
        loop {
            self.start_turns();
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(finished) = self.in_flight.next(), if !self.in_flight.is_empty() => self.finished(finished),
                // Nobody listens while a flush is due anyway: a busy buffer does not wake the lane per transaction.
                news = changed.changed(), if self.schedule.listens() => match news {
                    Ok(()) => self.schedule.news(Instant::now()),
                    Err(_) => break,
                },
                Ok(()) = self.roster.changed() => self.reselect(),
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
            let destination = &self.venue.place.destination;
            let probe = usable(&self.venue.place, &self.stop).await;
            let (name, location) = (self.name(), destination.location());
            let error = match probe {
                Ok(()) => {
                    tracing::info!(destination = %name, %location, "destination is ready");
                    self.post_works(None);
                    return true;
                }
                Err(_) if self.stop.is_cancelled() => return false,
                Err(error) => error,
            };
            if pauses.is_none() {
                tracing::error!(destination = %name, %location, %error, "destination cannot be used, it is tried again");
            }
            let next = Pauses::again(pauses, error.class());
            self.place_failed(&TurnError::Destination(error));
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = sleep_until(next.until) => {}
            }
            pauses = Some(next);
        }
    }

    /// The databases it serves, and how often, may be others than before.
    fn reselect(&mut self) {
        let roster = self.roster.borrow_and_update().clone();
        self.foreign.clear();
        let place = &self.venue.place;
        self.idle.retain(|_, progress| {
            let terms = roster.terms(&progress.key);
            progress.interval = terms.sync_interval(place);
            terms.serves(place.lane)
        });
        let (idle, away) = (&self.idle, &self.away);
        self.blocked.retain(|id, _| idle.contains_key(id) || away.contains(id));
        self.set_intervals();
        self.schedule.news(Instant::now());
    }

    fn set_intervals(&mut self) {
        let roster = self.roster.borrow_and_update().clone();
        let place = &self.venue.place;
        let served = roster.all_terms().iter().filter(|terms| terms.serves(place.lane));
        self.schedule.set_intervals(served.map(|terms| terms.sync_interval(place)));
    }

    /// How often this database is served; `None` when it goes elsewhere.
    fn interval_of(&self, database: &DatabaseKey) -> Option<Duration> {
        let roster = self.roster.borrow();
        let (terms, place) = (roster.terms(database), &self.venue.place);
        terms.serves(place.lane).then(|| terms.sync_interval(place))
    }

    /// When something is due by time alone.
    fn wake(&self) -> Option<Instant> {
        let waiting = !self.queue.is_empty() || self.tray.holds_any();
        let circuit = match &self.circuit {
            _ if !waiting => None,
            _ if self.spending.until().is_some() => self.spending.until(),
            Some(pauses) if self.in_flight.is_empty() => pauses.until,
            _ => None,
        };
        let free = self.circuit.is_none() && self.spending.until().is_none();
        let pack = if free { self.tray.due() } else { None };
        let blocked = self.blocked.values().filter_map(|pauses| pauses.until).min();
        [self.schedule.next(), circuit, pack, blocked].into_iter().flatten().min()
    }

    fn woken(&mut self) {
        let now = Instant::now();
        for interval in self.schedule.take_due(now) {
            let found = self.scan(Some(interval));
            if found {
                self.spending.flush_begins(&self.venue, &mut self.schedule);
            }
            self.schedule.looked(interval, now, found);
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

    /// Queues every database of this interval (or of any) that has more than the destination; true when there are some.
    fn scan(&mut self, interval: Option<Duration>) -> bool {
        let venue = self.venue.clone();
        let mut found = false;
        for database in venue.buffer.databases() {
            let id = database.id;
            if self.away.contains(&id) || self.foreign.contains(&id) || !self.meet(&database) {
                continue;
            }
            let progress = &self.idle[&id];
            if interval.is_some_and(|interval| interval != progress.interval) {
                continue;
            }
            let position = database.position.map(|pos| pos.txid);
            let unknown = position.is_some() && progress.must_be_seen();
            if (unknown || position > progress.cursor) && !self.blocked.contains_key(&id) {
                found = true;
                self.enqueue(id);
            }
        }
        found
    }

    /// Makes sure that it is known where this database stands; false when it goes elsewhere.
    fn meet(&mut self, database: &Registered) -> bool {
        if self.idle.contains_key(&database.id) {
            return true;
        }
        let Some(interval) = self.interval_of(&database.key) else {
            self.foreign.insert(database.id);
            return false;
        };
        let (place, id) = (&self.venue.place, database.id);
        let cursor = self.venue.buffer.cursor(&place.entry.cursor, id);
        if self.trust == Trust::Cursors {
            self.venue.board.post_copy(place.lane, id, &database.key, cursor);
        }
        let progress = Progress::new(id, database.key.clone(), cursor, interval, self.trust);
        self.idle.insert(id, progress);
        true
    }

    fn enqueue(&mut self, id: DatabaseId) {
        if self.queued.insert(id) {
            self.queue.push_back(id);
        }
    }

    fn start_turns(&mut self) {
        if self.spending.is_over(&self.venue) {
            return;
        }
        // A pack has a place of its own, so that large files do not hold it up.
        let concurrency = self.venue.place.entry.limits.concurrency;
        let allowed = match &self.circuit {
            None => concurrency + 1,
            Some(pauses) => usize::from(pauses.over(Instant::now())),
        };
        let quiet = self.queue.is_empty() && self.in_flight.is_empty();
        if self.in_flight.len() < allowed
            && let Some(sealed) = self.tray.next(quiet)
        {
            self.start_pack(sealed);
        }
        let turns = allowed.min(concurrency + usize::from(self.tray.is_under_way()));
        while self.in_flight.len() < turns && !self.tray.is_full() {
            let Some(id) = self.queue.pop_front() else { return };
            self.queued.remove(&id);
            let Some(mut progress) = self.idle.remove(&id) else { continue };
            self.away.insert(id);
            let (venue, careful) = (self.venue.clone(), self.circuit.is_some());
            self.in_flight.push(Box::pin(async move {
                let result = match careful {
                    true => venue.careful_turn(&mut progress).await,
                    false => venue.turn(&mut progress).await,
                };
                Finished::Turn(progress, result)
            }));
        }
    }

    fn finished(&mut self, finished: Finished) {
        match finished {
            Finished::Turn(progress, Ok(Turn { waits: true, .. })) => {
                match self.doubted.contains(&progress.id) {
                    true => self.look_again(progress),
                    false => self.tray.add(progress),
                }
            }
            Finished::Turn(progress, result) => self.turn_finished(progress, result),
            Finished::Pack(sealed, Ok(put)) => self.pack_arrived(sealed, put),
            Finished::Pack(sealed, Err(error)) => self.pack_failed(sealed, &error),
        }
    }

    fn turn_finished(&mut self, mut progress: Progress, result: Result<Turn, TurnError>) {
        let id = progress.id;
        self.away.remove(&id);
        if self.doubted.remove(&id) {
            progress.distrust();
            self.venue.holds_nothing(id, &progress.key);
        }
        match self.interval_of(&progress.key) {
            Some(interval) => progress.interval = interval,
            None => {
                self.blocked.remove(&id);
                return;
            }
        }
        match result {
            Ok(turn) => self.succeeded(&progress, turn),
            Err(error) => self.failed(&mut progress, &error),
        }
        self.idle.insert(id, progress);
    }

    fn succeeded(&mut self, progress: &Progress, turn: Turn) {
        let id = progress.id;
        if self.circuit.take().is_some() {
            tracing::info!(destination = %self.name(), "destination works again");
        }
        if self.blocked.remove(&id).is_some() {
            self.post_fault(progress, None);
        }
        self.post_works(turn.created.map(|bytes| (turn.objects, bytes)));
        if turn.more {
            self.enqueue(id);
        } else if self.venue.buffer.find(&progress.key).and_then(|held| held.position).map(|pos| pos.txid)
            > progress.cursor
        {
            // It came while the turn ran, and the news of it may have been heard already.
            self.schedule.look_soon(progress.interval, Instant::now());
        }
    }

    fn post_fault(&self, progress: &Progress, fault: Option<String>) {
        self.venue.board.post_fault(self.venue.place.lane, progress.id, &progress.key, fault);
    }

    fn failed(&mut self, progress: &mut Progress, error: &TurnError) {
        let name = self.name().clone();
        if error.unsettles() {
            progress.unsettle();
        }
        match error.concerns() {
            Concerns::Nobody => {}
            Concerns::Lane => {
                self.lane_failed(error);
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
                self.venue.board.post_health(self.venue.place.lane, |health| {
                    *health.failures.entry(error.cause()).or_default() += 1;
                });
                self.post_fault(progress, Some(error.to_string()));
            }
        }
    }

    /// Opens the circuit, or lengthens its pause.
    fn lane_failed(&mut self, error: &TurnError) {
        let name = self.name();
        if self.circuit.is_none() {
            tracing::warn!(destination = %name, %error, "destination fails, it is tried again");
        }
        // Turns that were under way together fail together: that is one failure.
        let now = Instant::now();
        if self.circuit.as_ref().is_none_or(|pauses| pauses.over(now)) {
            self.circuit = Some(Pauses::again(self.circuit.take(), error.class()));
        }
        self.place_failed(error);
    }

    /// The bucket or folder was not there. When it is back it may be another one, so it counts as empty, also after a
    /// restart, and every database is looked at again, also those that have nothing new.
    fn distrust_all(&mut self) {
        self.idle.values_mut().for_each(Progress::distrust);
        self.doubted.extend(self.away.iter().copied());
        for database in self.venue.buffer.databases() {
            self.venue.holds_nothing(database.id, &database.key);
        }
        self.tray.clear().into_iter().for_each(|progress| self.look_again(progress));
        self.schedule.news(Instant::now());
    }
}

/// Its fence works, and it holds nothing that its layout does not see.
async fn usable(place: &Place, stop: &CancellationToken) -> Result<(), DestinationError> {
    place.destination.probe(stop).await?;
    match place.destination.packs() {
        None => pack::refuse(&place.destination, stop).await,
        Some(_) => Ok(()),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
