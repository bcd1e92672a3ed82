//! The mirror at one destination: put the newest one, remove what is older than the last few.

use super::ledger::Held;
use super::{Edition, Shared, shelf};
use crate::copies::Place;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::Backoff;
use walhub_common::clock;
use walhub_store::destinations::limited::left_of_day;
use walhub_store::destinations::{Body, DestinationError, Fault, ObjectPath, PutMode};

/// Mirrors that stay at a destination.
pub(super) const KEEP: usize = 5;
/// Between two looks whether a destination answers again.
const LOOK: Duration = Duration::from_secs(1);
/// Between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Requests of one mirror, at most: put, list, delete.
const REQUESTS: u64 = 3;

/// See the module doc.
pub(super) struct Site {
    shared: Arc<Shared>,
    place: Arc<Place>,
    stop: CancellationToken,
}

impl Site {
    pub(super) fn new(shared: Arc<Shared>, place: Arc<Place>, stop: CancellationToken) -> Self {
        Self { shared, place, stop }
    }

    /// True when it writes to this destination, as it is configured now.
    pub(super) fn serves(&self, place: &Place) -> bool {
        self.place.lane == place.lane && self.place.entry == place.entry
    }

    /// Puts every newest mirror until it is stopped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut newest = self.shared.newest.subscribe();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (mut kept, mut failing) = (None, false);
        loop {
            let edition = newest.borrow_and_update().clone();
            let Some(edition) = edition.filter(|edition| self.lacks(edition)) else {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    changed = newest.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                }
            };
            let pause = match self.must_wait() {
                Some(pause) => pause,
                None => match self.put(&edition, &mut kept).await {
                    Ok(()) => {
                        backoff.reset();
                        failing = false;
                        continue;
                    }
                    Err(error) if self.stop.is_cancelled() => {
                        tracing::debug!(%error, "a mirror was not put before the end");
                        return;
                    }
                    Err(error) => {
                        if !failing {
                            let destination = self.place.name();
                            tracing::warn!(%destination, %error, "the hub cannot be mirrored there, it is tried again");
                        }
                        failing = true;
                        self.post_error(&error.to_string());
                        backoff.next_delay()
                    }
                },
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn lacks(&self, edition: &Edition) -> bool {
        self.shared.ledger.held(&self.place.entry.cursor).is_none_or(|held| held.seq < edition.seq)
    }

    fn post_error(&self, error: &str) {
        self.shared.board.mirror().post(self.place.lane, |site| error.clone_into(&mut site.error));
    }

    /// How long nothing is to be sent there: its lane has not proved it yet, or the requests of the day are spent.
    fn must_wait(&self) -> Option<Duration> {
        if !self.shared.board.health(self.place.lane).healthy {
            return Some(LOOK);
        }
        let budget = self.place.entry.limits.requests_per_day?;
        let now = clock::now_ms();
        let used = self.shared.board.meters().of(&self.place.entry.cursor).today(now).total();
        if used + REQUESTS <= budget {
            return None;
        }
        self.post_error("the requests of today are spent");
        let left = u64::try_from(left_of_day(now)).unwrap_or(0);
        Some(Duration::from_millis(left) + LOOK)
    }

    async fn put(&self, edition: &Edition, kept: &mut Option<Vec<u64>>) -> Result<(), DestinationError> {
        let Shared { ledger, board, .. } = &*self.shared;
        let (destination, name) = (&self.place.destination, self.place.name());
        let path = shelf::path(ledger.id(), edition.seq);
        let body = Body::Bytes(edition.bytes.clone());
        if let Err(error) = destination.put_object(&path, body, PutMode::Create, &self.stop).await {
            if matches!(error.fault, Fault::Conflict(_)) {
                self.taken().await?;
            }
            return Err(error);
        }
        let held = Held { seq: edition.seq, written_ms: edition.written_ms };
        if let Err(error) = ledger.arrived(&self.place.entry.cursor, held).await {
            // After a restart it is put again, and found there.
            tracing::warn!(%error, "cannot write down where the mirror lies");
        }
        board.mirror().post(self.place.lane, |site| {
            (site.seq, site.written_ms) = (held.seq, held.written_ms);
            site.error.clear();
        });
        if let Err(error) = self.prune(edition.seq, kept).await
            && !self.stop.is_cancelled()
        {
            tracing::warn!(destination = %name, %error, "old mirrors of the hub stay there for now");
        }
        Ok(())
    }

    /// A number of ours names other bytes there: whoever wrote them has our identity.
    async fn taken(&self) -> Result<(), DestinationError> {
        let Shared { ledger, outdated, .. } = &*self.shared;
        let hub = ledger.id();
        let all = shelf::list(&self.place.destination, &self.stop).await?;
        let taken = all.get(hub).and_then(|numbers| numbers.last()).copied().unwrap_or(0);
        tracing::error!(
            destination = %self.place.name(), %hub, taken,
            "mirrors that this run of the hub did not write: its data folder is an older copy, or a second hub runs on a copy of it"
        );
        match ledger.raise(taken).await {
            Ok(()) => outdated.notify_one(),
            Err(error) => tracing::warn!(%error, "cannot write the number of the next mirror down"),
        }
        Ok(())
    }

    /// Removes what is older than the last few. What lies there is listed once.
    async fn prune(&self, newest: u64, kept: &mut Option<Vec<u64>>) -> Result<(), DestinationError> {
        let (hub, destination) = (self.shared.ledger.id(), &self.place.destination);
        let numbers = match kept {
            Some(numbers) => numbers,
            None => {
                let mut all = shelf::list(destination, &self.stop).await?;
                let own = all.remove(hub).unwrap_or_default();
                self.name_others(all.keys());
                kept.insert(own)
            }
        };
        if !numbers.contains(&newest) {
            numbers.push(newest);
        }
        let stale = numbers.len().saturating_sub(KEEP);
        if stale == 0 {
            return Ok(());
        }
        let paths: Vec<ObjectPath> = numbers[..stale].iter().map(|seq| shelf::path(hub, *seq)).collect();
        match destination.delete_objects(&paths, &self.stop).await {
            // What is locked is looked at again after the next start.
            Err(DestinationError { fault: Fault::Locked(_), .. }) | Ok(()) => drop(numbers.drain(..stale)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A hub that came into being on its own tells when another one has been here.
    fn name_others<'a>(&self, others: impl Iterator<Item = &'a super::HubId>) {
        let predecessor = self.shared.ledger.predecessor();
        let others: Vec<&str> =
            others.filter(|hub| Some(*hub) != predecessor.as_ref()).map(super::HubId::as_str).collect();
        if !others.is_empty() && predecessor.is_none() {
            tracing::warn!(
                destination = %self.place.name(), hubs = others.join(", "),
                "other hubs are mirrored there; if one of them was lost, stop this hub and run `walhub-hub rebuild` on an \
                 empty data folder: holds and the fence against old images of nodes come back only so"
            );
        }
    }
}
