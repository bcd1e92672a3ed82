//! What is fetched from the hub for a restore: the checksum of every page at the position, then the pages that differ.
//!
//! Bounded: one message at a time between the network and the scratch file.

use super::Failure;
use super::live::unless;
use super::swap::beside;
use crate::capture::Wanted;
use crate::page_map::{Builder, Room};
use crate::ship::connect::status_reason;
use std::io;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use walhub_common::ltx;
use walhub_common::restore::frames::Frames;
use walhub_common::restore::{PageSink, RestoreError, Unfilled, fill};
use walhub_common::sql::{self, Announce, Check, Reader};
use walhub_common::{PageSet, Pos};
use walhub_proto::pages::{Pages, PagesError, SPANS, Table};
use walhub_proto::restore::Whole;
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::{DatabaseRef, RestoreRequest};

/// Bytes of a checksum on the wire.
const SUM_BYTES: u64 = 8;
/// What a sink writes into.
const TEMP: &str = ".walhub-restore.tmp";
/// A block, as the system counts what a file takes.
const BLOCK_BYTES: u64 = 512;

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
            let opened = Pages::open(self.channel.clone(), self.point(), runs, false).await;
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
                    Ok::<_, Failure>(())
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

    /// The whole database as a file, proven by its checksum, with every check held; nothing is under that name otherwise.
    /// Goes on with what a killed restore of the same point left. `tell` as of [`Fetcher::missing`]. Cancelled, it leaves nothing.
    pub(super) async fn whole_file(
        &mut self,
        out: &Path,
        checks: &[Check],
        tell: &(dyn Fn(u64, u64) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut verify = false;
        loop {
            let error = match self.attempt(out, verify, checks, tell, cancel).await? {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if verify || !matches!(error, RestoreError::Mismatch { .. } | RestoreError::Block(_)) {
                return Err(Failure::Failed(format!("{error}; the database is as it was")));
            }
            tracing::warn!(
                database = self.database.name,
                %error,
                "the pages are not the source's; now every file is read whole and checked"
            );
            verify = true;
        }
    }

    async fn attempt(
        &mut self,
        out: &Path,
        verify: bool,
        checks: &[Check],
        tell: &(dyn Fn(u64, u64) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<Result<(), RestoreError>, Failure> {
        let whole = unless(cancel, self.open_whole(verify)).await?;
        let (point, total) = (whole.point, whole.plan.total_bytes);
        let to = out.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            room(&to, point.bytes())?;
            Ok::<_, Failure>(PageSink::create(&to, true, point))
        });
        let sink = match made.await.map_err(bug)?? {
            Ok(sink) => sink,
            Err(error) => return Ok(Err(error)),
        };
        let pages = whole.without(&sink.present());
        let mut pages = Paced { pages, fetcher: self, tell, total };
        let over = async {
            cancel.cancelled().await;
            Failure::Cancelled
        };
        let sink = match fill(sink, &mut pages, |_| {}, over).await {
            Ok(sink) => sink,
            Err(Unfilled::Sink(error)) => return Ok(Err(error)),
            Err(Unfilled::Broken { error: Failure::Cancelled, kept: true }) => {
                // It is not asked for again.
                let to = out.to_owned();
                let forgotten =
                    tokio::task::spawn_blocking(move || PageSink::create(&to, true, point).map(drop));
                if let Err(error) = forgotten.await.map_err(bug)? {
                    tracing::warn!(database = self.database.name, %error, "what was fetched is still there");
                }
                return Err(Failure::Cancelled);
            }
            Err(Unfilled::Broken { error, .. }) => return Err(error),
        };
        let checks = checks.to_vec();
        let finish = move |announce: Announce| {
            let ended = sink.finish(0, |path| {
                if checks.is_empty() {
                    return Ok(());
                }
                let opened = Reader::open(path);
                let reader = opened.map_err(|error| format!("SQLite cannot read it: {error}"))?;
                announce.reader(&reader);
                checks.iter().try_for_each(|check| check.run(&reader)).map_err(|unmet| unmet.to_string())
            });
            ended.map(drop)
        };
        match sql::until(finish, cancel.cancelled()).await.map_err(bug)? {
            (_, Some(())) => Err(Failure::Cancelled),
            (ended, None) => Ok(ended),
        }
    }

    /// Exactly the point that was asked for.
    async fn open_whole(&self, verify: bool) -> Result<Whole, Failure> {
        let whole = Whole::open(self.channel.clone(), self.point(), verify).await?;
        if (whole.point.txid, whole.point.checksum) != (self.until.txid, Some(self.until.checksum)) {
            let text = format!("the hub has another state at {}; the database is as it was", self.until);
            return Err(Failure::Failed(text));
        }
        Ok(whole)
    }

    fn point(&self) -> RestoreRequest {
        RestoreRequest {
            database: Some(self.database.clone()),
            target: Some(Target::Txid(self.until.txid.get())),
            after_txid: 0,
            source: String::new(),
        }
    }

    async fn rest(&self) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate.get() as f64);
            tokio::time::sleep(due.saturating_sub(self.begun.elapsed())).await;
        }
    }
}

/// Pages at the rate that is allowed.
struct Paced<'a> {
    pages: Whole,
    fetcher: &'a mut Fetcher,
    tell: &'a (dyn Fn(u64, u64) + Send + Sync),
    total: u64,
}

impl fill::Pages for Paced<'_> {
    type Error = PagesError;

    async fn next(&mut self) -> Result<Option<Frames>, PagesError> {
        self.fetcher.rest().await;
        let frames = self.pages.next().await?;
        if let Some(frames) = &frames {
            self.fetcher.bytes += frames.data.len() as u64;
            (self.tell)(self.fetcher.bytes, self.total.max(self.fetcher.bytes));
        }
        Ok(frames)
    }
}

impl From<PagesError> for Failure {
    fn from(error: PagesError) -> Failure {
        unavailable(error)
    }
}

pub(super) fn unavailable(error: PagesError) -> Failure {
    let reason = match &error {
        PagesError::Status(status) => status_reason(status),
        other => other.to_string(),
    };
    Failure::Failed(format!("the hub did not give what is needed: {reason}; the database is as it was"))
}

/// The new file lies beside the old one until it takes its place.
fn room(out: &Path, needed: u64) -> Result<(), Failure> {
    let folder = out.parent().unwrap_or(out);
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // By an earlier try that was killed.
    let there = beside(out, TEMP).metadata().map_or(0, |file| file.blocks() * BLOCK_BYTES);
    if free.saturating_add(there) >= needed {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "the restored file takes {} MiB beside the old one in {}, which has {} MiB free; make room, or restore with \
         --in-place. The database is as it was",
        needed.div_ceil(1 << 20),
        folder.display(),
        free >> 20
    )))
}

fn unwritable(folder: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}; make room, or check its owner and mode", folder.display()))
}

pub(super) fn bug(died: tokio::task::JoinError) -> Failure {
    Failure::Failed(format!("a bug ended the restore: {died}; the database is as it was"))
}
