//! Drills as tables and JSON.

use crate::connect::Hub;
use crate::fault::sentence;
use crate::output::{self, Table};
use anyhow::anyhow;
use serde::Serialize;
use walhub_common::{DatabaseKey, DestinationName, clock};
use walhub_proto::v1::{self, DrillVerdict};

/// One drill, as programs see it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Drill {
    /// `agent/name`.
    pub(super) database: String,
    pub(super) destination: String,
    pub(super) verdict: &'static str,
    pub(super) began: Option<String>,
    pub(super) elapsed_ms: u64,
    /// What was restored; `null` when it did not come so far.
    pub(super) txid: Option<u64>,
    /// The time of that transaction.
    pub(super) restore_point: Option<String>,
    /// Points before it that were restored as well.
    pub(super) older_points: Vec<OlderPoint>,
    pub(super) database_bytes: u64,
    pub(super) bytes_read: u64,
    pub(super) requests: u64,
    pub(super) message: Option<String>,
    pub(super) repairs: Vec<String>,
}

/// A point tried beside the newest, as programs see it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OlderPoint {
    pub(super) txid: u64,
    pub(super) restore_point: Option<String>,
}

/// How drills stand, as programs see it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outlook {
    /// `null`: only when somebody asks.
    pub(super) every_ms: Option<u64>,
    pub(super) sample_percent: f64,
    pub(super) copies: u64,
    /// `agent/name at destination`.
    pub(super) running: Option<String>,
    pub(super) running_since: Option<String>,
}

fn time(ms: i64) -> Option<String> {
    (ms != 0).then(|| clock::format_ms(ms))
}

fn name(key: Option<v1::DatabaseRef>) -> String {
    key.map(|key| format!("{}/{}", key.agent, key.name)).unwrap_or_default()
}

impl From<v1::Drill> for Drill {
    fn from(drill: v1::Drill) -> Drill {
        let verdict = match drill.verdict() {
            DrillVerdict::Passed => "passed",
            DrillVerdict::Repaired => "repaired",
            DrillVerdict::Failed => "failed",
            DrillVerdict::Undone => "undone",
            DrillVerdict::Repairing => "repairing",
            DrillVerdict::Unspecified => "unknown",
        };
        Drill {
            database: name(drill.database),
            destination: drill.destination,
            verdict,
            began: time(drill.began_ms),
            elapsed_ms: drill.elapsed_ms,
            txid: (drill.txid != 0).then_some(drill.txid),
            restore_point: time(drill.point_ms),
            older_points: drill.older.into_iter().map(OlderPoint::from).collect(),
            database_bytes: drill.database_bytes,
            bytes_read: drill.bytes,
            requests: drill.requests,
            message: (!drill.message.is_empty()).then_some(drill.message),
            repairs: drill.repairs,
        }
    }
}

impl From<v1::OlderPoint> for OlderPoint {
    fn from(point: v1::OlderPoint) -> OlderPoint {
        OlderPoint { txid: point.txid, restore_point: time(point.point_ms) }
    }
}

impl Drill {
    /// The copy can be relied on, as far as was found out.
    pub(super) fn is_good(&self) -> bool {
        matches!(self.verdict, "passed" | "repaired")
    }
}

impl From<v1::DrillOutlook> for Outlook {
    fn from(outlook: v1::DrillOutlook) -> Outlook {
        let running = outlook.running.is_some();
        Outlook {
            every_ms: (outlook.every_ms != 0).then_some(outlook.every_ms),
            sample_percent: f64::from(outlook.sample) / 1000.0,
            copies: outlook.copies,
            running: running.then(|| format!("{} at {}", name(outlook.running), outlook.running_at)),
            running_since: time(outlook.running_since_ms),
        }
    }
}

impl Outlook {
    /// One line for people.
    pub(super) fn line(&self) -> String {
        let schedule = match self.every_ms {
            Some(every) => format!(
                "{}% of {} copies every {}, each in its turn",
                self.sample_percent,
                self.copies,
                output::millis(every)
            ),
            None => format!("none by itself (`drills:` of hub.yml); {} copies", self.copies),
        };
        match (&self.running, &self.running_since) {
            (Some(running), Some(since)) => format!("drills: {schedule}; now {running}, since {since}"),
            _ => format!("drills: {schedule}"),
        }
    }
}

/// Drills for people.
pub(super) fn table(drills: &[Drill]) -> Table {
    let headings = [
        "DATABASE",
        "DESTINATION",
        "VERDICT",
        "BEGAN",
        ">TOOK",
        ">TXID",
        "RESTORE POINT",
        "OLDER TXIDS",
        ">SIZE",
        ">READ",
        ">REQUESTS",
        "WHY",
    ];
    let mut table = Table::new(&headings);
    for drill in drills {
        let why: Vec<&str> = drill.message.iter().chain(&drill.repairs).map(String::as_str).collect();
        table.row([
            drill.database.clone(),
            drill.destination.clone(),
            drill.verdict.to_owned(),
            drill.began.clone().unwrap_or_default(),
            output::millis(drill.elapsed_ms),
            drill.txid.map(|txid| txid.to_string()).unwrap_or_default(),
            drill.restore_point.clone().unwrap_or_default(),
            drill.older_points.iter().map(|point| point.txid.to_string()).collect::<Vec<_>>().join(", "),
            output::bytes(drill.database_bytes),
            output::bytes(drill.bytes_read),
            drill.requests.to_string(),
            why.join("; "),
        ]);
    }
    table
}

/// What the hub recorded.
pub(super) async fn fetch(
    hub: &Hub,
    database: Option<&DatabaseKey>,
    destination: Option<&DestinationName>,
    history: bool,
) -> anyhow::Result<(Outlook, Vec<Drill>)> {
    let request = v1::ListDrillsRequest {
        database: database.map(reference),
        destination: destination.map(ToString::to_string).unwrap_or_default(),
        history,
    };
    let failed = |status: tonic::Status| anyhow!(sentence(&status));
    let mut answers = hub.drills().list_drills(request).await.map_err(failed)?.into_inner();
    let (mut outlook, mut drills) = (Outlook::default(), Vec::new());
    while let Some(answer) = answers.message().await.map_err(failed)? {
        if let Some(said) = answer.outlook {
            outlook = said.into();
        }
        drills.extend(answer.drills.into_iter().map(Drill::from));
    }
    Ok((outlook, drills))
}

pub(super) fn reference(key: &DatabaseKey) -> v1::DatabaseRef {
    v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::Drill {
        v1::Drill {
            database: Some(v1::DatabaseRef { agent: "pos-17".into(), name: "app.db".into() }),
            destination: "far".into(),
            began_ms: 1_795_354_117_000,
            elapsed_ms: 1500,
            verdict: DrillVerdict::Repaired.into(),
            txid: 12,
            point_ms: 1_795_354_100_000,
            database_bytes: 4096,
            bytes: 2048,
            requests: 13,
            message: "level 0 file x.ltx: corrupt".into(),
            repairs: vec!["level 0 file x.ltx repaired from near".into()],
            older: vec![
                v1::OlderPoint { txid: 7, point_ms: 1000 },
                v1::OlderPoint { txid: 3, point_ms: 500 },
            ],
        }
    }

    #[test]
    fn people_see_why_and_programs_stable_json() {
        assert_eq!(
            table(&[wire().into()]).lines().join("\n"),
            "\
DATABASE       DESTINATION  VERDICT   BEGAN                  TOOK  TXID  RESTORE POINT         OLDER TXIDS     SIZE     READ  REQUESTS  WHY
pos-17/app.db  far          repaired  2026-11-22T13:28:37Z  1.5 s    12  2026-11-22T13:28:20Z  7, 3         4.0 KiB  2.0 KiB        13  level 0 file x.ltx: corrupt; level 0 file x.ltx repaired from near"
        );
        let json = serde_json::to_value(Drill::from(wire())).unwrap();
        assert_eq!((&json["verdict"], &json["txid"]), (&"repaired".into(), &12.into()));
        assert_eq!(json["older_points"][1]["txid"], 3);
        let undone = v1::Drill { verdict: DrillVerdict::Undone.into(), txid: 0, ..wire() };
        let undone = Drill::from(undone);
        assert!(undone.txid.is_none() && !undone.is_good());
        let outlook =
            v1::DrillOutlook { every_ms: 86_400_000, sample: 5000, copies: 40, ..Default::default() };
        assert_eq!(Outlook::from(outlook).line(), "drills: 5% of 40 copies every 1 d 0 h, each in its turn");
    }
}
