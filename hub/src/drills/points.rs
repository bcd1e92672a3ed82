//! Which restore points beside the newest a drill tries. Pure.
//!
//! The newest state is mostly made of the newest files, so that damage to older ones shows only in older points. Points are drawn by
//! the level of the file that ends there, each level alike: level 0 has most of the points, and compacted files most of the
//! history.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use walhub_common::{Level, Txid};
use walhub_store::restore::{Listing, Plan, Reach};

/// At most `most` plans to points before `newest` that the listings lead to, each point once. The same seed draws the same.
pub(super) fn older(listings: &[Listing], newest: Txid, most: usize, seed: u64) -> Vec<Plan> {
    let reach = Reach::new(listings, None);
    let reachable: BTreeSet<Txid> = reach.points().filter(|point| *point < newest).collect();
    let mut by_level: BTreeMap<Level, BTreeSet<Txid>> = BTreeMap::new();
    for file in listings.iter().flat_map(|listing| &listing.files) {
        if reachable.contains(&file.range.max()) {
            by_level.entry(file.level).or_default().insert(file.range.max());
        }
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut plans = Vec::new();
    while plans.len() < most && !by_level.is_empty() {
        let level = random.random_range(0..by_level.len());
        let Some(points) = by_level.values().nth(level) else { break };
        let Some(&point) = points.iter().nth(random.random_range(0..points.len())) else { break };
        plans.extend(reach.chain_to(point));
        by_level.retain(|_, points| {
            points.remove(&point);
            !points.is_empty()
        });
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::TxidRange;
    use walhub_store::destinations::Listed;

    fn listing(files: &[(u8, u64, u64)]) -> [Listing; 1] {
        let files = files.iter().map(|&(level, min, max)| Listed {
            level: Level::new(level).unwrap(),
            range: TxidRange::from_raw(min, max).unwrap(),
            size: 1000,
            time_ms: 0,
        });
        [Listing { source: "far".parse().unwrap(), files: files.collect() }]
    }

    fn drawn(listings: &[Listing], newest: u64, most: usize, seed: u64) -> Vec<u64> {
        let plans = older(listings, Txid::new(newest).unwrap(), most, seed);
        plans.iter().map(|plan| plan.reached.get()).collect()
    }

    #[test]
    fn each_point_is_drawn_once_and_none_that_cannot_be_restored() {
        // Behind a hole nothing can be restored; the snapshot begins anew.
        let mut files = vec![(1, 1, 10), (1, 11, 20), (9, 1, 30), (0, 32, 32)];
        files.extend((21..=29).map(|txid| (0, txid, txid)));
        let listings = listing(&files);
        for seed in 0..50 {
            let mut all = drawn(&listings, 30, 100, seed);
            assert_eq!(all, drawn(&listings, 30, 100, seed), "the same seed draws the same");
            all.sort_unstable();
            let wanted: Vec<u64> = [10, 20].into_iter().chain(21..=29).collect();
            assert_eq!(all, wanted, "seed {seed}");
            assert_eq!(drawn(&listings, 30, 3, seed).len(), 3);
        }
        assert!(drawn(&listings, 30, 0, 7).is_empty());
        assert!(drawn(&listing(&[]), 1, 5, 7).is_empty());
        assert!(drawn(&listing(&[(9, 1, 5)]), 5, 5, 7).is_empty());
    }

    #[test]
    fn compacted_files_get_their_turn_beside_a_thousand_fine_ones() {
        let mut files = vec![(3, 1, 500)];
        files.extend((501..=1500).map(|txid| (0, txid, txid)));
        let listings = listing(&files);
        let compacted = (0..100).filter(|seed| drawn(&listings, 1500, 1, *seed) == [500]).count();
        assert!((20..=80).contains(&compacted), "{compacted} of 100");
    }
}
