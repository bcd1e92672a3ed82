use super::*;
use crate::buffer::Place;
use proptest::prelude::*;
use walhub_common::Checksum;

/// Segments of these sizes, one transaction each, from TXID 1.
fn segments(sizes: &[u64]) -> Vec<SegmentRef> {
    let checksum = |n: u64| Checksum::new(1 << 63 | n).unwrap();
    let segment = |(at, bytes): (usize, &u64)| {
        let txid = at as u64 + 1;
        let meta = SegmentMeta {
            range: TxidRange::from_raw(txid, txid).unwrap(),
            pre: (txid > 1).then(|| checksum(txid - 1)),
            post: checksum(txid),
            time_ms: at as i64,
            agent_time_ms: 0,
        };
        SegmentRef { meta, bytes: *bytes, place: Place { first: (1, 0), last: (1, 0), chunks: 1 } }
    };
    sizes.iter().enumerate().map(segment).collect()
}

fn run(sizes: &[u64], cuts: &[u64], budget: u64) -> Option<Range<usize>> {
    let cuts = cuts.iter().map(|n| Txid::new(*n).unwrap()).collect();
    next_run(&segments(sizes), sizes.iter().sum(), &cuts, budget)
}

#[test]
fn the_oldest_go_first_and_a_large_one_is_not_copied_for_small_ones() {
    assert_eq!(run(&[], &[], 1000), None);
    assert_eq!(run(&[10], &[], 1000), None);
    assert_eq!(run(&[10, 10, 10], &[], 1000), Some(0..3));
    assert_eq!(run(&[100, 10, 10], &[], 1000), Some(1..3));
    assert_eq!(run(&[100, 60, 50], &[], 1000), Some(0..3), "together they are worth it");
    assert_eq!(run(&[100, 10, 9], &[], 1000), None);
    assert_eq!(run(&[10, 10, 10], &[], 25), Some(0..2), "no more than there is room for");
    assert_eq!(run(&[30, 10, 10, 40], &[], 25), Some(1..3));
}

#[test]
fn a_run_ends_where_a_destination_stands() {
    assert_eq!(run(&[10, 10, 10, 10], &[2], 1000), Some(0..2));
    assert_eq!(run(&[10, 10, 10, 10], &[1], 1000), Some(1..4));
    assert_eq!(run(&[10, 10], &[1], 1000), None);
}

#[test]
fn a_hole_ends_a_run() {
    let mut segments = segments(&[10, 10, 10, 10]);
    segments.remove(1);
    assert_eq!(next_run(&segments, 30, &BTreeSet::new(), 1000), Some(1..3));
}

#[test]
fn what_a_destination_holds_is_not_lost() {
    let segments = segments(&[10, 10, 10, 10]);
    let txid = Txid::new;
    let all = cost(&segments, None);
    assert_eq!((all.points, all.range), (3, TxidRange::from_raw(1, 3)));
    let some = cost(&segments, txid(2));
    assert_eq!((some.points, some.range), (1, TxidRange::from_raw(3, 3)));
    assert_eq!(cost(&segments, txid(3)), GivenUp::default());
    assert_eq!(all.and(some).points, 4);
    assert_eq!(some.and(GivenUp::default()), some);
}

proptest! {
    #[test]
    fn runs_are_within_every_bound(
        sizes in proptest::collection::vec(prop_oneof![1..2000u64, 100_000..600_000u64], 0..400),
        cuts in proptest::collection::vec(1..400u64, 0..3),
        budget in 1000..3_000_000u64,
    ) {
        let all = segments(&sizes);
        if let Some(run) = run(&sizes, &cuts, budget) {
            prop_assert!(run.len() > 1);
            let inputs = &all[run.clone()];
            prop_assert!(inputs.iter().map(|s| s.bytes).sum::<u64>() <= budget);
            prop_assert!(groups(inputs).len() <= MAX_GROUPS);
            let crossed = |cut: &&u64| (run.start as u64 + 1..run.end as u64).contains(*cut);
            prop_assert_eq!(cuts.iter().find(crossed), None);
        }
    }

    #[test]
    fn groups_are_all_of_them_in_order(sizes in proptest::collection::vec(1..300_000u64, 0..300)) {
        let all = segments(&sizes);
        let mut at = 0;
        for group in groups(&all) {
            prop_assert_eq!(group.start, at);
            let bytes: u64 = all[group.clone()].iter().map(|s| s.bytes).sum();
            prop_assert!(group.len() == 1 || (bytes <= GROUP_BYTES && group.len() <= GROUP_SEGMENTS));
            at = group.end;
        }
        prop_assert_eq!(at, all.len());
    }
}
