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
use super::newest::{self, Found, Look};
use crate::buffer::{BufferError, DatabaseId, Registered, WalBuffer};
use crate::copies::InService;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Pos};
use walhub_store::restore::DynSource;

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
        let patient = |destination| newest::patient(destination, patience);
        let sources: Vec<DynSource> = self.destinations.all().into_iter().map(patient).collect();
        match self.looks.acquire().await {
            Ok(_turn) => newest::look(&sources, key, &self.shutdown).await,
            Err(_) => Look::nothing(&sources, "the hub is shutting down"),
        }
    }
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
