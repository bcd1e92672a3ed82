//! What a restore will cost: requests, money, time. Pure, and no more than an estimate: list prices of the cheapest
//! tier in US dollars as of 2025, and speeds of a machine that is not busy.
//!
//! | kind | 1,000 reads | 1,000 listings | 1 GB out | a request takes | bytes per second |
//! |---|---|---|---|---|---|
//! | `file`, buffer | 0 | 0 | 0 | 0.1 ms | 500 MB |
//! | `s3` | 0.0004 | 0.005 | 0.09 | 30 ms | 100 MB |
//! | `gcs` | 0.0004 | 0.005 | 0.12 | 40 ms | 100 MB |
//! | `abs` | 0.0004 | 0.005 | 0.087 | 40 ms | 100 MB |
//!
//! A restore in the bucket's own region pays nothing for the bytes.

use super::pages::{READS, SMALL_AHEAD, SMALL_BYTES, SPAN_BYTES};
use super::plan::{Plan, PlannedFile};
use super::source::SourceName;
use std::collections::BTreeSet;

/// Listings of one source: one for each level.
const LISTINGS: u64 = 10;

/// See the module doc.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Estimate {
    /// Requests, listings included.
    pub requests: u64,
    /// Bytes that are read: those of the files.
    pub bytes: u64,
    /// Millionths of a US dollar.
    pub cost_micros: u64,
    /// Milliseconds.
    pub time_ms: u64,
}

/// Prices in thousandths of a millionth of a dollar, times in microseconds.
struct Rates {
    read: u64,
    listing: u64,
    gigabyte: u64,
    request_us: u64,
    bytes_per_us: u64,
}

fn rates(kind: &str) -> Rates {
    let gigabyte = match kind {
        "s3" => 90_000_000,
        "gcs" => 120_000_000,
        "abs" => 87_000_000,
        _ => return Rates { read: 0, listing: 0, gigabyte: 0, request_us: 100, bytes_per_us: 500 },
    };
    let request_us = if kind == "s3" { 30_000 } else { 40_000 };
    Rates { read: 400, listing: 5_000, gigabyte, request_us, bytes_per_us: 100 }
}

/// Requests for one file, when all of it is wanted.
fn reads(file: &PlannedFile) -> u64 {
    if file.size <= SMALL_BYTES { 1 } else { 2 + file.size.div_ceil(SPAN_BYTES) }
}

/// What it takes to carry out `plan`; `kind` says of what kind a source is.
pub fn estimate(plan: &Plan, kind: impl Fn(&SourceName) -> &'static str) -> Estimate {
    let (mut total, mut nanos, mut micros) = (Estimate::default(), 0_u64, 0_u64);
    for file in &plan.files {
        let (rates, reads) = (rates(kind(&file.source)), reads(file));
        let at_once = if file.size <= SMALL_BYTES { SMALL_AHEAD } else { READS } as u64;
        total.requests += reads;
        total.bytes = total.bytes.saturating_add(file.size);
        let out = u128::from(file.size) * u128::from(rates.gigabyte) / 1_000_000_000;
        nanos =
            nanos.saturating_add(reads * rates.read).saturating_add(u64::try_from(out).unwrap_or(u64::MAX));
        micros = micros.saturating_add(reads * rates.request_us / at_once + file.size / rates.bytes_per_us);
    }
    let sources: BTreeSet<&SourceName> = plan.files.iter().map(|file| &file.source).collect();
    for source in sources {
        let rates = rates(kind(source));
        total.requests += LISTINGS;
        nanos = nanos.saturating_add(LISTINGS * rates.listing);
        micros = micros.saturating_add(rates.request_us);
    }
    Estimate { cost_micros: nanos.div_ceil(1000), time_ms: micros.div_ceil(1000), ..total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::{DestinationName, Level, Txid, TxidRange};

    fn file(min: u64, max: u64, size: u64) -> PlannedFile {
        let range = TxidRange::from_raw(min, max).unwrap();
        let source = DestinationName::new("offsite").unwrap();
        PlannedFile { source, level: Level::RAW, range, size, time_ms: 0 }
    }

    #[test]
    fn a_gigabyte_and_a_thousand_small_files_are_counted() {
        let mut files = vec![file(1, 1, 1_000_000_000)];
        files.extend((2..=1001).map(|n| file(n, n, 10_000)));
        let plan = Plan { files, reached: Txid::new(1001).unwrap() };
        let found = estimate(&plan, |_| "s3");
        // 241 for the snapshot, one for each small file, ten listings.
        assert_eq!(found.requests, 241 + 1000 + 10);
        assert_eq!(found.bytes, 1_010_000_000);
        // 9.09 cents for the bytes, and 0.05 cents for the requests.
        assert_eq!(found.cost_micros, 90_900 + 547);
        assert!((10_000..16_000).contains(&found.time_ms), "{}", found.time_ms);
        let here = estimate(&plan, |_| "file");
        assert_eq!((here.requests, here.cost_micros), (found.requests, 0));
        assert!(here.time_ms < found.time_ms / 3);
    }

    #[test]
    fn no_files_cost_nothing() {
        let plan = Plan { files: Vec::new(), reached: Txid::FIRST };
        assert_eq!(estimate(&plan, |_| "s3"), Estimate::default());
    }
}
