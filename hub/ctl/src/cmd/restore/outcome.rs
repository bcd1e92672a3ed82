//! What came of a restore: the stable JSON and the line for people.

use crate::output;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use walhub_common::clock;
use walhub_common::restore::{Proof, Report};

/// A database that was restored.
#[derive(Debug, Serialize)]
pub(crate) struct Restored {
    /// `agent/name`.
    pub(crate) database: String,
    pub(crate) output: PathBuf,
    pub(crate) txid: u64,
    pub(crate) checksum: String,
    /// `verified`: equal to the checksum taken at the source. `unproven`: nobody took one.
    pub(crate) verdict: &'static str,
    /// By the hub's clock.
    pub(crate) time: String,
    page_size: u32,
    pages: u32,
    pub(crate) bytes: u64,
    files: u64,
    pub(crate) received_bytes: u64,
    seconds: f64,
    mb_per_second: f64,
}

impl Restored {
    /// From the report of the applier; `timestamp_ms` is the hub's time of the point.
    pub(crate) fn new(database: String, report: Report, timestamp_ms: i64, took: Duration) -> Restored {
        let seconds = took.as_secs_f64();
        Restored {
            database,
            output: report.path,
            txid: report.range.max().get(),
            checksum: report.checksum.to_string(),
            verdict: match report.proof {
                Proof::Source => "verified",
                Proof::FilesOnly => "unproven",
            },
            time: clock::format_ms(timestamp_ms),
            page_size: report.page_size.get(),
            pages: report.pages,
            bytes: report.bytes,
            files: report.progress.files,
            received_bytes: report.progress.bytes_in,
            seconds,
            mb_per_second: report.bytes as f64 / 1e6 / seconds.max(1e-6),
        }
    }

    /// One line with everything that matters.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} restored to {}: TXID {} of {}, {} pages, {}, checksum {} {}, {:.2} s, {:.1} MB/s",
            self.database,
            self.output.display(),
            self.txid,
            self.time,
            self.pages,
            output::bytes(self.bytes),
            self.checksum,
            self.verdict,
            self.seconds,
            self.mb_per_second,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::restore::Progress;
    use walhub_common::{Checksum, PageSize, TxidRange};

    #[test]
    fn a_restore_is_told_in_one_line_and_in_stable_json() {
        let report = Report {
            path: "out.db".into(),
            page_size: PageSize::new(4096).unwrap(),
            pages: 500,
            bytes: 2_048_000,
            range: TxidRange::from_raw(1, 12).unwrap(),
            timestamp_ms: 0,
            checksum: Checksum::EMPTY,
            proof: Proof::Source,
            progress: Progress { files: 3, bytes_in: 999, pages_written: 501 },
        };
        let restored = Restored::new("a/b".into(), report, 1_795_354_117_090, Duration::from_millis(500));
        assert_eq!(
            restored.line(),
            "a/b restored to out.db: TXID 12 of 2026-11-22T13:28:37.09Z, 500 pages, 2.0 MiB, \
             checksum 8000000000000000 verified, 0.50 s, 4.1 MB/s"
        );
        assert_eq!(
            serde_json::to_value(restored).unwrap(),
            serde_json::json!({
                "database": "a/b", "output": "out.db", "txid": 12, "checksum": "8000000000000000",
                "verdict": "verified", "time": "2026-11-22T13:28:37.09Z", "page_size": 4096, "pages": 500,
                "bytes": 2_048_000, "files": 3, "received_bytes": 999, "seconds": 0.5, "mb_per_second": 4.096,
            })
        );
    }
}
