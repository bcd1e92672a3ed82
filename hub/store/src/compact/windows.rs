//! Windows of a level: aligned intervals of hub time. Pure.
//!
//! A file of a level covers the transactions of one window, as a run of whole files of the level below, beginning right
//! after the level's newest file. Since each interval is a multiple of the one below, a window of a level is a union of
//! windows of the level below, and so is its file.

use std::time::Duration;
use walhub_common::TxidRange;

/// How long after its end a window is still waited for: transactions that got their time before it may just be on the
/// way to the disk.
pub const GRACE_MS: i64 = 2_000;

/// A file of the level below (or a buffered segment): its transactions and the time of the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Transactions.
    pub range: TxidRange,
    /// Hub time of the newest one, Unix ms.
    pub time_ms: i64,
}

/// What the next window of a level is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// It is over: its first `pieces` make up one file.
    Due {
        /// How many.
        pieces: usize,
        /// Their transactions.
        range: TxidRange,
        /// Time of the newest, Unix ms.
        time_ms: i64,
    },
    /// It is over at this time, Unix ms.
    Later(i64),
    /// Nothing happened.
    Empty,
}

/// The first window of `pieces`, which are in TXID order, may overlap, and each reach beyond the level's newest file. A hole
/// between pieces ends a run: no file claims what it does not hold.
pub fn next(pieces: &[Piece], interval: Duration, now_ms: i64) -> Window {
    let Some(first) = pieces.first() else { return Window::Empty };
    let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    let number = first.time_ms.div_euclid(interval_ms);
    let end_ms = (number + 1).saturating_mul(interval_ms).saturating_add(GRACE_MS);
    if now_ms < end_ms {
        return Window::Later(end_ms);
    }
    let (mut count, mut last) = (1, *first);
    for piece in &pieces[1..] {
        let leads_on = piece.range.min() <= last.range.max().next() && piece.range.max() > last.range.max();
        if piece.time_ms.div_euclid(interval_ms) != number || !leads_on {
            break;
        }
        (count, last) = (count + 1, *piece);
    }
    let range = TxidRange::new(first.range.min(), last.range.max()).unwrap_or(first.range);
    Window::Due { pieces: count, range, time_ms: last.time_ms }
}

/// Why these intervals cannot be levels; `None` when they can.
pub fn unusable(levels: &[Duration]) -> Option<String> {
    if levels.len() > 8 {
        return Some(format!("{} levels are given; there are levels 1 to 8", levels.len()));
    }
    for pair in levels.windows(2) {
        let (below, above) = (pair[0].as_millis(), pair[1].as_millis());
        if above <= below || above % below != 0 {
            return Some(format!(
                "{:?} is not a multiple of {:?}, the level below: windows would not nest",
                pair[1], pair[0]
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_windows(pieces: &[Piece], interval: Duration, now_ms: i64) -> Vec<Piece> {
        let (mut at, mut files) = (0, Vec::new());
        while let Window::Due { pieces: count, range, time_ms } = next(&pieces[at..], interval, now_ms) {
            files.push(Piece { range, time_ms });
            at += count;
        }
        files
    }

    proptest! {
        /// Whatever is committed when, and whenever somebody looks: files of every level are runs without a hole, each
        /// holds exactly one window, those of a level above are unions of those below, and nothing young is touched.
        #[test]
        fn windows_nest_and_leave_no_hole(
            steps in prop::collection::vec((1u64..4, 0i64..400_000), 1..200),
            late in 0i64..8_000_000,
        ) {
            let (mut txid, mut time_ms, mut pieces) = (1, 1_700_000_000_000, Vec::new());
            for (count, pause) in steps {
                time_ms += pause;
                pieces.push(Piece { range: TxidRange::from_raw(txid, txid + count - 1).unwrap(), time_ms });
                txid += count;
            }
            let now_ms = time_ms - 2_000_000 + late;
            let mut below = pieces;
            for seconds in [30, 300, 3600] {
                let interval = Duration::from_secs(seconds);
                let files = all_windows(&below, interval, now_ms);
                let mut next_txid = 1;
                let mut last_window = i64::MIN;
                for file in &files {
                    prop_assert_eq!(file.range.min().get(), next_txid, "a hole");
                    next_txid = file.range.max().get() + 1;
                    let window = file.time_ms.div_euclid(seconds as i64 * 1000);
                    prop_assert!(window > last_window, "two files of one window");
                    prop_assert!((window + 1) * seconds as i64 * 1000 + GRACE_MS <= now_ms, "too young");
                    last_window = window;
                    prop_assert!(below.iter().any(|piece| piece.range.max() == file.range.max()));
                    prop_assert!(below.iter().any(|piece| piece.range.min() == file.range.min()));
                }
                // What is left is too young, all of it.
                let rest: Vec<Piece> = below.iter().filter(|p| p.range.min().get() >= next_txid).copied().collect();
                let due = matches!(next(&rest, interval, now_ms), Window::Due { .. });
                prop_assert!(!due);
                below = files;
            }
        }
    }

    #[test]
    fn a_hole_ends_a_file() {
        let piece = |min, max| Piece { range: TxidRange::from_raw(min, max).unwrap(), time_ms: 5 };
        let pieces = [piece(2, 3), piece(4, 4), piece(6, 9)];
        let due = next(&pieces, Duration::from_secs(1), 10_000);
        assert_eq!(due, Window::Due { pieces: 2, range: TxidRange::from_raw(2, 4).unwrap(), time_ms: 5 });
        assert_eq!(next(&pieces, Duration::from_secs(1), 2_999), Window::Later(3_000));
        assert_eq!(next(&[], Duration::from_secs(1), 0), Window::Empty);
    }

    #[test]
    fn pieces_may_overlap() {
        let piece = |min, max| Piece { range: TxidRange::from_raw(min, max).unwrap(), time_ms: 5 };
        let due = next(&[piece(2, 5), piece(4, 8), piece(9, 9)], Duration::from_secs(1), 10_000);
        assert_eq!(due, Window::Due { pieces: 3, range: TxidRange::from_raw(2, 9).unwrap(), time_ms: 5 });
        let due = next(&[piece(2, 5), piece(4, 5)], Duration::from_secs(1), 10_000);
        assert_eq!(due, Window::Due { pieces: 1, range: TxidRange::from_raw(2, 5).unwrap(), time_ms: 5 });
    }

    #[test]
    fn levels_must_nest() {
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        assert_eq!(unusable(&seconds(&[30, 300, 3600])), None);
        assert_eq!(unusable(&[]), None);
        assert!(unusable(&seconds(&[30, 45])).is_some());
        assert!(unusable(&seconds(&[30, 30])).is_some());
        assert!(unusable(&seconds(&[1, 2, 4, 8, 16, 32, 64, 128, 256])).is_some());
    }
}
