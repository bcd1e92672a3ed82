//! What was handed out and not yet acked, and what was acked and not yet saved: pure bookkeeping.
//!
//! A transaction goes through three stages. *Handed out*: a sink has it. *Captured*: the hub has acked it (or nobody
//! waits for it any more), so its frames may be backfilled. *Saved*: the page map on disk contains it.
//!
//! Invariants
//! - Only captured transactions are saved, unless [`Ledger::settle_all`] says otherwise.
//! - What is saved is a state the database really had: everything up to one transaction, nothing after it.

use crate::page_map::{Change, Entry};
use std::collections::VecDeque;
use walhub_common::wal::WalPosition;
use walhub_common::{Pos, Txid};

/// A state of the database: after which transaction, where that is in the log, and its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Point {
    pub(super) position: Pos,
    /// `None`: no place in a log is known to be this state.
    pub(super) wal: Option<WalPosition>,
    pub(super) commit: u32,
}

#[derive(Debug)]
struct Note {
    point: Point,
    changes: Box<[Change]>,
}

/// The books of one database.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Handed out, not captured; oldest first.
    waiting: VecDeque<Note>,
    /// The newest captured state.
    captured: Point,
    /// Pages changed by captured transactions since the last save; the last entry of a page counts.
    unsaved: Vec<(u32, Entry)>,
    /// Length of `unsaved` after it was last made dense.
    dense: usize,
    /// True when `captured` itself is not saved.
    dirty: bool,
}

impl Ledger {
    /// Books that begin at a saved state.
    pub(super) fn new(saved: Point) -> Ledger {
        Ledger { waiting: VecDeque::new(), captured: saved, unsaved: Vec::new(), dense: 0, dirty: false }
    }

    /// A transaction was handed out.
    pub(super) fn handed_out(&mut self, point: Point, changes: Vec<Change>) {
        self.waiting.push_back(Note { point, changes: changes.into_boxed_slice() });
    }

    /// Everything up to `txid` is captured.
    pub(super) fn captured_to(&mut self, txid: Txid) {
        while self.waiting.front().is_some_and(|note| note.point.position.txid <= txid) {
            self.capture_front();
        }
        if self.waiting.is_empty() && self.waiting.capacity() > 64 {
            self.waiting = VecDeque::new();
        }
    }

    /// Everything handed out counts as captured.
    pub(super) fn settle_all(&mut self) {
        while !self.waiting.is_empty() {
            self.capture_front();
        }
    }

    fn capture_front(&mut self) {
        let Some(Note { point, changes }) = self.waiting.pop_front() else {
            return;
        };
        let txid = point.position.txid;
        self.unsaved.extend(changes.iter().map(|(pgno, sum)| (pgno.get(), Entry::new(*sum, txid))));
        self.captured = point;
        self.dirty = true;
        if self.unsaved.len() > 2 * self.dense + 4096 {
            self.condense();
        }
    }

    /// The newest captured state.
    pub(super) fn captured(&self) -> &Point {
        &self.captured
    }

    /// True when nothing waits for an ack.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What must be appended to the saved state to make it the captured one; `None` when it is that already.
    pub(super) fn unsaved(&mut self) -> Option<(Point, &[(u32, Entry)])> {
        if !self.dirty {
            return None;
        }
        self.condense();
        Some((self.captured, &self.unsaved))
    }

    /// The captured state is saved now.
    pub(super) fn saved(&mut self) {
        self.unsaved = Vec::new();
        self.dense = 0;
        self.dirty = false;
    }

    /// The same state has another place in the log from now on: the log restarted.
    pub(super) fn moved_to(&mut self, wal: WalPosition) {
        assert!(self.waiting.is_empty(), "BUG: a new generation while transactions of the old one wait");
        self.captured.wal = Some(wal);
        self.dirty = true;
    }

    /// Ascending by page, newest entry only, none beyond the captured size.
    fn condense(&mut self) {
        let commit = self.captured.commit;
        self.unsaved.retain(|(pgno, _)| *pgno <= commit);
        // Stable, so that after the reversal the newest entry of a page comes first.
        self.unsaved.reverse();
        self.unsaved.sort_by_key(|(pgno, _)| *pgno);
        self.unsaved.dedup_by_key(|(pgno, _)| *pgno);
        self.dense = self.unsaved.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::{Checksum, Pgno};

    fn sum(n: u64) -> Checksum {
        Checksum::new(1 << 63 | n).unwrap()
    }

    fn point(txid: u64, commit: u32) -> Point {
        Point { position: Pos { txid: Txid::new(txid).unwrap(), checksum: sum(txid) }, wal: None, commit }
    }

    fn change(page: u32, n: u64) -> Change {
        (Pgno::new(page).unwrap(), sum(n))
    }

    fn entry(page: u32, n: u64, txid: u64) -> (u32, Entry) {
        (page, Entry::new(sum(n), Txid::new(txid).unwrap()))
    }

    #[test]
    fn only_acked_transactions_are_saved() {
        let mut ledger = Ledger::new(point(1, 4));
        assert!(ledger.unsaved().is_none());
        ledger.handed_out(point(2, 4), vec![change(1, 21), change(3, 23)]);
        ledger.handed_out(point(3, 4), vec![change(1, 31)]);
        assert!(ledger.unsaved().is_none());
        ledger.captured_to(Txid::new(2).unwrap());
        assert_eq!(ledger.unsaved(), Some((point(2, 4), &[entry(1, 21, 2), entry(3, 23, 2)][..])));
        assert!(!ledger.is_settled());
        ledger.saved();
        assert!(ledger.unsaved().is_none());
        ledger.captured_to(Txid::new(9).unwrap());
        assert_eq!(ledger.unsaved(), Some((point(3, 4), &[entry(1, 31, 3)][..])));
        assert_eq!(ledger.captured(), &point(3, 4));
    }

    #[test]
    fn pages_that_a_shrink_took_are_not_saved_unless_they_came_back() {
        let mut ledger = Ledger::new(point(1, 4));
        ledger.handed_out(point(2, 6), vec![change(5, 25), change(6, 26)]);
        ledger.handed_out(point(3, 2), vec![change(1, 31)]);
        ledger.settle_all();
        assert_eq!(ledger.unsaved(), Some((point(3, 2), &[entry(1, 31, 3)][..])));
        ledger.handed_out(point(4, 5), vec![change(3, 43), change(4, 44), change(5, 45)]);
        ledger.settle_all();
        let all = [entry(1, 31, 3), entry(3, 43, 4), entry(4, 44, 4), entry(5, 45, 4)];
        assert_eq!(ledger.unsaved(), Some((point(4, 5), &all[..])));
    }

    #[test]
    fn what_waits_to_be_saved_is_bounded_by_the_pages_of_the_database() {
        let mut ledger = Ledger::new(point(1, 8));
        for txid in 2..20_000 {
            ledger.handed_out(point(txid, 8), vec![change((txid % 8) as u32 + 1, txid)]);
            ledger.settle_all();
        }
        assert!(ledger.unsaved.len() <= 4096 + 17);
        assert_eq!(ledger.unsaved().unwrap().1.len(), 8);
    }
}
