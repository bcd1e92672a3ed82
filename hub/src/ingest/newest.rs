//! The newest position of a database that destinations prove: a chain of files from the beginning, and the checksum after
//! the last one, read from its header. Non-goal: what to make of it.

use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Pos};
use walhub_store::destinations::{DestinationError, DynDestination, Fault};
use walhub_store::restore::around::{Around, Hooks, Request};
use walhub_store::restore::{self, DestinationSource, DynSource, PlanError, RestoreError, Target};

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
    Arc::new(Around::new(Arc::new(DestinationSource(destination)), Patience(patience)))
}

#[derive(Clone, Copy, Debug)]
struct Patience(Duration);

impl Hooks for Patience {
    async fn asked<T: Send>(
        &self,
        request: &Request<'_>,
        answer: impl Future<Output = Result<T, DestinationError>> + Send,
    ) -> Result<T, DestinationError> {
        tokio::time::timeout(self.0, answer).await.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", self.0.as_secs());
            Err(request.context().error(Fault::Unavailable(text)))
        })
    }

    async fn came(&self, _: usize) {}
}
