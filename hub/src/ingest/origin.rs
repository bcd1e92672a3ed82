//! Where a history goes on that this hub does not know, or knows less of than its destinations do: the hub lost its disk,
//! or came back with an old image of it.
//!
//! At the first opening of a database since the start, when the hub holds nothing of it or the agent names another
//! position, the destinations are asked. What they hold beyond the hub's position is adopted: the agent then sends one
//! delta since there, and the lanes find their files continued.
//!
//! # Invariants
//! - A second history is never begun by mistake: a database that had one is not taken as new while a destination that may
//!   hold it does not answer, and nothing is taken as new when no destination answers.
//! - A hub that knows the database needs no answer: a destination that is away holds up nobody.
//! - Only a position of the same lineage is adopted.
//! - Bounded: [`LOOKS`] databases at a time, [`PATIENCE`] for each answer.
//!
//! Non-goals: destinations that were away when it was asked; their lanes put the segment in whose middle they end.

use super::error::Refusal;
use crate::buffer::{BufferError, DatabaseId, Registered, WalBuffer};
use crate::copies::InService;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Pos};
use walhub_store::destinations::error::{Context, Operation};
use walhub_store::destinations::{DestinationError, Fault, FileKey, Listed};
use walhub_store::restore::{
    self, DestinationSource, DynSource, PlanError, RestoreError, Source, SourceName, Target,
};

/// Databases looked for at a time.
const LOOKS: usize = 32;
/// How long a destination may take to answer when nobody else knows the database.
const PATIENCE: Duration = Duration::from_secs(20);
/// And when the hub could go on without it.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// The destinations as a memory.
pub struct Origins {
    destinations: InService,
    looks: Semaphore,
    settled: Mutex<HashSet<DatabaseId>>,
    shutdown: CancellationToken,
}

/// What an agent says of a database that it opens.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    pub(super) key: DatabaseKey,
    pub(super) lineage: u64,
    pub(super) position: Option<Pos>,
    pub(super) path: String,
}

/// Why a database was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The buffer failed.
    Buffer(BufferError),
    /// It is refused.
    Refused(Refusal),
}

impl From<BufferError> for OpenError {
    fn from(error: BufferError) -> Self {
        OpenError::Buffer(error)
    }
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        OpenError::Refused(refusal)
    }
}

/// What the destinations say.
struct Look {
    found: Option<Found>,
    /// There are files, but none that begins the history.
    headless: bool,
    /// What kept destinations from answering.
    unanswered: Vec<String>,
    /// None of them answered.
    nobody: bool,
}

/// The newest position that can be restored from the destinations.
#[derive(Clone, Copy, Debug)]
struct Found {
    position: Pos,
    time_ms: i64,
    /// 0 when the file does not say.
    lineage: u64,
}

impl Origins {
    /// Over the destinations of the moment.
    pub fn new(destinations: InService, shutdown: CancellationToken) -> Self {
        Self { destinations, looks: Semaphore::new(LOOKS), settled: Mutex::default(), shutdown }
    }

    fn settled(&self) -> MutexGuard<'_, HashSet<DatabaseId>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the destinations must be asked before the database is opened.
    pub(super) fn must_look(&self, held: Option<&Registered>, position: Option<Pos>) -> bool {
        let known = held.is_some_and(|held| held.position.is_some() && held.position == position);
        !known && !self.destinations.is_empty() && held.is_none_or(|held| !self.settled().contains(&held.id))
    }

    /// Registers the database, where the hub or its destinations hold it.
    pub(super) async fn register(
        &self,
        buffer: &dyn WalBuffer,
        announced: &Announced,
    ) -> Result<Registered, OpenError> {
        let Announced { key, lineage, position, path } = announced;
        let held = buffer.find(key);
        if !self.must_look(held.as_ref(), *position) {
            return Ok(buffer.register(key, Some(*lineage).filter(|l| *l != 0), path).await?);
        }
        let held_position = held.as_ref().and_then(|held| held.position);
        let look = self.look(key, if held_position.is_some() { IMPATIENCE } else { PATIENCE }).await;
        let mut found = look.found.filter(|found| Some(found.position.txid) > held_position.map(|p| p.txid));
        if held_position.is_none() {
            self.refuse_a_second_history(announced, &look)?;
        }
        if let (Some(at), Some(held)) = (&found, &held)
            && at.lineage != 0
            && at.lineage != held.lineage
        {
            // A stranger's files: its lane says so.
            found = None;
        }
        let inherited = found.map_or(0, |found| found.lineage);
        let lineage = [*lineage, inherited].into_iter().find(|lineage| *lineage != 0);
        let mut registered = buffer.register(key, lineage, path).await?;
        if let Some(Found { position, time_ms, .. }) = found {
            registered = buffer.adopt(registered.id, position, time_ms).await?;
            let (txid, had) = (position.txid.get(), held_position.map_or(0, |p| p.txid.get()));
            tracing::warn!(database = %key, txid, had, "the destinations hold more than this hub: it goes on from there");
        }
        self.settled().insert(registered.id);
        Ok(registered)
    }

    fn refuse_a_second_history(&self, announced: &Announced, look: &Look) -> Result<(), Refusal> {
        let Announced { key, lineage, position, .. } = announced;
        let fresh = *lineage == 0 && position.is_none();
        if let Some(found) = &look.found {
            if *lineage != 0 && found.lineage != 0 && *lineage != found.lineage {
                return Err(Refusal::fork(format!(
                    "this node follows history {lineage:016x} of {key}, the destinations hold history {:016x}; give the \
                     database another name, or the hub another place at its destinations",
                    found.lineage
                )));
            }
            return match position.filter(|ours| ours.txid == found.position.txid && *ours != found.position) {
                None => Ok(()),
                Some(ours) => Err(Refusal::fork(format!(
                    "the node has {key} at {ours}, the destinations have {}: two histories of one database",
                    found.position
                ))),
            };
        }
        if look.nobody || (!fresh && !look.unanswered.is_empty()) {
            return Err(Refusal::busy(format!(
                "the hub holds nothing of {key}, and cannot ask its destinations whether they do: {}; nothing is lost, \
                 it is tried again",
                look.unanswered.join("; ")
            )));
        }
        if fresh && look.headless {
            return Err(Refusal::fork(format!(
                "the destinations hold files of {key}, but not its beginning; move them away, or give the database another name"
            )));
        }
        Ok(())
    }

    async fn look(&self, key: &DatabaseKey, patience: Duration) -> Look {
        let patient = |destination| {
            let source: DynSource = Arc::new(DestinationSource(destination));
            Arc::new(Patient { source, patience }) as DynSource
        };
        let sources: Vec<DynSource> = self.destinations.all().into_iter().map(patient).collect();
        let nothing = |why: String| Look {
            found: None,
            headless: false,
            unanswered: sources.iter().map(|source| format!("{}: {why}", source.name())).collect(),
            nobody: true,
        };
        let Ok(_turn) = self.looks.acquire().await else { return nothing("the hub is shutting down".into()) };
        self.ask(&sources, key).await.unwrap_or_else(|error| nothing(error.to_string()))
    }

    async fn ask(&self, sources: &[DynSource], key: &DatabaseKey) -> Result<Look, DestinationError> {
        let (mut target, mut headless) = (Target::Latest, false);
        loop {
            let prepared = restore::prepare(sources, key, None, target, &self.shutdown).await;
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
}

/// A source that fails when it does not answer in time.
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

    async fn read_start(
        &self,
        key: &FileKey,
        length: usize,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        self.within(Operation::Open, key, self.source.read_start(key, length, cancel)).await
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

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
