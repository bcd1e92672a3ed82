//! The planner against a model that tries every chain.

use super::inventory::Listing;
use super::plan::{self, Plan, PlanError};
use super::reach::{FILE_OVERHEAD_BYTES, Reach};
use super::source::SourceName;
use super::times;
use crate::destinations::Listed;
use futures_util::FutureExt;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use walhub_common::{Level, Txid, TxidRange};

const NEWEST: u64 = 9;

fn txid(value: u64) -> Txid {
    Txid::new(value).unwrap()
}

fn listed(min: u64, max: u64, size: u64) -> Listed {
    let range = TxidRange::from_raw(min, max).unwrap();
    Listed { level: Level::RAW, range, size, time_ms: max as i64 * 10 }
}

fn listings(sources: &[&[(u64, u64, u64)]]) -> Vec<Listing> {
    let of = |(number, files): (usize, &&[(u64, u64, u64)])| Listing {
        source: SourceName::new(format!("s{number}")).unwrap(),
        files: files.iter().map(|&(min, max, size)| listed(min, max, size)).collect(),
    };
    sources.iter().enumerate().map(of).collect()
}

/// Cost of the cheapest chain to every state, by trying all.
fn model(files: &[(u64, u64, u64)], start: u64) -> BTreeMap<u64, u64> {
    fn walk(files: &[(u64, u64, u64)], state: u64, cost: u64, best: &mut BTreeMap<u64, u64>) {
        if best.get(&state).is_some_and(|&known| known <= cost) {
            return;
        }
        best.insert(state, cost);
        for &(min, max, size) in files {
            if min <= state + 1 && max > state {
                walk(files, max, cost + size + FILE_OVERHEAD_BYTES, best);
            }
        }
    }
    let mut best = BTreeMap::new();
    walk(files, start, 0, &mut best);
    best
}

fn is_a_chain(plan: &Plan, start: u64) -> bool {
    let mut state = start;
    for file in &plan.files {
        if file.range.min().get() > state + 1 || file.range.max().get() <= state {
            return false;
        }
        state = file.range.max().get();
    }
    state == plan.reached.get()
}

fn any_files() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    // Sizes well above and below the overhead of a file, and many equal ones.
    let file = (1..=NEWEST, 0..4_u64, prop_oneof![Just(100_u64), 0..1_000_000_u64]);
    prop::collection::vec(file.prop_map(|(min, more, size)| (min, (min + more).min(NEWEST), size)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn chains_are_the_cheapest_and_errors_the_truth(
        one in any_files(),
        two in any_files(),
        start in 0..4_u64,
        asked in 1..=NEWEST + 1,
    ) {
        let listings = listings(&[&one, &two]);
        let reach = Reach::new(&listings, Txid::new(start));
        let all = [one, two].concat();
        let best = model(&all, start);
        let points: Vec<u64> = best.keys().copied().filter(|&state| state > start).collect();
        prop_assert_eq!(reach.points().map(Txid::get).collect::<Vec<_>>(), points.clone());
        let reached = *best.keys().last().unwrap();
        let beyond: Vec<_> = all.iter().filter(|file| file.1 > reached).collect();

        for &point in &points {
            let plan = plan::exactly(&reach, txid(point)).unwrap();
            prop_assert!(is_a_chain(&plan, start), "{plan:?}");
            prop_assert_eq!(plan.reached.get(), point);
            let cost = plan.total_bytes() + plan.files.len() as u64 * FILE_OVERHEAD_BYTES;
            prop_assert_eq!(cost, best[&point], "{:?}", plan);
        }

        match plan::latest(&reach) {
            Ok(plan) => {
                prop_assert!(beyond.is_empty() && plan.reached.get() == reached && is_a_chain(&plan, start));
            }
            Err(PlanError::NotFound) => prop_assert!(start == 0 && all.is_empty()),
            Err(PlanError::Hole { after, next_available }) => {
                prop_assert_eq!(after.map_or(0, Txid::get), reached);
                let next = beyond.iter().map(|file| file.0).min();
                prop_assert_eq!(Some(next_available.get()), next);
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }

        let mentioned = all.iter().map(|file| file.1).max().unwrap_or(0);
        match plan::exactly(&reach, txid(asked)) {
            Ok(plan) => prop_assert!(best.contains_key(&asked) && is_a_chain(&plan, start)),
            Err(PlanError::BeforeStart { .. }) => prop_assert!(asked < start),
            Err(PlanError::BetweenRestorePoints { below, above, .. }) => {
                let nearest = points.iter().copied().rfind(|&point| point < asked).unwrap_or(start);
                prop_assert_eq!(below.map_or(0, Txid::get), nearest);
                prop_assert_eq!(Some(above.get()), points.iter().copied().find(|&point| point > asked));
            }
            Err(PlanError::Hole { after, .. }) => {
                prop_assert!(asked > reached && !beyond.is_empty());
                prop_assert_eq!(after.map_or(0, Txid::get), reached);
            }
            Err(PlanError::BeyondNewest { newest, .. }) => {
                prop_assert!(asked > reached && (asked > mentioned || beyond.is_empty()));
                prop_assert_eq!(newest.get(), reached);
            }
            Err(PlanError::NotFound) => prop_assert!(start == 0 && all.is_empty()),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_time_means_the_newest_point_at_or_before_it(files in any_files(), asked_ms in 0..=100_i64) {
        let listings = listings(&[&files]);
        let reach = Reach::new(&listings, None);
        let reads = Cell::new(0);
        let time_of = |file: plan::PlannedFile| {
            reads.set(reads.get() + 1);
            std::future::ready(Ok(file.time_ms))
        };
        let planned = times::not_after(&reach, asked_ms, time_of).now_or_never().unwrap().unwrap();
        let points: Vec<u64> = reach.points().map(Txid::get).collect();
        let expected = points.iter().copied().rfind(|&point| point as i64 * 10 <= asked_ms);
        match planned {
            Ok(plan) => {
                prop_assert_eq!(Some(plan.reached.get()), expected);
                // Nobody knows how old the transactions in a hole right behind the point are.
                prop_assert!(reach.hole().is_none() || expected != points.last().copied());
            }
            Err(PlanError::BeforeOldest { oldest, oldest_ms, .. }) => {
                prop_assert!(expected.is_none() && oldest.get() == points[0]);
                prop_assert_eq!(oldest_ms, points[0] as i64 * 10);
            }
            Err(PlanError::Hole { .. }) => {
                prop_assert!(reach.hole().is_some() && expected == points.last().copied());
            }
            Err(PlanError::NotFound) => prop_assert!(files.is_empty()),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        prop_assert!(reads.get() <= 4, "{} reads for {} points", reads.get(), points.len());
    }
}

#[test]
fn the_preferred_source_wins_a_tie_and_fewer_bytes_win_over_it() {
    let same: &[_] = &[(1, 5, 1_000), (6, 6, 100)];
    let listings_of = listings(&[same, same]);
    let plan = plan::latest(&Reach::new(&listings_of, None)).unwrap();
    assert!(plan.files.iter().all(|file| file.source.as_str() == "s0"), "{plan:?}");
    let merged: &[_] = &[(1, 6, 1_050)];
    let listings_of = listings(&[same, merged]);
    let plan = plan::latest(&Reach::new(&listings_of, None)).unwrap();
    assert_eq!((plan.files.len(), plan.files[0].source.as_str()), (1, "s1"));
}

#[test]
fn files_of_one_chain_may_come_from_different_sources() {
    let listings = listings(&[&[(1, 1, 10), (4, 5, 10)], &[(2, 3, 10), (6, 6, 10)]]);
    let plan = plan::latest(&Reach::new(&listings, None)).unwrap();
    let sources: Vec<_> = plan.files.iter().map(|file| file.source.as_str()).collect();
    assert_eq!(sources, ["s0", "s1", "s0", "s1"]);
    assert_eq!(plan.reached.get(), 6);
}

#[test]
fn a_caller_that_is_up_to_date_gets_an_empty_plan() {
    let listings = listings(&[&[(1, 4, 10), (5, 5, 10)]]);
    let reach = Reach::new(&listings, Txid::new(5));
    assert_eq!(plan::latest(&reach), Ok(Plan { files: vec![], reached: txid(5) }));
    assert_eq!(
        plan::exactly(&reach, txid(4)),
        Err(PlanError::BeforeStart { asked: txid(4), start: txid(5) })
    );
    assert_eq!(
        plan::exactly(&reach, txid(6)),
        Err(PlanError::BeyondNewest { asked: txid(6), newest: txid(5) })
    );
}

#[test]
fn a_hundred_thousand_files_are_planned_at_once() {
    let files: Vec<_> = (1..=100_000).map(|n| (n, n, 200)).collect();
    let merged: Vec<_> = (0..1_000).map(|n| (n * 100 + 1, n * 100 + 100, 5_000)).collect();
    let listings = listings(&[&files, &files, &merged]);
    let reach = Reach::new(&listings, None);
    let plan = plan::exactly(&reach, txid(99_950)).unwrap();
    assert_eq!(plan.files.len(), 999 + 50);
}

#[test]
fn errors_say_what_can_be_done() {
    let listings_of = listings(&[&[(1, 4, 10), (5, 9, 10), (12, 12, 10)]]);
    let reach = Reach::new(&listings_of, None);
    assert_eq!(
        plan::exactly(&reach, txid(7)).unwrap_err().to_string(),
        "transaction 0000000000000007 is no restore point (any more): the nearest are transaction 0000000000000004 and \
         transaction 0000000000000009"
    );
    assert_eq!(
        plan::latest(&reach).unwrap_err().to_string(),
        "the history has a hole: after transaction 0000000000000009 the next file starts at transaction \
         000000000000000c; restore an earlier point by its transaction, or bring back the missing source"
    );
    let none = listings(&[&[]]);
    assert_eq!(plan::exactly(&Reach::new(&none, None), txid(1)), Err(PlanError::NotFound));
}
