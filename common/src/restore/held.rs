//! Pages that came alone: held, still compressed, until their neighbours come, so that the file is written in long runs.
//!
//! A restore reads the newest files first, and those are small: a few pages each, from all over the database. Written as they
//! come they would cost a write for each, cut the runs of the large file that comes last, and scatter the result over the disk.

use super::frames::Frames;
use crate::Pgno;
use std::collections::BTreeMap;
use std::ops::Bound::Excluded;

/// Gaps of more pages are not looked at: pages so far apart lie in a small file.
const WIDEST_GAP: u32 = 256;
/// What a page takes beside its block, bytes.
const OVERHEAD: usize = 64;

/// The block of a page.
pub(super) type Owned = (Pgno, Box<[u8]>);

/// See the module doc. Holds no page twice.
#[derive(Debug)]
pub(super) struct Held {
    pages: BTreeMap<Pgno, Box<[u8]>>,
    bytes: usize,
    most_bytes: usize,
}

impl Held {
    /// For about `most_bytes` bytes of memory.
    pub(super) fn new(most_bytes: usize) -> Held {
        Held { pages: BTreeMap::new(), bytes: 0, most_bytes }
    }

    /// Holds a page; false when it is held already.
    #[must_use]
    pub(super) fn keep(&mut self, pgno: Pgno, block: &[u8]) -> bool {
        self.bytes += block.len() + OVERHEAD;
        self.pages.insert(pgno, block.into()).is_none()
    }

    /// True when some should be written before more are held.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.most_bytes
    }

    /// Takes the pages that lie between those of `frames`, where that closes a gap, ascending.
    pub(super) fn closing(&mut self, frames: &Frames) -> Vec<Owned> {
        let mut taken = Vec::new();
        for pair in frames.blocks.windows(2) {
            let (left, right) = (pair[0].pgno, pair[1].pgno);
            let gap = right.get().saturating_sub(left.get() + 1);
            if gap == 0 || gap > WIDEST_GAP {
                continue;
            }
            let between = (Excluded(left), Excluded(right));
            if self.pages.range(between).count() == gap as usize {
                let pages: Vec<Pgno> = self.pages.range(between).map(|(pgno, _)| *pgno).collect();
                taken.extend(pages.into_iter().filter_map(|pgno| self.pages.remove_entry(&pgno)));
            }
        }
        self.forget(&taken);
        taken
    }

    /// Takes the first `most` pages.
    pub(super) fn first(&mut self, most: usize) -> Vec<Owned> {
        let taken: Vec<Owned> = (0..most).map_while(|_| self.pages.pop_first()).collect();
        self.forget(&taken);
        taken
    }

    fn forget(&mut self, taken: &[Owned]) {
        self.bytes -= taken.iter().map(|(_, block)| block.len() + OVERHEAD).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::frames::FramesBuilder;

    fn page(number: u32) -> Pgno {
        Pgno::new(number).unwrap()
    }

    fn frames(pages: &[u32]) -> Frames {
        let mut builder = FramesBuilder::default();
        pages.iter().for_each(|number| builder.push(page(*number), &[1]));
        builder.take()
    }

    fn numbers(taken: &[Owned]) -> Vec<u32> {
        taken.iter().map(|(pgno, _)| pgno.get()).collect()
    }

    #[test]
    fn only_whole_gaps_are_closed_and_what_was_taken_is_gone() {
        let mut held = Held::new(6 * (100 + OVERHEAD));
        for number in [2, 5, 6, 9, 1000] {
            assert!(held.keep(page(number), &[number as u8; 100]));
        }
        assert!(!held.is_full());
        let taken = held.closing(&frames(&[1, 3, 4, 7, 8, 11, 2000]));
        assert_eq!(numbers(&taken), [2, 5, 6], "10 is missing beside 9, and 1000 is far away");
        assert_eq!(*taken[1].1, [5; 100]);
        assert!(held.closing(&frames(&[1, 3, 4, 7])).is_empty());
        // Descending, or twice the same: no gap.
        assert!(held.closing(&frames(&[10, 8, 8])).is_empty());
        assert_eq!(numbers(&held.first(1)), [9]);
        assert_eq!((numbers(&held.first(9)), held.bytes), (vec![1000], 0));
        assert!(held.first(1).is_empty());
    }

    #[test]
    fn a_page_is_held_once_and_memory_is_counted() {
        let mut held = Held::new(2 * (100 + OVERHEAD));
        assert!(held.keep(page(7), &[0; 100]) && !held.is_full());
        assert!(held.keep(page(8), &[0; 100]) && held.is_full());
        assert!(!held.keep(page(7), &[0; 100]), "it came twice");
    }
}
