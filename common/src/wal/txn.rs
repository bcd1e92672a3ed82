//! Groups frames into transactions: a run of frames that ends in a commit frame.

use super::{Frame, FrameNo};
use crate::{PageSize, Pgno};

/// One committed transaction, by reference to its frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// First frame of the run.
    pub first: FrameNo,
    /// The commit frame.
    pub last: FrameNo,
    /// Pages of the database after it.
    pub commit: u32,
    /// Each page it leaves behind and the frame with its newest version, ascending by page. Pages above `commit` and
    /// the lock page are not among them.
    pub pages: Vec<(Pgno, FrameNo)>,
}

impl Transaction {
    /// Takes in the transactions that follow right after it: what all of them leave behind. None of them may make the database
    /// smaller than the one before it did, as pages that went and came back are not told apart.
    pub fn join(&mut self, later: impl IntoIterator<Item = Transaction>) {
        for transaction in later {
            assert!(transaction.commit >= self.commit, "BUG: a transaction that takes pages away was joined");
            self.pages.extend(transaction.pages);
            (self.last, self.commit) = (transaction.last, transaction.commit);
        }
        newest_of_each(&mut self.pages);
    }
}

/// Ascending by page, of each page the newest frame.
fn newest_of_each(pages: &mut Vec<(Pgno, FrameNo)>) {
    // Newest first within a page, so that the one kept is the newest.
    pages.sort_unstable_by(|(p, f), (q, g)| p.cmp(q).then(g.cmp(f)));
    pages.dedup_by_key(|(pgno, _)| *pgno);
}

/// Collects frames until a commit. It holds 8 bytes per frame of the transaction in work, no page.
#[derive(Clone, Debug)]
pub struct Grouper {
    lock_page: Pgno,
    first: Option<FrameNo>,
    pages: Vec<(Pgno, FrameNo)>,
}

impl Grouper {
    /// An empty group.
    pub fn new(page_size: PageSize) -> Grouper {
        Grouper { lock_page: page_size.lock_page(), first: None, pages: Vec::new() }
    }

    /// Adds the next frame in log order; a commit frame gives the transaction and leaves the group empty.
    pub fn push(&mut self, number: FrameNo, frame: Frame) -> Option<Transaction> {
        let first = *self.first.get_or_insert(number);
        self.pages.push((frame.pgno, number));
        let commit = frame.commit?;
        self.first = None;
        let mut pages = std::mem::take(&mut self.pages);
        pages.retain(|(pgno, _)| pgno.get() <= commit && *pgno != self.lock_page);
        newest_of_each(&mut pages);
        Some(Transaction { first, last: number, commit, pages })
    }

    /// True when no transaction is in work.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Forgets the transaction in work.
    pub fn clear(&mut self) {
        self.first = None;
        self.pages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn groups_as_the_model_does(
            frames in prop::collection::vec((1u32..20, prop_oneof![3 => Just(0u32), 1 => 1u32..20]), 0..60),
        ) {
            let mut grouper = Grouper::new(PageSize::new(512).unwrap());
            let mut model = BTreeMap::new();
            let mut first = 1;
            for (number, (pgno, commit)) in (1u32..).zip(frames) {
                model.insert(pgno, number);
                let frame = Frame { pgno: Pgno::new(pgno).unwrap(), commit: (commit != 0).then_some(commit) };
                let got = grouper.push(FrameNo(number), frame);
                prop_assert_eq!(got.is_some(), commit != 0);
                prop_assert_eq!(grouper.is_empty(), commit != 0);
                if let Some(txn) = got {
                    model.retain(|pgno, _| *pgno <= commit);
                    let pages: Vec<_> =
                        txn.pages.iter().map(|(pgno, frame)| (pgno.get(), frame.get())).collect();
                    prop_assert_eq!(pages, std::mem::take(&mut model).into_iter().collect::<Vec<_>>());
                    prop_assert_eq!((txn.first.get(), txn.last.get(), txn.commit), (first, number, commit));
                    first = number + 1;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn joined_transactions_leave_behind_what_the_last_one_left(
            frames in prop::collection::vec((1u32..20, prop_oneof![2 => Just(0u32), 1 => Just(20u32)]), 1..60),
        ) {
            let mut grouper = Grouper::new(PageSize::new(512).unwrap());
            let mut all: Option<Transaction> = None;
            let mut model = BTreeMap::new();
            let mut open = BTreeMap::new();
            let mut last = 0;
            for (number, (pgno, commit)) in (1u32..).zip(frames) {
                open.insert(pgno, number);
                let frame = Frame { pgno: Pgno::new(pgno).unwrap(), commit: (commit != 0).then_some(commit) };
                if let Some(txn) = grouper.push(FrameNo(number), frame) {
                    match &mut all {
                        Some(all) => all.join([txn]),
                        None => all = Some(txn),
                    }
                    model.append(&mut open);
                    last = number;
                }
            }
            if let Some(all) = all {
                let pages: Vec<_> = all.pages.iter().map(|(pgno, frame)| (pgno.get(), frame.get())).collect();
                prop_assert_eq!(pages, model.into_iter().collect::<Vec<_>>());
                prop_assert_eq!((all.first.get(), all.last.get(), all.commit), (1, last, 20));
            }
        }
    }

    #[test]
    fn the_lock_page_is_dropped() {
        let page_size = PageSize::new(65536).unwrap();
        let mut grouper = Grouper::new(page_size);
        assert_eq!(grouper.push(FrameNo(1), Frame { pgno: page_size.lock_page(), commit: None }), None);
        let txn = grouper.push(FrameNo(2), Frame { pgno: Pgno::FIRST, commit: Some(20_000) }).unwrap();
        assert_eq!(txn.pages, vec![(Pgno::FIRST, FrameNo(2))]);
        assert_eq!(txn.first, FrameNo(1));
    }
}
