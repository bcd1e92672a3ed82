//! How often a lane may flush so that a day's budget of requests lasts for the day. Pure.
//!
//! What is left of the budget is spread over what is left of the day: a lane whose flushes cost more than their share has its
//! interval stretched, and gets it back as soon as fewer transactions come. When nothing is left it waits for the next day.

use std::time::Duration;
use walhub_store::destinations::limited::left_of_day;

/// Weight of the newest flush in the average of what one costs.
const NEWEST: f64 = 0.3;

/// See the module doc.
#[derive(Debug)]
pub(super) struct Budget {
    per_day: u64,
    /// Requests of one flush, on average.
    flush: f64,
    /// Requests of this day before the flush that is under way.
    before: Option<u64>,
}

/// What a lane may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Flush, with at least this much time between two flushes.
    Every(Duration),
    /// Nothing, for this long.
    Spent(Duration),
}

impl Budget {
    pub(super) fn new(per_day: u64) -> Self {
        Self { per_day, flush: 1.0, before: None }
    }

    /// A flush begins; `used` requests were made today.
    pub(super) fn flush_begins(&mut self, used: u64) {
        if let Some(before) = self.before.replace(used)
            // Fewer than before: a new day has begun meanwhile.
            && let Some(cost) = used.checked_sub(before)
        {
            self.flush = (1.0 - NEWEST) * self.flush + NEWEST * cost.max(1) as f64;
        }
    }

    /// What may be done now; `used` requests were made today.
    pub(super) fn verdict(&self, used: u64, now_ms: i64) -> Verdict {
        let left_of_day = Duration::from_millis(left_of_day(now_ms).unsigned_abs());
        match self.per_day.saturating_sub(used) {
            0 => Verdict::Spent(left_of_day),
            left => Verdict::Every(left_of_day.mul_f64((self.flush / left as f64).min(1.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000;

    /// A day of a lane that always has something to flush, each flush costing `cost` requests; (requests, flushes).
    fn a_day(per_day: u64, interval: Duration, from_ms: i64, cost: impl Fn(u64) -> u64) -> (u64, u64) {
        let mut budget = Budget::new(per_day);
        let (mut now, mut used, mut flushes) = (from_ms, 0, 0);
        while now < DAY {
            match budget.verdict(used, now) {
                Verdict::Spent(_) => break,
                Verdict::Every(least) => {
                    budget.flush_begins(used);
                    used += cost(flushes);
                    flushes += 1;
                    now += i64::try_from(interval.max(least).as_millis()).unwrap().max(1);
                }
            }
        }
        (used, flushes)
    }

    #[test]
    fn a_lane_within_its_budget_keeps_its_interval() {
        let (used, flushes) = a_day(100_000, Duration::from_secs(1), 0, |_| 1);
        assert_eq!((used, flushes), (86_400, 86_400));
    }

    #[test]
    fn a_lane_beyond_its_budget_is_stretched_evenly_over_the_day() {
        let (used, flushes) = a_day(10_000, Duration::from_secs(1), 0, |_| 1);
        assert!((9_900..=10_000).contains(&used), "{used} in {flushes}");
        let Verdict::Every(least) = Budget::new(10_000).verdict(0, 0) else { panic!() };
        assert_eq!(least, Duration::from_millis(8640));
    }

    #[test]
    fn what_is_spent_is_spent_until_midnight() {
        let budget = Budget::new(100);
        assert_eq!(budget.verdict(100, DAY - 5000), Verdict::Spent(Duration::from_secs(5)));
        assert_eq!(budget.verdict(5000, DAY - 5000), Verdict::Spent(Duration::from_secs(5)));
        assert!(matches!(budget.verdict(0, DAY), Verdict::Every(_)));
    }

    proptest! {
        /// Whatever flushes cost, the budget is not passed by more than the last one, and the lane is not silenced before the
        /// last tenth of the day.
        #[test]
        fn the_budget_lasts_for_the_day(per_day in 2_000..50_000u64, costs in proptest::collection::vec(1..12u64, 1..50)) {
            let cost = |n: u64| costs[n as usize % costs.len()];
            let (used, _) = a_day(per_day, Duration::from_secs(1), 0, cost);
            prop_assert!(used <= per_day + 12, "{} of {}", used, per_day);
            let all = costs.iter().sum::<u64>() as f64 / costs.len() as f64 * 86_400.0;
            prop_assert!(used as f64 >= (per_day as f64).min(all) * 0.7, "{} of {}, {} wanted", used, per_day, all);
        }
    }
}
