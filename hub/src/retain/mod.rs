//! Deletes at destinations what their policy no longer keeps.
//!
//! # Invariants
//! - What is deleted was planned as a value ([`walhub_store::retention`]) from what the destination itself lists, just
//!   before; nothing is deleted at a destination that does not answer.
//! - Only files of our own history: the newest one names its lineage, and does not reach beyond the hub's position.
//! - Nothing of a database on hold ([`holds`], durable) or that somebody reads ([`pins`]) is deleted, nor what leads to a point
//!   that somebody waits to restore (`crate::copies::awaited`). A reader that comes
//!   while files are being deleted ends that first.
//! - One round at a time at a destination; a destination that is slow or away holds up no other.
//! - Rounds delete nothing while the wall clock is doubted ([`wall_clock`]); whoever asks by name is obeyed.
//! - A database at rest costs no requests: it is looked at again when its position moved, or when time makes a file old.
//!
//! Non-goals: databases that the hub does not know, or that a destination does not serve (any more), stay there as they are; no compaction. A lane that catches up from a sibling
//! takes no pin: it plans again when a file has gone, and the plan never takes the last chain.

pub mod holds;
pub mod pins;
mod round;
mod site;
mod wall_clock;

pub use holds::{Hold, HoldError, Holds};
pub use pins::{Claim, Pin, Pins};
pub use round::Report;
pub use site::Rounds;

use crate::buffer::WalBuffer;
use crate::copies::Board;
use site::Keeper;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, DestinationName, clock};
use wall_clock::{Doubt, WallClock};

/// What all destinations share.
struct Shared {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    holds: Arc<Holds>,
    pins: Pins,
    clock: Mutex<WallClock>,
}

impl Shared {
    /// Now, Unix ms, unless the clock is doubted.
    fn now_ms(&self) -> Result<i64, Doubt> {
        let now_ms = clock::now_ms();
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.judge(now_ms, Instant::now()).map(|()| now_ms)
    }
}

/// Handle on the retention of all destinations in service.
#[derive(Clone)]
pub struct Retainer {
    shared: Arc<Shared>,
    keepers: Arc<Mutex<BTreeMap<DestinationName, Running>>>,
    tasks: TaskGroup,
}

struct Running {
    keeper: Arc<Keeper>,
    stop: CancellationToken,
}

/// No destination is called so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no destination called {0}")]
pub struct UnknownDestination(DestinationName);

impl Retainer {
    /// Looks after the destinations of the board's roster, also when it is replaced, until `tasks` end.
    pub fn start(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        holds: Arc<Holds>,
        pins: Pins,
        tasks: TaskGroup,
    ) -> Self {
        let mut changes = board.roster_changes();
        let newest_ms = buffer.databases().iter().map(|database| database.time_ms).max();
        let clock = WallClock::new(clock::now_ms(), Instant::now(), newest_ms.filter(|newest| *newest > 0));
        let shared = Arc::new(Shared { buffer, board, holds, pins, clock: Mutex::new(clock) });
        let retainer = Self { shared, keepers: Arc::default(), tasks };
        retainer.follow_roster();
        let (following, stop) = (retainer.clone(), retainer.tasks.token().clone());
        retainer.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => match changed {
                        Ok(()) => following.follow_roster(),
                        Err(_) => return,
                    },
                }
            }
        });
        retainer
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<DestinationName, Running>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the rounds of destinations that left or changed, and begins those of new ones.
    fn follow_roster(&self) {
        let mut keepers = self.keepers();
        let mut before = std::mem::take(&mut *keepers);
        for place in self.shared.board.roster().places() {
            let running = match before.remove(place.name()) {
                Some(running) if running.keeper.serves(place) => running,
                other => {
                    if let Some(other) = other {
                        other.stop.cancel();
                    }
                    let stop = self.tasks.token().child_token();
                    let keeper = Arc::new(Keeper::new(self.shared.clone(), place.clone(), stop.clone()));
                    self.tasks.spawn(keeper.clone().run());
                    Running { keeper, stop }
                }
            };
            keepers.insert(place.name().clone(), running);
        }
        for gone in before.into_values() {
            gone.stop.cancel();
        }
    }

    /// What rounds at each destination in service have come to.
    pub fn rounds(&self) -> BTreeMap<DestinationName, Rounds> {
        let keepers = self.keepers();
        keepers.iter().map(|(name, running)| (name.clone(), running.keeper.rounds())).collect()
    }

    /// The holds.
    pub fn holds(&self) -> &Holds {
        &self.shared.holds
    }

    /// True when the hub knows the database.
    pub fn knows(&self, database: &DatabaseKey) -> bool {
        self.shared.buffer.find(database).is_some()
    }

    /// Judges one database or all, at one destination or all, one after the other, as of `now_ms`, and deletes what may go
    /// if `apply`. `take` gets each report as it is ready, and ends the work by answering false.
    pub async fn now<F>(
        &self,
        destination: Option<&DestinationName>,
        database: Option<&DatabaseKey>,
        apply: bool,
        now_ms: i64,
        mut take: impl FnMut(Report) -> F,
    ) -> Result<(), UnknownDestination>
    where
        F: Future<Output = bool>,
    {
        let keepers: Vec<Arc<Keeper>> = {
            let all = self.keepers();
            let chosen = all.iter().filter(|(name, _)| destination.is_none_or(|asked| asked == *name));
            chosen.map(|(_, running)| running.keeper.clone()).collect()
        };
        if let (true, Some(asked)) = (keepers.is_empty(), destination) {
            return Err(UnknownDestination(asked.clone()));
        }
        for keeper in keepers {
            for found in keeper.databases() {
                if database.is_none_or(|asked| *asked == found.key)
                    && !take(keeper.look(&found, apply, now_ms).await).await
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
