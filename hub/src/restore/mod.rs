//! Gives databases back: plans over the buffer and all destinations, and streams the chosen LTX files, or the checksums of
//! the pages in them.
//!
//! # Invariants
//! - The buffer is asked first (it holds every recent transaction), then folders, then buckets.
//! - What is streamed as files is what was planned: the receiver proves the result by checksum, this side promises completeness.
//! - A restore to the latest state, or to a time, reaches it or fails: sources that do not answer, or have lost files,
//!   never shorten it silently.
//! - Read-ahead is bounded; a slow receiver holds nothing but its own stream up.
//!
//! Non-goals: applying files, deciding who may ask.

mod buffer_source;
mod checksums;
mod fold;

pub use checksums::{ChecksumsError, Table};
pub use fold::{Batch, FoldError};

use crate::buffer::WalBuffer;
use crate::copies::InService;
use crate::retain::Pins;
pub(crate) use buffer_source::BufferSource;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Header;
use walhub_common::restore::frames::Frames;
use walhub_common::{DatabaseKey, Txid};
use walhub_store::destinations::DestinationError;
use walhub_store::restore::source::BUFFER;
use walhub_store::restore::{
    self, Ask, DestinationSource, DynSource, Inventory, PagesError, Piece, Plan, PlannedFile, Prepared,
    RestoreError, SourceName, Target,
};

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which database.
    pub database: DatabaseKey,
    /// Which point.
    pub target: Target,
    /// The transaction the receiver already has.
    pub after: Option<Txid>,
    /// This source alone.
    pub source: Option<SourceName>,
}

/// No source is called so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no destination called {asked}; there are {known}")]
pub struct UnknownSource {
    asked: SourceName,
    known: String,
}

/// Why a restore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No chain of files, or a source that failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// There is a chain, but it ends before what the hub has acknowledged.
    #[error(
        "cannot restore {database} to {target}: what can be read reaches only transaction {reached}, the hub has \
         acknowledged {newest}; restore that transaction by its number, or bring back what is missing{}",
        unanswered.iter().map(|error| format!("; not asked: {error}")).collect::<String>()
    )]
    Short {
        /// Which database.
        database: DatabaseKey,
        /// What was asked for.
        target: Target,
        /// How far the files lead.
        reached: Txid,
        /// The hub's position.
        newest: Txid,
        /// Sources that did not answer.
        unanswered: Vec<DestinationError>,
    },
}

/// The hub's time of the newest transaction of a plan: in the header of every file the hub has put; a buffered segment has
/// its agent's time there, and the hub's in its record.
pub fn time_ms(last: Option<&PlannedFile>, header: Option<&Header>) -> i64 {
    match (last, header) {
        (Some(last), _) if last.source.as_str() == BUFFER => last.time_ms,
        (_, Some(header)) => header.timestamp_ms,
        (Some(last), None) => last.time_ms,
        (None, None) => 0,
    }
}

/// Handle on all sources of this hub.
#[derive(Clone)]
pub struct Restores {
    buffer: Arc<dyn WalBuffer>,
    destinations: InService,
    turns: Arc<checksums::Turns>,
    pins: Pins,
    shutdown: CancellationToken,
}

impl Restores {
    /// Over the buffer and the destinations of the moment. Streams end when `shutdown` is cancelled.
    pub fn new(buffer: Arc<dyn WalBuffer>, destinations: InService, shutdown: CancellationToken) -> Self {
        Self { buffer, destinations, turns: Arc::default(), pins: Pins::default(), shutdown }
    }

    fn sources(&self) -> Vec<DynSource> {
        let mut sources: Vec<DynSource> = vec![Arc::new(BufferSource::new(self.buffer.clone()))];
        let mut destinations = self.destinations.all();
        destinations.sort_by_key(|destination| destination.kind() != "file");
        sources.extend(destinations.into_iter().map(|d| Arc::new(DestinationSource(d)) as DynSource));
        sources
    }

    /// All sources, or the one that was asked for.
    pub fn select(&self, only: Option<&SourceName>) -> Result<Vec<DynSource>, UnknownSource> {
        let sources = self.sources();
        let Some(only) = only else { return Ok(sources) };
        match sources.iter().find(|source| source.name() == only) {
            Some(source) => Ok(vec![source.clone()]),
            None => {
                let known: Vec<&str> = sources.iter().map(|source| source.name().as_str()).collect();
                Err(UnknownSource { asked: only.clone(), known: known.join(", ") })
            }
        }
    }

    /// Who reads which database: pinned before a plan is made, until its files were read.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The plan, and the header of its last file.
    pub async fn prepare(&self, sources: &[DynSource], request: &Request) -> Result<Prepared, PrepareError> {
        let Request { database, target, after, .. } = request;
        let prepared = restore::prepare(sources, database, *after, *target, &self.shutdown).await?;
        for error in &prepared.unanswered {
            tracing::warn!(%database, %error, "a restore is planned without a source that does not answer");
        }
        // Who asked for one source wants what that source has.
        if request.source.is_some() {
            return Ok(prepared);
        }
        let reached = prepared.plan.reached;
        match self.newest(database).filter(|newest| *newest > reached) {
            Some(newest) if self.falls_short(sources, request, reached).await? => Err(PrepareError::Short {
                database: database.clone(),
                target: *target,
                reached,
                newest,
                unanswered: prepared.unanswered,
            }),
            _ => Ok(prepared),
        }
    }

    fn newest(&self, database: &DatabaseKey) -> Option<Txid> {
        Some(self.buffer.find(database)?.position?.txid)
    }

    /// A plan stops at `reached`, before the hub's position: because more is younger than what was asked for, or
    /// because more cannot be read?
    async fn falls_short(
        &self,
        sources: &[DynSource],
        request: &Request,
        reached: Txid,
    ) -> Result<bool, RestoreError> {
        match request.target {
            Target::Latest => Ok(true),
            Target::Txid(_) => Ok(false),
            Target::TimestampMs(_) => {
                // The planner has seen the time of the next restore point, unless there was none to be seen.
                let latest = restore::prepare(
                    sources,
                    &request.database,
                    request.after,
                    Target::Latest,
                    &self.shutdown,
                );
                match latest.await {
                    Ok(latest) => Ok(latest.plan.reached == reached),
                    Err(RestoreError::Plan { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// The bytes of a plan.
    pub fn fetch(
        &self,
        sources: &[DynSource],
        database: &DatabaseKey,
        plan: &Plan,
    ) -> BoxStream<'static, Result<Piece, DestinationError>> {
        restore::fetch(sources, database, plan, &self.shutdown)
    }

    /// The pages of a plan, each once.
    pub fn pages(
        &self,
        sources: &[DynSource],
        database: &DatabaseKey,
        prepared: &Prepared,
        ask: Ask,
    ) -> BoxStream<'static, Result<Frames, PagesError>> {
        restore::pages(sources, database, prepared, ask, &self.shutdown)
    }

    /// What every source holds of a database.
    pub async fn inventory(&self, sources: &[DynSource], database: &DatabaseKey) -> Inventory {
        Inventory::list(sources, database, &self.shutdown).await
    }
}

#[cfg(test)]
mod tests;
