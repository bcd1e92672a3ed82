//! Who this hub is, which number its next mirror has, and which mirror each destination has: one small file of the data folder.
//!
//! Invariants: a number is on disk before an object of that number can exist, so it never names two contents, unless the
//! folder itself is an older copy (the put notices). Losing the file costs a new id, and nothing else.

use super::state::HubId;
use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::DestinationName;

/// The file.
pub const FILE: &str = "hub.json";
const VERSION: u32 = 1;

/// The newest mirror that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Last {
    /// Its number.
    pub seq: u64,
    /// When, Unix ms.
    pub written_ms: i64,
    /// Digest of what files do not tell.
    pub structure: [u8; 32],
    /// Digest with the positions.
    pub moved: [u8; 32],
}

/// The newest mirror at a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Its number.
    pub seq: u64,
    /// When it was made, Unix ms.
    pub written_ms: i64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    version: u32,
    id: String,
    predecessor: Option<String>,
    /// Numbers below are taken.
    next_seq: u64,
    last: Option<Last>,
    /// By the name of the place's cursors.
    held: BTreeMap<String, Held>,
}

impl Stored {
    fn new(id: &HubId, predecessor: Option<&HubId>) -> Self {
        Self {
            version: VERSION,
            id: id.to_string(),
            predecessor: predecessor.map(HubId::to_string),
            next_seq: 1,
            last: None,
            held: BTreeMap::new(),
        }
    }
}

/// See the module doc.
pub struct Ledger {
    dir: PathBuf,
    id: HubId,
    stored: Mutex<Stored>,
    /// One change at a time.
    changes: tokio::sync::Mutex<()>,
}

impl Ledger {
    /// Reads the file of `data_dir`, or makes it. A damaged one is moved aside, loudly. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let read = match std::fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(bytes) = read else { return Self::create(data_dir, None) };
        let parsed = serde_json::from_slice::<Stored>(&bytes).map_err(|error| error.to_string());
        match parsed.and_then(|stored| {
            let id = HubId::new(&stored.id).ok_or("its id is none")?;
            Ok((id, stored))
        }) {
            Ok((_, stored)) if stored.version != VERSION => Err(io::Error::other(format!(
                "{} has version {}, this hub knows {VERSION}",
                path.display(),
                stored.version
            ))),
            Ok((id, stored)) => Ok(Self::with(data_dir, id, stored)),
            Err(error) => {
                let aside = data_dir.join(format!("{FILE}.damaged"));
                std::fs::rename(&path, &aside)?;
                tracing::error!(%error, moved_to = %aside.display(), "the hub's identity is damaged: it gets another one");
                Self::create(data_dir, None)
            }
        }
    }

    /// A new identity, durable when it returns. Blocking.
    pub fn create(data_dir: &Path, predecessor: Option<&HubId>) -> io::Result<Self> {
        let id = HubId::draw();
        let stored = Stored::new(&id, predecessor);
        durable::replace(data_dir, FILE, &serde_json::to_vec(&stored)?)?;
        Ok(Self::with(data_dir, id, stored))
    }

    fn with(data_dir: &Path, id: HubId, stored: Stored) -> Self {
        Self {
            dir: data_dir.to_path_buf(),
            id,
            stored: Mutex::new(stored),
            changes: tokio::sync::Mutex::default(),
        }
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who this hub is.
    pub fn id(&self) -> &HubId {
        &self.id
    }

    /// The hub in whose place it came.
    pub fn predecessor(&self) -> Option<HubId> {
        self.stored().predecessor.as_deref().and_then(HubId::new)
    }

    /// The newest mirror that was made.
    pub fn last(&self) -> Option<Last> {
        self.stored().last.clone()
    }

    /// What a place has, as far as this hub put it there.
    pub fn held(&self, place: &DestinationName) -> Option<Held> {
        self.stored().held.get(place.as_str()).copied()
    }

    /// True when the newest mirror has a number that was found taken.
    pub fn is_outdated(&self) -> bool {
        let stored = self.stored();
        stored.last.as_ref().is_some_and(|last| last.seq + 1 < stored.next_seq)
    }

    /// Takes the next number for a mirror with these digests. Durable when it returns.
    pub async fn claim(&self, structure: [u8; 32], moved: [u8; 32], written_ms: i64) -> io::Result<u64> {
        self.change(|stored| {
            let seq = stored.next_seq;
            stored.next_seq += 1;
            stored.last = Some(Last { seq, written_ms, structure, moved });
            seq
        })
        .await
    }

    /// Numbers up to `taken` are another's.
    pub async fn raise(&self, taken: u64) -> io::Result<()> {
        self.change(|stored| stored.next_seq = stored.next_seq.max(taken.saturating_add(1))).await
    }

    /// A place has this mirror.
    pub async fn arrived(&self, place: &DestinationName, held: Held) -> io::Result<()> {
        self.change(|stored| {
            stored.held.insert(place.to_string(), held);
        })
        .await
    }

    async fn change<T>(&self, change: impl FnOnce(&mut Stored) -> T) -> io::Result<T> {
        let _change = self.changes.lock().await;
        let mut next = self.stored().clone();
        let result = change(&mut next);
        let bytes = serde_json::to_vec(&next)?;
        let dir = self.dir.clone();
        let saved = tokio::task::spawn_blocking(move || durable::replace(&dir, FILE, &bytes)).await;
        saved.map_err(io::Error::other)??;
        *self.stored() = next;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hub_stays_who_it_is_and_numbers_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let place = DestinationName::new("file-1").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let id = ledger.id().clone();
        assert_eq!(ledger.claim([1; 32], [2; 32], 5).await.unwrap(), 1);
        let held = Held { seq: 1, written_ms: 5 };
        ledger.arrived(&place, held).await.unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!((ledger.id(), ledger.held(&place)), (&id, Some(held)));
        assert!(!ledger.is_outdated());
        ledger.raise(7).await.unwrap();
        assert!(ledger.is_outdated());
        assert_eq!(ledger.claim([1; 32], [2; 32], 6).await.unwrap(), 8);
        ledger.raise(3).await.unwrap();
        assert!(!ledger.is_outdated());
    }

    #[test]
    fn a_damaged_file_gives_a_new_identity_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let id = Ledger::open(dir.path()).unwrap().id().clone();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(Ledger::open(dir.path()).err().expect("newer").to_string().contains("version 2"));
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_ne!(*Ledger::open(dir.path()).unwrap().id(), id);
        assert!(dir.path().join("hub.json.damaged").exists());
    }
}
