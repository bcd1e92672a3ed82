//! What is fetched from the hub for a restore: the checksum of every page at the position, then the pages that differ.
//!
//! Bounded: one message at a time between the network and the scratch file.

use super::Failure;
use crate::capture::Wanted;
use crate::page_map::{Builder, Room};
use crate::ship::connect::status_reason;
use std::io;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use walhub_common::ltx;
use walhub_common::{PageSet, Pos};
use walhub_proto::pages::{Pages, PagesError, SPANS, Table};
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::{DatabaseRef, RestoreRequest};

/// Bytes of a checksum on the wire.
const SUM_BYTES: u64 = 8;

/// From where, and how fast.
pub(super) struct Fetcher {
    pub(super) channel: Channel,
    pub(super) database: DatabaseRef,
    pub(super) until: Pos,
    /// Bytes per second at most.
    pub(super) rate: Option<NonZeroU64>,
    /// Bytes fetched so far, checksums included.
    pub(super) bytes: u64,
    begun: Instant,
}

impl Fetcher {
    pub(super) fn new(
        channel: Channel,
        database: DatabaseRef,
        until: Pos,
        rate: Option<NonZeroU64>,
    ) -> Fetcher {
        Fetcher { channel, database, until, rate, bytes: 0, begun: Instant::now() }
    }

    /// The state that is wanted; scratch files go into `folder`.
    pub(super) async fn wanted(&mut self, folder: PathBuf) -> Result<Arc<Wanted>, Failure> {
        let made = tokio::task::spawn_blocking({
            let folder = folder.clone();
            move || std::fs::create_dir_all(&folder).map_err(|e| unwritable(&folder, &e))
        });
        made.await.map_err(bug)??;
        let table = Table::open(self.channel.clone(), self.database.clone(), self.until).await;
        let mut table = table.map_err(unavailable)?;
        let mut sums = Builder::new(table.page_size, table.commit, Room::beside(&folder));
        while let Some(batch) = table.next().await.map_err(unavailable)? {
            self.bytes += SUM_BYTES * batch.len() as u64;
            batch.into_iter().for_each(|sum| sums.push(sum));
            self.rest().await;
        }
        let until = self.until;
        let made = tokio::task::spawn_blocking(move || {
            let sums = sums.finish(until.txid).map_err(|missing| Failure::Failed(missing.to_string()))?;
            let made = Wanted::new(until, sums, &folder).map_err(|e| unwritable(&folder, &e))?;
            made.ok_or_else(|| {
                Failure::Failed(format!(
                    "the hub's page checksums do not add up to {until}; nothing was changed"
                ))
            })
        });
        made.await.map_err(bug)?.map(Arc::new)
    }

    /// The pages that are not in `settled`. `tell` hears how many bytes came, and how many it will be.
    pub(super) async fn missing(
        &mut self,
        wanted: &Arc<Wanted>,
        settled: &PageSet,
        tell: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), Failure> {
        let runs: Vec<RangeInclusive<u32>> = settled.gaps().collect();
        let missing = u64::from(settled.pages() - settled.len());
        let (before, mut come) = (self.bytes, 0_u64);
        for runs in runs.chunks(SPANS) {
            let point = RestoreRequest {
                database: Some(self.database.clone()),
                target: Some(Target::Txid(self.until.txid.get())),
                after_txid: 0,
                source: String::new(),
            };
            let opened = Pages::open(self.channel.clone(), point, runs, false).await;
            let (_, mut pages) = opened.map_err(unavailable)?;
            while let Some(frames) = pages.next().await.map_err(unavailable)? {
                self.bytes += frames.data.len() as u64;
                come += frames.blocks.len() as u64;
                let wanted = wanted.clone();
                let taken = tokio::task::spawn_blocking(move || {
                    let mut page = Vec::new();
                    for (pgno, block) in frames.iter() {
                        ltx::expand(block, wanted.page_size(), &mut page)
                            .map_err(|e| Failure::Failed(format!("page {pgno} from the hub: {e}")))?;
                        wanted.take(pgno, &page).map_err(|e| Failure::Failed(e.to_string()))?;
                    }
                    Ok(())
                });
                taken.await.map_err(bug)??;
                let expected = (self.bytes - before) * missing / come.max(1);
                tell(self.bytes, before + expected);
                self.rest().await;
            }
        }
        if come < missing {
            return Err(Failure::Failed(format!("the hub sent {come} of {missing} pages; try again")));
        }
        Ok(())
    }

    async fn rest(&self) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate.get() as f64);
            tokio::time::sleep(due.saturating_sub(self.begun.elapsed())).await;
        }
    }
}

pub(super) fn unavailable(error: PagesError) -> Failure {
    let reason = match &error {
        PagesError::Status(status) => status_reason(status),
        other => other.to_string(),
    };
    Failure::Failed(format!("the hub did not give what is needed: {reason}; the database is as it was"))
}

fn unwritable(folder: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}; make room, or check its owner and mode", folder.display()))
}

pub(super) fn bug(died: tokio::task::JoinError) -> Failure {
    Failure::Failed(format!("a bug ended the restore: {died}; the database is as it was"))
}
