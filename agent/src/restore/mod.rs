//! Brings a database of this node back to a position of its history, as the hub ordered: the words of it, and the one call.
//!
//! What a caller may rely on: [`execute`] changes nothing of the live database before the result is proven by its checksum
//! and every check holds; it is done, or the database is as it was. Carried out twice, an order leads to the same state.
//!
//! Non-goals: where orders come from, and who hears of them ([`crate::orders`]).

mod fetch;
mod live;
mod replace;
mod swap;
#[cfg(test)]
mod swap_tests;

pub(crate) use swap::mend;

use crate::database::Shared;
use crate::roster::Public;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseName, Pos, Txid};
use walhub_proto::pages;
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::{DatabaseRef, RestoreRequest};

/// What is needed beside the order.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Link to the hub, state folder, turns.
    pub shared: Arc<Shared>,
    /// The databases that are followed.
    pub public: Arc<Public>,
}

/// One database to one position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Name of the order, unique for ever.
    pub id: String,
    /// Which database.
    pub database: DatabaseName,
    /// Its file.
    pub path: PathBuf,
    /// The point asked for.
    pub until: Pos,
    /// How.
    pub mode: Mode,
    /// Assertions "SQL = value" that must hold before the live database is changed.
    pub checks: Vec<String>,
    /// Bytes fetched from the hub per second at most.
    pub max_bytes_per_second: Option<NonZeroU64>,
}

/// How a database comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// As one transaction into the live file.
    InPlace,
    /// Another file in its place, while nobody but this agent has it open.
    Replace,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Finds and fetches what differs; the live database is untouched, and the order can be cancelled.
    Fetching,
    /// Changes the live database.
    Applying,
}

/// Hears of progress: phase, bytes fetched, bytes to fetch (0 while not known). Called often; must not block.
pub type Tell<'a> = &'a (dyn Fn(Phase, u64, u64) + Send + Sync);

/// It is at the point asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The position asked for, proven.
    pub reached: Pos,
    /// The transaction that the restored state is in the database's history; `None` when nothing differed.
    pub new_txid: Option<Txid>,
    /// The restore point of what was there before.
    pub safety_txid: Option<Txid>,
    /// Bytes fetched from the hub.
    pub bytes: u64,
    /// Where the file that was there before is kept, if it is no restore point.
    pub kept: Option<PathBuf>,
}

/// It is not; the live database is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The token was cancelled in time.
    #[error("cancelled before anything was changed")]
    Cancelled,
    /// Why, and what to do.
    #[error("{0}")]
    Failed(String),
}

/// A point of a database's history, as people name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The newest one at the hub.
    Latest,
    /// Exactly after this transaction.
    Txid(u64),
    /// The newest one at or before this time, Unix milliseconds.
    Time(i64),
}

/// The position that the hub holds for a point, and its time, Unix milliseconds.
pub async fn resolve(ground: &Ground, database: &DatabaseName, point: Point) -> Result<(Pos, i64), Failure> {
    let link = ground.shared.board.link();
    let link = link.ok_or_else(|| Failure::Failed("the hub cannot be reached; try again".into()))?;
    let request = RestoreRequest {
        database: Some(DatabaseRef { agent: ground.shared.agent.to_string(), name: database.to_string() }),
        target: match point {
            Point::Latest => None,
            Point::Txid(txid) => Some(Target::Txid(txid)),
            Point::Time(ms) => Some(Target::TimestampMs(ms)),
        },
        after_txid: 0,
        source: String::new(),
    };
    let planned = pages::plan(link.channel.clone(), request).await;
    let (plan, position) = planned.map_err(fetch::unavailable)?;
    let position = position.ok_or_else(|| {
        Failure::Failed(
            "no checksum was taken at that point, as other software wrote it: restore it into a file with -o instead".into(),
        )
    })?;
    Ok((position, plan.timestamp_ms))
}

/// Carries an order out. Ends soon after `cancel`, unless it is applying.
pub async fn execute(
    ground: &Ground,
    order: &Order,
    tell: Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Outcome, Failure> {
    match order.mode {
        Mode::InPlace => Box::pin(live::bring_back(ground, order, tell, cancel)).await,
        Mode::Replace => Box::pin(replace::bring_back(ground, order, tell, cancel)).await,
    }
}
