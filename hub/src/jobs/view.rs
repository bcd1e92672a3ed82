//! Jobs and plans on the wire.

use super::cost;
use super::machine::Fleet;
use super::model::{Job, Phase, Report, Stand, Target};
use super::plan::Planned;
use crate::fleet::orders::Presence;
use walhub_common::DatabaseKey;
use walhub_proto::v1;
use walhub_proto::v1::job_request::Point;
use walhub_proto::v1::selector::By;
use walhub_proto::v1::{JobState, OrderUpdate, TargetState};

/// A plan.
pub(super) fn plan(planned: &Planned) -> v1::JobPlan {
    let pending = |found: &Target| target_of(found, TargetState::Pending);
    let unplanned = planned.unplanned.iter().map(|(key, reason)| unplanned(&reference(key), reason));
    v1::JobPlan {
        targets: planned.targets.iter().map(pending).collect(),
        unplanned: unplanned.collect(),
        waves: planned.waves,
        at_most: Some(cost::total(&planned.targets, planned.pace()).wire()),
    }
}

fn reference(key: &DatabaseKey) -> v1::DatabaseRef {
    v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() }
}

fn unplanned(database: &v1::DatabaseRef, reason: &str) -> v1::Unplanned {
    v1::Unplanned { database: Some(database.clone()), reason: reason.to_owned() }
}

/// A job without its databases.
pub(super) fn job(job: &Job, fleet: &Fleet) -> v1::Job {
    let spec = &job.spec;
    let mut counts = [0_u32; 4];
    for at in 0..job.targets.len() {
        match state(job, at, fleet) {
            TargetState::Done => counts[0] += 1,
            TargetState::Failed | TargetState::Cancelled => counts[1] += 1,
            TargetState::Ordered | TargetState::Running => counts[2] += 1,
            TargetState::Away => counts[3] += 1,
            TargetState::Pending | TargetState::Unspecified => {}
        }
    }
    let [done, failed, running, away] = counts;
    let names = spec.names.iter().map(|text| By::Name(text.clone()));
    let labels = spec.labels.iter().map(|text| By::Labels(text.clone()));
    let request = v1::JobRequest {
        request_id: spec.request_id.clone(),
        selectors: names.chain(labels).map(|by| v1::Selector { by: Some(by) }).collect(),
        point: spec.timestamp_ms.map(Point::TimestampMs).or_else(|| spec.txid.map(Point::Txid)),
        mode: spec.mode.wire().into(),
        waves: spec.wave_words.clone(),
        max_failures: spec.max_failures,
        parallelism: spec.parallelism,
        node_bytes_per_second: spec.node_rate,
        total_bytes_per_second: spec.total_rate,
        checks: spec.checks.clone(),
    };
    let left_out = spec.unplanned.iter().map(|(key, reason)| {
        let (agent, name) = key.split_once('/').unwrap_or((key, ""));
        unplanned(&v1::DatabaseRef { agent: agent.to_owned(), name: name.to_owned() }, reason)
    });
    v1::Job {
        id: spec.id.to_string(),
        state: phase(job.phase).into(),
        reason: job.reason.clone(),
        started_ms: spec.started_ms,
        ended_ms: job.ended_ms,
        request: Some(request),
        wave: job.wave,
        waves: spec.waves,
        total: u32::try_from(job.targets.len()).unwrap_or(u32::MAX),
        done,
        failed,
        running,
        away,
        operator: spec.operator.clone(),
        unplanned: left_out.collect(),
        at_most: Some(cost::total(&job.targets, job.pace()).wire()),
        kept: kept(job),
    }
}

/// Points that are waited for: see the owner.
fn kept(job: &Job) -> u32 {
    let open = job.stands.iter().filter(|stand| !job.phase.is_end() && !stand.is_end());
    u32::try_from(open.count()).unwrap_or(u32::MAX)
}

fn phase(phase: Phase) -> JobState {
    match phase {
        Phase::Running => JobState::Running,
        Phase::Paused => JobState::Paused,
        Phase::Stopped => JobState::Stopped,
        Phase::Cancelling => JobState::Cancelling,
        Phase::Done => JobState::Done,
        Phase::Failed => JobState::Failed,
        Phase::Cancelled => JobState::Cancelled,
    }
}

fn state(job: &Job, at: usize, fleet: &Fleet) -> TargetState {
    let away = || fleet.presence(&job.targets[at].database.agent) == Presence::Away;
    match &job.stands[at] {
        Stand::Done(_) => TargetState::Done,
        Stand::Failed { .. } => TargetState::Failed,
        Stand::Cancelled { .. } => TargetState::Cancelled,
        Stand::Pending | Stand::Ordered { .. } if away() => TargetState::Away,
        Stand::Pending => TargetState::Pending,
        Stand::Ordered { .. } if job.said[at].is_some() => TargetState::Running,
        Stand::Ordered { .. } => TargetState::Ordered,
    }
}

fn target_of(target: &Target, state: TargetState) -> v1::JobTarget {
    v1::JobTarget {
        database: Some(reference(&target.database)),
        wave: target.wave,
        until: Some(v1::Position { txid: target.until.0, checksum: target.until.1 }),
        until_ms: target.until_ms,
        state: state.into(),
        at_most: Some(target.cost.wire()),
        ..v1::JobTarget::default()
    }
}

/// One database of a job.
pub(super) fn target(job: &Job, at: usize, fleet: &Fleet) -> v1::JobTarget {
    let mut target = target_of(&job.targets[at], state(job, at, fleet));
    let (until, id) = (target.until, job.order_id(at));
    let ended = |report: &Report, state: v1::OrderState| OrderUpdate {
        id,
        state: state.into(),
        bytes: report.bytes,
        total_bytes: report.bytes,
        reached: until.filter(|_| state == v1::OrderState::Done),
        new_txid: report.new_txid,
        safety_txid: report.safety_txid,
        elapsed_ms: report.elapsed_ms,
        message: String::new(),
        kept: report.kept.clone(),
    };
    match &job.stands[at] {
        Stand::Pending => {}
        Stand::Ordered { .. } => target.update.clone_from(&job.said[at]),
        Stand::Done(report) => {
            target.update = Some(ended(report, v1::OrderState::Done));
            target.took_ms = report.took_ms;
        }
        Stand::Failed { reason, report } => {
            target.update = Some(ended(report, v1::OrderState::Failed));
            (target.message, target.took_ms) = (reason.clone(), report.took_ms);
        }
        Stand::Cancelled { reason } => target.message.clone_from(reason),
    }
    target
}
