//! What an incoming segment is, seen from the hub's position: the whole continuity rule, as one pure function.
//!
//! Invariant: a history only grows at its end, by the segment whose `pre` checksum is the checksum held. Whatever else
//! arrives is acknowledged without being stored, asked for again, or refused as another history.

use walhub_common::{Checksum, Pos, TxidRange};

/// The verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It continues the history: store it.
    Next,
    /// It is held already: acknowledge it, store nothing.
    Duplicate,
    /// Transactions are missing before it: ask for a resend from the position.
    Gap,
    /// It belongs to another history: store nothing, overwrite nothing, tell an operator.
    Fork,
}

/// Judges a segment against `position`, the newest transaction held (`None`: nothing yet).
///
/// `pre` is `None` exactly when the segment starts at TXID 1.
pub fn decide(position: Option<Pos>, range: TxidRange, pre: Option<Checksum>, post: Checksum) -> Decision {
    let Some(held) = position else {
        return match (range.follows(None), pre) {
            (false, _) => Decision::Gap,
            (true, None) => Decision::Next,
            (true, Some(_)) => Decision::Fork,
        };
    };
    if range.follows(Some(held.txid)) {
        return if pre == Some(held.checksum) { Decision::Next } else { Decision::Fork };
    }
    if range.min() > held.txid {
        return Decision::Gap;
    }
    match range.max().cmp(&held.txid) {
        std::cmp::Ordering::Less => Decision::Duplicate,
        std::cmp::Ordering::Equal if post == held.checksum => Decision::Duplicate,
        // The same transaction with another content, or a run that leaves our history in its middle.
        std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Decision::Fork,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use walhub_common::Txid;

    fn sum(n: u64) -> Checksum {
        Checksum::new(1 << 63 | n).unwrap()
    }

    fn pos(txid: u64) -> Option<Pos> {
        Txid::new(txid).map(|txid| Pos { txid, checksum: sum(txid.get()) })
    }

    /// The honest segment of a history in which the checksum after TXID n is `sum(n)`.
    fn honest(min: u64, max: u64) -> (TxidRange, Option<Checksum>, Checksum) {
        (TxidRange::from_raw(min, max).unwrap(), (min > 1).then(|| sum(min - 1)), sum(max))
    }

    #[test]
    fn every_small_case_is_decided_as_written() {
        for held in 0..6u64 {
            for min in 1..8u64 {
                for max in min..9u64 {
                    let (range, pre, post) = honest(min, max);
                    let expected = if min == held + 1 {
                        Decision::Next
                    } else if min > held + 1 {
                        Decision::Gap
                    } else if max <= held {
                        Decision::Duplicate
                    } else {
                        Decision::Fork
                    };
                    assert_eq!(decide(pos(held), range, pre, post), expected, "{held} {min}-{max}");
                }
            }
        }
    }

    #[test]
    fn another_checksum_at_the_seam_is_a_fork() {
        let (range, _, post) = honest(4, 4);
        assert_eq!(decide(pos(3), range, Some(sum(99)), post), Decision::Fork);
        assert_eq!(decide(pos(3), range, None, post), Decision::Fork);
        let (range, pre, _) = honest(3, 3);
        assert_eq!(decide(pos(3), range, pre, sum(99)), Decision::Fork);
        let (range, _, post) = honest(1, 1);
        assert_eq!(decide(None, range, Some(sum(7)), post), Decision::Fork);
    }

    proptest! {
        /// Whatever arrives in whatever order, only honest continuations are stored, and the result is contiguous.
        #[test]
        fn only_the_next_segment_ever_moves_the_position(
            arrivals in proptest::collection::vec((1..20u64, 0..4u64, any::<bool>()), 0..200)
        ) {
            let mut position: Option<Pos> = None;
            for (min, more, forged) in arrivals {
                let (range, pre, post) = honest(min, min + more);
                let pre = if forged { pre.map(|_| sum(1000)) } else { pre };
                let held = position.map_or(0, |p| p.txid.get());
                match decide(position, range, pre, post) {
                    Decision::Next => {
                        prop_assert_eq!(range.min().get(), held + 1);
                        prop_assert!(!forged || min == 1);
                        position = Some(Pos { txid: range.max(), checksum: post });
                    }
                    Decision::Duplicate => prop_assert!(range.max().get() <= held),
                    Decision::Gap => prop_assert!(range.min().get() > held + 1),
                    Decision::Fork => prop_assert!(forged || range.max().get() > held),
                }
            }
        }
    }
}
