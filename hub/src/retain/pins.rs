//! Who reads a database's files, so that none of them is deleted meanwhile.
//!
//! A reader takes a [`Pin`] before it lists files and keeps it until it has read them. Whoever deletes takes a [`Claim`],
//! which is refused while there are pins. A pin that comes during a claim cancels [`Claim::stop`] and waits until the
//! claim is dropped, so deleting must end soon after that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;

/// The readers of all databases. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<Mutex<HashMap<DatabaseKey, Entry>>>);

#[derive(Debug, Default)]
struct Entry {
    users: usize,
    lock: Arc<RwLock<()>>,
    stop: CancellationToken,
}

/// Nothing of the database is deleted while this lives.
#[derive(Debug)]
pub struct Pin {
    // Fields drop in order: the lock first.
    _lock: OwnedRwLockReadGuard<()>,
    _user: User,
}

/// The right to delete files of the database.
#[derive(Debug)]
pub struct Claim {
    _lock: OwnedRwLockWriteGuard<()>,
    _user: User,
    stop: CancellationToken,
}

/// Keeps an entry in the table.
#[derive(Debug)]
struct User {
    pins: Pins,
    database: DatabaseKey,
}

impl Drop for User {
    fn drop(&mut self) {
        let mut entries = self.pins.entries();
        if let Some(entry) = entries.get_mut(&self.database) {
            entry.users -= 1;
            if entry.users == 0 {
                entries.remove(&self.database);
            }
        }
    }
}

impl Pins {
    fn entries(&self) -> MutexGuard<'_, HashMap<DatabaseKey, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter<T>(&self, database: &DatabaseKey, with: impl FnOnce(&mut Entry) -> T) -> (User, T) {
        let mut entries = self.entries();
        let entry = entries.entry(database.clone()).or_default();
        entry.users += 1;
        let made = with(entry);
        (User { pins: self.clone(), database: database.clone() }, made)
    }

    /// Waits until nothing of the database is being deleted, and keeps it so. Cancel safe.
    pub async fn pin(&self, database: &DatabaseKey) -> Pin {
        let (user, lock) = self.enter(database, |entry| {
            entry.stop.cancel();
            entry.lock.clone()
        });
        Pin { _lock: lock.read_owned().await, _user: user }
    }

    /// `None` while something of the database is being deleted, which goes on. For readers that can come again.
    pub fn try_pin(&self, database: &DatabaseKey) -> Option<Pin> {
        let (user, lock) = self.enter(database, |entry| entry.lock.clone().try_read_owned().ok());
        lock.map(|lock| Pin { _lock: lock, _user: user })
    }

    /// `None` while somebody reads the database, or deletes.
    pub fn claim(&self, database: &DatabaseKey) -> Option<Claim> {
        let (user, taken) = self.enter(database, |entry| {
            let lock = entry.lock.clone().try_write_owned().ok()?;
            entry.stop = CancellationToken::new();
            Some((lock, entry.stop.clone()))
        });
        let Some((lock, stop)) = taken else {
            drop(user);
            return None;
        };
        Some(Claim { _lock: lock, _user: user, stop })
    }

    /// True while somebody reads the database, or deletes.
    pub fn in_use(&self, database: &DatabaseKey) -> bool {
        self.entries().get(database).is_some_and(|entry| entry.lock.try_write().is_err())
    }
}

impl Claim {
    /// Cancelled when somebody wants to read.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn readers_and_deleting_exclude_each_other_per_database() {
        let pins = Pins::default();
        let (a, b): (DatabaseKey, DatabaseKey) = ("n/a".parse().unwrap(), "n/b".parse().unwrap());
        let (one, two) = (pins.pin(&a).await, pins.pin(&a).await);
        assert!(pins.claim(&a).is_none() && pins.in_use(&a) && !pins.in_use(&b));
        assert!(pins.claim(&b).is_some());
        drop(one);
        assert!(pins.claim(&a).is_none());
        drop(two);
        let claim = pins.claim(&a).unwrap();
        assert!(pins.try_pin(&a).is_none() && !claim.stop().is_cancelled());
        drop(claim);
        let tried = pins.try_pin(&a).unwrap();
        assert!(pins.claim(&a).is_none());
        drop(tried);
        assert!(pins.entries().is_empty(), "nothing is left behind");
    }

    #[tokio::test]
    async fn a_reader_ends_the_deleting_and_waits_for_its_end() {
        let pins = Pins::default();
        let a: DatabaseKey = "n/a".parse().unwrap();
        let claim = pins.claim(&a).unwrap();
        let mut pin = Box::pin(pins.pin(&a));
        assert!(pin.as_mut().now_or_never().is_none());
        assert!(claim.stop().is_cancelled());
        drop(pin);
        let pin = pins.pin(&a);
        drop(claim);
        drop(pin.await);
        let again = pins.claim(&a).unwrap();
        assert!(!again.stop().is_cancelled(), "an old wish does not count against a new claim");
        drop(again);
        assert!(pins.entries().is_empty(), "nothing is left behind");
    }
}
