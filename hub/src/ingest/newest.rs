//! The newest position of a database that destinations prove: a chain of files from the beginning, and the checksum after
//! the last one, read from its header. Non-goal: what to make of it.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Pos};
use walhub_store::destinations::error::{Context, Operation};
use walhub_store::destinations::{DestinationError, DynDestination, Fault, FileKey, Listed};
use walhub_store::restore::{
    self, DestinationSource, DynSource, PlanError, RestoreError, Source, SourceName, Target,
};

/// What the destinations say.
pub(crate) struct Look {
    pub(crate) found: Option<Found>,
    /// There are files, but none that begins the history.
    pub(crate) headless: bool,
    /// What kept destinations from answering.
    pub(crate) unanswered: Vec<String>,
    /// None of them answered.
    pub(crate) nobody: bool,
}

/// The newest position that can be restored from the destinations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) position: Pos,
    pub(crate) time_ms: i64,
    /// 0 when the file does not say.
    pub(crate) lineage: u64,
}

impl Look {
    /// Nobody could be asked.
    pub(crate) fn nothing(sources: &[DynSource], why: &str) -> Self {
        let unanswered = sources.iter().map(|source| format!("{}: {why}", source.name())).collect();
        Look { found: None, headless: false, unanswered, nobody: true }
    }
}

/// Asks all sources for one database.
pub(crate) async fn look(sources: &[DynSource], key: &DatabaseKey, cancel: &CancellationToken) -> Look {
    let asked = ask(sources, key, cancel).await;
    asked.unwrap_or_else(|error| Look::nothing(sources, &error.to_string()))
}

async fn ask(
    sources: &[DynSource],
    key: &DatabaseKey,
    cancel: &CancellationToken,
) -> Result<Look, DestinationError> {
    let (mut target, mut headless) = (Target::Latest, false);
    loop {
        let prepared = restore::prepare(sources, key, None, target, cancel).await;
        let (header, unanswered) = match prepared {
            Ok(prepared) => (prepared.header, prepared.unanswered),
            Err(RestoreError::Plan { error: PlanError::Hole { after: Some(after), .. }, .. })
                if target == Target::Latest =>
            {
                target = Target::Txid(after);
                continue;
            }
            Err(RestoreError::Plan { error, unanswered, .. }) => {
                headless = matches!(error, PlanError::Hole { .. });
                (None, unanswered)
            }
            Err(RestoreError::Source(error)) => return Err(error),
        };
        let found = header.and_then(|header| {
            let checksum = header.provenance?.post;
            let position = Pos { txid: header.range.max(), checksum };
            Some(Found { position, time_ms: header.timestamp_ms, lineage: header.node_id })
        });
        let nobody = unanswered.len() == sources.len();
        let unanswered = unanswered.iter().map(ToString::to_string).collect();
        return Ok(Look { found, headless, unanswered, nobody });
    }
}

/// A destination as a source that fails when it does not answer in time.
pub(crate) fn patient(destination: DynDestination, patience: Duration) -> DynSource {
    Arc::new(Patient { source: Arc::new(DestinationSource(destination)), patience })
}

#[derive(Debug)]
struct Patient {
    source: DynSource,
    patience: Duration,
}

impl Patient {
    async fn within<T>(
        &self,
        operation: Operation,
        subject: impl fmt::Display,
        answer: impl Future<Output = Result<T, DestinationError>>,
    ) -> Result<T, DestinationError> {
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("no answer within {} s", self.patience.as_secs());
                Err(Context::new(self.source.name(), operation, subject).error(Fault::Unavailable(text)))
            }
        }
    }
}

#[async_trait]
impl Source for Patient {
    fn name(&self) -> &SourceName {
        self.source.name()
    }

    fn lists_exact_times(&self) -> bool {
        self.source.lists_exact_times()
    }

    async fn list(
        &self,
        key: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        self.within(Operation::List, key, self.source.list(key, cancel)).await
    }

    fn kind(&self) -> &'static str {
        self.source.kind()
    }

    fn ranged(&self) -> bool {
        self.source.ranged()
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.within(Operation::Open, key, self.source.read_at(key, range, cancel)).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        self.within(Operation::Open, key, self.source.open(key, offset, cancel)).await
    }
}
