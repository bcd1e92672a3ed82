//! Objects of a destination that are damaged or missing, made anew from other copies.
//!
//! - [`inspect`]: one object, read whole.
//! - [`good`]: which files of the buffer, of siblings and of the destination itself give the same transactions, and what is
//!   made of them. The choice is pure.
//! - This module: putting it in the place of the bad one.
//!
//! # Invariants
//! - Nothing is deleted before a good copy lies on the hub's disk: every file that went into it was read whole and its checksum
//!   compared; one that begins the history gives the database checksum that its source took.
//! - Puts stay create-only. An object is replaced by deleting it and putting the new one, while nobody reads the database; a
//!   hub that ends in between finds the hole and fills it ([`crate::drills`] records that before).
//! - Where nobody has exactly these transactions, a snapshot is put that the files behind the damage continue, and only then the
//!   damaged object goes: the newest state can be restored from there again, restore points before the snapshot may be lost.
//! - An object under a lock stays. Where the other files there do not lead past it, a snapshot stands in for it, which newest-state
//!   restores begin with. Whoever asks again names it, and nothing is put under its name. Of a database on hold nothing is
//!   replaced.
//! - It is done in a [`Turn`]: nothing is compacted or retired there meanwhile, or by a plan that knows the damaged object.
//!
//! Non-goals: noticing damage, a damaged live database.

mod good;
pub mod inspect;

#[cfg(test)]
pub(crate) mod bench;
#[cfg(test)]
mod tests;

use crate::buffer::{Registered, WalBuffer};
use crate::copies::{Board, Place, Turn};
use crate::restore::BufferSource;
use crate::retain::{Claim, Holds, Pins};
use good::{Good, Wanted};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::{Backoff, Class};
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};
use walhub_store::destinations::{Body, DestinationError, Fault, FileKey, PutMeta};
use walhub_store::restore::{DestinationSource, DynSource, Listing, Reach};

/// How long readers of the database are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);
/// Attempts to put what takes the place of an object that is gone.
const PUTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An object that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Which. Of a hole in the history: level 0 and the transactions that are missing.
    pub object: FileKey,
    /// It lies there, damaged; else it is missing.
    pub there: bool,
    /// What is wrong.
    pub reason: String,
}

impl Damage {
    /// Nothing leads through these transactions.
    pub fn hole(object: FileKey) -> Self {
        let range = object.range;
        let reason = format!(
            "missing: nothing leads from transaction {} to {}",
            range.min().get() - 1,
            range.max().get()
        );
        Self { object, there: false, reason }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileKey { level, range, .. } = &self.object;
        write!(f, "level {level} file {range}.ltx: {}", self.reason)
    }
}

/// Why an object was not made anew.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Nobody has it.
    #[error("no other copy gives transactions {first} to {last}: {reason}")]
    NoCopy {
        /// The first transaction of the object.
        first: u64,
        /// The last one.
        last: u64,
        /// What was found of them.
        reason: String,
    },
    /// There is a hold on the database.
    #[error("the database is on hold, so nothing of it is deleted; see `hubctl hold release`")]
    OnHold,
    /// Readers did not end.
    #[error("the database was being read for {} s; it is tried again with the next drill", PATIENCE.as_secs())]
    Read,
    /// Files of the database are being put there, or deleted.
    #[error("its files were being changed for {} s; it is tried again with the next drill", PATIENCE.as_secs())]
    Busy,
    /// The destination refuses.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The damaged object is gone, and the new one is not there.
    #[error(
        "the damaged object was removed, and the new one could not be put yet: {0}; it is tried again with the next drill"
    )]
    Left(DestinationError),
    /// The hub's disk.
    #[error("the good copy cannot be made on the hub's disk: {0}")]
    Disk(io::Error),
    /// Stopped.
    #[error("cancelled")]
    Cancelled,
}

/// An object that was made anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mended {
    /// What was done, in a sentence.
    pub done: String,
    /// The damaged object lies there still, under this lock.
    pub stays: Option<String>,
}

/// What is known to be wrong at a destination.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Damaged and missing objects.
    pub damaged: &'a [Damage],
    /// Damaged objects that stay under a lock.
    pub locked: &'a [FileKey],
}

enum Deleted {
    Gone,
    Locked(String),
}

/// Makes objects anew.
pub struct Repairer {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    holds: Arc<Holds>,
    pins: Pins,
    folder: PathBuf,
    /// Ends changes at destinations: only when the hub does.
    abort: CancellationToken,
}

impl Repairer {
    /// Good copies in the making lie in `folder`.
    pub fn new(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        holds: Arc<Holds>,
        pins: Pins,
        folder: &Path,
        abort: CancellationToken,
    ) -> Self {
        Self { buffer, board, holds, pins, folder: folder.to_owned(), abort }
    }

    /// Makes one of the damaged objects of a database at `place` anew. `cancel` ends it before anything was changed there.
    pub async fn mend(
        &self,
        place: &Arc<Place>,
        database: &Registered,
        damage: &Damage,
        known: Known<'_>,
        cancel: &CancellationToken,
    ) -> Result<Mended, RepairError> {
        let key = &database.key;
        if damage.there && self.holds.is_held(key) {
            return Err(RepairError::OnHold);
        }
        // New files of level 0 lie in packs there, and a file in a pack cannot be replaced alone: a listing after a restart
        // would show it again.
        let packed = damage.there && damage.object.level == Level::RAW && place.destination.packs().is_some();
        // A hole under a name that is taken by what cannot be read.
        let taken = !damage.there && known.locked.contains(&damage.object);
        let mut good = self.good(place, database, damage, known, !packed && !taken, cancel).await?;
        let turn = self.turn(place, database, cancel).await?;
        // Whatever comes of it, what leads where has changed.
        self.board.points().forget(place.lane, database.id);
        let (mut stays, mut led_past) = (None, false);
        if !damage.there {
            self.put(place, &good).await?;
        } else if good.key == damage.object {
            let claim = self.claim(key, cancel).await?;
            match self.delete(place, &damage.object).await? {
                Deleted::Gone => self.put(place, &good).await.map_err(RepairError::Left)?,
                Deleted::Locked(lock) => {
                    drop(claim);
                    led_past = self.is_led_past(place, database, damage, known).await?;
                    if !led_past {
                        good = self.good(place, database, damage, known, false, cancel).await?;
                        self.put(place, &good).await?;
                    }
                    stays = Some(lock);
                }
            }
        } else {
            self.put(place, &good).await?;
            let _claim = self.claim(key, cancel).await?;
            if let Deleted::Locked(lock) = self.delete(place, &damage.object).await? {
                stays = Some(lock);
            }
        }
        drop(turn);
        let FileKey { level, range, .. } = &damage.object;
        let (from, txid) = (&good.from, good.key.range.max().get());
        let done = match (good.key == damage.object, damage.there, &stays) {
            (_, _, Some(lock)) => {
                let instead = match led_past {
                    true => "the other files there lead past it".to_owned(),
                    false => format!("a snapshot of transaction {txid} from {from} stands in for it"),
                };
                format!(
                    "level {level} file {range}.ltx is locked and stays ({lock}); {instead}, so the newest state restores from \
                     there, and restore points that take this file from another copy. It goes with retention when nothing locks \
                     it any more; to replace it before, lift the lock and run `hubctl repair {key} --destination {}`. Drills \
                     leave it out from now on",
                    place.name()
                )
            }
            (true, true, None) => format!("level {level} file {range}.ltx repaired from {from}"),
            (true, false, None) => format!("level {level} file {range}.ltx put again from {from}"),
            (false, _, None) => format!(
                "level {level} file {range}.ltx replaced by a snapshot of transaction {txid} from {from}: restore points \
                 before it may be lost there"
            ),
        };
        tracing::warn!(database = %key, destination = %place.name(), "{done}");
        Ok(Mended { done, stays })
    }

    /// A good copy, on the hub's disk.
    async fn good(
        &self,
        place: &Arc<Place>,
        database: &Registered,
        damage: &Damage,
        known: Known<'_>,
        exact: bool,
        cancel: &CancellationToken,
    ) -> Result<Good, RepairError> {
        let reach = self.reach(place, database, damage);
        let wanted = Wanted { database, place, damage, known, reach, exact };
        // Nobody deletes what it is made of.
        let _pin = self.pins.pin(&database.key).await;
        let good = good::make(&self.sources(place, &database.key), &wanted, &self.folder, cancel).await?;
        match cancel.is_cancelled() {
            true => Err(RepairError::Cancelled),
            false => Ok(good),
        }
    }

    /// Newest transaction that must be restorable there.
    fn reach(&self, place: &Place, database: &Registered, damage: &Damage) -> Txid {
        let held = self.board.row(database.id, &database.key).held(place.lane);
        held.unwrap_or_else(|| damage.object.range.max())
    }

    /// Do the other files there give the newest state?
    async fn is_led_past(
        &self,
        place: &Place,
        database: &Registered,
        damage: &Damage,
        known: Known<'_>,
    ) -> Result<bool, DestinationError> {
        let mut files = place.destination.list_all(&database.key, &self.abort).await?;
        let bad: Vec<&FileKey> =
            known.damaged.iter().map(|damage| &damage.object).chain(known.locked).collect();
        files.retain(|file| !bad.iter().any(|key| (key.level, key.range) == (file.level, file.range)));
        let listing = Listing { source: place.name().clone(), files };
        Ok(Reach::new(&[listing], None).newest() >= Some(self.reach(place, database, damage)))
    }

    async fn delete(&self, place: &Place, object: &FileKey) -> Result<Deleted, DestinationError> {
        match place.destination.delete(std::slice::from_ref(object), &self.abort).await {
            Ok(()) => Ok(Deleted::Gone),
            Err(DestinationError { fault: Fault::Locked(lock), .. }) => Ok(Deleted::Locked(lock)),
            Err(error) => Err(error),
        }
    }

    /// The buffer, then siblings, folders first, then the destination itself: its other levels may give it.
    fn sources(&self, place: &Arc<Place>, key: &DatabaseKey) -> Vec<DynSource> {
        let mut siblings = self.board.roster().terms(key).places.clone();
        siblings.retain(|sibling| sibling.lane != place.lane);
        siblings.sort_by_key(|sibling| sibling.destination.kind() != "file");
        siblings.push(place.clone());
        let destinations = siblings
            .into_iter()
            .map(|sibling| Arc::new(DestinationSource(sibling.destination.clone())) as DynSource);
        let buffer = Arc::new(BufferSource::new(self.buffer.clone())) as DynSource;
        std::iter::once(buffer).chain(destinations).collect()
    }

    /// Waits until nobody else changes compacted files there.
    async fn turn(
        &self,
        place: &Place,
        database: &Registered,
        cancel: &CancellationToken,
    ) -> Result<Turn, RepairError> {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(turn) = self.board.points().begin_put(place.lane, database.id) {
                return Ok(turn);
            }
            if tokio::time::Instant::now() >= patience {
                return Err(RepairError::Busy);
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(RepairError::Cancelled),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Waits until nobody reads the database.
    async fn claim(&self, key: &DatabaseKey, cancel: &CancellationToken) -> Result<Claim, RepairError> {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(claim) = self.pins.claim(key) {
                return Ok(claim);
            }
            if tokio::time::Instant::now() >= patience {
                return Err(RepairError::Read);
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(RepairError::Cancelled),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Puts it, and tries again what may pass: something that was there may be gone.
    async fn put(&self, place: &Place, good: &Good) -> Result<(), DestinationError> {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut attempts = 0;
        loop {
            let body = Body::File(good.temp.path().to_owned());
            let meta = PutMeta { time_ms: good.time_ms, post: good.post };
            let Err(error) = place.destination.put(&good.key, body, meta, &self.abort).await else {
                return Ok(());
            };
            attempts += 1;
            let passing = matches!(error.class(), Class::Transient | Class::Throttled | Class::Unknown);
            if !passing || attempts >= PUTS {
                return Err(error);
            }
            tokio::select! {
                () = self.abort.cancelled() => return Err(error),
                () = tokio::time::sleep(pauses.next_delay()) => {}
            }
        }
    }
}

/// Where a hole of level 0 is filled.
pub fn hole(database: &DatabaseKey, range: TxidRange) -> Damage {
    Damage::hole(FileKey { database: database.clone(), level: Level::RAW, range })
}
