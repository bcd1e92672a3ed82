//! Hub, destinations, agents and databases as one picture for people and programs.

use super::Fleet;
use crate::buffer::{GivenUp, Registered, WalBuffer};
use crate::compact::{Newest, Totals};
use crate::copies::{LaneHealth, LaneId, Place, Roster, Row};
use std::collections::BTreeMap;
use std::sync::Arc;
use walhub_common::{AgentName, DatabaseName, Txid, clock};
use walhub_proto::convert;
use walhub_proto::v1;
use walhub_store::destinations::limited::Requests;

/// Which part of the picture is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scope {
    /// Only this agent.
    pub agent: Option<AgentName>,
    /// Only this database of it.
    pub database: Option<DatabaseName>,
}

impl Scope {
    fn shows(&self, database: &Registered) -> bool {
        self.agent.as_ref().is_none_or(|agent| *agent == database.key.agent)
            && self.database.as_ref().is_none_or(|name| *name == database.key.name)
    }
}

/// Per lane: how far the whole fleet lags there.
#[derive(Clone, Copy, Default)]
struct LaneLag {
    behind: u32,
    oldest_ms: u64,
}

/// The picture. Destinations are counted over all databases, whatever the scope.
pub fn assemble(fleet: &Fleet, buffer: &dyn WalBuffer, scope: &Scope, started_ms: i64) -> v1::StatusResponse {
    let now_ms = clock::now_ms();
    let registered = buffer.databases();
    let mut per_agent: BTreeMap<&AgentName, u32> = BTreeMap::new();
    let roster = fleet.board.roster();
    let mut lanes: BTreeMap<LaneId, LaneLag> = BTreeMap::new();
    let mut databases = Vec::new();
    for database in &registered {
        *per_agent.entry(&database.key.agent).or_default() += 1;
        let row = fleet.board.row(database.id, &database.key);
        let lags = lags(buffer, database, &row, now_ms);
        for (lane, lag) in &lags {
            if let Some(lag) = lag {
                let lane = lanes.entry(*lane).or_default();
                lane.behind += 1;
                lane.oldest_ms = lane.oldest_ms.max(*lag);
            }
        }
        if scope.shows(database) {
            let given_up = buffer.given_up(database.id);
            databases.push(database_status(fleet, database, &row, &lags, given_up));
        }
    }
    v1::StatusResponse {
        hub: Some(hub_status(fleet, buffer, started_ms, now_ms)),
        destinations: destinations(fleet, &roster, &lanes, now_ms),
        agents: agents(fleet, &per_agent, scope),
        databases,
    }
}

/// Age of the oldest transaction that each destination of the database lacks; `None` where it lacks nothing.
pub fn lags(
    buffer: &dyn WalBuffer,
    database: &Registered,
    row: &Row,
    now_ms: i64,
) -> Vec<(LaneId, Option<u64>)> {
    let position = database.position.map(|pos| pos.txid);
    let age = |held: Option<Txid>| {
        if held >= position {
            return None;
        }
        let oldest = buffer.list(database.id, held, 1).ok().and_then(|found| found.into_iter().next());
        let since = oldest.map_or(database.time_ms, |segment| segment.meta.time_ms);
        Some(u64::try_from(now_ms - since).unwrap_or(0))
    };
    row.terms.places.iter().map(|place| (place.lane, age(row.held(place.lane)))).collect()
}

fn compaction(fleet: &Fleet) -> v1::CompactionStatus {
    // Listings made to judge files are requests, which the destinations count.
    let Totals {
        files,
        snapshots,
        bytes,
        puts,
        failures,
        skipped,
        useless,
        brought,
        lookups: _,
        last_ms,
        waiting,
        waiting_bytes,
        last_error,
    } = fleet.board.compaction().totals();
    v1::CompactionStatus {
        files,
        snapshots,
        bytes,
        puts,
        last_ms,
        waiting,
        waiting_bytes,
        skipped,
        brought,
        useless,
        failures,
        last_error,
    }
}

fn hub_status(fleet: &Fleet, buffer: &dyn WalBuffer, started_ms: i64, now_ms: i64) -> v1::HubStatus {
    let usage = buffer.usage();
    v1::HubStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms,
        now_ms,
        buffer_bytes: usage.bytes,
        buffer_max_bytes: usage.max_bytes,
        segments: usage.segments,
        segment_bytes: usage.segment_bytes,
        id: fleet.board.mirror().hub(),
        compaction: Some(compaction(fleet)),
    }
}

fn destinations(
    fleet: &Fleet,
    roster: &Roster,
    lags: &BTreeMap<LaneId, LaneLag>,
    now_ms: i64,
) -> Vec<v1::DestinationStatus> {
    let view = |place: &Arc<Place>| {
        let health = fleet.board.health(place.lane);
        let LaneHealth { healthy, last_error, puts, put_bytes, least_interval, spent, .. } = health;
        let meter = fleet.board.meters().of(&place.entry.cursor);
        let Requests { puts: put_requests, lists, gets, deletes } = meter.today(now_ms);
        let mirror = fleet.board.mirror().at(place.lane);
        let lag = lags.get(&place.lane).copied().unwrap_or_default();
        v1::DestinationStatus {
            name: place.name().to_string(),
            kind: place.destination.kind().to_owned(),
            healthy,
            last_error,
            databases_behind: lag.behind,
            puts,
            put_bytes,
            location: place.destination.location(),
            sync_interval_ms: place.entry.sync_interval.as_millis() as u64,
            lag_ms: lag.oldest_ms,
            effective_interval_ms: place.entry.sync_interval.max(least_interval).as_millis() as u64,
            requests: Some(v1::RequestsToday {
                puts: put_requests,
                lists,
                gets,
                deletes,
                forecast: meter.forecast(now_ms),
                budget: place.entry.limits.requests_per_day.unwrap_or(0),
                spent,
            }),
            mirror: Some(v1::MirrorStatus {
                written_ms: mirror.written_ms,
                age_ms: u64::try_from(now_ms - mirror.written_ms).unwrap_or(0),
                current: mirror.current,
                error: mirror.error,
            }),
        }
    };
    roster.places().iter().map(view).collect()
}

fn agents(fleet: &Fleet, per_agent: &BTreeMap<&AgentName, u32>, scope: &Scope) -> Vec<v1::AgentStatus> {
    let mut agents: BTreeMap<AgentName, v1::AgentStatus> = BTreeMap::new();
    for (name, databases) in per_agent {
        let status =
            v1::AgentStatus { name: name.to_string(), databases: *databases, ..v1::AgentStatus::default() };
        agents.insert((*name).clone(), status);
    }
    for (name, _) in fleet.labels.all() {
        agents.entry(name).or_default();
    }
    for seen in fleet.registry.agents() {
        let status = agents.entry(seen.name).or_default();
        status.connected = seen.connected;
        status.peer = seen.peer;
        status.last_seen_ms = seen.last_seen_ms;
        status.version = seen.version;
    }
    agents
        .into_iter()
        .filter(|(name, _)| scope.agent.as_ref().is_none_or(|only| only == name))
        .map(|(name, status)| {
            let labels = fleet.labels.of(&name).into_iter().collect();
            v1::AgentStatus { name: name.to_string(), labels, ..status }
        })
        .collect()
}

fn database_status(
    fleet: &Fleet,
    database: &Registered,
    row: &Row,
    lags: &[(LaneId, Option<u64>)],
    given_up: GivenUp,
) -> v1::DatabaseStatus {
    let copy = |(place, (_, lag)): (&Arc<Place>, &(LaneId, Option<u64>))| {
        let newest = fleet.board.compaction().newest(database.id, place.lane);
        let Newest { compacted, compacted_ms, snapshot, snapshot_ms } = newest;
        v1::CopyStatus {
            destination: place.name().to_string(),
            txid: row.held(place.lane).map_or(0, Txid::get),
            lag_ms: lag.unwrap_or(0),
            compacted_txid: compacted.map_or(0, Txid::get),
            compacted_ms,
            snapshot_txid: snapshot.map_or(0, Txid::get),
            snapshot_ms,
            drill: None,
        }
    };
    let mut missing = database.position.map_or_else(String::new, |pos| row.missing(pos.txid));
    for place in &row.terms.places {
        if let Some(fault) = row.fault(place.lane) {
            let separator = if missing.is_empty() { "" } else { "; " };
            missing.push_str(&format!("{separator}{}: {fault}", place.name()));
        }
    }
    v1::DatabaseStatus {
        database: Some(v1::DatabaseRef {
            agent: database.key.agent.to_string(),
            name: database.key.name.to_string(),
        }),
        lineage: database.lineage,
        buffered: Some(convert::position_to_wire(database.position)),
        buffered_ms: database.time_ms,
        durable_txid: row.durable.map_or(0, Txid::get),
        copies: row.terms.places.iter().zip(lags).map(copy).collect(),
        open: row.open,
        last_refusal: row.refusal.clone(),
        path: database.path.clone(),
        policy_missing: missing,
        given_up_points: given_up.points,
        given_up_first: given_up.range.map_or(0, |range| range.min().get()),
        given_up_last: given_up.range.map_or(0, |range| range.max().get()),
    }
}
