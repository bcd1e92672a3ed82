//! The one worker: which database is due, in which order its files are made, and what a failure means.

use super::error::WorkError;
use super::publish::Publisher;
use super::report::Report;
use super::state::State;
use super::tail::{TailError, Tails};
use super::window::level_of;
use super::{jitter, millis, takes};
use crate::buffer::{DatabaseId, Registered, SegmentMeta, WalBuffer};
use crate::copies::{Board, LaneId};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, Level, Txid};
use walhub_store::compact::windows::{self, GRACE_MS, Piece, Window};

/// When files that the next level is made of are on their way, it is looked at again after this time.
const SOON_MS: i64 = 2_000;
const FIRST_PAUSE_MS: i64 = 15_000;
const LONGEST_PAUSE_MS: i64 = 3_600_000;

struct Entry {
    seen: Option<Txid>,
    due_ms: Option<i64>,
    failures: u32,
    /// A state was there before.
    known: bool,
    state: Option<State>,
}

/// See the module doc.
pub(super) struct Worker {
    pub(super) buffer: Arc<dyn WalBuffer>,
    pub(super) board: Arc<Board>,
    pub(super) report: Arc<Report>,
    pub(super) levels: Vec<Duration>,
    pub(super) folder: PathBuf,
    pub(super) stop: CancellationToken,
    pub(super) tails: Arc<Tails>,
    pub(super) publisher: Publisher,
    entries: HashMap<DatabaseId, Entry>,
    due: BTreeSet<(i64, DatabaseId)>,
    pub(super) made: u64,
    /// When the first look was.
    started_ms: Option<i64>,
}

impl Worker {
    pub(super) fn new(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        levels: Vec<Duration>,
        folder: PathBuf,
        tasks: TaskGroup,
        tails: Tails,
        abort: CancellationToken,
    ) -> Self {
        let (report, stop) = (board.compaction().clone(), tasks.token().clone());
        let tails = Arc::new(tails);
        let publisher = Publisher::new(board.clone(), report.clone(), tails.clone(), tasks, abort);
        Self {
            buffer,
            board,
            report,
            levels,
            folder,
            stop,
            tails,
            publisher,
            entries: HashMap::new(),
            due: BTreeSet::new(),
            made: 0,
            started_ms: None,
        }
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.buffer.changed()
    }

    #[cfg(any(test, feature = "testutil"))]
    pub(super) fn unfinished(&self) -> watch::Receiver<usize> {
        self.publisher.unfinished()
    }

    /// Notes the databases that did something. The first time, those that did recently: what was left open before a
    /// restart is closed, and a fleet that sleeps is left alone.
    pub(super) fn look(&mut self, now_ms: i64) {
        self.started_ms.get_or_insert(now_ms);
        let longest = self.levels.last().copied().unwrap_or_default();
        let snapshots = self.board.roster().places().iter().map(|p| p.entry.snapshot_interval).max();
        let recent_ms = now_ms - millis(longest.max(snapshots.unwrap_or_default()).saturating_mul(2));
        for database in self.buffer.databases() {
            let Some(position) = database.position else { continue };
            let fresh = Entry { seen: None, due_ms: None, failures: 0, known: false, state: None };
            let entry = self.entries.entry(database.id).or_insert(fresh);
            let old = entry.seen.is_none() && database.time_ms < recent_ms;
            if entry.seen.replace(position.txid) == Some(position.txid) || old || entry.failures > 0 {
                continue;
            }
            let first = self.levels.first().copied().unwrap_or(Duration::from_secs(60));
            let window_ms = millis(first).max(1);
            let end_ms = (database.time_ms.div_euclid(window_ms) + 1).saturating_mul(window_ms);
            self.schedule(database.id, end_ms + GRACE_MS + jitter(&database.key, first));
        }
    }

    fn schedule(&mut self, id: DatabaseId, at_ms: i64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(before) = entry.due_ms {
            if before <= at_ms {
                return;
            }
            self.due.remove(&(before, id));
        }
        entry.due_ms = Some(at_ms);
        self.due.insert((at_ms, id));
    }

    /// Serves every database that is due; when the next one is.
    pub(super) async fn pass(&mut self, now_ms: i64) -> Option<i64> {
        while let Some((at_ms, id)) = self.due.first().copied() {
            if at_ms > now_ms || self.stop.is_cancelled() {
                return Some(at_ms);
            }
            self.due.pop_first();
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.due_ms = None;
            let state = entry.state.take();
            let known = std::mem::replace(&mut entry.known, true);
            let Some(database) = self.buffer.databases().into_iter().find(|database| database.id == id)
            else {
                continue;
            };
            let mut state = match state {
                Some(state) => state,
                None => self.load(&database, known, now_ms).await,
            };
            let untidy_ms = match state.untidy && !self.leave_alone(&database).await {
                true => Some(now_ms + SOON_MS),
                false => None,
            };
            state.untidy = untidy_ms.is_some();
            // What files are made of stays meanwhile. Where it is being deleted, that goes on, and other databases come first.
            let Some(pin) = self.tails.pins.try_pin(&database.key) else {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.state = Some(state);
                }
                self.schedule(id, now_ms + SOON_MS);
                continue;
            };
            let served = self.serve(&database, &mut state, now_ms).await;
            drop(pin);
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            match served {
                Ok(next_ms) => {
                    (entry.state, entry.failures) = (Some(state), 0);
                    if let Some(next_ms) = [next_ms, untidy_ms].into_iter().flatten().min() {
                        self.schedule(id, next_ms.max(now_ms + 1));
                    }
                }
                Err(_) if self.stop.is_cancelled() => return None,
                Err(error) => {
                    // What is wrong with files is learned anew; nothing else is a reason to list again.
                    let keep = matches!(error, WorkError::NoRoom { .. } | WorkError::Buffer(_));
                    entry.state = keep.then_some(state);
                    self.failed(&database, &error, now_ms);
                }
            }
        }
        None
    }

    async fn load(&self, database: &Registered, known: bool, now_ms: i64) -> State {
        let Registered { id, key, .. } = database;
        // What began under our eyes has no files that we do not know of.
        let oldest = self.buffer.list(*id, None, 1).ok().and_then(|found| found.into_iter().next());
        let born_here = |oldest: &SegmentMeta| {
            oldest.range.min() == Txid::FIRST && self.started_ms.is_some_and(|at| oldest.time_ms >= at)
        };
        if !known && oldest.is_some_and(|oldest| born_here(&oldest.meta)) {
            return State::new(self.levels.len());
        }
        let row = self.board.row(*id, key);
        let (places, points) = (&row.terms.places, self.board.points());
        let state = State::load(self.levels.len(), (*id, key), places, points, now_ms, &self.stop).await;
        for place in places {
            for (at, files) in state.files.iter().enumerate() {
                for known in files.iter().filter(|known| known.whereabouts.is_at(place.lane)) {
                    let Piece { range, time_ms } = known.piece;
                    self.report.holds(*id, place.lane, level_of(at), range.max(), time_ms);
                }
            }
            if let Some((Some(txid), time_ms)) = state.snapshots.get(&place.lane) {
                self.report.holds(*id, place.lane, Level::SNAPSHOT, *txid, *time_ms);
            }
        }
        state
    }

    /// Does what a hub that was killed left undone; false when somebody is in the way, for a moment.
    async fn leave_alone(&self, database: &Registered) -> bool {
        let Registered { id, key, .. } = database;
        let row = self.board.row(*id, key);
        let mut done = true;
        for place in &row.terms.places {
            let Some(held) = row.held(place.lane) else { continue };
            let Some(turn) = self.board.points().begin_put(place.lane, *id) else {
                done = false;
                continue;
            };
            if let Err(error) = self.tails.part(place, key, held, &turn).await {
                tracing::debug!(database = %key, %error, "the newest transaction does not lie alone yet");
                done &= !matches!(error, TailError::Read);
            }
        }
        done
    }

    fn failed(&mut self, database: &Registered, error: &WorkError, now_ms: i64) {
        let Some(entry) = self.entries.get_mut(&database.id) else { return };
        if entry.failures == 0 {
            tracing::warn!(database = %database.key, %error, "compaction does not get on, it is tried again");
        }
        entry.failures += 1;
        let pause_ms = (FIRST_PAUSE_MS << (entry.failures - 1).min(10)).min(LONGEST_PAUSE_MS);
        self.report.failed(format!("{}: {error}", database.key));
        self.schedule(database.id, now_ms + pause_ms);
    }

    /// Everything that is due of one database; when more is.
    async fn serve(
        &mut self,
        database: &Registered,
        state: &mut State,
        now_ms: i64,
    ) -> Result<Option<i64>, WorkError> {
        let Registered { id, key, .. } = database;
        self.begin(database, state).await?;
        // Before anything new is made: one file leads to the next.
        let missing = self.backfill(database, state, now_ms).await?;
        let mut next_ms: Option<i64> = None;
        // A level that nobody takes is not made; the next one is made of what is below it.
        let taken = |at: &usize| !self.takers(*id, key, Some(self.levels[*at])).is_empty();
        let used: Vec<usize> = (0..self.levels.len()).filter(taken).collect();
        for (nth, at) in used.iter().copied().enumerate() {
            let below = nth.checked_sub(1).map(|nth| used[nth]);
            let interval = self.levels[at];
            let late_ms = jitter(key, interval);
            loop {
                let mut parts = self.parts(database, state, (at, below), now_ms).await?;
                let pieces: Vec<Piece> = parts.iter().map(|part| part.piece).collect();
                match windows::next(&pieces, interval, now_ms - late_ms) {
                    Window::Empty => break,
                    Window::Later(at_ms) => {
                        let at_ms = at_ms + late_ms;
                        next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
                        break;
                    }
                    Window::Due { pieces: count, .. } => {
                        parts.truncate(count);
                        if !self.window(database, state, (at, below), parts).await? {
                            let at_ms = now_ms + SOON_MS;
                            next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
                            break;
                        }
                    }
                }
            }
        }
        let snapshot = self.snapshot(database, state, now_ms).await?;
        Ok([next_ms, snapshot, missing].into_iter().flatten().min())
    }

    /// Lanes that serve a database and take this level (`None`: snapshots).
    pub(super) fn takers(
        &self,
        id: DatabaseId,
        key: &DatabaseKey,
        interval: Option<Duration>,
    ) -> Vec<LaneId> {
        let row = self.board.row(id, key);
        let takers = row.terms.places.iter().filter(|place| interval.is_none_or(|i| takes(place, i)));
        takers.map(|place| place.lane).collect()
    }

    /// How often the database failed in a row.
    pub(super) fn failures(&self, id: DatabaseId) -> u32 {
        self.entries.get(&id).map_or(0, |entry| entry.failures)
    }
}
