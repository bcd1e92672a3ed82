//! Every decision about a job, as pure functions from what is known to the records that follow from it.
//!
//! [`heard`] judges what a node said, [`operator`] what an operator wants, [`next`] looks at the whole job and takes the
//! steps that are due. Records are written and applied by the caller; [`orders`] says what lies at the desk of agents then.
//!
//! Invariants, kept whatever is heard in whatever order (see the property tests):
//! - an end is an end: a database that is done, failed or cancelled is never ordered again, nor told otherwise;
//! - done is said only of a database whose node proved exactly the position that was asked for;
//! - at most `parallelism` databases of nodes that are here are ordered at one time;
//! - no database of a wave is ordered before every one of the waves ahead is at its end, or its node is away;
//! - past the stop rule, paused, or cancelled, nothing is ordered any more.

use super::model::{Job, Phase, Record, Report, Stand};
use super::owner::Action;
use crate::fleet::orders::Presence;
use std::collections::{BTreeMap, BTreeSet};
use walhub_common::AgentName;
use walhub_proto::v1::{OrderState, OrderUpdate, Position, RestoreOrder};

/// A node that is away this long holds no wave up. Agents come back within seconds after a restart of the hub.
pub(super) const AWAY_MS: i64 = 20_000;
/// So long when it was told already: it may be at it, or about to fail.
pub(super) const AWAY_AT_WORK_MS: i64 = 10 * 60_000;
/// A job with more databases writes at most so many orders down at once.
const MAX_STEPS: usize = 10_000;
/// Longest path of a node that is noted.
const MAX_KEPT_CHARS: usize = 4096;

/// What is known of the agents of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Fleet {
    /// Since when each is as it is, by the hub's clock; one that is missing has been away since the hub's start.
    pub(super) seen: BTreeMap<AgentName, (Presence, i64)>,
    /// Start of the hub, Unix ms.
    pub(super) started_ms: i64,
}

impl Fleet {
    pub(super) fn presence(&self, agent: &AgentName) -> Presence {
        self.seen.get(agent).map_or(Presence::Away, |(presence, _)| *presence)
    }

    /// How long it has been away, ms; `None` when it is not.
    fn away_ms(&self, agent: &AgentName, now_ms: i64) -> Option<i64> {
        match self.seen.get(agent) {
            Some((Presence::Away, since)) => Some(now_ms - since),
            Some(_) => None,
            None => Some(now_ms - self.started_ms),
        }
    }
}

/// What follows from an update of a database's order. Progress is only noted.
pub(super) fn heard(job: &mut Job, target: usize, update: OrderUpdate, now_ms: i64) -> Option<Record> {
    let Stand::Ordered { since_ms } = *job.stands.get(target)? else { return None };
    let report = Report {
        bytes: update.bytes,
        new_txid: update.new_txid,
        safety_txid: update.safety_txid,
        elapsed_ms: update.elapsed_ms,
        took_ms: u64::try_from(now_ms - since_ms).unwrap_or(0),
        kept: update.kept.chars().take(MAX_KEPT_CHARS).collect(),
    };
    let failed = |reason: String, report| Stand::Failed { reason, report };
    let stand = match update.state() {
        OrderState::Done => {
            let (txid, checksum) = job.targets[target].until;
            match update.reached {
                Some(reached) if reached == (Position { txid, checksum }) => Stand::Done(report),
                _ => failed("its node reports another position than the one asked for".into(), report),
            }
        }
        OrderState::Failed => failed(update.message, report),
        OrderState::Cancelled => Stand::Cancelled { reason: update.message },
        OrderState::Unspecified | OrderState::Taken | OrderState::Fetching | OrderState::Applying => {
            job.said[target] = Some(update);
            return None;
        }
    };
    Some(Record::Stand { target, stand })
}

/// What an operator's word changes; the error says why it cannot be.
pub(super) fn operator(job: &Job, action: Action, who: &str, now_ms: i64) -> Result<Option<Record>, String> {
    let phase =
        |phase, reason: String, forgiven| Ok(Some(Record::Phase { phase, reason, forgiven, at_ms: now_ms }));
    match (action, job.phase) {
        (Action::Cancel, Phase::Cancelling | Phase::Cancelled) => Ok(None),
        (_, ended) if ended.is_end() => Err(format!("job {} has ended", job.spec.id)),
        (_, Phase::Cancelling) => Err(format!("job {} is being cancelled", job.spec.id)),
        (Action::Pause, Phase::Running) => phase(Phase::Paused, format!("paused by {who}"), job.forgiven),
        (Action::Pause, _) => Ok(None),
        (Action::Resume, Phase::Running) => Ok(None),
        (Action::Resume, _) => {
            // What has failed so far was seen by whoever resumes.
            let forgiven = u32::try_from(job.failures()).unwrap_or(u32::MAX);
            phase(Phase::Running, String::new(), forgiven)
        }
        (Action::Cancel, _) => phase(Phase::Cancelling, format!("cancelled by {who}"), job.forgiven),
    }
}

/// The steps that are due. Call it again after they were applied, until there are none.
pub(super) fn next(job: &Job, fleet: &Fleet, now_ms: i64) -> Vec<Record> {
    if job.phase.is_end() {
        return Vec::new();
    }
    let phase =
        |phase, reason: String| vec![Record::Phase { phase, reason, forgiven: job.forgiven, at_ms: now_ms }];
    if job.stands.iter().all(Stand::is_end) {
        let all_done = job.stands.iter().all(|stand| matches!(stand, Stand::Done(_)));
        return match job.phase {
            Phase::Cancelling if !all_done => phase(Phase::Cancelled, job.reason.clone()),
            _ if all_done => phase(Phase::Done, String::new()),
            _ => phase(Phase::Failed, sum_up(job)),
        };
    }
    match job.phase {
        Phase::Cancelling => cancel(job, fleet, now_ms),
        Phase::Running => {
            let failures = job.failures().saturating_sub(job.forgiven as usize);
            if failures > job.spec.max_failures as usize {
                return phase(Phase::Stopped, sum_up(job));
            }
            let given = give(job, fleet, now_ms);
            if given.is_empty() && may_widen(job, fleet, now_ms) {
                return vec![Record::Wave(job.wave + 1)];
            }
            given
        }
        _ => Vec::new(),
    }
}

/// `3 databases failed; the first: pos-1/app.db: the check …`.
fn sum_up(job: &Job) -> String {
    let mut failed = job.targets.iter().zip(&job.stands).filter_map(|(target, stand)| match stand {
        Stand::Failed { reason, .. } => Some(format!("{}: {reason}", target.database)),
        _ => None,
    });
    let first = failed.next().unwrap_or_default();
    match failed.count() {
        0 => first,
        more => format!("{} databases failed; the first: {first}", more + 1),
    }
}

fn cancel(job: &Job, fleet: &Fleet, now_ms: i64) -> Vec<Record> {
    let end = |(target, stand): (usize, &Stand)| {
        let away = fleet.away_ms(&job.targets[target].database.agent, now_ms);
        let reason = match stand {
            Stand::Pending => "its turn had not come",
            Stand::Ordered { .. } if away.is_some_and(|away| away >= AWAY_MS) => {
                "its node went away while it was at it: it is as it was, or at the point asked for"
            }
            _ => return None,
        };
        let stand = Stand::Cancelled { reason: reason.into() };
        Some(Record::Stand { target, stand })
    };
    job.stands.iter().enumerate().filter_map(end).take(MAX_STEPS).collect()
}

/// Orders for databases whose turn it is, in the order of the job, as long as there is room.
fn give(job: &Job, fleet: &Fleet, now_ms: i64) -> Vec<Record> {
    let mut busy: BTreeSet<&AgentName> = BTreeSet::new();
    let mut room = job.spec.parallelism.max(1) as usize;
    for (target, stand) in job.targets.iter().zip(&job.stands) {
        let agent = &target.database.agent;
        if matches!(stand, Stand::Ordered { .. }) && fleet.presence(agent) == Presence::Here {
            busy.insert(agent);
            room = room.saturating_sub(1);
        }
    }
    let (mut records, mut deaf) = (Vec::new(), Vec::new());
    for (at, (target, stand)) in job.targets.iter().zip(&job.stands).enumerate() {
        let agent = &target.database.agent;
        if *stand != Stand::Pending || target.wave > job.wave {
            continue;
        }
        match fleet.presence(agent) {
            Presence::Away => {}
            Presence::Deaf => {
                let reason = "its agent is too old to take orders".into();
                let stand = Stand::Failed { reason, report: Report::default() };
                deaf.push(Record::Stand { target: at, stand });
            }
            Presence::Here if room == 0 => {}
            // A bound per node is one for all its databases: they come one after another.
            Presence::Here if job.spec.node_rate > 0 && busy.contains(agent) => {}
            Presence::Here => {
                busy.insert(agent);
                room -= 1;
                records.push(Record::Stand { target: at, stand: Stand::Ordered { since_ms: now_ms } });
            }
        }
    }
    // Failures come first: they may stop the job.
    if deaf.is_empty() { records } else { deaf }
}

/// Whether the next wave may begin: all of the present ones are at their end, or away for long enough.
fn may_widen(job: &Job, fleet: &Fleet, now_ms: i64) -> bool {
    job.wave < job.spec.waves
        && job.targets.iter().zip(&job.stands).all(|(target, stand)| {
            let away = || fleet.away_ms(&target.database.agent, now_ms);
            match stand {
                _ if target.wave > job.wave => true,
                Stand::Pending => away().is_some_and(|away| away >= AWAY_MS),
                Stand::Ordered { .. } => away().is_some_and(|away| away >= AWAY_AT_WORK_MS),
                _ => true,
            }
        })
}

/// What agents are to be told now, by database.
pub(super) fn orders(job: &Job) -> BTreeMap<usize, RestoreOrder> {
    let rate = job.pace().share();
    let order = |(at, stand): (usize, &Stand)| {
        let Stand::Ordered { .. } = stand else { return None };
        let target = &job.targets[at];
        let (txid, checksum) = target.until;
        let order = RestoreOrder {
            id: job.order_id(at),
            database: target.database.name.to_string(),
            until: Some(Position { txid, checksum }),
            mode: job.spec.mode.wire().into(),
            checks: job.spec.checks.clone(),
            max_bytes_per_second: rate,
            cancel: job.phase == Phase::Cancelling,
        };
        Some((at, order))
    };
    job.stands.iter().enumerate().filter_map(order).collect()
}
