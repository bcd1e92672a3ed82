//! `walhub-hub rebuild`: a hub whose disk is gone, made anew in an empty data folder from what its destinations keep.
//!
//! Find the newest good mirror ▸ ask the destinations for the newest position that they prove, of every database it names ▸
//! write registry, positions, epochs, labels, holds and jobs into the folder. `walhub-hub run` goes on from there; agents send what
//! is missing.
//!
//! - [`search`]: which mirror. - [`folder`]: into which folder, all or nothing. - [`report`]: what was done.
//!
//! # Invariants
//! - A position is proved by files, never taken from the mirror: a hub must not claim what nobody can restore. What the
//!   mirror names beyond is reported.
//! - Only positions of the lineage that the mirror names.
//! - A mirror of a newer version, a hub that has a successor, and a place with the mirrors of several hubs are refused, not
//!   guessed about; so is a mirror that is older than another destination's.
//! - A job that had not ended comes back, and waits for the operator's word. One that cannot be read is reported, and keeps
//!   nothing else back.
//! - A folder that is not empty is not touched. One that was left half-written is taken by no hub, and by a repetition of the
//!   command.
//!
//! Non-goals: certificates (the hub's is issued anew; the authority's key never was on the hub), the data (it lies at the
//! destinations), databases that were registered after the mirror was made (they come back with their agents).

mod folder;
mod report;
mod search;

pub use folder::{FolderError, refuse_unfinished};
pub use report::{DatabaseReport, Report, Verdict};
pub use search::SearchError;

use crate::config::{Config, DestinationEntry};
use crate::copies::Meters;
use crate::ingest::newest::{self, Look};
use crate::jobs;
use crate::mirror::HubId;
use crate::mirror::state::MirroredDatabase;
use crate::reload;
use futures_util::stream::{self, StreamExt};
use search::Chosen;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::DestinationName;
use walhub_store::destinations::{DestinationError, DynDestination, url};
use walhub_store::restore::DynSource;

/// Databases looked for at a time.
const AT_ONCE: usize = 16;
/// How long a destination may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a place without a name in a configuration is called in messages.
const NAMELESS: &str = "mirror";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Name of a destination, or its address.
    pub from: String,
    /// Which hub; `None` when there is only one.
    pub hub: Option<HubId>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Why nothing was rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The address cannot be used.
    #[error("{0}")]
    From(String),
    /// No mirror, or no single one.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// A destination that cannot even be made.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// The configuration of the hub that is mirrored at `from`, without secrets.
pub async fn skeleton(
    config: Option<&Config>,
    from: &str,
    hub: Option<&HubId>,
    cancel: &CancellationToken,
) -> Result<String, RebuildError> {
    let place = match config {
        Some(config) => reload::make(entry(config, from)?, &Meters::default(), None).await?,
        None => {
            let name = DestinationName::new(NAMELESS).expect("BUG: a good name");
            url::parse(from).map_err(RebuildError::From)?.build(name).await?
        }
    };
    Ok(search::choose(&place, &[], hub, cancel).await?.found.state.config)
}

/// Rebuilds the hub of `config`. Blocks nobody but its own files; cancel safe until it writes into the folder, and
/// repeatable after that.
pub async fn rebuild(
    config: &Config,
    order: &Order,
    cancel: &CancellationToken,
) -> Result<Report, RebuildError> {
    folder::check(&config.data_dir)?;
    let from = entry(config, &order.from)?;
    let (mut places, mut source) = (Vec::new(), None);
    for destination in &config.destinations {
        let place = reload::make(destination, &Meters::default(), None).await?;
        if destination.name == from.name {
            source = Some(place.clone());
        }
        places.push(place);
    }
    let source = source.expect("BUG: it is one of them");
    let others: Vec<DynDestination> =
        places.iter().filter(|place| place.name() != source.name()).cloned().collect();
    let Chosen { found, unanswered } = search::choose(&source, &others, order.hub.as_ref(), cancel).await?;
    let (state, passed_over) = (found.state, found.passed_over);
    let databases = positions(&places, &state.databases, cancel).await;
    let (mut jobs, mut lost_jobs) = (Vec::new(), Vec::new());
    for copy in &state.jobs {
        match jobs::revive(copy, state.written_ms) {
            Ok(revived) => jobs.push(revived),
            Err(reason) => lost_jobs.push(format!("{}: {reason}", copy.id)),
        }
    }
    let hub = match order.dry_run {
        true => None,
        false => Some(folder::write(config, &state, &databases, &jobs).await?),
    };
    Ok(Report {
        from: source.name().clone(),
        state,
        passed_over,
        databases,
        jobs,
        lost_jobs,
        unanswered,
        hub,
    })
}

/// The destination that is meant.
fn entry<'a>(config: &'a Config, from: &str) -> Result<&'a DestinationEntry, RebuildError> {
    if let Some(named) = config.destinations.iter().find(|entry| entry.name.as_str() == from) {
        return Ok(named);
    }
    let names = config.destinations.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
    if !from.contains("://") {
        let text = format!("there is no destination called {from} in {}: {names}", config.path.display());
        return Err(RebuildError::From(text));
    }
    let place = url::parse(from).map_err(RebuildError::From)?;
    config.destinations.iter().find(|entry| entry.is_at(&place)).ok_or_else(|| {
        RebuildError::From(format!(
            "{from} is none of the destinations in {} ({names}); the new hub needs it as one of them, with its credentials",
            config.path.display()
        ))
    })
}

/// Where each database goes on, in the order of the mirror.
async fn positions(
    places: &[DynDestination],
    databases: &[MirroredDatabase],
    cancel: &CancellationToken,
) -> Vec<DatabaseReport> {
    let sources: Vec<DynSource> =
        places.iter().map(|place| newest::patient(place.clone(), PATIENCE)).collect();
    let look = |database: &MirroredDatabase| {
        let (sources, database) = (sources.clone(), database.clone());
        async move {
            let look = newest::look(&sources, &database.key, cancel).await;
            judge(database, look)
        }
    };
    stream::iter(databases.iter().map(look).collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

/// What the destinations' answer means for a database. Pure.
fn judge(mirrored: MirroredDatabase, look: Look) -> DatabaseReport {
    let Look { found, headless, unanswered, nobody: _ } = look;
    let held = mirrored.position.map(|position| position.txid.get());
    let (position, verdict) = match found {
        Some(found) if found.lineage != 0 && found.lineage != mirrored.lineage => {
            (None, Verdict::Stranger { lineage: found.lineage })
        }
        Some(found) => {
            let lacks = held.unwrap_or(0).saturating_sub(found.position.txid.get());
            let verdict =
                if lacks == 0 { Verdict::Complete } else { Verdict::Behind { transactions: lacks } };
            (Some((found.position, found.time_ms)), verdict)
        }
        None if headless => (None, Verdict::Headless),
        None if held.is_none() => (None, Verdict::Complete),
        None => (None, Verdict::Nothing),
    };
    DatabaseReport { mirrored, position, verdict, unanswered }
}

#[cfg(test)]
mod tests;
