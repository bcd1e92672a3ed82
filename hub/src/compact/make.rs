//! One file: made on the hub's disk, checked, and sent to those who take it.

use super::error::WorkError;
use super::publish::Output;
use super::whereabouts::Whereabouts;
use super::work::Worker;
use crate::buffer::Registered;
use crate::copies::LaneId;
use std::path::PathBuf;
use std::sync::Arc;
use walhub_common::ltx::{Provenance, Stamp};
use walhub_common::{Level, TxidRange, clock};
use walhub_store::compact::{Input, Made, compact};
use walhub_store::destinations::{FileKey, PutMeta};

/// Free disk space that a file in the making leaves.
const RESERVE_BYTES: u64 = 256 << 20;

/// What is to be made.
pub(super) struct Job {
    pub(super) level: Level,
    pub(super) range: TxidRange,
    pub(super) time_ms: i64,
    pub(super) inputs: Vec<Input>,
    pub(super) input_bytes: u64,
}

impl Worker {
    /// The file of a job, on the hub's disk.
    pub(super) async fn make(
        &mut self,
        database: &Registered,
        job: Job,
    ) -> Result<(Made, PathBuf), WorkError> {
        let Job { level, range, time_ms, inputs, input_bytes } = job;
        let what = format!("level {level} file {range}");
        self.room(&what, input_bytes)?;
        self.made += 1;
        let path = self.folder.join(format!("{}.ltx", self.made));
        let stamp =
            Stamp { timestamp_ms: time_ms, node_id: database.lineage, whole: level == Level::SNAPSHOT };
        let (out, stop) = (path.clone(), self.stop.clone());
        let made = tokio::task::spawn_blocking(move || compact(inputs, stamp, &out, &stop)).await;
        let made = made.map_err(|error| WorkError::Internal(error.to_string()))?;
        let made = made.map_err(|error| WorkError::Compact { what: what.clone(), error })?;
        if made.header.range != range {
            let _ = std::fs::remove_file(&path);
            return Err(WorkError::Internal(format!("{what} came out as {}", made.header.range)));
        }
        self.report.count(|totals| {
            match level {
                Level::SNAPSHOT => totals.snapshots += 1,
                _ => totals.files += 1,
            }
            totals.bytes += made.bytes;
            totals.last_ms = clock::now_ms();
        });
        tracing::debug!(database = %database.key, %level, %range, bytes = made.bytes, "compacted");
        Ok((made, path))
    }

    fn room(&self, what: &str, needed: u64) -> Result<(), WorkError> {
        let stat = rustix::fs::statvfs(&self.folder);
        let free = stat.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if free < needed.saturating_add(RESERVE_BYTES) {
            return Err(WorkError::NoRoom { what: what.to_owned(), needed, free });
        }
        Ok(())
    }

    /// A file that was made, for those who take it.
    pub(super) fn output(
        &self,
        database: &Registered,
        level: Level,
        made: &Made,
        path: PathBuf,
        whereabouts: Whereabouts,
    ) -> Arc<Output> {
        let post = made.header.provenance.map(|Provenance { post, .. }| post);
        Arc::new(Output {
            database: database.id,
            key: FileKey { database: database.key.clone(), level, range: made.header.range },
            path,
            bytes: made.bytes,
            meta: PutMeta { time_ms: made.header.timestamp_ms, post },
            lineage: made.header.node_id,
            whereabouts,
        })
    }

    /// Those that take a file.
    pub(super) fn send(&mut self, lanes: &[LaneId], output: &Arc<Output>) -> Vec<LaneId> {
        lanes.iter().copied().filter(|lane| self.publisher.send(*lane, output.clone())).collect()
    }
}
