//! A state that a live database is to be brought back to: the checksum of each of its pages, and those pages that had to be
//! fetched.
//!
//! Invariants: the checksums add up to the position's; a page that is kept here is the page of that state.
//!
//! Memory: that of a page map, and one bit a page. The pages lie in a file without a name, at their place in the database, so
//! it occupies as much of the disk as was fetched. Nothing of it outlives the process.

use crate::page_map::PageMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::{Checksum, PageSet, PageSize, Pgno, Pos};

/// Why a page was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Not one of that state.
    #[error("page {0} is not the page of transaction {1}: its checksum differs")]
    Other(Pgno, Pos),
    /// The scratch file.
    #[error("the scratch file for fetched pages: {0}")]
    Scratch(#[from] io::Error),
}

/// See the module doc. Shared between who fetches and who replaces.
#[derive(Debug)]
pub struct Wanted {
    position: Pos,
    page_size: PageSize,
    commit: u32,
    sums: Mutex<PageMap>,
    fetched: Mutex<PageSet>,
    file: File,
}

impl Wanted {
    /// The state whose page checksums `sums` are. `None` when they do not add up to `position`. `folder` gets the scratch
    /// file; it is made when missing.
    pub fn new(position: Pos, sums: PageMap, folder: &Path) -> io::Result<Option<Wanted>> {
        if sums.checksum() != position.checksum || sums.commit() == 0 {
            return Ok(None);
        }
        fs::create_dir_all(folder)?;
        let path = folder.join("fetched");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        let (page_size, commit) = (sums.page_size(), sums.commit());
        let fetched = Mutex::new(PageSet::empty(commit));
        Ok(Some(Wanted { position, page_size, commit, sums: Mutex::new(sums), fetched, file }))
    }

    /// The position.
    pub fn position(&self) -> Pos {
        self.position
    }

    /// Bytes per page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages of the database.
    pub fn commit(&self) -> u32 {
        self.commit
    }

    /// Keeps a fetched page, if it is the right one.
    pub fn take(&self, pgno: Pgno, page: &[u8]) -> Result<(), NotTaken> {
        let sum = lock(&self.sums).get(pgno)?;
        if page.len() != self.page_size.bytes() || sum != Some(Checksum::of_page(pgno, page)) {
            return Err(NotTaken::Other(pgno, self.position));
        }
        self.file.write_all_at(page, self.page_size.offset(pgno))?;
        lock(&self.fetched).insert(pgno);
        Ok(())
    }

    /// Every page but the lock page.
    pub(super) fn pages(&self) -> impl Iterator<Item = Pgno> + use<> {
        let lock_page = self.page_size.lock_page();
        (1..=self.commit).filter_map(Pgno::new).filter(move |pgno| *pgno != lock_page)
    }

    /// The checksums.
    pub(super) fn sums(&self) -> MutexGuard<'_, PageMap> {
        lock(&self.sums)
    }

    /// True when the page was fetched.
    pub(super) fn has(&self, pgno: Pgno) -> bool {
        lock(&self.fetched).contains(pgno)
    }

    /// Reads a fetched page, which must be what was fetched.
    pub(super) fn read(&self, pgno: Pgno, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, self.page_size.offset(pgno))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
