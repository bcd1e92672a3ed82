//! What only this hub knows, kept at its destinations: a hub whose disk is gone is made anew from there
//! ([`crate::rebuild`]).
//!
//! - [`state`]: what is kept, as a value: agents with their epochs and labels, databases with lineage and position, holds, jobs
//!   that have not ended, the configuration without secrets.
//! - [`format`](mod@format): its bytes: version, length, checksum.
//! - [`shelf`]: where they lie at a destination, and how the newest good one is found.
//! - [`ledger`]: who this hub is, and which mirror each destination has, on the hub's disk.
//! - [`report`]: for the status.
//! - `site`: one destination.
//!
//! # Invariants
//! - An object is written once and never replaced: `walhub/hub/<hub>/mirror-<number>`. A number is claimed on the hub's disk
//!   before its object is put, the same bytes go to every destination, and some older ones stay, so that a damaged or
//!   half-written newest one costs nothing but what changed since.
//! - Two hubs never write to one place: each has an id of its own, drawn with its data folder.
//! - No secret is in it, and no key: not the hub's, not the authority's.
//! - A destination that is down, slow or full holds up no other, and no lane.
//! - Requests: nothing while nothing changed. A change of what cannot be found elsewhere is written at the next look, at most
//!   once an interval; a hold at once; positions alone, which files tell better, once in [`MOVES`] intervals.
//!
//! Not kept, and why: the data (it lies there already), the CA's key (it never was on the hub), cursors and what is compacted
//! (listings tell), parts of first snapshots (agents send them again), requests of today (a day's budget begins anew), results
//! of drills (every copy counts as never tried; a hole that a repair left is found by the next one), jobs that have ended, and
//! restores into files of an operator (whoever ordered them orders them again).

pub mod format;
pub mod ledger;
pub mod report;
pub mod shelf;
mod site;
pub mod state;

pub use ledger::Ledger;
pub use report::{MirrorReport, SiteMirror};
pub use state::{HubId, HubState};

use crate::buffer::WalBuffer;
use crate::copies::Board;
use crate::fleet::Fleet;
use crate::jobs::Jobs;
use crate::retain::Holds;
use bytes::Bytes;
use site::Site;
use state::{MirroredDatabase, MirroredPlace};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DestinationName, clock};
use walhub_proto::Message;

/// Positions that moved are written once in so many intervals.
pub const MOVES: u32 = 60;
/// The first look comes after this part of an interval.
const FIRST: u32 = 4;

/// Where the state is collected.
pub struct Sources {
    /// Databases.
    pub buffer: Arc<dyn WalBuffer>,
    /// Agents and their epochs.
    pub fleet: Arc<Fleet>,
    /// Holds.
    pub holds: Arc<Holds>,
    /// Jobs.
    pub jobs: Jobs,
    /// The configuration in force, without secrets.
    pub config: Box<dyn Fn() -> Arc<str> + Send + Sync>,
}

/// One mirror, ready to be put.
struct Edition {
    seq: u64,
    written_ms: i64,
    bytes: Bytes,
}

/// What all destinations share.
struct Shared {
    sources: Sources,
    board: Arc<Board>,
    ledger: Ledger,
    newest: watch::Sender<Option<Arc<Edition>>>,
    /// Rung when a number is taken: the next edition must have a higher one.
    outdated: Notify,
    interval: Duration,
}

struct Running {
    site: Arc<Site>,
    stop: CancellationToken,
}

/// The mirror of a running hub.
pub struct Mirror {
    shared: Arc<Shared>,
    sites: Mutex<BTreeMap<DestinationName, Running>>,
    tasks: TaskGroup,
}

impl Mirror {
    /// Keeps a mirror at every destination of the board's roster, also when it is replaced, until `tasks` end.
    pub fn start(sources: Sources, board: Arc<Board>, ledger: Ledger, interval: Duration, tasks: &TaskGroup) {
        let report = board.mirror();
        report.identify(ledger.id());
        for place in board.roster().places() {
            if let Some(held) = ledger.held(&place.entry.cursor) {
                report.post(place.lane, |site| (site.seq, site.written_ms) = (held.seq, held.written_ms));
            }
        }
        if let Some(last) = ledger.last() {
            report.newest(last.seq);
        }
        let shared = Arc::new(Shared {
            sources,
            board: board.clone(),
            ledger,
            newest: watch::Sender::new(None),
            outdated: Notify::new(),
            interval,
        });
        let mirror = Self { shared: shared.clone(), sites: Mutex::default(), tasks: tasks.clone() };
        let stop = tasks.token().clone();
        tasks.spawn(async move {
            let write = shared.write(&stop);
            tokio::join!(write, mirror.follow_roster(board, &stop));
        });
    }

    fn sites(&self) -> MutexGuard<'_, BTreeMap<DestinationName, Running>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow_roster(&self, board: Arc<Board>, stop: &CancellationToken) {
        let mut changes = board.roster_changes();
        loop {
            changes.mark_unchanged();
            self.settle(&board);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Ends the tasks of destinations that left or changed, and starts those of new ones.
    fn settle(&self, board: &Board) {
        let mut sites = self.sites();
        let mut before = std::mem::take(&mut *sites);
        for place in board.roster().places() {
            let running = match before.remove(&place.entry.cursor) {
                Some(running) if running.site.serves(place) => running,
                other => {
                    if let Some(other) = other {
                        other.stop.cancel();
                    }
                    let stop = self.tasks.token().child_token();
                    let site = Arc::new(Site::new(self.shared.clone(), place.clone(), stop.clone()));
                    self.tasks.spawn(site.clone().run());
                    Running { site, stop }
                }
            };
            sites.insert(place.entry.cursor.clone(), running);
        }
        for gone in before.into_values() {
            gone.stop.cancel();
        }
    }
}

impl Shared {
    /// Makes an edition whenever one is due, until it is stopped.
    async fn write(&self, stop: &CancellationToken) {
        let mut holds = self.sources.holds.changes();
        let mut due = Instant::now() + self.interval / FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = holds.changed() => if changed.is_err() { return },
                () = self.outdated.notified() => {}
                () = tokio::time::sleep_until(due) => due = Instant::now() + self.interval,
            }
            if let Err(error) = self.look().await {
                tracing::error!(%error, "the hub cannot be mirrored; what changed since the last mirror would be lost with its disk");
                self.board.mirror().failed(&error.to_string());
            }
        }
    }

    /// Compares what is known with what was written last, and makes an edition when they differ.
    async fn look(&self) -> io::Result<()> {
        // Jobs that nobody tells of any more have not ended: the hub goes down.
        let Some(state) = self.collect().await else { return Ok(()) };
        let (structure, moved) = state.digests();
        let last = self.ledger.last();
        let due = match &last {
            // A hub that knows nothing has nothing to lose.
            None => !state.is_empty(),
            Some(last) => {
                let now = clock::now_ms();
                let age = Duration::from_millis(u64::try_from(now - last.written_ms).unwrap_or(u64::MAX));
                last.structure != structure
                    || (last.moved != moved && age >= self.interval * MOVES)
                    || self.ledger.is_outdated()
                    // What some destination lacks was written by an earlier run of this hub.
                    || (self.newest.borrow().is_none() && self.is_lacked(last.seq))
            }
        };
        if !due {
            return Ok(());
        }
        let written_ms = clock::now_ms();
        let mut state = HubState { written_ms, ..state };
        let length = state.to_wire().encoded_len();
        if length > format::MAX_BODY_BYTES {
            return Err(io::Error::other(format!(
                "it takes {length} bytes, more than {}",
                format::MAX_BODY_BYTES
            )));
        }
        state.seq = self.ledger.claim(structure, moved, written_ms).await?;
        let (seq, bytes) = (state.seq, format::seal(&state.to_wire()));
        tracing::debug!(seq, bytes = bytes.len(), "a new mirror of the hub");
        self.board.mirror().newest(seq);
        self.newest.send_replace(Some(Arc::new(Edition { seq, written_ms, bytes })));
        Ok(())
    }

    fn is_lacked(&self, seq: u64) -> bool {
        let roster = self.board.roster();
        roster
            .places()
            .iter()
            .any(|place| self.ledger.held(&place.entry.cursor).is_none_or(|held| held.seq < seq))
    }

    async fn collect(&self) -> Option<HubState> {
        let Sources { buffer, fleet, holds, jobs, config } = &self.sources;
        let jobs = jobs.copies().await.ok()?;
        let roster = self.board.roster();
        let places = roster.places().iter().map(|place| MirroredPlace {
            name: place.name().to_string(),
            kind: place.destination.kind().to_owned(),
            location: place.destination.location(),
        });
        Some(HubState {
            id: self.ledger.id().clone(),
            predecessor: self.ledger.predecessor(),
            seq: 0,
            written_ms: 0,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            config: config().to_string(),
            agents: fleet.epochs.known(),
            databases: buffer.databases().into_iter().map(MirroredDatabase::from).collect(),
            holds: holds.list(),
            places: places.collect(),
            labels: fleet.labels.all(),
            jobs,
        })
    }
}

#[cfg(test)]
mod tests;
