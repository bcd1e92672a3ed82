//! What the hub knows of itself right now, as a page: read where the status reads it, nothing is counted twice.

use super::Sources;
use super::drills;
use super::names::*;
use super::page::{Page, seconds, time};
use super::survey::{Served, Survey, survey};
use crate::buffer::WalBuffer;
use crate::compact::Totals;
use crate::copies::{LaneHealth, Place};
use crate::fleet::Fleet;
use std::collections::{BTreeMap, BTreeSet};
use walhub_common::{AgentName, clock};
use walhub_proto::v1::{Job, JobState};
use walhub_store::destinations::limited::Requests;

/// States of jobs, each of which is always on the page, with the word `hubctl` has for it.
const JOB_STATES: [(JobState, &str); 7] = [
    (JobState::Running, "running"),
    (JobState::Paused, "paused"),
    (JobState::Stopped, "stopped"),
    (JobState::Cancelling, "cancelling"),
    (JobState::Done, "done"),
    (JobState::Failed, "failed"),
    (JobState::Cancelled, "cancelled"),
];

/// Everything. Blocking, for as long as it takes to look at every database; `jobs` as they were listed before.
pub(super) fn collect(sources: &Sources, jobs: &[Job]) -> Page {
    let Sources { fleet, buffer, retainer, started_ms, .. } = sources;
    let now_ms = clock::now_ms();
    let mut page = Page::default();
    page.add(&BUILD, &[env!("CARGO_PKG_VERSION")], 1_u64);
    page.add(&START, &[], time(*started_ms));
    let mut survey = survey(buffer.as_ref(), &fleet.board, now_ms);
    databases(&mut page, &survey);
    agents(&mut page, fleet, &survey.agents);
    buffered(&mut page, buffer.as_ref(), survey.given_up);
    for place in fleet.board.roster().places() {
        let mut served = survey.served.remove(&place.lane).unwrap_or_default();
        destination(&mut page, fleet, place, &mut served, now_ms);
    }
    for (name, rounds) in retainer.rounds() {
        if rounds.last_success_ms > 0 {
            page.add(&RETENTION_LAST, &[name.as_str()], time(rounds.last_success_ms));
        }
        page.add(&RETENTION_FAILURES, &[name.as_str()], rounds.failures);
        page.add(&RETENTION_DELETED, &[name.as_str()], rounds.deleted);
    }
    compaction(&mut page, fleet);
    drills::collect(&mut page, &sources.drills, &fleet.board.roster(), buffer.as_ref());
    on_nodes(&mut page, jobs);
    page
}

fn databases(page: &mut Page, survey: &Survey) {
    page.add(&DATABASES, &[], survey.databases);
    page.add(&DATABASES_OPEN, &[], survey.open);
    page.add(&DATABASES_REFUSED, &[], survey.refused);
    page.add(&DATABASES_NOT_DURABLE, &[], survey.not_durable);
}

fn agents(page: &mut Page, fleet: &Fleet, databases: &BTreeMap<AgentName, u64>) {
    let seen = fleet.registry.agents();
    let mut known: BTreeSet<&AgentName> =
        databases.keys().chain(seen.iter().map(|agent| &agent.name)).collect();
    let labelled = fleet.labels.all();
    known.extend(labelled.keys());
    let mut connected = BTreeSet::new();
    for agent in &seen {
        if agent.connected {
            connected.insert(&agent.name);
        }
        page.add(&AGENT_LAST_SEEN, &[agent.name.as_str()], time(agent.last_seen_ms));
    }
    page.add(&AGENTS, &[], known.len());
    page.add(&AGENTS_CONNECTED, &[], connected.len());
    for name in known {
        page.add(&AGENT_CONNECTED, &[name.as_str()], connected.contains(name));
        page.add(&AGENT_DATABASES, &[name.as_str()], databases.get(name).copied().unwrap_or(0));
    }
}

fn buffered(page: &mut Page, buffer: &dyn WalBuffer, given_up: u64) {
    let usage = buffer.usage();
    page.add(&BUFFER_USED, &[], usage.bytes);
    page.add(&BUFFER_LIMIT, &[], usage.max_bytes);
    page.add(&BUFFER_FULL, &[], usage.full);
    page.add(&BUFFER_REFUSED, &[], usage.refused);
    page.add(&BUFFER_SEGMENTS, &[], usage.segments);
    page.add(&BUFFER_SEGMENT_BYTES, &[], usage.segment_bytes);
    page.add(&BUFFER_SYNCS, &[], usage.syncs);
    page.add(&BUFFER_SQUASHED, &[], usage.squashed);
    page.add(&GIVEN_UP, &[], given_up);
}

fn destination(page: &mut Page, fleet: &Fleet, place: &Place, served: &mut Served, now_ms: i64) {
    let name = place.name().as_str();
    let LaneHealth { healthy, cause, failures, puts, put_bytes, spent, .. } = fleet.board.health(place.lane);
    page.add(&DESTINATION_UP, &[name], healthy);
    if !healthy {
        page.add(&DESTINATION_DOWN, &[name, cause], true);
    }
    for (cause, count) in failures {
        page.add(&DESTINATION_FAILURES, &[name, cause], count);
    }
    page.add(&DESTINATION_DATABASES, &[name], served.lags.len());
    page.add(&DESTINATION_BEHIND, &[name], served.behind);
    page.add(&DESTINATION_STUCK, &[name], served.stuck);
    page.add(&DESTINATION_LAG, &[name], seconds(served.percentile(100)));
    page.add(&DESTINATION_LAG_P99, &[name], seconds(served.percentile(99)));
    page.add(&DESTINATION_PUTS, &[name], puts);
    page.add(&DESTINATION_PUT_BYTES, &[name], put_bytes);
    let meter = fleet.board.meters().of(&place.entry.cursor);
    let Requests { puts, lists, gets, deletes } = meter.all();
    for (operation, count) in [("put", puts), ("list", lists), ("get", gets), ("delete", deletes)] {
        page.add(&DESTINATION_REQUESTS, &[name, operation], count);
    }
    page.add(&DESTINATION_TODAY, &[name], meter.today(now_ms).total());
    if let Some(budget) = place.entry.limits.requests_per_day {
        page.add(&DESTINATION_BUDGET, &[name], budget);
    }
    page.add(&DESTINATION_SPENT, &[name], spent);
    let mirror = fleet.board.mirror().at(place.lane);
    if mirror.written_ms > 0 {
        page.add(&DESTINATION_MIRROR, &[name], time(mirror.written_ms));
    }
}

fn compaction(page: &mut Page, fleet: &Fleet) {
    let totals: Totals = fleet.board.compaction().totals();
    page.add(&COMPACTION_FILES, &[], totals.files);
    page.add(&COMPACTION_SNAPSHOTS, &[], totals.snapshots);
    page.add(&COMPACTION_BYTES, &[], totals.bytes);
    page.add(&COMPACTION_PUTS, &[], totals.puts);
    page.add(&COMPACTION_FAILURES, &[], totals.failures);
    page.add(&COMPACTION_FAILING, &[], !totals.last_error.is_empty());
    if totals.last_ms > 0 {
        page.add(&COMPACTION_LAST, &[], time(totals.last_ms));
    }
    page.add(&COMPACTION_WAITING, &[], totals.waiting);
    page.add(&COMPACTION_WAITING_BYTES, &[], totals.waiting_bytes);
}

fn on_nodes(page: &mut Page, jobs: &[Job]) {
    for (state, word) in JOB_STATES {
        page.add(&JOBS, &[word], jobs.iter().filter(|job| job.state() == state).count());
    }
    let going = |job: &&Job| !matches!(job.state(), JobState::Done | JobState::Failed | JobState::Cancelled);
    let going: Vec<&Job> = jobs.iter().filter(going).collect();
    let sum = |of: fn(&Job) -> u32| going.iter().map(|job| u64::from(of(job))).sum::<u64>();
    let (done, failed) = (sum(|job| job.done), sum(|job| job.failed));
    let (running, away) = (sum(|job| job.running), sum(|job| job.away));
    let pending = sum(|job| job.total).saturating_sub(done + failed + running + away);
    for (word, count) in
        [("done", done), ("failed", failed), ("running", running), ("away", away), ("pending", pending)]
    {
        page.add(&JOB_DATABASES, &[word], count);
    }
}
