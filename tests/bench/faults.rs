//! Does a destination that fails slow another one? The 99th percentile of the lag of a folder while a second destination
//! (a real S3 server, another folder, and the emulators of GCS and Azure where the run has them) suffers each fault, and
//! just before it.

use crate::Plan;
use crate::table::{Row, quantile};
use std::time::{Duration, Instant};
use walhub_tests::Cluster;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::faults::{Victim, of_azure, of_folder, of_gcs, of_s3};
use walhub_tests::scratch::Scratch;
use walhub_tests::services::{self, OwnS3};
use walhub_tests::workload::Writer;

const VICTIM: &str = "victim";
const NEIGHBOUR: &str = "neighbour";
const PATIENCE: Duration = Duration::from_secs(180);
/// Size of the folder's disk: more than the database writes in all windows together.
const DISK_MIB: u32 = 256;
/// The goal: this many times the lag before.
const GOAL: f64 = 1.2;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let scratch = Scratch::new("bench-faults");
    let mut rows = vec![
        measure(plan, "s3", of_s3(VICTIM, OwnS3::launch(&scratch.join("s3")))),
        measure(plan, "folder", of_folder(VICTIM, &scratch.join("folder"), DISK_MIB)),
    ];
    if let Some(server) = services::gcs() {
        rows.push(measure(plan, "gcs", of_gcs(VICTIM, server)));
    }
    if let Some(server) = services::azure() {
        rows.push(measure(plan, "abs", of_azure(VICTIM, server)));
    }
    rows
}

fn measure(plan: &Plan, kind: &str, victim: Victim) -> Row {
    let window = Duration::from_secs(plan.pick(20, 3));
    let mut cluster = Cluster::new(&format!("bench-faults-{kind}"));
    cluster.add_folder(NEIGHBOUR);
    cluster.add(victim.destination);
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    let mut writer = Writer::spawn(&database, &["--rate", "40"]);
    writer.await_acked(20);
    cluster.start_hub();
    cluster.start_agent("node");
    let mut worst: Option<(f64, f64, &str)> = None;
    for fault in &victim.faults {
        caught_up(&cluster);
        let before = p99(&cluster, window);
        fault.begin();
        let during = p99(&cluster, window);
        fault.end();
        eprintln!(
            "a folder beside a failing {kind}, {}: p99 before {before:.1} ms, during {during:.1} ms",
            fault.name
        );
        if worst.is_none_or(|(earlier, then, _)| during / before > then / earlier) {
            worst = Some((before, during, fault.name));
        }
    }
    writer.stop();
    cluster.stop_agent("node");
    cluster.stop_hub();
    let (before, during, name) = worst.expect("a fault");
    let count = victim.faults.len();
    let what = format!(
        "lag of a folder beside a failing {kind}, worst of {count} faults: p99 ms (before: {before})"
    );
    let goal = format!("≤ {GOAL}x, is {:.2}x ({name})", during / before);
    Row::new(what, during, None).goal(goal, |_| during <= before * GOAL)
}

/// Waits until both destinations hold what is buffered now.
fn caught_up(cluster: &Cluster) {
    let (txid, _) = eventually("the hub has something", PATIENCE, || cluster.buffered("node", "app.db"));
    eventually("both destinations hold it", PATIENCE, || {
        let copies = cluster.database("node", "app.db")?.copies;
        let behind = copies.iter().find(|copy| copy.txid < txid).map(|copy| copy.destination.clone());
        ensure(behind.is_none() && copies.len() == 2, || format!("{behind:?} is behind"))
    });
}

/// The lag of the neighbour over a while, ms. The status is asked as a person would.
fn p99(cluster: &Cluster, length: Duration) -> f64 {
    let (began, mut lags) = (Instant::now(), Vec::new());
    while began.elapsed() < length {
        let copies = cluster.database("node", "app.db").expect("status").copies;
        let neighbour = copies.iter().find(|copy| copy.destination == NEIGHBOUR).expect("the neighbour");
        lags.push(neighbour.lag_ms as f64);
        std::thread::sleep(Duration::from_millis(20));
    }
    quantile(&mut lags, 0.99)
}
