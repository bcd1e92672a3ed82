//! A set of pages of one database: one bit for each page, whatever is in it.

use crate::Pgno;
use std::ops::RangeInclusive;

/// See the module doc. Pages behind the database's end are never in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u32,
    len: u32,
}

impl PageSet {
    /// No page of a database of `pages` pages.
    pub fn empty(pages: u32) -> PageSet {
        PageSet { words: vec![0; (pages as usize).div_ceil(64)], pages, len: 0 }
    }

    /// Size of the database, pages.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True without a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a page; false when it was there, or when the database is smaller.
    pub fn insert(&mut self, page: Pgno) -> bool {
        let (word, bit) = (page.index() / 64, 1_u64 << (page.index() % 64));
        if page.get() > self.pages || self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        self.len += 1;
        true
    }

    /// Takes a page out.
    pub fn remove(&mut self, page: Pgno) {
        let (word, bit) = (page.index() / 64, 1_u64 << (page.index() % 64));
        if page.get() <= self.pages && self.words[word] & bit != 0 {
            self.words[word] &= !bit;
            self.len -= 1;
        }
    }

    /// Adds a run of pages; what lies behind the database's end is left out.
    pub fn insert_run(&mut self, run: RangeInclusive<u32>) {
        for page in (*run.start()).max(1)..=(*run.end()).min(self.pages) {
            self.insert(Pgno::new(page).expect("BUG: counted from 1"));
        }
    }

    /// True when the page is in it.
    pub fn contains(&self, page: Pgno) -> bool {
        let (word, bit) = (page.index() / 64, 1_u64 << (page.index() % 64));
        page.get() <= self.pages && self.words[word] & bit != 0
    }

    /// The pages that are not in it, as runs, ascending.
    pub fn gaps(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        let mut next = 1;
        std::iter::from_fn(move || {
            let first = self.find(next, false)?;
            let end = self.find(first, true).map_or(self.pages, |taken| taken - 1);
            next = end + 1;
            Some(first..=end)
        })
    }

    /// The first page from `from` on that is in the set, or is not.
    fn find(&self, from: u32, present: bool) -> Option<u32> {
        let mut page = from;
        while page <= self.pages {
            let (word, bit) = ((page - 1) as usize / 64, (page - 1) % 64);
            let bits = if present { self.words[word] } else { !self.words[word] } >> bit;
            if bits != 0 {
                return Some(page + bits.trailing_zeros()).filter(|found| *found <= self.pages);
            }
            page = page.checked_add(64 - bit)?;
        }
        None
    }

    /// The bits, 64 pages in a word, the first page in the lowest bit.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// From what [`PageSet::words`] gave; `None` when that is not a set of so many pages.
    pub fn from_words(words: Vec<u64>, pages: u32) -> Option<PageSet> {
        let odd = pages % 64;
        let over = odd != 0 && words.last().is_some_and(|last| last >> odd != 0);
        if words.len() != (pages as usize).div_ceil(64) || over {
            return None;
        }
        let len = words.iter().map(|word| word.count_ones()).sum();
        Some(PageSet { words, pages, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(pages in 0_u32..200, changes in proptest::collection::vec((1_u32..220, any::<bool>()), 0..100)) {
            let (mut set, mut model) = (PageSet::empty(pages), BTreeSet::new());
            for (page, add) in changes {
                let pgno = Pgno::new(page).unwrap();
                if add {
                    prop_assert_eq!(set.insert(pgno), page <= pages && model.insert(page));
                } else {
                    set.remove(pgno);
                    model.remove(&page);
                }
                prop_assert_eq!(set.contains(pgno), model.contains(&page));
            }
            prop_assert_eq!(set.len() as usize, model.len());
            let gaps: Vec<u32> = set.gaps().flatten().collect();
            let expected: Vec<u32> = (1..=pages).filter(|page| !model.contains(page)).collect();
            prop_assert_eq!(gaps, expected);
            let again = PageSet::from_words(set.words().to_vec(), pages);
            prop_assert_eq!(again.as_ref(), Some(&set));
            let mut full = set.clone();
            full.insert_run(0..=u32::MAX);
            prop_assert_eq!((full.len(), full.gaps().count()), (pages, 0));
        }
    }

    #[test]
    fn bits_behind_the_end_are_no_set() {
        assert_eq!(PageSet::from_words(vec![0b100], 2), None);
        assert_eq!(PageSet::from_words(vec![], 2), None);
        assert!(PageSet::from_words(vec![0b10], 2).is_some());
    }
}
