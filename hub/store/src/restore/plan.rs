//! A restore as a value, or the reason why it cannot be.

use super::inventory::{Inventory, Listing};
use super::reach::{Hole, Reach};
use super::source::{DynSource, SourceName};
use super::target::Target;
use super::times;
use crate::destinations::{DestinationError, FileKey};
use std::fmt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Header;
use walhub_common::{DatabaseKey, Level, Txid, TxidRange, clock};

/// One file of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedFile {
    /// Where it is read from.
    pub source: SourceName,
    /// Its level.
    pub level: Level,
    /// Its transactions.
    pub range: TxidRange,
    /// Bytes, as listed.
    pub size: u64,
    /// Time of its newest transaction as listed, Unix ms: an upload time in a bucket.
    pub time_ms: i64,
}

impl PlannedFile {
    /// Its name within its source.
    pub fn key(&self, database: &DatabaseKey) -> FileKey {
        FileKey { database: database.clone(), level: self.level, range: self.range }
    }
}

/// Files to apply, oldest first: each starts at or before the transaction after the one before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The files; none when the start is the target.
    pub files: Vec<PlannedFile>,
    /// The transaction after which the database stands then.
    pub reached: Txid,
}

impl Plan {
    /// Bytes to read.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }
}

/// `transaction X`, or `the beginning`.
struct Shown(Option<Txid>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(txid) => write!(f, "transaction {txid}"),
            None => f.write_str("the beginning"),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No source holds a file of the database.
    #[error("no source holds a file of this database")]
    NotFound,
    /// Files lie behind a hole. What lies before it can be restored by its transaction.
    #[error(
        "the history has a hole: after {} the next file starts at transaction {next_available}; restore an earlier \
         point by its transaction, or bring back the missing source",
        Shown(*after)
    )]
    Hole {
        /// The newest transaction before the hole; `None` when the hole is at the beginning.
        after: Option<Txid>,
        /// The oldest transaction behind it.
        next_available: Txid,
    },
    /// The transaction lies inside of a file: it is no restore point any more.
    #[error(
        "transaction {asked} is no restore point (any more): the nearest are {} and transaction {above}",
        Shown(*below)
    )]
    BetweenRestorePoints {
        /// What was asked for.
        asked: Txid,
        /// The nearest restore point before it, if there is one.
        below: Option<Txid>,
        /// The nearest one after it.
        above: Txid,
    },
    /// It has not happened yet, as far as the sources know.
    #[error("transaction {asked} is not there (yet): the newest is {newest}")]
    BeyondNewest {
        /// What was asked for.
        asked: Txid,
        /// The newest restore point.
        newest: Txid,
    },
    /// It lies before the transaction the caller already has.
    #[error("transaction {asked} lies before the start of the asked range, {start}")]
    BeforeStart {
        /// What was asked for.
        asked: Txid,
        /// What the caller has.
        start: Txid,
    },
    /// No restore point is that old.
    #[error(
        "nothing is as old as {}: the oldest restore point is transaction {oldest} of {}",
        clock::format_ms(*asked_ms),
        clock::format_ms(*oldest_ms)
    )]
    BeforeOldest {
        /// What was asked for, Unix ms.
        asked_ms: i64,
        /// The oldest restore point.
        oldest: Txid,
        /// Its time, Unix ms.
        oldest_ms: i64,
    },
}

impl From<Hole> for PlanError {
    fn from(hole: Hole) -> Self {
        PlanError::Hole { after: hole.after, next_available: hole.next_available }
    }
}

/// Why a restore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no chain. Sources that did not answer may hold the missing files.
    #[error("{error}{}", Unanswered(unanswered))]
    Plan {
        /// Which database.
        database: DatabaseKey,
        /// What was asked for.
        target: Target,
        /// The reason.
        error: PlanError,
        /// Sources that did not answer.
        unanswered: Vec<DestinationError>,
    },
    /// A source failed and no other could stand in.
    #[error(transparent)]
    Source(#[from] DestinationError),
}

struct Unanswered<'a>(&'a [DestinationError]);

impl fmt::Display for Unanswered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|error| write!(f, "; not asked: {error}"))
    }
}

/// The cheapest chain to the newest state.
pub fn latest(reach: &Reach<'_>) -> Result<Plan, PlanError> {
    match (reach.hole(), reach.newest()) {
        (Some(hole), _) => Err(hole.into()),
        (None, None) => Err(PlanError::NotFound),
        (None, Some(newest)) => Ok(reach.chain_to(newest).expect("BUG: the newest point is reachable")),
    }
}

/// The cheapest chain to the state exactly after `asked`.
pub fn exactly(reach: &Reach<'_>, asked: Txid) -> Result<Plan, PlanError> {
    if let Some(plan) = reach.chain_to(asked) {
        return Ok(plan);
    }
    if let Some(start) = reach.start().filter(|&start| asked < start) {
        return Err(PlanError::BeforeStart { asked, start });
    }
    let below = reach.points().rfind(|&point| point < asked).or_else(|| reach.start());
    if let Some(above) = reach.points().find(|&point| point > asked) {
        return Err(PlanError::BetweenRestorePoints { asked, below, above });
    }
    match (reach.hole(), reach.newest_mentioned().or_else(|| reach.newest())) {
        // Files reach as far as that, but nothing leads to them.
        (Some(hole), Some(mentioned)) if asked <= mentioned || below.is_none() => Err(hole.into()),
        _ => Err(below.map_or(PlanError::NotFound, |newest| PlanError::BeyondNewest { asked, newest })),
    }
}

/// A plan together with what its user needs to know beforehand.
#[derive(Debug)]
pub struct Prepared {
    /// The files.
    pub plan: Plan,
    /// Header of the last file: page size, database size, time and checksum at the target. `None` without files.
    pub header: Option<Header>,
    /// Sources that did not answer. A plan to the latest state may be older than what they hold.
    pub unanswered: Vec<DestinationError>,
    /// The transaction the caller already has.
    pub after: Option<Txid>,
    /// What the sources hold: other files for when one of the plan fails.
    pub listings: Arc<[Listing]>,
}

/// Lists all `sources` (most preferred first), and plans. `after` is the transaction the caller already has. Reads the
/// header of the last file, and a few more when the target is a time.
pub async fn prepare(
    sources: &[DynSource],
    database: &DatabaseKey,
    after: Option<Txid>,
    target: Target,
    cancel: &CancellationToken,
) -> Result<Prepared, RestoreError> {
    let Inventory { listings, unanswered } = Inventory::list(sources, database, cancel).await;
    let reach = Reach::new(&listings, after);
    let planned = match target {
        Target::Latest => latest(&reach),
        Target::Txid(asked) => exactly(&reach, asked),
        Target::TimestampMs(asked_ms) => {
            let time_of = |file| async move { times::read_time(sources, database, &file, cancel).await };
            times::not_after(&reach, asked_ms, time_of).await?
        }
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => {
            return Err(RestoreError::Plan { database: database.clone(), target, error, unanswered });
        }
    };
    let header = match plan.files.last() {
        Some(file) => Some(times::read_header(sources, database, file, cancel).await?),
        None => None,
    };
    Ok(Prepared { plan, header, unanswered, after, listings: listings.into() })
}
