//! Which copy is tried next, and when. Pure.
//!
//! Drills come evenly over the period, one after the other, at intervals that vary by a quarter. The copy that was not tried for
//! the longest time is next, so that every database at each of its destinations gets its turn, whatever comes and goes. After
//! a restart both follow from what was recorded. A clock that jumps neither stops drills nor makes them come in a burst: times
//! of the future count as now, and the owner measures the interval by a clock that does not jump.

use super::model::Copy;
use std::time::Duration;

/// Nothing was tried yet: then the first drill comes no later than this.
const FIRST: Duration = Duration::from_secs(600);
/// Shares are in thousandths of a percent.
const WHOLE: u128 = 100_000;

/// What is known of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// When it was tried last, Unix ms.
    pub(super) last_ms: i64,
    /// A repair of it was under way when the hub ended.
    pub(super) unsettled: bool,
}

/// Mean time between two drills.
pub(super) fn interval(every: Duration, sample: u32, copies: usize) -> Duration {
    let drills = (copies as u128 * u128::from(sample)).div_ceil(WHOLE).max(1);
    every / u32::try_from(drills).unwrap_or(u32::MAX)
}

/// How long after a drill the next one comes: `interval`, a quarter more or less.
pub(super) fn jittered(interval: Duration, seed: u64) -> Duration {
    let random = mix(seed) as f64 / u64::MAX as f64;
    interval.mul_f64(0.75 + random / 2.0)
}

/// How long a hub that starts at `now_ms` waits for its first drill, given when the newest one began.
pub(super) fn first(interval: Duration, newest_ms: Option<i64>, now_ms: i64) -> Duration {
    match newest_ms {
        None => interval.min(FIRST),
        Some(newest_ms) => {
            let past = Duration::from_millis(u64::try_from(now_ms.saturating_sub(newest_ms)).unwrap_or(0));
            interval.saturating_sub(past)
        }
    }
}

/// The copy whose turn it is: first those whose repair was broken off, then those that were never tried, then the one
/// that was tried longest ago. `seed` decides between equals.
pub(super) fn next(
    copies: &[Copy],
    known: impl Fn(&Copy) -> Option<Known>,
    now_ms: i64,
    seed: u64,
) -> Option<&Copy> {
    copies.iter().min_by_key(|copy| {
        let rank = match known(copy) {
            Some(Known { unsettled: true, .. }) => (0, 0),
            None => (1, 0),
            Some(Known { last_ms, .. }) => (2, last_ms.min(now_ms)),
        };
        (rank, lot(copy, seed))
    })
}

/// A number that belongs to a copy and a seed.
pub(super) fn lot(copy: &Copy, seed: u64) -> u64 {
    copy.to_string().bytes().fold(mix(seed), |lot, byte| mix(lot ^ u64::from(byte)))
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::collections::{BTreeMap, BTreeSet};

    const DAY: Duration = Duration::from_secs(86_400);

    fn copy(database: usize, destination: &str) -> Copy {
        Copy {
            database: format!("node-{database}/app.db").parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[test]
    fn the_sample_is_spread_over_the_period() {
        assert_eq!(interval(DAY, 5_000, 1), DAY, "at least one");
        assert_eq!(interval(DAY, 5_000, 40), DAY / 2);
        assert_eq!(interval(DAY, 100_000, 24), DAY / 24);
        assert_eq!(interval(DAY, 5_000, 0), DAY);
        for seed in 0..1000 {
            let after = jittered(DAY, seed);
            assert!(after >= DAY.mul_f64(0.75) && after <= DAY.mul_f64(1.25), "{after:?}");
        }
        let sum: Duration = (0..1000).map(|seed| jittered(DAY, seed)).sum();
        assert!(sum.abs_diff(DAY * 1000) < DAY * 20, "the jitter has no bias");
    }

    #[test]
    fn a_restart_goes_on_where_it_was_and_a_jump_makes_no_burst() {
        let now_ms = 1_000_000_000_000;
        let at = |ago_ms: i64| first(DAY, Some(now_ms - ago_ms), now_ms);
        assert_eq!(at(3_600_000), DAY - Duration::from_secs(3600));
        assert_eq!(at(10 * 86_400_000), Duration::ZERO);
        assert_eq!(at(-86_400_000), DAY, "the clock went back");
        assert_eq!(at(i64::MIN + now_ms + 1), DAY);
        assert_eq!(first(DAY, None, now_ms), FIRST);
        assert_eq!(first(Duration::from_secs(2), None, now_ms), Duration::from_secs(2));
    }

    /// Copies come and go, the hub restarts, the clock jumps: nobody is left out, nobody is tried twice before the others.
    #[test]
    fn every_copy_gets_its_turn() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut copies: Vec<Copy> =
                (0..30).flat_map(|n| ["near", "far"].map(|place| copy(n, place))).collect();
            let mut tried: BTreeMap<Copy, Known> = BTreeMap::new();
            let mut now_ms = 1_000_000_000_000_i64;
            let mut round: BTreeSet<Copy> = BTreeSet::new();
            for step in 0..600 {
                now_ms += match random.random_range(0..50) {
                    0 => -90_000_000,
                    1 => 900_000_000,
                    _ => 3_600_000,
                };
                // After a jump back nothing that was tried is ahead of what waits.
                let by_turn = |copy: &Copy| tried.get(copy).copied();
                let chosen = next(&copies, by_turn, now_ms, random.random()).unwrap().clone();
                if !tried.contains_key(&chosen) {
                    assert!(round.insert(chosen.clone()), "seed {seed} step {step}");
                } else {
                    assert!(copies.iter().all(|copy| tried.contains_key(copy)), "somebody was never tried");
                }
                let last_ms = tried.values().map(|known| known.last_ms).max().unwrap_or(0).max(now_ms);
                tried.insert(chosen, Known { last_ms, unsettled: false });
                if random.random_range(0..40) == 0 {
                    copies.push(copy(100 + step, "near"));
                }
            }
            assert!(copies.iter().all(|copy| tried.contains_key(copy)), "seed {seed}: somebody was left out");
        }
    }

    #[test]
    fn without_jumps_nobody_is_tried_twice_before_the_others() {
        let copies: Vec<Copy> = (0..50).map(|n| copy(n, "near")).collect();
        let mut tried: BTreeMap<Copy, Known> = BTreeMap::new();
        for turn in 0..5 {
            let mut round = BTreeSet::new();
            for step in 0..50 {
                let now_ms = 1_000_000 + turn * 1000 + step;
                let chosen = next(&copies, |copy| tried.get(copy).copied(), now_ms, 7).unwrap().clone();
                assert!(round.insert(chosen.clone()), "{chosen}");
                tried.insert(chosen, Known { last_ms: now_ms, unsettled: false });
            }
        }
    }

    #[test]
    fn a_broken_off_repair_comes_first_and_chance_decides_between_equals() {
        let copies = [copy(1, "near"), copy(2, "near"), copy(3, "near")];
        let known = |copy: &Copy| (*copy == copies[1]).then_some(Known { last_ms: 5, unsettled: true });
        assert_eq!(next(&copies, known, 10, 1), Some(&copies[1]));
        let firsts: BTreeSet<String> =
            (0..50).map(|seed| next(&copies, |_| None, 10, seed).unwrap().to_string()).collect();
        assert_eq!(firsts.len(), 3);
        assert_eq!(next(&[], |_| None, 10, 1), None);
    }
}
