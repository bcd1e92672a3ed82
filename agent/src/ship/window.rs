//! The segments that were sent and not yet acked, kept for a resend: pure bookkeeping, no I/O.
//!
//! Invariants:
//! - the entries of one database are contiguous: each starts right after the one before, with its checksum;
//! - the bytes kept for all databases together never pass [`Budget::limit`]. A segment that finds no room is remembered
//!   without its bytes: after a break its pages travel in one delta instead (current data is never lost, its restore
//!   points may be).

use crate::capture::SegmentMeta;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use walhub_common::{Pos, Txid};

/// What an entry costs beside its payload.
const ENTRY_BYTES: usize = 192;

/// The bytes that all windows of one agent share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    freed: Notify,
    pressed: Notify,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), freed: Notify::new(), pressed: Notify::new() })
    }

    /// The bound.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// True while new transactions may be read: half is left for those whose size is not known before they are.
    pub fn has_room(&self) -> bool {
        self.used() < self.limit / 2
    }

    /// Woken whenever bytes are given back after this call.
    pub fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Asks those who only hold bytes, and cannot send now, to give them up.
    pub fn press(&self) {
        self.pressed.notify_waiters();
    }

    /// Woken by the next [`Budget::press`].
    pub fn pressed(&self) -> Notified<'_> {
        self.pressed.notified()
    }

    fn reserve(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }
}

/// The chunks of one segment while it is being sent, as long as the budget has room for them.
#[derive(Debug)]
pub struct Keep {
    budget: Arc<Budget>,
    chunks: Option<Vec<Bytes>>,
    reserved: usize,
    total: u64,
}

impl Keep {
    /// Starts a segment whose bytes are kept when there is room.
    pub fn new(budget: &Arc<Budget>) -> Self {
        let reserved = if budget.reserve(ENTRY_BYTES) { ENTRY_BYTES } else { 0 };
        Self { budget: budget.clone(), chunks: (reserved > 0).then(Vec::new), reserved, total: 0 }
    }

    /// A segment whose bytes are not worth keeping (it can be made again at any time).
    pub fn nothing(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), chunks: None, reserved: 0, total: 0 }
    }

    /// Adds a chunk; when it does not fit, the whole segment is given up (and its room given back).
    pub fn chunk(&mut self, data: &Bytes) {
        self.total += data.len() as u64;
        if let Some(chunks) = &mut self.chunks {
            if self.budget.reserve(data.len()) {
                self.reserved += data.len();
                chunks.push(data.clone());
            } else {
                self.chunks = None;
                self.budget.release(std::mem::take(&mut self.reserved));
            }
        }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.budget.release(self.reserved);
    }
}

/// One segment that waits for its ack.
#[derive(Debug)]
pub struct Entry {
    /// What it is.
    pub meta: SegmentMeta,
    keep: Keep,
}

impl Entry {
    /// A segment that was sent.
    pub fn new(meta: SegmentMeta, keep: Keep) -> Self {
        Self { meta, keep }
    }

    /// The hub's position after it.
    pub fn end(&self) -> Pos {
        Pos { txid: self.meta.range.max(), checksum: self.meta.post }
    }

    /// Its bytes, if they were kept.
    pub fn chunks(&self) -> Option<&[Bytes]> {
        self.keep.chunks.as_deref()
    }

    /// Size of the segment, kept or not.
    pub fn total_bytes(&self) -> u64 {
        self.keep.total
    }
}

/// What a window can do for a hub that stands at some position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// It holds nothing after that position, or not all of it.
    Nothing,
    /// It holds everything after that position, up to its own end.
    Resendable,
    /// It knows that transaction with another checksum.
    Fork {
        /// What was sent under that TXID.
        ours: Pos,
    },
}

/// The unacked segments of one database, oldest first.
#[derive(Debug, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
}

impl Window {
    /// Adds a segment after it was sent. A segment that does not continue the window starts a new one: what lay there
    /// belongs to a chain the hub no longer waits for.
    pub fn push(&mut self, entry: Entry) {
        let continues = self.entries.back().is_none_or(|last| {
            entry.meta.range.follows(Some(last.end().txid)) && entry.meta.pre == Some(last.meta.post)
        });
        if !continues {
            self.entries.clear();
        }
        self.entries.push_back(entry);
    }

    /// Drops every segment that the hub holds: all up to `txid`.
    pub fn ack(&mut self, txid: Txid) {
        while self.entries.front().is_some_and(|e| e.end().txid <= txid) {
            self.entries.pop_front();
        }
    }

    /// Forgets everything: the next resume makes one delta instead.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// True when nothing waits for an ack.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Position after the newest segment.
    pub fn end(&self) -> Option<Pos> {
        self.entries.back().map(Entry::end)
    }

    /// The oldest segment that waits.
    pub fn oldest(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// The segments that wait, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Bytes of the segments that wait, kept or not.
    pub fn unacked_bytes(&self) -> u64 {
        self.entries.iter().map(Entry::total_bytes).sum()
    }

    /// What this window can do for a hub at `hub`.
    pub fn coverage(&self, hub: Option<Pos>) -> Coverage {
        if let Some(hub) = hub
            && let Some(ours) = self.known_at(hub.txid)
            && ours != hub
        {
            return Coverage::Fork { ours };
        }
        match self.after(hub) {
            Some(rest) if rest.len() > 0 => Coverage::Resendable,
            _ => Coverage::Nothing,
        }
    }

    /// The segments after `hub`, when all of them can be sent again.
    pub fn after(&self, hub: Option<Pos>) -> Option<impl ExactSizeIterator<Item = &Entry>> {
        let (txid, checksum) = (hub.map(|p| p.txid), hub.map(|p| p.checksum));
        let first = self.entries.iter().position(|e| e.meta.range.follows(txid) && e.meta.pre == checksum)?;
        let rest = self.entries.range(first..);
        rest.clone().all(|e| e.chunks().is_some()).then_some(rest)
    }

    fn known_at(&self, txid: Txid) -> Option<Pos> {
        let first = self.entries.front()?;
        if let Some(checksum) = first.meta.pre
            && first.meta.range.follows(Some(txid))
        {
            return Some(Pos { txid, checksum });
        }
        self.entries.iter().map(Entry::end).find(|end| end.txid == txid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use walhub_common::{Checksum, PageSize, TxidRange};

    fn sum(txid: u64) -> Checksum {
        Checksum::new((1 << 63) | txid).unwrap()
    }

    fn pos(txid: u64) -> Option<Pos> {
        Txid::new(txid).map(|id| Pos { txid: id, checksum: sum(txid) })
    }

    fn entry(budget: &Arc<Budget>, min: u64, max: u64, bytes: usize) -> Entry {
        let mut keep = Keep::new(budget);
        keep.chunk(&Bytes::from(vec![min as u8; bytes]));
        let meta = SegmentMeta {
            range: TxidRange::from_raw(min, max).unwrap(),
            pre: (min > 1).then(|| sum(min - 1)),
            post: sum(max),
            page_size: PageSize::new(4096).unwrap(),
            commit: 1,
            agent_time_ms: 0,
        };
        Entry::new(meta, keep)
    }

    #[test]
    fn an_ack_gives_bytes_back_and_keeps_the_rest() {
        let budget = Budget::new(10_000);
        let mut window = Window::default();
        for txid in 1..=4 {
            window.push(entry(&budget, txid, txid, 1_000));
        }
        assert_eq!(budget.used(), 4 * (1_000 + ENTRY_BYTES));
        window.ack(Txid::new(3).unwrap());
        assert_eq!(budget.used(), 1_000 + ENTRY_BYTES);
        assert_eq!(window.coverage(pos(3)), Coverage::Resendable);
        assert_eq!(window.coverage(pos(2)), Coverage::Nothing);
        assert_eq!(window.coverage(pos(4)), Coverage::Nothing);
        assert_eq!(window.end(), pos(4));
        drop(window);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_segment_over_the_budget_is_remembered_without_its_bytes() {
        let budget = Budget::new(4_000);
        let mut window = Window::default();
        window.push(entry(&budget, 1, 1, 1_000));
        window.push(entry(&budget, 2, 2, 3_000));
        window.push(entry(&budget, 3, 3, 1_000));
        assert_eq!(budget.used(), 2 * (1_000 + ENTRY_BYTES));
        assert_eq!(window.coverage(None), Coverage::Nothing, "2 would be missing");
        assert_eq!(window.coverage(pos(1)), Coverage::Nothing);
        assert_eq!(window.coverage(pos(2)), Coverage::Resendable);
        assert_eq!(window.unacked_bytes(), 5_000);
    }

    #[test]
    fn another_checksum_under_a_known_txid_is_a_fork() {
        let budget = Budget::new(100_000);
        let mut window = Window::default();
        window.push(entry(&budget, 5, 5, 10));
        window.push(entry(&budget, 6, 8, 10));
        for txid in [4, 5, 8] {
            let other = Pos { txid: Txid::new(txid).unwrap(), checksum: sum(99) };
            assert_eq!(window.coverage(Some(other)), Coverage::Fork { ours: pos(txid).unwrap() });
        }
        let inside = Pos { txid: Txid::new(7).unwrap(), checksum: sum(99) };
        assert_eq!(window.coverage(Some(inside)), Coverage::Nothing, "nothing is known about 7");
    }

    #[test]
    fn a_segment_that_does_not_continue_starts_anew() {
        let budget = Budget::new(100_000);
        let mut window = Window::default();
        window.push(entry(&budget, 1, 1, 10));
        window.push(entry(&budget, 9, 9, 10));
        assert_eq!(window.coverage(None), Coverage::Nothing);
        assert_eq!(window.coverage(pos(8)), Coverage::Resendable);
    }

    proptest! {
        /// Whatever is pushed and acked, the budget is the sum of what is kept, and a resend after an ack is contiguous
        /// from there to the end, with every byte.
        #[test]
        fn the_window_is_contiguous_and_the_budget_exact(
            ops in proptest::collection::vec((1_u64..4, 0_usize..1_500, proptest::option::of(0_u64..6)), 1..60),
        ) {
            let budget = Budget::new(8_000);
            let mut window = Window::default();
            let (mut next, mut acked) = (1_u64, 0_u64);
            for (count, bytes, ack) in ops {
                window.push(entry(&budget, next, next + count - 1, bytes));
                next += count;
                if let Some(behind) = ack {
                    let txid = (next - 1).saturating_sub(behind).max(acked);
                    if let Some(id) = Txid::new(txid) {
                        window.ack(id);
                        acked = txid;
                    }
                }
                let kept: usize = window.entries.iter()
                    .filter_map(|e| e.chunks())
                    .map(|c| ENTRY_BYTES + c.iter().map(Bytes::len).sum::<usize>())
                    .sum();
                prop_assert_eq!(budget.used(), kept);
                prop_assert!(budget.used() <= budget.limit());
                for hub in 0..next {
                    let Some(rest) = window.after(pos(hub)) else { continue };
                    let mut at = hub;
                    for e in rest {
                        prop_assert_eq!(e.meta.range.min().get(), at + 1);
                        prop_assert_eq!(e.meta.pre.map_or(0, |c| c.get() & !(1 << 63)), at);
                        let bytes: usize = e.chunks().unwrap().iter().map(Bytes::len).sum();
                        prop_assert_eq!(bytes as u64, e.total_bytes());
                        at = e.meta.range.max().get();
                    }
                    prop_assert_eq!(at, next - 1);
                }
            }
            drop(window);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
