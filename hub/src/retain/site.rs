//! The rounds of one destination.

use super::Shared;
use super::round::{self, Asked, Report};
use super::wall_clock::Doubt;
use crate::buffer::{DatabaseId, Registered};
use crate::copies::Place;
use rand::Rng;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use walhub_common::{Txid, clock};
use walhub_store::retention::Policy;

/// A database whose position has not moved for so long is compacted, and has its last snapshot.
const SETTLED_MS: i64 = 26 * 3600 * 1000;

/// What the last look at a database said.
#[derive(Clone, Copy, Debug)]
struct Seen {
    position: Option<Txid>,
    /// The files ended there, and nothing was left to do.
    complete: bool,
    next_ms: Option<i64>,
}

/// What rounds have come to since the destination is looked after as it is configured now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rounds {
    /// When the last round in which nothing failed ended, Unix ms; 0: none did.
    pub last_success_ms: i64,
    /// Looks at a database that failed.
    pub failures: u64,
    /// Files deleted.
    pub deleted: u64,
}

/// Looks after one destination.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    place: Arc<Place>,
    stop: CancellationToken,
    /// Held by whoever looks: one at a time.
    seen: Mutex<HashMap<DatabaseId, Seen>>,
    rounds: std::sync::Mutex<Rounds>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, place: Arc<Place>, stop: CancellationToken) -> Self {
        Self { shared, place, stop, seen: Mutex::default(), rounds: std::sync::Mutex::default() }
    }

    /// True when it looks after this destination, as it is configured now.
    pub(super) fn serves(&self, place: &Place) -> bool {
        self.place.lane == place.lane && self.place.entry == place.entry
    }

    /// Databases that the destination serves.
    pub(super) fn databases(&self) -> Vec<Registered> {
        let roster = self.shared.board.roster();
        let mut databases = self.shared.buffer.databases();
        databases.retain(|database| roster.terms(&database.key).serves(self.place.lane));
        databases
    }

    fn policy(&self, database: &Registered) -> Policy {
        let own = self.place.entry.retention.policy;
        let retention = self.shared.board.roster().terms(&database.key).selector.retention;
        Policy { retention: retention.unwrap_or(own.retention), ..own }
    }

    /// Rounds until it is stopped; the first after a part of the interval, so that not all destinations begin at once.
    pub(super) async fn run(self: Arc<Self>) {
        let interval = self.place.entry.retention.check_interval;
        let mut pause = interval.mul_f64(rand::rng().random_range(0.1..1.0));
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            self.round().await;
            pause = interval.mul_f64(rand::rng().random_range(0.9..1.1));
        }
    }

    /// What rounds have come to.
    pub(super) fn rounds(&self) -> Rounds {
        *self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut Rounds)) {
        change(&mut self.rounds.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) async fn round(&self) {
        let before = self.rounds().failures;
        for database in self.databases() {
            if self.stop.is_cancelled() {
                return;
            }
            // Asked again each time: a round of many databases takes a while.
            let now_ms = match self.shared.now_ms() {
                Ok(now_ms) => now_ms,
                Err(doubt) => return self.say(doubt),
            };
            if self.due(&database).await {
                self.look(&database, true, now_ms).await;
            }
        }
        self.count(|rounds| {
            if rounds.failures == before {
                rounds.last_success_ms = clock::now_ms();
            }
        });
    }

    fn say(&self, doubt: Doubt) {
        tracing::warn!(
            destination = %self.place.name(),
            ahead_s = doubt.ahead_ms / 1000,
            believed_after_s = doubt.left.as_secs(),
            "retention deletes nothing: the clock of this machine is ahead of what it should be, or nothing came for long before the \
             hub started; see whether it is right (`hubctl retention --run` deletes at once)"
        );
    }

    /// True when a round has to look at it.
    pub(super) async fn due(&self, database: &Registered) -> bool {
        // What was seen before it was put on hold counts again afterwards.
        if self.shared.holds.is_held(&database.key) {
            return false;
        }
        let now_ms = clock::now_ms();
        let moved_lately = now_ms.saturating_sub(database.time_ms) < SETTLED_MS;
        let Some(seen) = self.seen.lock().await.get(&database.id).copied() else {
            return database.position.is_some();
        };
        let same = seen.position == database.position.map(|position| position.txid);
        moved_lately || !same || !seen.complete || seen.next_ms.is_some_and(|next| next <= now_ms)
    }

    /// One look as of `now_ms`, and deletions if `apply`.
    pub(super) async fn look(&self, database: &Registered, apply: bool, now_ms: i64) -> Report {
        let mut seen = self.seen.lock().await;
        let policy = self.policy(database);
        let asked = Asked { policy: &policy, now_ms, apply };
        let report = round::look(&self.shared, &self.place, database, &asked, &self.stop).await;
        let position = database.position.map(|position| position.txid);
        let left = report.plan.delete.len() - report.deleted;
        // When nobody waits any more, nor reads, nor holds, what was kept for that goes.
        let kept = !report.needs.points.is_empty() || report.plan.is_shielded();
        let complete = left == 0 && !kept && report.error.is_none() && report.reach == position;
        seen.insert(database.id, Seen { position, complete, next_ms: report.plan.next_ms });
        let Report { database, destination, deleted, error, .. } = &report;
        if *deleted > 0 {
            tracing::info!(%database, %destination, files = deleted, "deleted what the policy no longer keeps");
        }
        if let (Some(error), true, false) = (error, apply, self.stop.is_cancelled()) {
            tracing::warn!(%database, %destination, %error, "retention: tried again with the next round");
            self.count(|rounds| rounds.failures += 1);
        }
        self.count(|rounds| rounds.deleted += *deleted as u64);
        report
    }
}
