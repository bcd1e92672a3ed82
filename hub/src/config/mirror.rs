//! `mirror-interval:`.

use std::ops::RangeInclusive;
use std::time::Duration;
use walhub_common::config::{Section, value};

/// Least time between two mirrors of the hub when the file does not say.
pub const DEFAULT_MIRROR_INTERVAL: Duration = Duration::from_secs(60);
/// What was not mirrored for longer would be missed.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);

/// See the module doc.
pub(super) fn interval(root: &mut Section<'_>) -> Duration {
    root.or("mirror-interval", DEFAULT_MIRROR_INTERVAL, value::duration_in(INTERVAL))
}
