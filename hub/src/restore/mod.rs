//! Gives databases back: plans over the buffer and all destinations, and streams the chosen LTX files.
//!
//! # Invariants
//! - The buffer is asked first (it holds every recent transaction), then folders, then buckets.
//! - What is streamed is what was planned: the receiver proves the result by checksum, this side promises completeness.
//! - Read-ahead is bounded; a slow receiver holds nothing but its own stream up.
//!
//! Non-goals: applying files, deciding who may ask.

mod buffer_source;

use crate::buffer::WalBuffer;
use buffer_source::BufferSource;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Txid};
use walhub_store::destinations::{DestinationError, DynDestination};
use walhub_store::restore::{
    self, DestinationSource, DynSource, Inventory, Piece, Plan, Prepared, RestoreError, SourceName, Target,
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

/// Handle on all sources of this hub.
#[derive(Clone)]
pub struct Restores {
    sources: Vec<DynSource>,
    shutdown: CancellationToken,
}

impl Restores {
    /// Streams end when `shutdown` is cancelled.
    pub fn new(
        buffer: Arc<dyn WalBuffer>,
        destinations: &[DynDestination],
        shutdown: CancellationToken,
    ) -> Self {
        let mut sources: Vec<DynSource> = vec![Arc::new(BufferSource::new(buffer))];
        let mut destinations = destinations.to_vec();
        destinations.sort_by_key(|destination| destination.kind() != "file");
        sources.extend(destinations.into_iter().map(|d| Arc::new(DestinationSource(d)) as DynSource));
        Self { sources, shutdown }
    }

    /// All sources, or the one that was asked for.
    pub fn select(&self, only: Option<&SourceName>) -> Result<Vec<DynSource>, UnknownSource> {
        let Some(only) = only else { return Ok(self.sources.clone()) };
        match self.sources.iter().find(|source| source.name() == only) {
            Some(source) => Ok(vec![source.clone()]),
            None => {
                let known: Vec<&str> = self.sources.iter().map(|source| source.name().as_str()).collect();
                Err(UnknownSource { asked: only.clone(), known: known.join(", ") })
            }
        }
    }

    /// The plan; the time of its last file is the hub's.
    pub async fn prepare(&self, sources: &[DynSource], request: &Request) -> Result<Prepared, RestoreError> {
        let Request { database, target, after, .. } = request;
        let prepared = restore::prepare(sources, database, *after, *target, &self.shutdown).await?;
        for error in &prepared.unanswered {
            tracing::warn!(%database, %error, "a restore is planned without a source that does not answer");
        }
        Ok(prepared)
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

    /// What every source holds of a database.
    pub async fn inventory(&self, sources: &[DynSource], database: &DatabaseKey) -> Inventory {
        Inventory::list(sources, database, &self.shutdown).await
    }
}
