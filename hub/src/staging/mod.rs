//! Parts of first snapshots, kept until the snapshot is complete.
//!
//! A first snapshot of a large database takes longer than links live. Its pages come as *parts*: small LTX files, each of
//! some pages at some moment. They are no history: nothing is restored from them. When the node has sent a version of
//! every page and what differed meanwhile, a last file says what all of them together are, and [`Staging::seal`] makes
//! them the payload of a segment: the newest version of each page ([`sealed`]). They stay as an image, too, with which
//! first snapshots to come are compared ([`images`]).
//!
//! ```text
//! <data-dir>/staging/<agent>/<database>/catalog      page → newest version (part, place, checksum): see [`catalog`]
//!                                       part-<n>     one verified LTX file
//!                                       incoming-<k> one that is being received; removed by the next start
//! ```
//!
//! Invariants
//! - A part that [`Staging::finish`] returned is verified and on disk, its pages are in the catalog, and both survive a crash.
//! - Memory does not grow with the database nor with the number of parts: the catalog is a file, read in runs.
//! - All databases together keep at most `max_bytes`; parts of which no page is the newest any more are removed.
//! - What is sealed has the database checksum that the node named, or it is no segment.
//!
//! Non-goals: no protocol, no decision about who may send what ([`crate::ingest`]).

mod area;
mod catalog;
mod images;
mod pages;
mod part;
mod seal;
mod sealed;
mod stretches;
mod tend;
#[cfg(test)]
mod tests;

pub use part::Incoming;
pub use seal::Seal;
pub use sealed::Sealed;
pub use tend::tend;

use crate::buffer::{DatabaseId, Takers, WalBuffer};
use area::Area;
use catalog::Catalog;
use images::Images;
use seal::Snapshot;
use sealed::Facts;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use walhub_common::stretch::{PageHash, StretchHash};
use walhub_common::{AgentName, Checksum, DatabaseKey, DatabaseName, DestinationName, PageSize, Pgno};

/// Folder of all parts, inside the data folder.
pub const FOLDER: &str = "staging";
/// Number of the first part. An LTX file from TXID 1 would have to hold every page.
pub const FIRST_PART: u32 = 2;
/// Parts to which nothing was added for so long belong to a database that will not come back.
pub const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A sealed snapshot that every lane has taken is kept so long, if there is room: restores read it from here.
const SEALED_AGE: Duration = Duration::from_secs(3600);
/// One part of so many of the bound for parts may be used by images.
pub const IMAGES_SHARE: u64 = 4;

/// Why a part was not taken, or a snapshot not made.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// No room.
    #[error("unfinished first snapshots take {used} of {max} bytes")]
    Full {
        /// Bytes kept.
        used: u64,
        /// The bound.
        max: u64,
    },
    /// The bytes are not the part they claim to be, or the parts are not the database.
    #[error("{0}")]
    Corrupt(String),
    /// The part is larger than one may be.
    #[error("a part of more than {0} bytes")]
    TooLarge(u64),
    /// Another part is due.
    #[error("part {found} came where part {due} was due")]
    OutOfOrder {
        /// What came.
        found: u64,
        /// What was due.
        due: u32,
    },
    /// The snapshot is being made.
    #[error("its first snapshot is being put together from its parts")]
    Sealing,
    /// Whoever took the snapshot's bytes wants no more.
    #[error("given up")]
    GivenUp,
    /// The disk.
    #[error("staging: {0}")]
    Io(#[from] io::Error),
}

/// What is kept of one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Number of the next part.
    pub next: u32,
    /// Pages of which there is a version.
    pub pages: u32,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages of another database are among them.
    pub adopted: bool,
}

/// All unfinished first snapshots. Its methods block, but for [`Staging::has`] and [`Staging::is_sealing`].
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    max_bytes: u64,
    /// Bytes of all parts, those being received and those that are sealed included.
    used: Arc<AtomicU64>,
    sealed: Arc<Sealed>,
    images: Images,
    incoming: AtomicU64,
    slots: Mutex<HashMap<DatabaseKey, Arc<Slot>>>,
}

/// One database.
#[derive(Debug)]
struct Slot {
    dir: PathBuf,
    used: Arc<AtomicU64>,
    /// `None` until somebody asked for it.
    area: Mutex<Option<Area>>,
    sealing: AtomicBool,
}

impl Staging {
    /// Opens what `data_dir` holds. Reads names and sizes only. `max_bytes` is for parts and sealed snapshots together,
    /// [`IMAGES_SHARE`] more for images.
    pub fn open(data_dir: &Path, max_bytes: u64, sealed: Arc<Sealed>) -> io::Result<Staging> {
        let root = data_dir.join(FOLDER);
        fs::create_dir_all(&root)?;
        let used = sealed.used();
        let images = Images::open(data_dir, max_bytes / IMAGES_SHARE)?;
        let mut slots = HashMap::new();
        for agent in folders(&root)? {
            for database in folders(&agent)? {
                match key(&database) {
                    Some(key) => {
                        used.fetch_add(area::sweep(&database)?, Ordering::Relaxed);
                        slots.insert(key, Arc::new(Slot::new(database, used.clone())));
                    }
                    None => fs::remove_dir_all(&database)?,
                }
            }
        }
        let (incoming, slots) = (AtomicU64::new(0), Mutex::new(slots));
        Ok(Staging { root, max_bytes, used, sealed, images, incoming, slots })
    }

    /// True when something of `database` may be kept.
    pub fn has(&self, database: &DatabaseKey) -> bool {
        self.slots().contains_key(database)
    }

    /// True while its snapshot is being made.
    pub fn is_sealing(&self, database: &DatabaseKey) -> bool {
        self.slots().get(database).is_some_and(|slot| slot.sealing.load(Ordering::Acquire))
    }

    /// Bytes kept for all databases.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What is kept of `database`.
    pub fn held(&self, database: &DatabaseKey) -> Result<Option<Held>, StagingError> {
        let Some(slot) = self.slots().get(database).cloned() else { return Ok(None) };
        let mut area = slot.area()?;
        Ok(area.as_mut().and_then(Area::held))
    }

    /// Checksums of the newest staged versions of at most `count` pages from `first` on, `None` for a page of which there is
    /// none. Empty behind the last one.
    pub fn checksums(
        &self,
        database: &DatabaseKey,
        first: Pgno,
        count: usize,
    ) -> Result<Vec<Option<Checksum>>, StagingError> {
        let Some(slot) = self.slots().get(database).cloned() else { return Ok(Vec::new()) };
        let area = slot.area()?;
        match area.as_ref() {
            Some(area) => Ok(area.checksums(first, count)?),
            None => Ok(Vec::new()),
        }
    }

    /// Begins to receive a part.
    pub fn begin(&self, database: &DatabaseKey) -> Result<Incoming, StagingError> {
        let slot = self.slot(database);
        if slot.sealing.load(Ordering::Acquire) {
            return Err(StagingError::Sealing);
        }
        let number = self.incoming.fetch_add(1, Ordering::Relaxed);
        Incoming::create(&slot.dir, number, self.used.clone(), self.max_bytes)
    }

    /// Verifies a part and keeps it; its number. After an error nothing of it is kept.
    pub fn finish(&self, database: &DatabaseKey, part: Incoming) -> Result<u32, StagingError> {
        let slot = self.slot(database);
        if slot.sealing.load(Ordering::Acquire) {
            return Err(StagingError::Sealing);
        }
        let mut area = slot.area()?;
        area.get_or_insert_with(|| Area::empty(&slot.dir, slot.used.clone())).add(part)
    }

    /// Verifies that the parts are the snapshot that the node named, and makes them the payload of a segment of `database`,
    /// which the caller appends; then it says so with [`Staging::settle`]. Until then nothing of it is taken. `stop` is
    /// asked now and then. An error that says they are [`StagingError::Corrupt`] has discarded the parts.
    pub fn seal(
        &self,
        key: &DatabaseKey,
        database: DatabaseId,
        seal: &Seal,
        stop: impl Fn() -> bool,
    ) -> Result<(), StagingError> {
        let slot = self.slot(key);
        if slot.sealing.swap(true, Ordering::AcqRel) {
            return Err(StagingError::Sealing);
        }
        let result = self.try_seal(&slot, database, seal, stop);
        if let Err(error) = &result {
            if matches!(error, StagingError::Corrupt(_)) {
                self.discard(key)?;
            }
            slot.sealing.store(false, Ordering::Release);
        }
        result
    }

    fn try_seal(
        &self,
        slot: &Slot,
        database: DatabaseId,
        seal: &Seal,
        stop: impl Fn() -> bool,
    ) -> Result<(), StagingError> {
        let mut area = slot.area()?;
        let none = || StagingError::Corrupt("there are no parts".into());
        let parts = area.as_ref().ok_or_else(none)?;
        let last = part::contents(&File::open(parts.part(seal.last_part))?)?.header;
        let catalog = Catalog::open(&slot.dir)?.ok_or_else(none)?;
        let page_size = catalog.page_size();
        let (bytes, hashes) = Snapshot::open(&slot.dir, catalog, seal, last.commit)?.verify(stop)?;
        // It spares others bytes; this snapshot does not need it.
        if let Err(error) = self.images.keep(&slot.dir, page_size, last.commit, hashes) {
            tracing::warn!(%error, "cannot keep an image");
        }
        self.sealed.take(database, &slot.dir, Facts::new(seal, last.commit, bytes, parts.bytes()))?;
        *area = None;
        Ok(())
    }

    /// After [`Staging::seal`]: the segment was appended, or not, and then the parts are parts again.
    pub fn settle(&self, key: &DatabaseKey, database: DatabaseId, appended: bool) -> io::Result<()> {
        let slot = self.slot(key);
        let result = if appended { Ok(()) } else { self.sealed.give_back(database, &slot.dir) };
        slot.sealing.store(false, Ordering::Release);
        if appended {
            self.slots().remove(key);
        }
        result
    }

    /// After a start: sealed snapshots that the buffer knows nothing of. What lacks its segment only because the hub ended
    /// too soon is staged again.
    pub fn reconcile(&self, buffer: &dyn WalBuffer) -> io::Result<()> {
        let databases = buffer.databases();
        for (id, range) in self.sealed.all() {
            let known = databases.iter().find(|known| known.id == id);
            let first = buffer.list(id, None, 1).unwrap_or_default().into_iter().next();
            match known {
                Some(_) if first.is_some_and(|first| first.meta.range == range) => {}
                Some(known) if known.position.is_none() => {
                    let slot = self.slot(&known.key);
                    self.sealed.give_back(id, &slot.dir)?;
                }
                _ => drop(self.sealed.drop_unread(id)?),
            }
        }
        Ok(())
    }

    /// Removes sealed snapshots that every lane has taken and no awaited point needs, when they are old or room is wanted. Afterwards the buffer says of
    /// their segments that they were given back.
    pub fn sweep(&self, buffer: &dyn WalBuffer, takers: &dyn Takers) -> io::Result<()> {
        let databases = buffer.databases();
        let wanted = self.used() > self.max_bytes / 2;
        for (id, range) in self.sealed.all() {
            let Some(known) = databases.iter().find(|known| known.id == id && known.position.is_some())
            else {
                continue;
            };
            let lanes = takers.of(id);
            let passed = |lane: &DestinationName| buffer.cursor(lane, id) >= Some(range.max());
            let old = self.sealed.age(id).is_some_and(|age| age >= SEALED_AGE);
            let kept = takers.kept(id).into_iter().any(|run| run.min() <= range.max());
            if (old || wanted)
                && !kept
                && !lanes.is_empty()
                && lanes.iter().all(passed)
                && self.sealed.drop_unread(id)?
            {
                tracing::debug!(database = %known.key, "gave the parts of a first snapshot back");
            }
        }
        Ok(())
    }

    /// True when there is something that a first snapshot may be compared with.
    pub fn has_images(&self) -> bool {
        !self.images.is_empty()
    }

    /// Which of these stretches, given ascending, are staged just so. When nothing is staged, the image that agrees best is
    /// asked, and with `adopt` becomes what is staged.
    pub fn match_stretches(
        &self,
        database: &DatabaseKey,
        page_size: PageSize,
        stretches: &[(u32, StretchHash)],
        adopt: bool,
    ) -> Result<Vec<u32>, StagingError> {
        let slot = self.slot(database);
        if slot.sealing.load(Ordering::Acquire) {
            return Err(StagingError::Sealing);
        }
        let mut area = slot.area()?;
        if let Some(area) = area.as_ref() {
            return area.matching(page_size, stretches);
        }
        let best = self.images.best(page_size, stretches);
        let mut matched = Vec::new();
        if let Some(best) = best {
            if adopt {
                *area = Area::adopt(&slot.dir, &best.dir, slot.used.clone())?;
            }
            if !adopt || area.is_some() {
                matched = best.matched;
            }
        }
        if area.is_none() {
            drop(area);
            self.slots().remove(database);
        }
        Ok(matched)
    }

    /// Hashes of the staged pages of these stretches, [`stretch::STRETCH_PAGES`] each; zeros where none is staged.
    pub fn staged_pages(
        &self,
        database: &DatabaseKey,
        stretches: &[u32],
    ) -> Result<Vec<PageHash>, StagingError> {
        let Some(slot) = self.slots().get(database).cloned() else { return Ok(Vec::new()) };
        let area = slot.area()?;
        match area.as_ref() {
            Some(area) => area.page_hashes(stretches),
            None => Ok(Vec::new()),
        }
    }

    /// Drops what is kept of a database.
    pub fn discard(&self, database: &DatabaseKey) -> io::Result<()> {
        let Some(slot) = self.slots().get(database).cloned() else { return Ok(()) };
        let swept = area::sweep(&slot.dir)?;
        let mut area = slot.lock();
        let bytes = area.take().map_or(swept, |area| area.bytes());
        remove(&slot.dir)?;
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.slots().remove(database);
        Ok(())
    }

    /// Drops what nobody has added to for `max_age`; says of which databases.
    pub fn expire(&self, max_age: Duration) -> io::Result<Vec<DatabaseKey>> {
        let all: Vec<_> = self.slots().iter().map(|(key, slot)| (key.clone(), slot.clone())).collect();
        let mut gone = Vec::new();
        for (key, slot) in all {
            let newest = area::newest(&slot.dir)?;
            let age = newest.and_then(|at| SystemTime::now().duration_since(at).ok());
            if !slot.sealing.load(Ordering::Acquire) && age.is_none_or(|age| age >= max_age) {
                self.discard(&key)?;
                gone.push(key);
            }
        }
        Ok(gone)
    }

    fn slot(&self, database: &DatabaseKey) -> Arc<Slot> {
        let dir = || self.root.join(database.agent.as_str()).join(database.name.as_str());
        let mut slots = self.slots();
        let slot = slots.entry(database.clone());
        slot.or_insert_with(|| Arc::new(Slot::new(dir(), self.used.clone()))).clone()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<DatabaseKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn new(dir: PathBuf, used: Arc<AtomicU64>) -> Slot {
        Slot { dir, used, area: Mutex::new(None), sealing: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Area>> {
        self.area.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The area, read from disk when nobody has yet.
    fn area(&self) -> Result<MutexGuard<'_, Option<Area>>, StagingError> {
        let mut area = self.lock();
        if area.is_none() {
            *area = Area::open(&self.dir, self.used.clone())?;
        }
        Ok(area)
    }
}

/// Folders in a folder.
fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whose folder it is; `None` when no database can be called so.
fn key(dir: &Path) -> Option<DatabaseKey> {
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let (agent, database) = (AgentName::new(name(dir.parent()?)?), DatabaseName::new(name(dir)?));
    Some(DatabaseKey::new(agent.ok()?, database.ok()?))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
