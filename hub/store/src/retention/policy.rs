//! What a destination keeps, and for how long; Litestream's words and defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use walhub_common::clock;

/// See the module doc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// `retention`: restore points younger than this stay, as fine as the compacted levels have them.
    pub retention: Duration,
    /// `l0-retention`: restore points younger than this stay as fine as they were put.
    pub l0_retention: Duration,
    /// `keep-daily`: the newest snapshot of each of so many days (UTC) that have one.
    pub keep_daily: u32,
    /// `keep-weekly`: of so many weeks, which begin on Monday.
    pub keep_weekly: u32,
    /// `keep-monthly`: of so many months.
    pub keep_monthly: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(24 * 3600),
            l0_retention: Duration::from_secs(5 * 60),
            keep_daily: 0,
            keep_weekly: 0,
            keep_monthly: 0,
        }
    }
}

/// What a snapshot older than `retention` can be kept for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Period {
    /// The newest of its day.
    Day,
    /// Of its week.
    Week,
    /// Of its month.
    Month,
}

impl Period {
    /// Number of the period that a time (Unix ms) lies in; later ones have greater numbers.
    fn number(self, time_ms: i64) -> i64 {
        // 1 January 1970 was a Thursday.
        let days = time_ms.div_euclid(24 * 3600 * 1000);
        match self {
            Period::Day => days,
            Period::Week => (days + 3).div_euclid(7),
            Period::Month => clock::month_number(time_ms),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
        })
    }
}

impl Policy {
    /// Of snapshots, oldest first, those that are kept for a period: place and period.
    pub(super) fn periodic(&self, times_ms: &[i64]) -> BTreeMap<usize, Period> {
        let mut kept = BTreeMap::new();
        // The longest last, so that it is the reason that is told.
        for (period, count) in [
            (Period::Day, self.keep_daily),
            (Period::Week, self.keep_weekly),
            (Period::Month, self.keep_monthly),
        ] {
            let newest: BTreeMap<i64, usize> =
                times_ms.iter().enumerate().map(|(place, time)| (period.number(*time), place)).collect();
            kept.extend(newest.values().rev().take(count as usize).map(|place| (*place, period)));
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        clock::parse_ms(text).unwrap()
    }

    #[test]
    fn periods_are_counted_by_the_calendar() {
        let (sunday, monday) = (at("2026-11-22T23:59:59Z"), at("2026-11-23T00:00:00Z"));
        assert_ne!(Period::Day.number(sunday), Period::Day.number(monday));
        assert_ne!(Period::Week.number(sunday), Period::Week.number(monday));
        assert_eq!(Period::Week.number(monday), Period::Week.number(at("2026-11-29T12:00:00Z")));
        assert_eq!(Period::Month.number(sunday), Period::Month.number(monday));
        assert!(Period::Month.number(at("2027-01-01T00:00:00Z")) > Period::Month.number(monday));
    }

    #[test]
    fn the_newest_snapshot_of_each_of_the_last_periods_is_kept() {
        let times: Vec<i64> = (1..=28)
            .flat_map(|day| {
                [at(&format!("2026-02-{day:02}T03:00:00Z")), at(&format!("2026-02-{day:02}T15:00:00Z"))]
            })
            .collect();
        let policy = Policy { keep_daily: 3, keep_weekly: 2, keep_monthly: 5, ..Policy::default() };
        let kept = policy.periodic(&times);
        // The 28th is a Saturday, the 22nd a Sunday.
        let expected = [(43, Period::Week), (51, Period::Day), (53, Period::Day), (55, Period::Month)].into();
        assert_eq!(kept, expected);
        assert!(Policy::default().periodic(&times).is_empty());
    }
}
