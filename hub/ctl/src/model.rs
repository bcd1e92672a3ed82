//! What the hub says, as the stable shapes of `--json`. TXIDs are numbers, checksums and lineages 16 hex digits, times
//! RFC 3339 in UTC, spans and sizes whole numbers with the unit in the name. What is not there is `null`.

use serde::Serialize;
use std::collections::BTreeMap;
use walhub_common::clock;
use walhub_proto::v1;
use walhub_store::destinations::Listed;
use walhub_store::restore::PlannedFile;

/// `hubctl status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) hub: Hub,
    pub(crate) destinations: Vec<Destination>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) databases: Vec<Database>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Hub {
    /// Its identity, 32 hex digits.
    pub(crate) id: Option<String>,
    pub(crate) version: String,
    pub(crate) started_at: Option<String>,
    pub(crate) now: Option<String>,
    pub(crate) uptime_ms: u64,
    pub(crate) buffer_bytes: u64,
    pub(crate) buffer_max_bytes: u64,
    /// Since the hub's start.
    pub(crate) segments: u64,
    pub(crate) segment_bytes: u64,
    /// `null` for an agent.
    pub(crate) compaction: Option<Compaction>,
}

/// Levels and snapshots, since the hub's start.
#[derive(Debug, Serialize)]
pub(crate) struct Compaction {
    pub(crate) files: u64,
    pub(crate) snapshots: u64,
    pub(crate) bytes: u64,
    /// All destinations together.
    pub(crate) puts: u64,
    /// When the newest was made.
    pub(crate) last_at: Option<String>,
    /// Files that wait for a destination.
    pub(crate) waiting: u64,
    pub(crate) waiting_bytes: u64,
    /// Files that a destination did not get because too much waited for it.
    pub(crate) skipped: u64,
    /// Files brought to a destination later.
    pub(crate) brought: u64,
    /// Files that are of no use at a destination: nothing there leads to them.
    pub(crate) useless: u64,
    pub(crate) failures: u64,
    pub(crate) last_error: Option<String>,
}

/// Requests to a destination since midnight UTC.
#[derive(Debug, Serialize)]
pub(crate) struct Requests {
    pub(crate) puts: u64,
    pub(crate) lists: u64,
    pub(crate) gets: u64,
    pub(crate) deletes: u64,
    /// At the end of the day, at the present pace.
    pub(crate) forecast: u64,
    /// `max-requests-per-day`.
    pub(crate) budget: Option<u64>,
    /// Nothing more is sent today.
    pub(crate) spent: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Destination {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) location: String,
    pub(crate) healthy: bool,
    pub(crate) last_error: Option<String>,
    pub(crate) sync_interval_ms: u64,
    /// What the budget of requests makes of it.
    pub(crate) effective_interval_ms: u64,
    pub(crate) requests_today: Requests,
    /// Age of the oldest buffered transaction that it has not taken; 0 when it has everything.
    pub(crate) lag_ms: u64,
    pub(crate) databases_behind: u32,
    pub(crate) puts: u64,
    pub(crate) put_bytes: u64,
    pub(crate) mirror: Mirror,
}

/// What a destination keeps of the hub itself.
#[derive(Debug, Serialize)]
pub(crate) struct Mirror {
    /// When the newest one there was made.
    pub(crate) written_at: Option<String>,
    /// How long ago that was.
    pub(crate) age_ms: Option<u64>,
    /// There is no newer one.
    pub(crate) current: bool,
    pub(crate) last_error: Option<String>,
}

/// Element of `hubctl agents list`.
#[derive(Debug, Serialize)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) peer: Option<String>,
    pub(crate) last_seen: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) databases: u32,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Element of `hubctl databases list`.
#[derive(Debug, Serialize)]
pub(crate) struct Database {
    /// `agent/name`.
    pub(crate) database: String,
    pub(crate) path: Option<String>,
    pub(crate) lineage: String,
    /// 0 when nothing is buffered yet.
    pub(crate) buffered_txid: u64,
    pub(crate) buffered_checksum: Option<String>,
    pub(crate) buffered_at: Option<String>,
    /// 0 when no transaction satisfies the policy yet.
    pub(crate) durable_txid: u64,
    pub(crate) copies: Vec<CopyState>,
    /// True while its agent has it open.
    pub(crate) open: bool,
    pub(crate) policy_missing: Option<String>,
    /// Restore points that a full buffer has given up since the hub's start.
    pub(crate) given_up: Option<GivenUp>,
    pub(crate) last_refusal: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct GivenUp {
    pub(crate) restore_points: u64,
    pub(crate) first_txid: u64,
    pub(crate) last_txid: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct CopyState {
    pub(crate) destination: String,
    pub(crate) txid: u64,
    pub(crate) lag_ms: u64,
    /// The newest compacted file and the newest snapshot there; `null` as long as the hub has not looked.
    pub(crate) compacted_txid: Option<u64>,
    pub(crate) compacted_at: Option<String>,
    pub(crate) snapshot_txid: Option<u64>,
    pub(crate) snapshot_at: Option<String>,
    /// The last restore that was tried from there.
    pub(crate) drill: Option<DrillBrief>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DrillBrief {
    /// `passed`, `repaired`, `failed`, `undone`, `repairing`.
    pub(crate) verdict: String,
    pub(crate) age_ms: u64,
    pub(crate) message: Option<String>,
}

/// `hubctl snapshots` and `hubctl wal`.
#[derive(Debug, Serialize)]
pub(crate) struct Files {
    pub(crate) database: String,
    pub(crate) files: Vec<File>,
    /// Destinations that could not be listed, as `name: reason`.
    pub(crate) errors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct File {
    /// Destination, or `buffer`.
    pub(crate) source: String,
    pub(crate) level: u32,
    pub(crate) min_txid: u64,
    pub(crate) max_txid: u64,
    pub(crate) size: u64,
    pub(crate) time: Option<String>,
}

/// `hubctl retention`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Retention {
    /// Files that are gone now.
    pub(crate) deleted: u64,
    pub(crate) files: Vec<RetentionFile>,
    /// As `database at destination: reason`.
    pub(crate) errors: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RetentionFile {
    pub(crate) database: String,
    pub(crate) destination: String,
    pub(crate) level: u32,
    pub(crate) min_txid: u64,
    pub(crate) max_txid: u64,
    pub(crate) size: u64,
    pub(crate) time: Option<String>,
    /// It goes, or has gone.
    pub(crate) delete: bool,
    pub(crate) reason: String,
}

/// `hubctl restore --dry-run`.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) database: String,
    pub(crate) txid: u64,
    pub(crate) checksum: Option<String>,
    pub(crate) time: Option<String>,
    pub(crate) page_size: u32,
    pub(crate) pages: u32,
    pub(crate) total_bytes: u64,
    /// Requests to the sources, listings included: an estimate, as the next two are.
    pub(crate) requests: u64,
    /// By list prices.
    pub(crate) cost_usd: f64,
    pub(crate) estimated_seconds: f64,
    pub(crate) files: Vec<File>,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn time(ms: i64) -> Option<String> {
    (ms != 0).then(|| clock::format_ms(ms))
}

fn hex(value: u64) -> Option<String> {
    (value != 0).then(|| format!("{value:016x}"))
}

fn key(database: Option<v1::DatabaseRef>) -> String {
    database.map(|key| format!("{}/{}", key.agent, key.name)).unwrap_or_default()
}

impl From<v1::StatusResponse> for Status {
    fn from(wire: v1::StatusResponse) -> Status {
        Status {
            hub: wire.hub.unwrap_or_default().into(),
            destinations: wire.destinations.into_iter().map(Into::into).collect(),
            agents: wire.agents.into_iter().map(Into::into).collect(),
            databases: wire.databases.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::HubStatus> for Hub {
    fn from(wire: v1::HubStatus) -> Hub {
        Hub {
            id: some(wire.id),
            version: wire.version,
            started_at: time(wire.started_ms),
            now: time(wire.now_ms),
            uptime_ms: u64::try_from(wire.now_ms.saturating_sub(wire.started_ms)).unwrap_or(0),
            buffer_bytes: wire.buffer_bytes,
            buffer_max_bytes: wire.buffer_max_bytes,
            segments: wire.segments,
            segment_bytes: wire.segment_bytes,
            compaction: wire.compaction.map(Into::into),
        }
    }
}

impl From<v1::CompactionStatus> for Compaction {
    fn from(wire: v1::CompactionStatus) -> Compaction {
        Compaction {
            files: wire.files,
            snapshots: wire.snapshots,
            bytes: wire.bytes,
            puts: wire.puts,
            last_at: time(wire.last_ms),
            waiting: wire.waiting,
            waiting_bytes: wire.waiting_bytes,
            skipped: wire.skipped,
            brought: wire.brought,
            useless: wire.useless,
            failures: wire.failures,
            last_error: some(wire.last_error),
        }
    }
}

impl From<v1::RequestsToday> for Requests {
    fn from(wire: v1::RequestsToday) -> Requests {
        let v1::RequestsToday { puts, lists, gets, deletes, forecast, budget, spent } = wire;
        let budget = (budget > 0).then_some(budget);
        Requests { puts, lists, gets, deletes, forecast, budget, spent }
    }
}

impl Requests {
    /// All of them.
    pub(crate) fn total(&self) -> u64 {
        self.puts + self.lists + self.gets + self.deletes
    }
}

impl From<v1::DestinationStatus> for Destination {
    fn from(wire: v1::DestinationStatus) -> Destination {
        Destination {
            name: wire.name,
            kind: wire.kind,
            location: wire.location,
            healthy: wire.healthy,
            last_error: some(wire.last_error),
            sync_interval_ms: wire.sync_interval_ms,
            effective_interval_ms: wire.effective_interval_ms,
            requests_today: wire.requests.unwrap_or_default().into(),
            lag_ms: wire.lag_ms,
            databases_behind: wire.databases_behind,
            puts: wire.puts,
            put_bytes: wire.put_bytes,
            mirror: wire.mirror.unwrap_or_default().into(),
        }
    }
}

impl From<v1::MirrorStatus> for Mirror {
    fn from(wire: v1::MirrorStatus) -> Mirror {
        let v1::MirrorStatus { written_ms, current, error, age_ms } = wire;
        let written_at = time(written_ms);
        Mirror {
            age_ms: written_at.is_some().then_some(age_ms),
            written_at,
            current,
            last_error: some(error),
        }
    }
}

impl From<v1::AgentStatus> for Agent {
    fn from(wire: v1::AgentStatus) -> Agent {
        Agent {
            name: wire.name,
            connected: wire.connected,
            peer: some(wire.peer),
            last_seen: time(wire.last_seen_ms),
            version: some(wire.version),
            databases: wire.databases,
            labels: wire.labels.into_iter().collect(),
        }
    }
}

impl From<v1::DatabaseStatus> for Database {
    fn from(wire: v1::DatabaseStatus) -> Database {
        let buffered = wire.buffered.unwrap_or_default();
        let copy = |copy: v1::CopyStatus| CopyState {
            destination: copy.destination,
            txid: copy.txid,
            lag_ms: copy.lag_ms,
            compacted_txid: (copy.compacted_txid > 0).then_some(copy.compacted_txid),
            compacted_at: time(copy.compacted_ms),
            snapshot_txid: (copy.snapshot_txid > 0).then_some(copy.snapshot_txid),
            snapshot_at: time(copy.snapshot_ms),
            drill: copy.drill.map(|drill| DrillBrief {
                verdict: drill.verdict,
                age_ms: drill.age_ms,
                message: some(drill.message),
            }),
        };
        Database {
            database: key(wire.database),
            path: some(wire.path),
            lineage: format!("{:016x}", wire.lineage),
            buffered_txid: buffered.txid,
            buffered_checksum: hex(buffered.checksum),
            buffered_at: time(wire.buffered_ms),
            durable_txid: wire.durable_txid,
            copies: wire.copies.into_iter().map(copy).collect(),
            open: wire.open,
            policy_missing: some(wire.policy_missing),
            given_up: (wire.given_up_points > 0).then_some(GivenUp {
                restore_points: wire.given_up_points,
                first_txid: wire.given_up_first,
                last_txid: wire.given_up_last,
            }),
            last_refusal: some(wire.last_refusal),
        }
    }
}

impl From<v1::FileInfo> for File {
    fn from(wire: v1::FileInfo) -> File {
        let range = wire.range.unwrap_or_default();
        File {
            source: wire.source,
            level: wire.level,
            min_txid: range.min,
            max_txid: range.max,
            size: wire.size,
            time: time(wire.timestamp_ms),
        }
    }
}

impl File {
    /// Of a plan that was made here.
    pub(crate) fn of_plan(file: &PlannedFile) -> File {
        File {
            source: file.source.to_string(),
            level: u32::from(file.level.get()),
            min_txid: file.range.min().get(),
            max_txid: file.range.max().get(),
            size: file.size,
            time: time(file.time_ms),
        }
    }

    /// Of a listing that was made here.
    pub(crate) fn of_listing(source: &str, file: &Listed) -> File {
        File {
            source: source.to_owned(),
            level: u32::from(file.level.get()),
            min_txid: file.range.min().get(),
            max_txid: file.range.max().get(),
            size: file.size,
            time: time(file.time_ms),
        }
    }
}

impl Retention {
    /// Adds a report; files that stay only when `all` are wanted.
    pub(crate) fn add(&mut self, report: v1::RetentionReport, all: bool) {
        let (database, destination) = (key(report.database), report.destination);
        self.deleted += report.deleted;
        if !report.error.is_empty() {
            self.errors.push(format!("{database} at {destination}: {}", report.error));
        }
        for verdict in report.files.into_iter().filter(|verdict| all || verdict.delete) {
            let file = File::from(verdict.file.unwrap_or_default());
            self.files.push(RetentionFile {
                database: database.clone(),
                destination: destination.clone(),
                level: file.level,
                min_txid: file.min_txid,
                max_txid: file.max_txid,
                size: file.size,
                time: file.time,
                delete: verdict.delete,
                reason: verdict.reason,
            });
        }
    }
}

impl Plan {
    /// The plan for one database.
    pub(crate) fn new(database: String, wire: v1::RestorePlan) -> Plan {
        let position = wire.position.unwrap_or_default();
        Plan {
            database,
            txid: position.txid,
            checksum: hex(position.checksum),
            time: time(wire.timestamp_ms),
            page_size: wire.page_size,
            pages: wire.commit,
            total_bytes: wire.total_bytes,
            requests: wire.requests,
            cost_usd: wire.cost_micros as f64 / 1e6,
            estimated_seconds: wire.estimated_ms as f64 / 1e3,
            files: wire.files.into_iter().map(Into::into).collect(),
        }
    }
}
