//! What a destination may be asked for: `concurrency`, `upload-limit`, `max-requests-per-second`, `max-requests-per-day`.

use walhub_common::config::{Section, value};
use walhub_store::destinations::limited::Limits;

/// Databases served at once when the file does not say.
const DEFAULT_CONCURRENCY: usize = 4;

/// Limits of one lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneLimits {
    /// Databases served at once.
    pub concurrency: usize,
    /// Requests of a day of UTC that the lane keeps to; `None`: as many as it takes.
    pub requests_per_day: Option<u64>,
    /// Rates.
    pub rates: Limits,
}

/// Reads them.
pub(super) fn parse(item: &mut Section<'_>) -> LaneLimits {
    LaneLimits {
        concurrency: item.or("concurrency", DEFAULT_CONCURRENCY, value::int_in(1..=256)),
        // Fewer could not even say that the destination is there.
        requests_per_day: item.optional("max-requests-per-day", value::int_in(100..=u64::MAX)),
        rates: Limits {
            requests_per_second: item.optional("max-requests-per-second", value::int_in(1..=1_000_000)),
            upload_per_second: item.optional("upload-limit", value::bytes_in(1024..=1 << 50)),
        },
    }
}
