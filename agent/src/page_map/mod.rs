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
//! Non-goals: no page content, no file I/O beyond its own state files ([`store`]).

pub mod store;

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
}

/// A page and its new checksum.
pub type Change = (Pgno, Checksum);

/// A growing database did not bring this page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the database grew, and nobody brought page {0}")]
pub struct MissingPage(pub Pgno);

/// The table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageMap {
    page_size: PageSize,
    entries: Vec<Entry>,
    checksum: Checksum,
}

impl PageMap {
    /// Of a database without pages.
    pub fn new(page_size: PageSize) -> PageMap {
        PageMap { page_size, entries: Vec::new(), checksum: Checksum::EMPTY }
    }

    /// From stored entries; the checksum is computed.
    fn from_entries(page_size: PageSize, entries: Vec<Entry>) -> PageMap {
        let checksum =
            entries.iter().filter_map(|e| Checksum::new(e.checksum)).fold(Checksum::EMPTY, Checksum::toggle);
        PageMap { page_size, entries, checksum }
    }

    /// Bytes per page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages of the database.
    pub fn commit(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("BUG: more pages than SQLite has")
    }

    /// Database checksum.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Checksum of a page.
    pub fn get(&self, pgno: Pgno) -> Option<Checksum> {
        self.entries.get(pgno.index()).and_then(|e| Checksum::new(e.checksum))
    }

    /// Pages last changed after `txid`, ascending.
    pub fn changed_since(&self, txid: Option<Txid>) -> impl Iterator<Item = Change> + Clone + '_ {
        let after = txid.map_or(0, Txid::get);
        self.entries.iter().enumerate().filter(move |(_, e)| e.txid > after).filter_map(|(i, e)| {
            let pgno = Pgno::new(u32::try_from(i + 1).ok()?)?;
            Some((pgno, Checksum::new(e.checksum)?))
        })
    }

    /// The pages that a database of `commit` pages has and this one has not, ascending, without the lock page.
    pub fn grown(&self, commit: u32) -> impl Iterator<Item = Pgno> + use<> {
        let lock = self.page_size.lock_page();
        (self.commit() + 1..=commit).filter_map(Pgno::new).filter(move |pgno| *pgno != lock)
    }

    /// The database checksum that [`PageMap::apply`] would lead to. `changes` ascend.
    pub fn preview(&self, changes: &[Change], commit: u32) -> Checksum {
        let kept = self.entries.len().min(commit as usize);
        let mut sum = self.checksum;
        for entry in &self.entries[kept..] {
            sum = Checksum::new(entry.checksum).map_or(sum, |old| sum.toggle(old));
        }
        for (pgno, new) in changes {
            if pgno.index() < kept {
                sum = self.get(*pgno).map_or(sum, |old| sum.toggle(old));
            }
            sum = sum.toggle(*new);
        }
        sum
    }

    /// Applies a transaction: size and changed pages (ascending, none above `commit`). On `Err` nothing was applied.
    pub fn apply(&mut self, changes: &[Change], commit: u32, txid: Txid) -> Result<(), MissingPage> {
        let mut brought = changes[changes.partition_point(|(p, _)| p.index() < self.entries.len())..].iter();
        for pgno in self.grown(commit) {
            if brought.next().is_none_or(|(p, _)| *p != pgno) {
                return Err(MissingPage(pgno));
            }
        }
        self.checksum = self.preview(changes, commit);
        self.entries.resize(commit as usize, Entry::default());
        for (pgno, checksum) in changes {
            self.entries[pgno.index()] = Entry::new(*checksum, txid);
        }
        // A shrunk database gives its memory back, a growing one keeps the amortised doubling of Vec.
        if self.entries.capacity() > 2 * self.entries.len() + 64 {
            self.entries.shrink_to_fit();
        }
        Ok(())
    }

    /// All entries, from page 1.
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Replays a stored record: size, then entries with their own transactions. `None` when an entry lies outside.
    fn replay(&mut self, commit: u32, entries: &[(u32, Entry)]) -> Option<()> {
        self.entries.resize(commit as usize, Entry::default());
        for (pgno, entry) in entries {
            *self.entries.get_mut(Pgno::new(*pgno)?.index())? = *entry;
        }
        Some(())
    }

    /// Computes the checksum anew, after replays.
    fn settle(self) -> PageMap {
        PageMap::from_entries(self.page_size, self.entries)
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

    fn map() -> PageMap {
        PageMap::new(PageSize::new(512).unwrap())
    }

    #[test]
    fn growth_without_its_pages_is_refused_and_changes_nothing() {
        let mut map = map();
        map.apply(&[(pgno(1), sum(1)), (pgno(2), sum(2))], 2, txid(1)).unwrap();
        let before = map.clone();
        assert_eq!(map.apply(&[(pgno(1), sum(9)), (pgno(4), sum(4))], 4, txid(2)), Err(MissingPage(pgno(3))));
        assert_eq!(map, before);
    }

    #[test]
    fn pages_that_went_and_came_back_count_as_changed() {
        let mut map = map();
        map.apply(&[(pgno(1), sum(1)), (pgno(2), sum(2)), (pgno(3), sum(3))], 3, txid(1)).unwrap();
        map.apply(&[(pgno(1), sum(4))], 1, txid(2)).unwrap();
        map.apply(&[(pgno(2), sum(2)), (pgno(3), sum(3))], 3, txid(3)).unwrap();
        let since: Vec<u32> = map.changed_since(Some(txid(2))).map(|(p, _)| p.get()).collect();
        assert_eq!(since, [2, 3]);
        assert_eq!(map.changed_since(None).count(), 3);
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
                let preview = map.preview(&changes, commit);
                map.apply(&changes, commit, txid(n as u64 + 1)).unwrap();
                prop_assert_eq!(map.checksum(), preview);
                prop_assert_eq!(map.checksum(), model.iter().copied().fold(Checksum::EMPTY, Checksum::toggle));
                prop_assert_eq!(map.commit(), commit);
            }
        }
    }
}
