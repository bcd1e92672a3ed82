//! Databases of which nothing may be deleted until somebody says so: on the hub's own disk, in one small file.
//!
//! Invariants: a hold is on disk before it is confirmed, a release as well; a file that cannot be read keeps the hub from
//! starting, because nobody could say what it protected.

use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use walhub_common::{DatabaseKey, clock};

const FILE: &str = "holds.json";
const VERSION: u32 = 1;
/// Characters of a reason that are kept.
const MAX_REASON_CHARS: usize = 1024;

/// One hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Of which nothing is deleted.
    pub database: DatabaseKey,
    /// Since when, Unix ms.
    pub since_ms: i64,
    /// What was said when it was added.
    pub reason: String,
}

/// A hold that could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("the holds cannot be recorded: {0}")]
pub struct HoldError(#[from] io::Error);

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    since_ms: i64,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    holds: BTreeMap<String, Entry>,
}

/// The holds of one hub.
pub struct Holds {
    dir: PathBuf,
    holds: Mutex<BTreeMap<DatabaseKey, Entry>>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    /// Counts changes that are on disk.
    changes: watch::Sender<u64>,
}

impl Holds {
    /// Reads the file of `data_dir`. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let broken = |reason: String| {
            let text = "what it protected is unknown: bring it back, or remove it when nothing was on hold";
            io::Error::other(format!("{}: {reason}; {text}", path.display()))
        };
        let mut holds = BTreeMap::new();
        match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
                if stored.version != VERSION {
                    return Err(broken(format!(
                        "it has version {}, this hub knows {VERSION}",
                        stored.version
                    )));
                }
                for (key, entry) in stored.holds {
                    holds.insert(key.parse().map_err(|e| broken(format!("{key:?}: {e}")))?, entry);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            dir: data_dir.to_path_buf(),
            holds: Mutex::new(holds),
            turn: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Writes the holds of a hub whose disk was lost into the folder of the one that takes its place. Durable when it
    /// returns. Blocking.
    pub fn restore(data_dir: &Path, holds: &[Hold]) -> io::Result<()> {
        let entry = |hold: &Hold| {
            (hold.database.to_string(), Entry { since_ms: hold.since_ms, reason: hold.reason.clone() })
        };
        let stored = Stored { version: VERSION, holds: holds.iter().map(entry).collect() };
        durable::replace(data_dir, FILE, &serde_json::to_vec(&stored)?)
    }

    /// Changes whenever a hold was added or released (the value only counts).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn holds(&self) -> MutexGuard<'_, BTreeMap<DatabaseKey, Entry>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when nothing of the database may be deleted.
    pub fn is_held(&self, database: &DatabaseKey) -> bool {
        self.holds().contains_key(database)
    }

    /// All, by name.
    pub fn list(&self) -> Vec<Hold> {
        let hold = |(database, entry): (&DatabaseKey, &Entry)| Hold {
            database: database.clone(),
            since_ms: entry.since_ms,
            reason: entry.reason.clone(),
        };
        self.holds().iter().map(hold).collect()
    }

    /// Adds a hold; one that is there keeps its time and gets the new reason. Durable when it returns.
    pub async fn add(&self, database: &DatabaseKey, reason: &str) -> Result<(), HoldError> {
        let _change = self.turn.lock().await;
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        let mut next = self.holds().clone();
        let since_ms = next.get(database).map_or_else(clock::now_ms, |held| held.since_ms);
        next.insert(database.clone(), Entry { since_ms, reason });
        // It counts at once: too early does no harm.
        *self.holds() = next.clone();
        self.save(next).await
    }

    /// Ends a hold; false when there was none. Durable when it returns.
    pub async fn release(&self, database: &DatabaseKey) -> Result<bool, HoldError> {
        let _change = self.turn.lock().await;
        let mut next = self.holds().clone();
        let there = next.remove(database).is_some();
        if there {
            self.save(next.clone()).await?;
            *self.holds() = next;
        }
        Ok(there)
    }

    async fn save(&self, holds: BTreeMap<DatabaseKey, Entry>) -> Result<(), HoldError> {
        let holds = holds.into_iter().map(|(key, entry)| (key.to_string(), entry)).collect();
        let bytes = serde_json::to_vec(&Stored { version: VERSION, holds }).map_err(io::Error::from)?;
        let dir = self.dir.clone();
        let saved = tokio::task::spawn_blocking(move || durable::replace(&dir, FILE, &bytes)).await;
        saved.map_err(io::Error::other)??;
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holds_survive_the_hub_and_a_damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b): (DatabaseKey, DatabaseKey) = ("n/a".parse().unwrap(), "n/b".parse().unwrap());
        let holds = Holds::open(dir.path()).unwrap();
        holds.add(&a, "case 7").await.unwrap();
        holds.add(&b, "").await.unwrap();
        let since_ms = holds.list()[0].since_ms;
        holds.add(&a, "case 8").await.unwrap();
        assert!(holds.release(&b).await.unwrap() && !holds.release(&b).await.unwrap());
        drop(holds);
        let holds = Holds::open(dir.path()).unwrap();
        assert!(holds.is_held(&a) && !holds.is_held(&b));
        assert_eq!(holds.list(), [Hold { database: a, since_ms, reason: "case 8".into() }]);
        std::fs::write(dir.path().join(FILE), b"{\"version\":1,\"holds\":{\"n/a\"").unwrap();
        let error = Holds::open(dir.path()).err().expect("damaged").to_string();
        assert!(error.contains("what it protected is unknown"), "{error}");
    }
}
