//! `hubctl status`: hub, destinations, agents, databases in one picture.

use crate::cmd::{agents, databases};
use crate::connect::ConnectArgs;
use crate::model::{Compaction, Destination, Mirror, Status};
use crate::output::{self, Table};
use std::process::ExitCode;

/// Show the hub, its destinations, agents and databases
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl status
  hubctl status --agent pos-17 --json")]
pub(crate) struct Args {
    /// Only this agent and its databases
    #[arg(long, value_name = "NAME")]
    agent: Option<walhub_common::AgentName>,
    /// Print JSON: {"hub", "destinations": [], "agents": [], "databases": []}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let agent = self.agent.as_ref().map_or("", |name| name.as_str());
        let status = Status::from(hub.status(agent, "").await?);
        if self.json { output::json(&status) } else { output::lines(&text(&status)) }
    }
}

fn text(status: &Status) -> Vec<String> {
    let hub = &status.hub;
    let mut lines = vec![format!(
        "hub {}, up {}, buffer {} of {}, {} segments ({}) since its start",
        hub.version,
        output::millis(hub.uptime_ms),
        output::bytes(hub.buffer_bytes),
        output::bytes(hub.buffer_max_bytes),
        hub.segments,
        output::bytes(hub.segment_bytes),
    )];
    lines.extend(hub.compaction.as_ref().map(compaction));
    for table in [
        destinations(&status.destinations),
        agents::table(&status.agents),
        databases::table(&status.databases),
    ] {
        lines.push(String::new());
        lines.extend(table.lines());
    }
    lines
}

/// What compaction did, and what keeps it.
fn compaction(compaction: &Compaction) -> String {
    let Compaction { files, snapshots, puts, waiting, .. } = compaction;
    let made = output::bytes(compaction.bytes);
    let mut text =
        format!("compaction: {files} files and {snapshots} snapshots ({made}) since its start, {puts} put");
    if let Some(at) = &compaction.last_at {
        text.push_str(&format!(", the last at {at}"));
    }
    if *waiting > 0 {
        text.push_str(&format!(
            "; {waiting} ({}) wait for a destination",
            output::bytes(compaction.waiting_bytes)
        ));
    }
    if let Some(error) = &compaction.last_error {
        text.push_str(&format!("; failing: {error}"));
    }
    text
}

pub(crate) fn destinations(destinations: &[Destination]) -> Table {
    let mut table = Table::new(&[
        "DESTINATION",
        "TYPE",
        "STATE",
        ">LAG",
        ">BEHIND",
        ">PUTS",
        ">BYTES",
        "MIRROR",
        "WHERE",
    ]);
    for destination in destinations {
        let state = match (&destination.last_error, destination.healthy) {
            (_, true) => working(destination),
            (Some(error), false) => format!("failing: {error}"),
            (None, false) => "not tried yet".into(),
        };
        table.row([
            destination.name.clone(),
            destination.kind.clone(),
            state,
            output::millis(destination.lag_ms),
            destination.databases_behind.to_string(),
            destination.puts.to_string(),
            output::bytes(destination.put_bytes),
            mirror(&destination.mirror),
            destination.location.clone(),
        ]);
    }
    table
}

/// How old the newest mirror of the hub is there.
fn mirror(mirror: &Mirror) -> String {
    let age = mirror.age_ms.map_or_else(|| "-".to_owned(), output::millis);
    match &mirror.last_error {
        Some(error) => format!("{age}, failing: {error}"),
        None if mirror.current || mirror.age_ms.is_none() => age,
        None => format!("{age}, there is a newer one"),
    }
}

/// A destination that works: at its own pace, or at the one that its budget of requests allows.
fn working(destination: &Destination) -> String {
    let requests = &destination.requests_today;
    let Some(budget) = requests.budget else { return "ok".into() };
    let used = requests.total();
    if requests.spent {
        return format!("its {budget} requests of today are spent, it waits for midnight UTC");
    }
    let counted = format!("{used} of {budget} requests today, forecast {}", requests.forecast);
    match destination.effective_interval_ms > destination.sync_interval_ms {
        true => format!("ok, every {}: {counted}", output::millis(destination.effective_interval_ms)),
        false => format!("ok: {counted}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_proto::v1;

    fn wire() -> v1::StatusResponse {
        v1::StatusResponse {
            hub: Some(v1::HubStatus {
                version: "0.1.0".into(),
                started_ms: 1_795_354_117_000,
                now_ms: 1_795_354_129_000,
                buffer_bytes: 1536,
                buffer_max_bytes: 10 << 30,
                segments: 42,
                segment_bytes: 9000,
                id: "0a".repeat(16),
                compaction: Some(v1::CompactionStatus {
                    files: 12,
                    snapshots: 1,
                    bytes: 4096,
                    puts: 13,
                    last_ms: 1_795_354_117_090,
                    waiting: 2,
                    waiting_bytes: 1024,
                    last_error: "disk full".into(),
                    ..Default::default()
                }),
            }),
            destinations: vec![v1::DestinationStatus {
                name: "disk".into(),
                kind: "file".into(),
                healthy: false,
                last_error: "disk full".into(),
                databases_behind: 1,
                puts: 7,
                put_bytes: 2048,
                location: "/srv/copies".into(),
                sync_interval_ms: 1000,
                lag_ms: 350,
                mirror: Some(v1::MirrorStatus {
                    written_ms: 1_795_354_100_000,
                    age_ms: 29_000,
                    current: true,
                    error: String::new(),
                }),
                ..Default::default()
            }],
            agents: vec![v1::AgentStatus {
                name: "pos-17".into(),
                connected: true,
                databases: 1,
                ..Default::default()
            }],
            databases: vec![v1::DatabaseStatus {
                database: Some(v1::DatabaseRef { agent: "pos-17".into(), name: "app.db".into() }),
                lineage: 0xabc,
                buffered: Some(v1::Position { txid: 12, checksum: (1 << 63) | 5 }),
                buffered_ms: 1_795_354_117_090,
                durable_txid: 11,
                copies: vec![v1::CopyStatus {
                    destination: "disk".into(),
                    txid: 11,
                    lag_ms: 350,
                    compacted_txid: 9,
                    compacted_ms: 1_795_354_117_090,
                    ..Default::default()
                }],
                open: true,
                last_refusal: String::new(),
                path: "/data/app.db".into(),
                policy_missing: "1 more copy".into(),
                given_up_points: 30,
                given_up_first: 3,
                given_up_last: 40,
            }],
        }
    }

    #[test]
    fn people_see_tables() {
        assert_eq!(
            text(&wire().into()).join("\n"),
            "\
hub 0.1.0, up 12.0 s, buffer 1.5 KiB of 10.0 GiB, 42 segments (8.8 KiB) since its start
compaction: 12 files and 1 snapshots (4.0 KiB) since its start, 13 put, the last at 2026-11-22T13:28:37.09Z; 2 (1.0 KiB) wait for a destination; failing: disk full

DESTINATION  TYPE  STATE                  LAG  BEHIND  PUTS    BYTES  MIRROR  WHERE
disk         file  failing: disk full  350 ms       1     7  2.0 KiB  29.0 s  /srv/copies

AGENT   STATE      DATABASES  LAST SEEN  FROM  VERSION  LABELS
pos-17  connected          1  -          -     -        -

DATABASE       TXID  BUFFERED AT              DURABLE  COPIES             STATE
pos-17/app.db    12  2026-11-22T13:28:37.09Z       11  disk 11 (-350 ms)  policy lacks 1 more copy; 30 restore points of 3-40 given up"
        );
    }

    #[test]
    fn a_drill_shows_when_it_was_and_a_failed_one_why() {
        let shown = |verdict: &str, message: &str| {
            let mut wire = wire();
            let drill =
                v1::DrillBrief { age_ms: 7_200_000, verdict: verdict.into(), message: message.into() };
            wire.databases[0].copies[0].drill = Some(drill);
            databases::table(&Status::from(wire).databases).lines().pop().unwrap()
        };
        let passed = shown("passed", "");
        assert!(passed.contains("disk 11 (-350 ms, drilled 2 h 0 min ago)"), "{passed}");
        let failed = shown("failed", "level 0 file x.ltx: corrupt");
        assert!(failed.contains("drill at disk failed: level 0 file x.ltx: corrupt"), "{failed}");
    }

    #[test]
    fn a_budget_of_requests_shows_what_it_does() {
        let shown = |interval, puts, spent| {
            let requests = v1::RequestsToday {
                puts,
                lists: 5,
                forecast: 990,
                budget: 1000,
                spent,
                ..Default::default()
            };
            let mut wire = wire();
            let destination = &mut wire.destinations[0];
            (destination.healthy, destination.effective_interval_ms) = (true, interval);
            destination.requests = Some(requests);
            working(&Status::from(wire).destinations[0])
        };
        assert_eq!(shown(1000, 15, false), "ok: 20 of 1000 requests today, forecast 990");
        assert_eq!(shown(8640, 15, false), "ok, every 8.6 s: 20 of 1000 requests today, forecast 990");
        assert_eq!(shown(8640, 995, true), "its 1000 requests of today are spent, it waits for midnight UTC");
    }

    #[test]
    fn programs_see_stable_json() {
        let json = serde_json::to_value(Status::from(wire())).unwrap();
        assert_eq!(json["hub"]["uptime_ms"], 12_000);
        assert_eq!(json["hub"]["compaction"]["last_error"], "disk full");
        assert_eq!(json["destinations"][0]["type"], "file");
        assert_eq!(json["destinations"][0]["mirror"]["age_ms"], 29_000);
        assert_eq!(json["agents"][0]["last_seen"], serde_json::Value::Null);
        assert_eq!(
            json["databases"][0],
            serde_json::json!({
                "database": "pos-17/app.db",
                "path": "/data/app.db",
                "lineage": "0000000000000abc",
                "buffered_txid": 12,
                "buffered_checksum": "8000000000000005",
                "buffered_at": "2026-11-22T13:28:37.09Z",
                "durable_txid": 11,
                "copies": [{
                    "destination": "disk",
                    "txid": 11,
                    "lag_ms": 350,
                    "compacted_txid": 9,
                    "compacted_at": "2026-11-22T13:28:37.09Z",
                    "snapshot_txid": null,
                    "snapshot_at": null,
                    "drill": null,
                }],
                "open": true,
                "policy_missing": "1 more copy",
                "given_up": {"restore_points": 30, "first_txid": 3, "last_txid": 40},
                "last_refusal": null,
            })
        );
    }
}
