//! The pages of a database as of a point, each exactly once, in any order: the reading half of a restore.
//!
//! ```text
//! files newest first ─▶ small: whole, in one request  ─▶ of each page the first version that comes is the newest
//!                    ─▶ large: index, then the ranges ─▶ neighbours joined, N requests at a time
//! ```
//! Invariants
//! - A page is given out once, whatever fails meanwhile: what a broken source has given counts, and only pages still
//!   missing are read elsewhere, by a chain of other files that leads to the same transaction.
//! - A file without walhub's checksum (Litestream's own) is read to its end and found whole before a page of it is given out;
//!   a small file always. Of a large one only ranges are read, so the receiver must compare the database checksum; when
//!   it differs, the receiver asks again with [`Ask::verify`], and every file is read whole first.
//! - Memory: a bit for each page of the database twice, the index of one file (6 to 14 bytes for each page in it), and
//!   at most [`READS`] + [`AHEAD`] pieces of [`Ask::span_bytes`], and [`SMALL_AHEAD_BYTES`] of small files.
//!
//! Non-goals: expanding pages and proving the result (`walhub_common::restore` does), choosing the point.

mod mapper;
mod read;
mod span;
#[cfg(test)]
mod tests;

use super::inventory::Listing;
use super::plan::{self, Plan, PlanError, PlannedFile, Prepared};
use super::reach::Reach;
use super::source::{DynSource, SourceName};
use crate::destinations::{DestinationError, Fault};
use futures_util::stream::{self, BoxStream, StreamExt};
use mapper::Mapper;
use read::Reader;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Header;
use walhub_common::restore::frames::Frames;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, Level, PageSet, Txid, TxidRange};

/// Requests for ranges under way.
pub const READS: usize = 8;
/// Pieces read that nobody has taken yet.
pub const AHEAD: usize = 4;
/// Files up to this size are read whole, in one request.
pub const SMALL_BYTES: u64 = 1024 * 1024;
/// Small files read ahead: a bucket takes tens of milliseconds for each, however small.
pub const SMALL_AHEAD: usize = 64;
/// Bytes of small files read ahead.
pub const SMALL_AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// Unwanted bytes between two pages that are read rather than paid for with another request.
pub const GAP_BYTES: u64 = 64 * 1024;
/// What a range is long when nobody asks for less.
pub const SPAN_BYTES: u64 = 4 * 1024 * 1024;

/// What is to be read, and how.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Pages that the receiver has, or does not want. As large as the database at the point.
    pub had: PageSet,
    /// Read every file whole, and compare its checksum, before a page of it is given out: after the last answer gave
    /// another database than the source's.
    pub verify: bool,
    /// Bytes of a range, about.
    pub span_bytes: u64,
    /// Files up to this size are read whole.
    pub small_bytes: u64,
    /// Is told, in one sentence, when a source is replaced by another.
    pub told: Told,
}

/// See [`Ask::told`].
#[derive(Clone)]
pub struct Told(pub Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

impl Ask {
    /// The pages that are not in `had`; what is told goes to the log.
    pub fn new(had: PageSet) -> Ask {
        let told = Told(Arc::new(|text| tracing::warn!("{text}")));
        Ask { had, verify: false, span_bytes: SPAN_BYTES, small_bytes: SMALL_BYTES, told }
    }
}

/// Why the pages broke off.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// A source failed, and no other leads there.
    #[error("{error}{}", Otherwise(why.as_deref()))]
    Source {
        /// The last failure.
        error: DestinationError,
        /// Why no other stands in; `None` when nobody was asked (a cancelled restore).
        why: Option<Box<PlanError>>,
    },
    /// The files do not bring every page.
    #[error(
        "page {0} is in none of the files of this history: restore an earlier point, or from another destination"
    )]
    MissingPage(u32),
    /// The plan names no file, so nobody knows the size of a page.
    #[error("there is nothing to read")]
    Nothing,
    /// A task failed.
    #[error("a task of the restore ended unexpectedly")]
    Internal,
}

struct Otherwise<'a>(Option<&'a PlanError>);

impl fmt::Display for Otherwise<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(why) => write!(f, "; without it no other source leads there: {why}"),
            None => Ok(()),
        }
    }
}

/// The pages of a plan that are not in [`Ask::had`]. With a plan from the beginning every other page of the database
/// comes, or the stream ends with an error; with one that starts later, those that changed. Ends when dropped.
pub fn pages(
    sources: &[DynSource],
    database: &DatabaseKey,
    prepared: &Prepared,
    ask: Ask,
    cancel: &CancellationToken,
) -> BoxStream<'static, Result<Frames, PagesError>> {
    let Some(target) = prepared.header else {
        let whole = prepared.after.is_none().then_some(Err(PagesError::Nothing));
        return stream::iter(whole).boxed();
    };
    let cancel = cancel.child_token();
    let reader = Reader::new(sources, database, target, &ask, &cancel);
    let reading = Reading {
        reader: Arc::new(reader),
        after: prepared.after,
        listings: prepared.listings.clone(),
        plan: prepared.plan.clone(),
        had: ask.had,
        told: ask.told,
        lost: Lost::default(),
    };
    let (out, pieces) = mpsc::channel(AHEAD);
    let group = TaskGroup::new("pages of a restore");
    group.spawn(async move {
        let done = reading.run(&out).await;
        let _ = out.send(done.map(|()| None)).await;
    });
    let guard = cancel.drop_guard();
    stream::unfold(Some((pieces, guard)), |state| async {
        let (mut pieces, guard) = state?;
        match pieces.recv().await {
            Some(Ok(Some(frames))) => Some((Ok(frames), Some((pieces, guard)))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(PagesError::Internal), None)),
        }
    })
    .boxed()
}

type Out = mpsc::Sender<Result<Option<Frames>, PagesError>>;

/// What is not read from any more.
#[derive(Debug, Default)]
struct Lost {
    sources: HashSet<SourceName>,
    files: HashSet<(SourceName, Level, TxidRange)>,
}

impl Lost {
    /// A file that is gone or damaged says nothing about its neighbours; anything else concerns the whole source.
    fn add(&mut self, file: &PlannedFile, fault: &Fault) {
        match fault {
            Fault::NotFound | Fault::Corrupt(_) => {
                self.files.insert((file.source.clone(), file.level, file.range));
            }
            _ => {
                self.sources.insert(file.source.clone());
            }
        }
    }

    fn without(&self, listings: &[Listing]) -> Vec<Listing> {
        let kept = listings.iter().filter(|listing| !self.sources.contains(&listing.source));
        kept.map(|listing| {
            let gone = |level, range| self.files.contains(&(listing.source.clone(), level, range));
            let files = listing.files.iter().filter(|file| !gone(file.level, file.range)).cloned();
            Listing { source: listing.source.clone(), files: files.collect() }
        })
        .collect()
    }
}

/// A reading under way.
struct Reading {
    reader: Arc<Reader>,
    after: Option<Txid>,
    listings: Arc<[Listing]>,
    plan: Plan,
    had: PageSet,
    told: Told,
    lost: Lost,
}

impl Reading {
    async fn run(mut self, out: &Out) -> Result<(), PagesError> {
        let target: Header = *self.reader.target();
        self.had.insert(target.page_size.lock_page());
        while let Some((file, error)) = self.pass(out).await? {
            if matches!(error.fault, Fault::Cancelled) {
                return Err(PagesError::Source { error, why: None });
            }
            self.lost.add(&file, &error.fault);
            let listings = self.lost.without(&self.listings);
            match plan::exactly(&Reach::new(&listings, self.after), self.plan.reached) {
                Ok(plan) => self.plan = plan,
                Err(why) => return Err(PagesError::Source { error, why: Some(Box::new(why)) }),
            }
            let missing = target.commit - self.had.len().min(target.commit);
            (self.told.0)(&format!("{error}; the {missing} pages still missing are read elsewhere"));
        }
        match self.had.gaps().next() {
            Some(gap) if self.after.is_none() => Err(PagesError::MissingPage(*gap.start())),
            _ => Ok(()),
        }
    }

    /// Reads by the plan of the moment; the first failure ends it, after what was under way.
    async fn pass(&mut self, out: &Out) -> Result<Option<(PlannedFile, DestinationError)>, PagesError> {
        let stop = CancellationToken::new();
        let mapper = Mapper::new(self.reader.clone(), &self.plan, self.had.clone(), stop.clone());
        let work = stream::unfold(mapper, |mut mapper| async { Some((mapper.next().await?, mapper)) });
        let reader = &self.reader;
        let mut done = std::pin::pin!(work.map(|work| reader.carry_out(work)).buffer_unordered(READS));
        let mut failed = None;
        while let Some(result) = done.next().await {
            match result {
                Ok(frames) => {
                    for block in &frames.blocks {
                        self.had.insert(block.pgno);
                    }
                    if !frames.blocks.is_empty() && out.send(Ok(Some(frames))).await.is_err() {
                        // Nobody listens any more.
                        return Ok(None);
                    }
                }
                Err(failure) => {
                    stop.cancel();
                    failed.get_or_insert(*failure);
                }
            }
        }
        Ok(failed)
    }
}
