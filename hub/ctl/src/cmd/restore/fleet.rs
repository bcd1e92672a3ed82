//! Many restores: side by side, each on its own, told one by one and summed up.

use super::one::{self, Job};
use super::origin::Origin;
use super::outcome::Restored;
use super::progress::Progress;
use super::{Args, onto, plan_lines, unless};
use crate::connect::Hub;
use crate::fault::{Interrupted, clean};
use crate::model::Plan;
use crate::output;
use anyhow::{anyhow, bail};
use futures_util::StreamExt;
use serde::Serialize;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;
use walhub_common::{AgentName, DatabaseKey, DatabaseName};
use walhub_proto::v1;

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Entry<T> {
    Done(T),
    Failed { database: String, error: String },
}

/// What came of many restores.
#[derive(Debug, Serialize)]
struct Summary {
    restored: usize,
    failed: usize,
    databases: Vec<Entry<Restored>>,
}

/// Restores (or, with `--dry-run`, plans) every database that the arguments name.
pub(super) async fn restore(
    args: &Args,
    hub: &Hub,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let agent = args.choice.agent.as_ref().map_or("", |name| name.as_str());
    let mut databases = unless(cancel, hub.status(agent, "")).await?.databases;
    if !args.choice.selector.is_empty() {
        let chosen = unless(cancel, onto::matching(args.choice.selectors(None), hub)).await?;
        databases.retain(|status| status.database.as_ref().is_some_and(|key| chosen.contains(key)));
    }
    let jobs = jobs(args, databases)?;
    if jobs.is_empty() {
        match &args.choice.agent {
            Some(agent) => bail!("the hub knows no database of agent {agent}; see `hubctl agents list`"),
            None => bail!("the hub knows no database yet"),
        }
    }
    if args.dry_run {
        return unless(cancel, plan_all(args, Origin::Hub(hub), jobs)).await;
    }
    run(args, Origin::Hub(hub), jobs, progress, cancel).await
}

/// Restores all `jobs` side by side.
pub(super) async fn run(
    args: &Args,
    origin: Origin<'_>,
    jobs: Vec<Planned>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let mut running = futures_util::stream::iter(jobs)
        .map(|job| async move {
            let result = match (cancel.is_cancelled(), job.nothing) {
                (true, _) => Err(Interrupted.into()),
                (_, true) => Err(anyhow!("{}: the hub holds nothing of it yet", job.job.failure())),
                _ => one::restore_from(origin, &job.job, progress, cancel).await,
            };
            (job.job.name(), result)
        })
        .buffer_unordered(args.side_by_side());
    let mut databases = Vec::new();
    while let Some((database, result)) = running.next().await {
        let entry = entry(&database, result);
        progress.suspend(|| tell(&entry, args.json))?;
        databases.push((database, entry));
    }
    databases.sort_by(|(a, _), (b, _)| a.cmp(b));
    let databases: Vec<_> = databases.into_iter().map(|(_, entry)| entry).collect();
    let restored = databases.iter().filter(|entry| matches!(entry, Entry::Done(_))).count();
    let summary = Summary { restored, failed: databases.len() - restored, databases };
    eprintln!("hubctl: {} restored, {} failed", summary.restored, summary.failed);
    if args.json {
        output::json(&summary)?;
    }
    match summary.failed {
        _ if cancel.is_cancelled() => Err(Interrupted.into()),
        0 => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}

pub(super) struct Planned {
    pub(super) job: Job,
    /// Registered, but not one transaction of it has come.
    pub(super) nothing: bool,
}

/// A hub cannot make us write outside of the folder: its names are checked like everybody's.
fn jobs(args: &Args, databases: Vec<v1::DatabaseStatus>) -> anyhow::Result<Vec<Planned>> {
    let job = |status: v1::DatabaseStatus| {
        let wire = status.database.unwrap_or_default();
        let key = DatabaseKey::new(AgentName::new(wire.agent)?, DatabaseName::new(wire.name)?);
        let nothing = status.buffered.is_none_or(|position| position.txid == 0);
        Ok(Planned { job: args.job(key), nothing })
    };
    databases.into_iter().map(job).collect()
}

fn entry<T>(database: &str, result: anyhow::Result<T>) -> Entry<T> {
    match result {
        Ok(done) => Entry::Done(done),
        Err(error) => Entry::Failed { database: database.to_owned(), error: clean(&format!("{error:#}")) },
    }
}

fn tell(entry: &Entry<Restored>, json: bool) -> anyhow::Result<()> {
    match entry {
        Entry::Done(restored) if json => eprintln!("{}", restored.line()),
        Entry::Done(restored) => {
            output::lines(&[restored.line()])?;
        }
        Entry::Failed { error, .. } => eprintln!("hubctl: {error}"),
    }
    Ok(())
}

/// Says what the restores of all `jobs` would do.
pub(super) async fn plan_all(
    args: &Args,
    origin: Origin<'_>,
    jobs: Vec<Planned>,
) -> anyhow::Result<ExitCode> {
    let plans: Vec<Entry<Plan>> = futures_util::stream::iter(&jobs)
        .map(|planned| async move {
            entry(&planned.job.name(), origin.plan(&planned.job, &CancellationToken::new()).await)
        })
        .buffered(args.side_by_side())
        .collect()
        .await;
    if args.json {
        output::json(&plans)?;
    }
    let mut code = ExitCode::SUCCESS;
    for plan in &plans {
        match plan {
            Entry::Done(plan) if !args.json => {
                output::lines(&plan_lines(plan))?;
            }
            Entry::Done(_) => {}
            Entry::Failed { error, .. } => {
                eprintln!("hubctl: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
