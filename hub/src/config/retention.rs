//! What a destination keeps: Litestream's words where it has them.

use std::ops::RangeInclusive;
use std::time::Duration;
use walhub_common::config::{Section, value};
use walhub_store::retention::Policy;

const YEARS: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
const RETENTION: RangeInclusive<Duration> = Duration::from_secs(1)..=YEARS;
const L0_RETENTION: RangeInclusive<Duration> = Duration::ZERO..=YEARS;
const CHECK_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(3600);

/// How long, and how often that is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// What is kept.
    pub policy: Policy,
    /// Time between two looks.
    pub check_interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { policy: Policy::default(), check_interval: DEFAULT_CHECK_INTERVAL }
    }
}

/// Reads the keys of one destination.
pub(super) fn parse(item: &mut Section<'_>) -> Retention {
    let default = Policy::default();
    let count = value::int_in(0..=10_000u32);
    let policy = Policy {
        retention: item.or("retention", default.retention, value::duration_in(RETENTION)),
        l0_retention: item.or("l0-retention", default.l0_retention, value::duration_in(L0_RETENTION)),
        keep_daily: item.or("keep-daily", default.keep_daily, &count),
        keep_weekly: item.or("keep-weekly", default.keep_weekly, &count),
        keep_monthly: item.or("keep-monthly", default.keep_monthly, &count),
    };
    let check_interval =
        item.or("retention-check-interval", DEFAULT_CHECK_INTERVAL, value::duration_in(CHECK_INTERVAL));
    Retention { policy, check_interval }
}
