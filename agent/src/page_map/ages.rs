//! Which transaction last changed each page, in two bytes a page.
//!
//! A page holds the number of a *mark*; marks are TXIDs in ascending order. The page was last changed by its mark's
//! transaction or, after marks were thinned out, by one not long before it. So [`Ages::of`] is never too old: whoever sends
//! "everything since" sends enough, and at worst a few pages too many.
//!
//! Invariants: marks ascend strictly; every page's number is one of a mark; the newest half of the marks is exact.

use walhub_common::Txid;

/// Least and greatest number of marks; between them as many as there are pages.
const MARKS: (usize, usize) = (256, 1 << 16);

/// See the module doc.
#[derive(Clone, Debug, Default)]
pub(super) struct Ages {
    pages: Vec<u16>,
    marks: Vec<u64>,
}

impl Ages {
    /// The transaction by which the page at `index` (from 0) had its content; 0 for one nobody ever changed.
    pub(super) fn of(&self, index: usize) -> u64 {
        self.pages.get(index).and_then(|mark| self.marks.get(usize::from(*mark))).copied().unwrap_or(0)
    }

    /// Changes the number of pages. New ones need a [`Ages::set`].
    pub(super) fn resize(&mut self, pages: usize) {
        self.pages.resize(pages, 0);
        if self.marks.is_empty() {
            self.marks.push(0);
        }
        if self.pages.capacity() > 2 * pages + 64 {
            self.pages.shrink_to_fit();
        }
    }

    /// The number to [`Ages::set`] for pages changed by `txid`, which is not older than any before.
    pub(super) fn mark(&mut self, txid: Txid) -> u16 {
        let txid = txid.get();
        if self.marks.last().is_none_or(|last| *last < txid) {
            if self.marks.len() >= self.limit(self.pages.len()) {
                self.thin();
            }
            self.marks.push(txid);
        }
        u16::try_from(self.marks.len() - 1).expect("BUG: more marks than numbers")
    }

    /// The page at `index` was changed by `txid`, one of those that [`Dated`] was given; others are rounded up, or down to the
    /// newest.
    pub(super) fn date(&mut self, index: usize, txid: u64) {
        let mark = self.marks.partition_point(|mark| *mark < txid).min(self.marks.len().saturating_sub(1));
        self.pages[index] = u16::try_from(mark).expect("BUG: a mark's number");
    }

    /// The page at `index` was changed by the transaction of `mark`.
    pub(super) fn set(&mut self, index: usize, mark: u16) {
        self.pages[index] = mark;
    }

    fn limit(&self, pages: usize) -> usize {
        pages.clamp(MARKS.0, MARKS.1)
    }

    /// Makes room: marks that no page has go, and of the older half every second one if that is not enough.
    fn thin(&mut self) {
        let mut used = vec![false; self.marks.len()];
        for mark in &self.pages {
            used[usize::from(*mark)] = true;
        }
        let mut marks = Vec::with_capacity(self.marks.len());
        let mut numbers = vec![0; self.marks.len()];
        for (old, txid) in self.marks.iter().enumerate().filter(|(old, _)| used[*old]) {
            numbers[old] = marks.len();
            marks.push(*txid);
        }
        if marks.len() > self.limit(self.pages.len()) / 4 * 3 {
            let (moved, fewer) = thinned(&marks);
            numbers.iter_mut().for_each(|number| *number = moved[*number]);
            marks = fewer;
        }
        let number = |old: u16| u16::try_from(numbers[usize::from(old)]).expect("BUG: a mark's number");
        self.pages.iter_mut().for_each(|mark| *mark = number(*mark));
        self.marks = marks;
    }
}

/// Collects the TXIDs of stored pages before their number is known.
#[derive(Debug, Default)]
pub(super) struct Dated {
    marks: Vec<u64>,
    pages: usize,
}

impl Dated {
    /// The next page's.
    pub(super) fn push(&mut self, txid: u64) {
        self.pages += 1;
        if self.marks.last() == Some(&txid) {
            return;
        }
        self.marks.push(txid);
        if self.marks.len() >= 2 * MARKS.1 {
            dense(&mut self.marks);
            while self.marks.len() > MARKS.1 {
                self.marks = thinned(&self.marks).1;
            }
        }
    }

    /// For as many pages as were pushed; each needs an [`Ages::date`].
    pub(super) fn finish(self) -> Ages {
        let Dated { mut marks, pages } = self;
        dense(&mut marks);
        let mut ages = Ages { pages: vec![0; pages], marks: Vec::new() };
        while marks.len() > ages.limit(pages) {
            marks = thinned(&marks).1;
        }
        marks.shrink_to_fit();
        ages.marks = marks;
        ages
    }
}

/// Ascending, each once.
fn dense(marks: &mut Vec<u64>) {
    marks.sort_unstable();
    marks.dedup();
}

/// Joins the older half of the marks two by two under the newer of the two: the new number of each, and the new marks.
fn thinned(marks: &[u64]) -> (Vec<usize>, Vec<u64>) {
    let older = marks.len() / 4 * 2;
    let mut numbers = Vec::with_capacity(marks.len());
    let mut kept = Vec::with_capacity(marks.len());
    for (old, txid) in marks.iter().enumerate() {
        numbers.push(kept.len());
        if old >= older || old % 2 == 1 {
            kept.push(*txid);
        }
    }
    (numbers, kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn txid(n: u64) -> Txid {
        Txid::new(n).unwrap()
    }

    fn stored(txids: impl Iterator<Item = u64> + Clone) -> Ages {
        let mut dated = Dated::default();
        txids.clone().for_each(|txid| dated.push(txid));
        let mut ages = dated.finish();
        txids.enumerate().for_each(|(index, txid)| ages.date(index, txid));
        ages
    }

    #[test]
    fn memory_is_bounded_and_the_newest_transactions_are_exact() {
        let mut ages = Ages::default();
        ages.resize(1000);
        for n in 1..=100_000_u64 {
            let mark = ages.mark(txid(n));
            ages.set((n * 7 % 1000) as usize, mark);
            assert!(ages.marks.len() <= 1000);
        }
        let exact: Vec<u64> = (0..100).map(|back| ages.of(((100_000 - back) * 7 % 1000) as usize)).collect();
        assert_eq!(exact, (0..100).map(|back| 100_000 - back).collect::<Vec<_>>());
    }

    #[test]
    fn more_stored_transactions_than_marks_are_rounded_up() {
        let ages = stored((1..=200_000).rev());
        assert!(ages.marks.len() <= MARKS.1);
        assert!((0..200_000).all(|i| ages.of(i) >= 200_000 - i as u64), "a page was made older than it is");
        assert_eq!(ages.of(0), 200_000);
        assert!(ages.of(199_999) < 50_000, "an old page still counts as old");
    }

    proptest! {
        /// Never older than the truth, never newer than the newest transaction, through any thinning.
        #[test]
        fn an_age_is_never_too_old(
            steps in proptest::collection::vec((1_u64..4, proptest::collection::vec(0_usize..300, 0..4)), 1..1200),
            shrink in 1_usize..300,
        ) {
            let (mut ages, mut model) = (Ages::default(), vec![0_u64; 300]);
            ages.resize(300);
            let mut now = 0;
            for (passed, changed) in &steps {
                now += passed;
                let mark = ages.mark(txid(now));
                for page in changed {
                    ages.set(*page, mark);
                    model[*page] = now;
                }
            }
            for (page, truth) in model.iter().enumerate() {
                prop_assert!(ages.of(page) >= *truth && ages.of(page) <= now);
            }
            let stored: Vec<u64> = (0..300).map(|page| ages.of(page)).collect();
            let again = self::stored(stored.iter().copied());
            for (page, truth) in stored.iter().enumerate() {
                prop_assert!(again.of(page) >= *truth);
            }
            ages.resize(shrink);
            prop_assert_eq!(ages.pages.len(), shrink);
        }
    }
}
