//! The parts of one database: their files, the catalog, and which of them are still needed.

use super::catalog::{Catalog, RUN, Version};
use super::part::{self, Contents, INCOMING, Incoming};
use super::{FIRST_PART, Held, StagingError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use walhub_common::{Checksum, Pgno};

const PART: &str = "part-";
/// There when pages of another database are among them.
const ADOPTED: &str = "adopted";

/// One part on disk.
#[derive(Clone, Copy, Default, Debug)]
struct Kept {
    /// Bytes that count as used: none for a part that an image holds as well.
    bytes: u64,
    /// Pages of which it holds the newest version.
    newest: u32,
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) dir: PathBuf,
    used: Arc<AtomicU64>,
    /// `None` exactly when there are no parts.
    pub(super) catalog: Option<Catalog>,
    parts: BTreeMap<u32, Kept>,
}

impl Area {
    pub(super) fn empty(dir: &Path, used: Arc<AtomicU64>) -> Area {
        Area { dir: dir.to_owned(), used, catalog: None, parts: BTreeMap::new() }
    }

    /// Reads what is there; `None` when that is nothing. What a crash left half done is finished; what is damaged is
    /// dropped, all of it, for the node can send it again.
    pub(super) fn open(dir: &Path, used: Arc<AtomicU64>) -> Result<Option<Area>, StagingError> {
        let mut area = Area::empty(dir, used);
        for (name, path) in files(dir)? {
            if let Some(number) = name.strip_prefix(PART).and_then(|n| n.parse().ok()) {
                area.parts.insert(number, Kept { bytes: own_bytes(&path)?, newest: 0 });
            }
        }
        let Some(newest) = area.parts.last_key_value().map(|(number, _)| *number) else { return Ok(None) };
        match area.load(newest) {
            Ok(()) => Ok(Some(area)),
            Err(StagingError::Corrupt(reason)) => {
                tracing::warn!(dir = %dir.display(), reason, "an unfinished first snapshot is damaged and begins anew");
                area.clear()?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn load(&mut self, newest: u32) -> Result<(), StagingError> {
        let contents = part::contents(&File::open(self.part(newest))?)?;
        let catalog = Catalog::open(&self.dir)?;
        let catalog = match catalog {
            Some(catalog) if catalog.page_size() == contents.header.page_size => catalog,
            None if newest == FIRST_PART => Catalog::create(&self.dir, contents.header.page_size)?,
            _ => return Err(StagingError::Corrupt("the catalog is missing or of another database".into())),
        };
        // The crash may have come before the newest part was entered.
        catalog.write(&numbered(contents.pages, newest), |_| ())?;
        catalog.sync()?;
        let mut first = Pgno::FIRST;
        loop {
            let versions = catalog.read(first, RUN)?;
            for version in versions.iter().flatten() {
                match self.parts.get_mut(&version.part) {
                    Some(part) => part.newest += 1,
                    None => return Err(StagingError::Corrupt(format!("part {} is missing", version.part))),
                }
            }
            match first.get().checked_add(versions.len() as u32).and_then(Pgno::new) {
                Some(next) if versions.len() == RUN => first = next,
                _ => break,
            }
        }
        self.catalog = Some(catalog);
        self.prune(newest)
    }

    pub(super) fn held(&mut self) -> Option<Held> {
        let catalog = self.catalog.as_ref()?;
        Some(Held {
            next: self.next(),
            pages: self.parts.values().map(|part| part.newest).sum(),
            page_size: catalog.page_size(),
            adopted: self.dir.join(ADOPTED).exists(),
        })
    }

    /// Bytes that count as used.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.values().map(|part| part.bytes).sum()
    }

    /// Makes what an image holds the parts of this database, which has none. A crash leaves them whole, or damaged, which
    /// is as good as none.
    pub(super) fn adopt(
        dir: &Path,
        image: &Path,
        used: Arc<AtomicU64>,
    ) -> Result<Option<Area>, StagingError> {
        fs::create_dir_all(dir)?;
        File::create(dir.join(ADOPTED))?.sync_all()?;
        match link_parts(image, dir).and_then(|_| Catalog::adopt(dir, image)) {
            // Dropped meanwhile to make room for another.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::remove_dir_all(dir)?;
                return Ok(None);
            }
            linked => linked?,
        };
        File::open(dir)?.sync_all()?;
        Area::open(dir, used)
    }

    fn next(&self) -> u32 {
        self.parts.last_key_value().map_or(FIRST_PART, |(number, _)| number.saturating_add(1))
    }

    /// Verifies and keeps a part.
    pub(super) fn add(&mut self, mut incoming: Incoming) -> Result<u32, StagingError> {
        let Contents { header, pages } = incoming.contents()?;
        let number = header.range.min().get();
        let due = self.next();
        if number != u64::from(due) && number != u64::from(FIRST_PART) {
            return Err(StagingError::OutOfOrder { found: number, due });
        }
        let number = number as u32;
        if number == FIRST_PART {
            self.clear()?;
            fs::create_dir_all(&self.dir)?;
        }
        if self.catalog.as_ref().is_some_and(|c| c.page_size() != header.page_size) {
            return Err(StagingError::Corrupt("a part with pages of another size".into()));
        }
        let bytes = incoming.bytes();
        incoming.keep(&self.part(number))?;
        self.parts.insert(number, Kept { bytes, newest: pages.len() as u32 });
        let catalog = match self.catalog.take() {
            Some(catalog) => catalog,
            None => Catalog::create(&self.dir, header.page_size)?,
        };
        let parts = &mut self.parts;
        catalog.write(&numbered(pages, number), |old| {
            if let Some(part) = parts.get_mut(&old.part) {
                part.newest = part.newest.saturating_sub(1);
            }
        })?;
        catalog.sync()?;
        self.catalog = Some(catalog);
        self.prune(number)?;
        Ok(number)
    }

    /// Removes parts that are all superseded. The newest stays: it says which number is next.
    fn prune(&mut self, newest: u32) -> Result<(), StagingError> {
        let old: Vec<u32> = self
            .parts
            .iter()
            .filter(|(n, part)| part.newest == 0 && **n != newest)
            .map(|(n, _)| *n)
            .collect();
        for number in old {
            fs::remove_file(self.part(number))?;
            let bytes = self.parts.remove(&number).map_or(0, |part| part.bytes);
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) fn checksums(&self, first: Pgno, count: usize) -> io::Result<Vec<Option<Checksum>>> {
        let Some(catalog) = &self.catalog else { return Ok(Vec::new()) };
        Ok(catalog.read(first, count)?.into_iter().map(|v| v.map(|v| v.checksum)).collect())
    }

    /// The path of a part.
    pub(super) fn part(&self, number: u32) -> PathBuf {
        part_path(&self.dir, number)
    }

    /// Removes every part. The catalog goes first: without it, parts are nothing.
    fn clear(&mut self) -> Result<(), StagingError> {
        self.catalog = None;
        Catalog::remove(&self.dir)?;
        for (number, part) in std::mem::take(&mut self.parts) {
            fs::remove_file(self.part(number))?;
            self.used.fetch_sub(part.bytes, Ordering::Relaxed);
        }
        match fs::remove_file(self.dir.join(ADOPTED)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// The path of a part in a folder.
pub(super) fn part_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{PART}{number}"))
}

/// Links all parts in `from` into `to`; their bytes.
pub(super) fn link_parts(from: &Path, to: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for (name, path) in files(from)? {
        if name.starts_with(PART) {
            fs::hard_link(&path, to.join(&name))?;
            bytes += fs::metadata(path)?.len();
        }
    }
    Ok(bytes)
}

/// Bytes of all parts in a folder, shared or not.
pub(super) fn sizes(dir: &Path) -> io::Result<u64> {
    let parts = files(dir)?.into_iter().filter(|(name, _)| name.starts_with(PART));
    parts.map(|(_, path)| Ok(fs::metadata(path)?.len())).sum()
}

/// Bytes of a part that nothing else holds.
fn own_bytes(path: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    Ok(if metadata.nlink() > 1 { 0 } else { metadata.len() })
}

/// A part learns its number only from its header.
fn numbered(mut pages: Vec<(Pgno, Version)>, part: u32) -> Vec<(Pgno, Version)> {
    pages.iter_mut().for_each(|(_, version)| version.part = part);
    pages
}

fn files(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}

/// Removes what was being received when the hub ended; bytes of the parts.
pub(super) fn sweep(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for (name, path) in files(dir)? {
        if name.starts_with(INCOMING) {
            fs::remove_file(path)?;
        } else if name.starts_with(PART) {
            bytes += own_bytes(&path)?;
        }
    }
    Ok(bytes)
}

/// When something was added last.
pub(super) fn newest(dir: &Path) -> io::Result<Option<SystemTime>> {
    let mut newest = None;
    for (_, path) in files(dir)? {
        newest = newest.max(Some(fs::metadata(path)?.modified()?));
    }
    Ok(newest)
}
