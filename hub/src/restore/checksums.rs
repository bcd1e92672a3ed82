//! The page checksums of a database at a position: its files, folded.
//!
//! Bounded: [`TURNS`] tables at a time in the whole hub, [`PER_AGENT`] asked for by one agent; a table keeps its turn
//! until it is dropped.

use super::fold::{Fold, FoldError, Pages};
use super::{PrepareError, Request, Restores};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use walhub_common::restore::feed::{self, Feed, FeedClosed, Feeder};
use walhub_common::{AgentName, DatabaseKey, Pos, Txid};
use walhub_store::destinations::DestinationError;
use walhub_store::restore::{Piece, Target};

/// Tables that are made or sent at a time.
const TURNS: usize = 4;
/// Tables that databases of one agent may wait for, or hold.
const PER_AGENT: usize = 4;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumsError {
    /// No chain of files leads there.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A source broke off.
    #[error(transparent)]
    Source(#[from] DestinationError),
    /// The files do not give what was asked for.
    #[error("page checksums of {database}: {error}")]
    Fold {
        /// Which database.
        database: DatabaseKey,
        /// The cause.
        error: FoldError,
    },
    /// The asker has it all.
    #[error("the page map stands at transaction {0} already")]
    NothingNew(Txid),
    /// The agent asks for too much at once.
    #[error("{0} asks for the page checksums of more than {PER_AGENT} databases at a time")]
    TooMany(AgentName),
    /// A task of the hub failed.
    #[error("internal error of the hub: {0}")]
    Internal(String),
}

/// Page checksums at a position, and the turn they were made in.
#[derive(Debug)]
pub struct Table {
    /// The pages.
    pub pages: Pages,
    _turn: OwnedSemaphorePermit,
    _share: Share,
}

/// Who waits for a turn, and the turns.
#[derive(Debug)]
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    agents: Arc<Mutex<HashMap<AgentName, usize>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(TURNS)), agents: Arc::default() }
    }
}

/// One of the tables that an agent may have under way.
#[derive(Debug)]
struct Share {
    agents: Arc<Mutex<HashMap<AgentName, usize>>>,
    agent: AgentName,
}

fn lock(agents: &Mutex<HashMap<AgentName, usize>>) -> MutexGuard<'_, HashMap<AgentName, usize>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// `None` when the agent has as many as it may.
    fn share(&self, agent: &AgentName) -> Option<Share> {
        let mut agents = lock(&self.agents);
        let under_way = agents.entry(agent.clone()).or_default();
        if *under_way >= PER_AGENT {
            return None;
        }
        *under_way += 1;
        Some(Share { agents: self.agents.clone(), agent: agent.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut agents = lock(&self.agents);
        if let Some(under_way) = agents.get_mut(&self.agent) {
            *under_way -= 1;
            if *under_way == 0 {
                agents.remove(&self.agent);
            }
        }
    }
}

impl Restores {
    /// Checksums of the pages of `database` at `until`: of all, or of those changed after `after` (and perhaps some
    /// more). What is returned as whole was verified against `until`.
    pub async fn checksums(
        &self,
        database: &DatabaseKey,
        after: Option<Txid>,
        until: Pos,
    ) -> Result<Table, ChecksumsError> {
        if let Some(after) = after.filter(|after| *after >= until.txid) {
            return Err(ChecksumsError::NothingNew(after));
        }
        let share = self.turns.share(&database.agent);
        let share = share.ok_or_else(|| ChecksumsError::TooMany(database.agent.clone()))?;
        let turn = self.turns.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|closed| ChecksumsError::Internal(closed.to_string()))?;
        let _pin = self.pins().pin(database).await;
        let target = Target::Txid(until.txid);
        let request = Request { database: database.clone(), target, after, source: None };
        let sources = self.select(None).expect("BUG: all sources are known");
        let plan = self.prepare(&sources, &request).await?.plan;
        let (feeder, files) = feed::channel();
        let folding = tokio::task::spawn_blocking(move || fold(files, after.is_none(), until));
        let feeding = async {
            let mut pieces = self.fetch(&sources, database, &plan);
            while let Some(piece) = pieces.next().await {
                let sent = match piece {
                    Ok(Piece::Start(file)) => feeder.file(format!("{} {}", file.source, file.range)).await,
                    Ok(Piece::Data(data)) => feeder.data(data).await,
                    Err(error) => {
                        give_up(feeder, &error).await;
                        return Err(error);
                    }
                };
                if let Err(FeedClosed) = sent {
                    // The fold says why.
                    return Ok(());
                }
            }
            let _ = feeder.finish(None).await;
            Ok(())
        };
        let (fed, folded) = tokio::join!(feeding, folding);
        fed?;
        let folded = folded.map_err(|died| ChecksumsError::Internal(died.to_string()))?;
        let pages = folded.map_err(|error| ChecksumsError::Fold { database: database.clone(), error })?;
        Ok(Table { pages, _turn: turn, _share: share })
    }
}

async fn give_up(feeder: Feeder, error: &DestinationError) {
    let _ = feeder.fail(error.to_string()).await;
}

fn fold(mut files: Feed, from_the_beginning: bool, until: Pos) -> Result<Pages, FoldError> {
    let broke = |error| FoldError::File { name: "the hub's own files".to_owned(), source: error };
    let mut fold = Fold::new(from_the_beginning);
    while let Some(file) = files.next_file().map_err(|error| broke(error.into()))? {
        let name = file.name().to_owned();
        fold.file(&name, file)?;
    }
    fold.finish(until)
}
