//! `levels:`, and `snapshot-interval:` of a destination.

use std::ops::RangeInclusive;
use std::time::Duration;
use walhub_common::config::{Section, value};
use walhub_store::compact::windows;

/// Levels 1, 2, 3 when the file does not say.
pub const DEFAULT_LEVELS: [Duration; 3] =
    [Duration::from_secs(30), Duration::from_secs(300), Duration::from_secs(3600)];
/// Time between two snapshots when the file does not say.
pub const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(24 * 3600);

const DAY: Duration = Duration::from_secs(24 * 3600);
const LEVEL: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY;
const SNAPSHOT: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY.saturating_mul(365);

/// Windows of level 1, 2, …: `levels: [30s, 5m, 1h]`, or Litestream's `- interval: 30s`.
pub(super) fn levels(root: &mut Section<'_>) -> Vec<Duration> {
    if !root.has("levels") {
        return DEFAULT_LEVELS.to_vec();
    }
    let levels = if root.lists_sections("levels") {
        let items = root.sections("levels").into_iter();
        items
            .filter_map(|mut item| {
                let interval = item.required("interval", value::duration_in(LEVEL));
                item.finish();
                interval
            })
            .collect()
    } else {
        root.list("levels", value::duration_in(LEVEL))
    };
    if let Some(reason) = windows::unusable(&levels) {
        root.fault_at("levels", reason);
    }
    levels
}

/// Least time between two snapshots of a database.
pub(super) fn snapshot_interval(item: &mut Section<'_>) -> Duration {
    item.or("snapshot-interval", DEFAULT_SNAPSHOT_INTERVAL, value::duration_in(SNAPSHOT))
}
