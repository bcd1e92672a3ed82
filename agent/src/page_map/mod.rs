//! The page map: for every page of a database its checksum and the transaction that last changed it.
//!
//! It makes three things cheap: the database checksum after each transaction (an XOR, kept incrementally), finding out what
//! changed while nobody looked (compare checksums, send the pages that differ), and rebuilding any suffix of the history
//! ("all pages changed since TXID x").
//!
//! Invariants
//! - `checksum` is the XOR over all entries; the lock page has none.
//! - Every page up to `commit`, but for the lock page, has an entry once a change was applied: [`PageMap::apply`] refuses a
//!   growing database that does not bring all its new pages.
//!
//! Memory: see [`PageMap`]; the TXIDs are kept by [`ages`], which rounds those of long ago up, the checksums by [`sums`], which
//! has those of a large database on disk.
//!
//! Non-goals: no page content, no file I/O beyond its own state files ([`store`]) and the scratch file of [`sums`].

mod ages;
pub mod store;
mod sums;

pub use sums::Room;

use ages::Ages;
use std::io;
use sums::Sums;
use walhub_common::{Checksum, PageSize, Pgno, Txid};

/// What is known of one page. All zero: nothing (the lock page).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    checksum: u64,
    txid: u64,
}

impl Entry {
    /// A page with this checksum, last changed by this transaction.
    pub fn new(checksum: Checksum, txid: Txid) -> Entry {
        Entry { checksum: checksum.get(), txid: txid.get() }
    }

    /// The transaction; 0 for nothing.
    fn txid(self) -> u64 {
        self.txid
    }
}

/// A page and its new checksum.
pub type Change = (Pgno, Checksum);

/// A growing database did not bring this page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the database grew, and nobody brought page {0}")]
pub struct MissingPage(pub Pgno);

/// Why a change was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Unapplied {
    /// A page is missing.
    #[error(transparent)]
    Missing(#[from] MissingPage),
    /// The scratch file could not be read.
    #[error("the page map's scratch file: {0}")]
    Scratch(#[from] io::Error),
}

/// The table: 10 bytes a page in memory while a database is small, 4 when it is large.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct PageMap {
    page_size: PageSize,
    /// Checksums from page 1; 0 for the lock page.
    checksums: Sums,
    ages: Ages,
    checksum: Checksum,
}

impl PageMap {
    /// Of a database without pages.
    pub fn new(page_size: PageSize, room: Room) -> PageMap {
        PageMap { page_size, checksums: Sums::new(room), ages: Ages::default(), checksum: Checksum::EMPTY }
    }

    /// Of a whole database of `commit` pages, all changed by `txid`. `checksums`: of every page but the lock page,
    /// ascending. `Err` names the first page that was not brought.
    pub fn whole(
        page_size: PageSize,
        commit: u32,
        txid: Txid,
        checksums: impl IntoIterator<Item = Checksum>,
        room: Room,
    ) -> Result<PageMap, MissingPage> {
        let mut builder = Builder::new(page_size, commit, room);
        checksums.into_iter().for_each(|checksum| builder.push(checksum));
        builder.finish(txid)
    }

    /// Bytes per page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages of the database.
    pub fn commit(&self) -> u32 {
        u32::try_from(self.checksums.len()).expect("BUG: more pages than SQLite has")
    }

    /// Database checksum.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Checksum of a page. An error: the scratch file could not be read.
    pub fn get(&self, pgno: Pgno) -> io::Result<Option<Checksum>> {
        self.checksums.get(pgno.index()).map(Checksum::new)
    }

    /// Pages last changed after `txid`, ascending; after many transactions, a few that were changed shortly before as well.
    pub fn changed_since(&self, txid: Option<Txid>) -> impl Iterator<Item = io::Result<Change>> + '_ {
        let after = txid.map_or(0, Txid::get);
        let changed = (0..self.checksums.len()).filter(move |index| self.ages.of(*index) > after);
        changed.filter_map(|index| {
            let pgno = Pgno::new(u32::try_from(index + 1).ok()?)?;
            self.get(pgno).map(|sum| Some((pgno, sum?))).transpose()
        })
    }

    /// The pages that a database of `commit` pages has and this one has not, ascending, without the lock page.
    pub fn grown(&self, commit: u32) -> impl Iterator<Item = Pgno> + use<> {
        let lock = self.page_size.lock_page();
        (self.commit() + 1..=commit).filter_map(Pgno::new).filter(move |pgno| *pgno != lock)
    }

    /// The database checksum that [`PageMap::apply`] would lead to. `changes` ascend.
    pub fn preview(&self, changes: &[Change], commit: u32) -> io::Result<Checksum> {
        let kept = self.checksums.len().min(commit as usize);
        let mut sum = self.checksum;
        for index in kept..self.checksums.len() {
            sum = Checksum::new(self.checksums.get(index)?).map_or(sum, |old| sum.toggle(old));
        }
        for (pgno, new) in changes {
            if pgno.index() < kept {
                sum = self.get(*pgno)?.map_or(sum, |old| sum.toggle(old));
            }
            sum = sum.toggle(*new);
        }
        Ok(sum)
    }

    /// Applies a transaction: size and changed pages (ascending, none above `commit`). On `Err` nothing was applied.
    pub fn apply(&mut self, changes: &[Change], commit: u32, txid: Txid) -> Result<(), Unapplied> {
        let mut brought =
            changes[changes.partition_point(|(p, _)| p.index() < self.checksums.len())..].iter();
        for pgno in self.grown(commit) {
            if brought.next().is_none_or(|(p, _)| *p != pgno) {
                return Err(MissingPage(pgno).into());
            }
        }
        self.checksum = self.preview(changes, commit)?;
        self.resize(commit);
        let mark = self.ages.mark(txid);
        for (pgno, checksum) in changes {
            self.checksums.set(pgno.index(), checksum.get());
            self.ages.set(pgno.index(), mark);
        }
        Ok(())
    }

    fn resize(&mut self, commit: u32) {
        self.checksums.resize(commit as usize);
        self.ages.resize(commit as usize);
    }

    /// All entries, from page 1.
    fn entries(&self) -> impl Iterator<Item = io::Result<Entry>> + '_ {
        self.checksums.iter().enumerate().map(|(i, sum)| match sum? {
            0 => Ok(Entry::default()),
            checksum => Ok(Entry { checksum, txid: self.ages.of(i) }),
        })
    }

    /// Replays a stored record: size, then entries with their own transactions. `None` when an entry lies outside. The
    /// database checksum is that of before: [`PageMap::add_up`] follows.
    fn replay(&mut self, commit: u32, entries: &mut [(u32, Entry)]) -> Option<()> {
        self.resize(commit);
        entries.sort_by_key(|(_, entry)| entry.txid);
        for (pgno, entry) in entries {
            let index = Pgno::new(*pgno).filter(|pgno| pgno.get() <= commit)?.index();
            self.checksums.set(index, entry.checksum);
            if let Some(txid) = Txid::new(entry.txid) {
                let mark = self.ages.mark(txid);
                self.ages.set(index, mark);
            }
        }
        Some(())
    }

    /// Finds the database checksum anew.
    fn add_up(&mut self) -> io::Result<()> {
        let mut sums = self.checksums.iter();
        self.checksum = sums.try_fold(Checksum::EMPTY, |all, sum| {
            sum.map(|sum| Checksum::new(sum).map_or(all, |sum| all.toggle(sum)))
        })?;
        Ok(())
    }
}

/// Equal when every page has the same checksum and counts as changed by the same transaction.
#[cfg(test)]
impl PartialEq for PageMap {
    fn eq(&self, other: &PageMap) -> bool {
        let entries = |map: &PageMap| map.entries().collect::<io::Result<Vec<_>>>().expect("entries");
        self.page_size == other.page_size && entries(self) == entries(other)
    }
}

#[cfg(test)]
impl Eq for PageMap {}

/// A page map of a whole database in the making, page by page.
#[derive(Debug)]
pub struct Builder {
    page_size: PageSize,
    commit: u32,
    checksums: Sums,
    checksum: Checksum,
}

impl Builder {
    /// For a database of `commit` pages.
    pub fn new(page_size: PageSize, commit: u32, room: Room) -> Builder {
        Builder { page_size, commit, checksums: Sums::new(room), checksum: Checksum::EMPTY }
    }

    /// The next page; the lock page is passed over. More pages than the database has are ignored.
    pub fn push(&mut self, checksum: Checksum) {
        self.pass_lock_page();
        if self.checksums.len() < self.commit as usize {
            self.checksums.push(checksum.get());
            self.checksum = self.checksum.toggle(checksum);
        }
    }

    /// The database checksum of the pages so far.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The pages so far, without the lock page.
    pub fn pages(&self) -> impl Iterator<Item = io::Result<Change>> + '_ {
        self.checksums.iter().enumerate().filter_map(|(index, sum)| {
            let pgno = Pgno::new(u32::try_from(index + 1).ok()?)?;
            sum.map(|sum| Some((pgno, Checksum::new(sum)?))).transpose()
        })
    }

    /// The map, every page changed by `txid`.
    pub fn finish(mut self, txid: Txid) -> Result<PageMap, MissingPage> {
        self.pass_lock_page();
        if self.checksums.len() < self.commit as usize {
            let next = u32::try_from(self.checksums.len() + 1).ok().and_then(Pgno::new);
            return Err(MissingPage(next.expect("BUG: a page number below the commit size")));
        }
        let mut ages = Ages::default();
        ages.resize(self.checksums.len());
        let mark = ages.mark(txid);
        (0..self.checksums.len()).for_each(|index| ages.set(index, mark));
        Ok(PageMap { page_size: self.page_size, checksums: self.checksums, ages, checksum: self.checksum })
    }

    fn pass_lock_page(&mut self) {
        if self.checksums.len() == self.page_size.lock_page().index()
            && self.checksums.len() < self.commit as usize
        {
            self.checksums.push(0);
        }
    }
}

/// A page map while its base is read: stored entries, one by one.
#[derive(Debug)]
struct Loading {
    page_size: PageSize,
    checksums: Sums,
    ages: Ages,
}

impl Loading {
    /// Of a base with entries of these transactions.
    fn new(page_size: PageSize, ages: Ages, room: Room) -> Loading {
        Loading { page_size, checksums: Sums::new(room), ages }
    }

    fn push(&mut self, entry: Entry) {
        self.ages.date(self.checksums.len(), entry.txid);
        self.checksums.push(entry.checksum);
    }

    /// The map; [`PageMap::add_up`] follows.
    fn finish(self) -> PageMap {
        let Loading { page_size, checksums, ages } = self;
        PageMap { page_size, checksums, ages, checksum: Checksum::EMPTY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pgno(n: u32) -> Pgno {
        Pgno::new(n).unwrap()
    }

    fn sum(n: u64) -> Checksum {
        Checksum::new(1 << 63 | n).unwrap()
    }

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    /// In memory.
    fn room() -> Room {
        Room::beside(std::path::Path::new("/nowhere"))
    }

    fn map() -> PageMap {
        PageMap::new(PageSize::new(512).unwrap(), room())
    }

    #[test]
    fn growth_without_its_pages_is_refused_and_changes_nothing() {
        let mut map = map();
        map.apply(&[(pgno(1), sum(1)), (pgno(2), sum(2))], 2, txid(1)).unwrap();
        let before = map.clone();
        let refused = map.apply(&[(pgno(1), sum(9)), (pgno(4), sum(4))], 4, txid(2));
        assert!(matches!(refused, Err(Unapplied::Missing(MissingPage(missing))) if missing == pgno(3)));
        assert_eq!(map, before);
    }

    #[test]
    fn pages_that_went_and_came_back_count_as_changed() {
        let mut map = map();
        map.apply(&[(pgno(1), sum(1)), (pgno(2), sum(2)), (pgno(3), sum(3))], 3, txid(1)).unwrap();
        map.apply(&[(pgno(1), sum(4))], 1, txid(2)).unwrap();
        map.apply(&[(pgno(2), sum(2)), (pgno(3), sum(3))], 3, txid(3)).unwrap();
        let since: Vec<u32> =
            map.changed_since(Some(txid(2))).map(|change| change.unwrap().0.get()).collect();
        assert_eq!(since, [2, 3]);
        assert_eq!(map.changed_since(None).count(), 3);
    }

    #[test]
    fn a_whole_map_is_that_of_one_transaction_and_knows_its_lock_page() {
        let size = PageSize::new(65_536).unwrap();
        let lock = size.lock_page().get();
        let pages = || (1..=lock + 2).filter(|p| *p != lock);
        let whole = PageMap::whole(size, lock + 2, txid(5), pages().map(|p| sum(p.into())), room()).unwrap();
        let mut applied = PageMap::new(size, room());
        let changes: Vec<Change> = pages().map(|p| (pgno(p), sum(p.into()))).collect();
        applied.apply(&changes, lock + 2, txid(5)).unwrap();
        assert_eq!(whole.checksum(), applied.checksum());
        assert!(whole == applied);
        assert_eq!(whole.changed_since(Some(txid(4))).count(), lock as usize + 1);
        assert_eq!(whole.changed_since(Some(txid(5))).count(), 0);
        let short = PageMap::whole(size, lock + 2, txid(5), pages().skip(1).map(|p| sum(p.into())), room());
        assert_eq!(short.unwrap_err(), MissingPage(pgno(lock + 2)));
    }

    /// Peak memory of this process, KiB.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// 8 GB of 4 KiB pages: 20 MB if the table lay in memory, and more while it is read.
    #[test]
    fn the_map_of_a_large_database_takes_little_memory_through_all_it_does() {
        const PAGES: u32 = 2_000_000;
        let folder = tempfile::tempdir().unwrap();
        let size = PageSize::new(4096).unwrap();
        let lock = size.lock_page().get();
        let before = peak();
        let pages = (1..=PAGES).filter(|p| *p != lock).map(|p| sum(p.into()));
        let mut map = PageMap::whole(size, PAGES, txid(1), pages, Room::beside(folder.path())).unwrap();
        let mut store = store::Store::open(crate::disk::real(), folder.path()).unwrap().store;
        // All over the database, more than what waits in memory for its file.
        for n in 2..92_u64 {
            let first = (n * 97 % 400) as u32 + 1;
            let pages = (first..PAGES).step_by(400).filter(|page| *page != lock);
            let changes: Vec<Change> =
                pages.map(|page| (pgno(page), sum(n << 32 | u64::from(page)))).collect();
            map.apply(&changes, PAGES, txid(n)).unwrap();
        }
        let position = walhub_common::Pos { txid: txid(91), checksum: map.checksum() };
        let anchor = store::Anchor { lineage: 1, position: Some(position), wal: None };
        store.rewrite(anchor, Some(&map)).unwrap();
        let changed = map.changed_since(Some(txid(90))).count();
        assert!((4990..=5000).contains(&changed), "{changed} pages");
        drop(map);
        let again = store::Store::open(crate::disk::real(), folder.path()).unwrap().map.unwrap();
        assert_eq!(again.checksum(), position.checksum);
        let grown = (peak() - before) >> 10;
        println!("{grown} MiB for {PAGES} pages");
        assert!(grown < 18, "{grown} MiB for {PAGES} pages");
    }

    proptest! {
        /// The checksum is the XOR over the pages, whatever the order of growth, change and shrink.
        #[test]
        fn the_checksum_follows_every_change(
            steps in proptest::collection::vec((1_u32..40, proptest::collection::vec((1_u32..40, any::<u64>()), 0..8)), 1..20),
        ) {
            let mut map = map();
            let mut model: Vec<Checksum> = Vec::new();
            for (n, (commit, changes)) in steps.into_iter().enumerate() {
                let mut wanted = std::collections::BTreeMap::new();
                for page in model.len() as u32 + 1..=commit {
                    wanted.insert(pgno(page), sum(u64::from(page) << 20 | n as u64));
                }
                for (page, value) in changes.into_iter().filter(|(page, _)| *page <= commit) {
                    wanted.insert(pgno(page), sum(value));
                }
                model.resize(commit as usize, Checksum::EMPTY);
                for (page, value) in &wanted {
                    model[page.index()] = *value;
                }
                let changes: Vec<Change> = wanted.into_iter().collect();
                let preview = map.preview(&changes, commit).unwrap();
                map.apply(&changes, commit, txid(n as u64 + 1)).unwrap();
                prop_assert_eq!(map.checksum(), preview);
                prop_assert_eq!(map.checksum(), model.iter().copied().fold(Checksum::EMPTY, Checksum::toggle));
                prop_assert_eq!(map.commit(), commit);
            }
        }
    }
}
