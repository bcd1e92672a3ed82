//! Which transactions a set of files covers, and which files lead on from a point. Pure.

use walhub_common::Txid;
use walhub_store::destinations::Listed;

/// The last file of the run of files that begins at TXID 1 and has no hole; its `max` is the newest transaction that
/// can be restored from them. `None` when there is no such run.
pub(crate) fn reach(files: &[Listed]) -> Option<&Listed> {
    chain(files, None).last().copied()
}

/// Files that lead on from `after`, in order, each beginning at most one past what is held before it, as far as they go.
/// Of several, the one that repeats least comes first, then the one that reaches furthest.
pub(crate) fn chain(files: &[Listed], after: Option<Txid>) -> Vec<&Listed> {
    let mut sorted: Vec<&Listed> = files.iter().collect();
    sorted.sort_by_key(|file| (file.range.min(), file.range.max()));
    let mut chain: Vec<&Listed> = Vec::new();
    let mut held = after;
    loop {
        let next = Txid::following(held);
        let usable = sorted.partition_point(|file| file.range.min() <= next);
        // Files are sorted by their beginning: the first from the end that adds something repeats least.
        let Some(found) = sorted[..usable].iter().rev().find(|file| Some(file.range.max()) > held) else {
            return chain;
        };
        held = Some(found.range.max());
        chain.push(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use walhub_common::{Level, TxidRange};

    fn file(level: u8, min: u64, max: u64) -> Listed {
        let range = TxidRange::from_raw(min, max).unwrap();
        Listed { level: Level::new(level).unwrap(), range, size: 1, time_ms: 0 }
    }

    fn reached(files: &[Listed]) -> u64 {
        reach(files).map_or(0, |file| file.range.max().get())
    }

    #[test]
    fn a_hole_ends_the_run() {
        assert_eq!(reached(&[]), 0);
        assert_eq!(reached(&[file(0, 2, 9)]), 0);
        assert_eq!(reached(&[file(0, 1, 1), file(0, 2, 4), file(0, 6, 9)]), 4);
        assert_eq!(reached(&[file(0, 1, 1), file(0, 2, 4), file(1, 3, 6), file(0, 6, 9)]), 9);
        assert_eq!(reached(&[file(9, 1, 30), file(0, 31, 31)]), 31);
        assert_eq!(reached(&[file(0, 5, 6), file(9, 1, 4)]), 6);
    }

    #[test]
    fn a_chain_repeats_as_little_as_possible() {
        let files = [file(9, 1, 8), file(0, 1, 3), file(0, 4, 6), file(0, 7, 8)];
        let ranges = |after| {
            chain(&files, Txid::new(after))
                .iter()
                .map(|f| (f.range.min().get(), f.range.max().get()))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(3), [(4, 6), (7, 8)]);
        assert_eq!(ranges(0), [(1, 8)]);
        assert_eq!(ranges(8), []);
        assert_eq!(ranges(5), [(4, 6), (7, 8)]);
    }

    proptest! {
        #[test]
        fn the_reach_is_what_counting_says(ranges in proptest::collection::vec((1..12u64, 0..5u64), 0..12)) {
            let files: Vec<Listed> = ranges.iter().map(|(min, more)| file(0, *min, min + more)).collect();
            let covered = |txid: u64| files.iter().any(|f| f.range.min().get() <= txid && txid <= f.range.max().get());
            let expected = (1..20).take_while(|txid| covered(*txid)).last().unwrap_or(0);
            prop_assert_eq!(reached(&files), expected);
            let mut held = 0;
            for step in chain(&files, None) {
                prop_assert!(step.range.min().get() <= held + 1 && step.range.max().get() > held);
                held = step.range.max().get();
            }
        }
    }
}
