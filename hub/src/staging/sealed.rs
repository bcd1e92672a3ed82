//! Complete first snapshots. Their parts stay as they are, and the buffer's log holds only their facts: no byte is
//! written twice, and what several databases share lies on the disk once.
//!
//! ```text
//! <data-dir>/sealed/<database id>/catalog, part-<n>   as in `staging`
//!                                 seal                what they are together
//! ```
//!
//! Invariants
//! - A folder appears whole, by renaming; the segment is appended after that. What a crash leaves without its segment is
//!   given back to the staging, or dropped, by the next start ([`super::Staging::reconcile`]).
//! - A folder goes when every lane has taken the snapshot, never under a reader.

use super::StagingError;
use super::area::sweep;
use super::catalog::Catalog;
use super::seal::{Seal, Snapshot};
use crate::buffer::{DatabaseId, Payloads};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use walhub_common::{Checksum, TxidRange};

/// Folder of all sealed snapshots, inside the data folder.
pub(super) const FOLDER: &str = "sealed";
const SEAL: &str = "seal";

/// See the module doc. Its methods block.
#[derive(Debug)]
pub struct Sealed {
    root: PathBuf,
    used: Arc<AtomicU64>,
    kept: Mutex<HashMap<DatabaseId, Arc<Entry>>>,
}

/// One of them. A reader keeps it alive.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dir: PathBuf,
    pub(super) facts: Facts,
}

/// What is in the file `seal`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    min: u64,
    max: u64,
    post: u64,
    last_part: u32,
    agent_time_ms: i64,
    /// Pages of the database.
    commit: u32,
    /// LTX bytes.
    bytes: u64,
    /// Bytes that were counted as used by it.
    pub(super) own_bytes: u64,
}

impl Facts {
    pub(super) fn new(seal: &Seal, commit: u32, bytes: u64, own_bytes: u64) -> Facts {
        Facts {
            min: seal.range.min().get(),
            max: seal.range.max().get(),
            post: seal.post.get(),
            last_part: seal.last_part,
            agent_time_ms: seal.agent_time_ms,
            commit,
            bytes,
            own_bytes,
        }
    }

    /// `None` when they cannot be.
    fn seal(&self) -> Option<Seal> {
        Some(Seal {
            range: TxidRange::from_raw(self.min, self.max)?,
            post: Checksum::new(self.post)?,
            last_part: self.last_part,
            agent_time_ms: self.agent_time_ms,
        })
    }
}

impl Sealed {
    /// Reads what `data_dir` holds; changes nothing.
    pub fn open(data_dir: &Path) -> io::Result<Sealed> {
        let root = data_dir.join(FOLDER);
        let (mut kept, mut used) = (HashMap::new(), 0);
        let folders = match super::folders(&root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            folders => folders?,
        };
        for dir in folders {
            let number = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let facts =
                fs::read(dir.join(SEAL)).ok().and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok());
            match (number, facts.filter(|facts| facts.seal().is_some())) {
                (Some(number), Some(facts)) => {
                    used += facts.own_bytes;
                    kept.insert(DatabaseId(number), Arc::new(Entry { dir, facts }));
                }
                _ => {
                    tracing::error!(dir = %dir.display(), "a sealed snapshot cannot be read: its destinations must have it")
                }
            }
        }
        Ok(Sealed { root, used: Arc::new(AtomicU64::new(used)), kept: Mutex::new(kept) })
    }

    /// Bytes used by everything that counts with these snapshots.
    pub(super) fn used(&self) -> Arc<AtomicU64> {
        self.used.clone()
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<DatabaseId, Arc<Entry>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<(DatabaseId, TxidRange)> {
        let range = |facts: &Facts| facts.seal().expect("BUG: it was read before").range;
        self.kept().iter().map(|(id, entry)| (*id, range(&entry.facts))).collect()
    }

    /// Takes the folder of complete parts over.
    pub(super) fn take(&self, database: DatabaseId, from: &Path, facts: Facts) -> Result<(), StagingError> {
        let mut file = File::create(from.join(SEAL))?;
        file.write_all(&serde_json::to_vec(&facts).map_err(io::Error::other)?)?;
        file.sync_all()?;
        File::open(from)?.sync_all()?;
        fs::create_dir_all(&self.root)?;
        let dir = self.root.join(database.0.to_string());
        fs::rename(from, &dir)?;
        File::open(&self.root)?.sync_all()?;
        self.kept().insert(database, Arc::new(Entry { dir, facts }));
        Ok(())
    }

    /// Makes it parts again, in the folder `to`.
    pub(super) fn give_back(&self, database: DatabaseId, to: &Path) -> io::Result<()> {
        let Some(entry) = self.kept().remove(&database) else { return Ok(()) };
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::remove_file(entry.dir.join(SEAL))?;
        fs::rename(&entry.dir, to)?;
        self.used.fetch_sub(entry.facts.own_bytes, Ordering::Relaxed);
        self.used.fetch_add(sweep(to)?, Ordering::Relaxed);
        Ok(())
    }

    /// When it was sealed, as its file says.
    pub(super) fn age(&self, database: DatabaseId) -> Option<Duration> {
        let entry = self.kept().get(&database).cloned()?;
        let sealed = fs::metadata(entry.dir.join(SEAL)).and_then(|metadata| metadata.modified()).ok()?;
        SystemTime::now().duration_since(sealed).ok()
    }

    /// Removes it, unless somebody reads it.
    pub(super) fn drop_unread(&self, database: DatabaseId) -> io::Result<bool> {
        let entry = {
            let mut kept = self.kept();
            match kept.get(&database) {
                Some(entry) if Arc::strong_count(entry) == 1 => kept.remove(&database),
                _ => None,
            }
        };
        let Some(entry) = entry else { return Ok(false) };
        fs::remove_dir_all(&entry.dir)?;
        self.used.fetch_sub(entry.facts.own_bytes, Ordering::Relaxed);
        Ok(true)
    }

    fn entry(&self, database: DatabaseId, range: TxidRange) -> Option<(Arc<Entry>, Seal)> {
        let entry = self.kept().get(&database).cloned()?;
        let seal = entry.facts.seal()?;
        (seal.range == range).then_some((entry, seal))
    }
}

impl Payloads for Sealed {
    fn bytes(&self, database: DatabaseId, range: TxidRange) -> Option<u64> {
        self.entry(database, range).map(|(entry, _)| entry.facts.bytes)
    }

    fn open(&self, database: DatabaseId, range: TxidRange) -> io::Result<Option<Box<dyn Read + Send>>> {
        let Some((entry, seal)) = self.entry(database, range) else { return Ok(None) };
        let corrupt = || io::Error::other(StagingError::Corrupt("the catalog is damaged".into()));
        let catalog = Catalog::open(&entry.dir)?.ok_or_else(corrupt)?;
        let snapshot =
            Snapshot::open(&entry.dir, catalog, &seal, entry.facts.commit).map_err(io::Error::other)?;
        Ok(Some(Box::new(Reader { snapshot, _entry: entry })))
    }
}

/// Reads a snapshot and keeps it from being removed.
struct Reader {
    snapshot: Snapshot,
    _entry: Arc<Entry>,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.snapshot.read(out)
    }
}
