//! One destination fails in every way there is while another works beside it: the other goes on, and so do the agents, the
//! status names the cause, and afterwards everything is there, also what the failing one had lost.
//!
//! The order of the faults is drawn (`WALHUB_TEST_SEED` repeats one). How fast the others are meanwhile is measured by
//! `tests/bench/run --only faults`.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::faults::{self, Victim};
use walhub_tests::services::{self, OwnS3};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

/// What only a person can mend is tried again once a minute.
const PATIENCE: Duration = Duration::from_secs(180);
const VICTIM: &str = "victim";
const NEIGHBOUR: &str = "neighbour";

fn complaint(cluster: &Cluster) -> Result<String, String> {
    let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
    let victim = status.destinations.into_iter().find(|destination| destination.name == VICTIM);
    Ok(victim.map(|victim| victim.last_error).unwrap_or_default())
}

/// Waits until a destination holds everything up to `txid`.
fn holds(cluster: &Cluster, destination: &str, txid: u64, what: &str) {
    eventually(what, PATIENCE, || {
        let copies = cluster.database("node", "app.db")?.copies;
        let held = copies.iter().find(|copy| copy.destination == destination).map_or(0, |copy| copy.txid);
        let why = || format!("it holds {held} of {txid}: {}", complaint(cluster).unwrap_or_default());
        ensure(held >= txid, why)
    });
}

fn seed() -> u64 {
    let given = std::env::var("WALHUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| rand::rng().random_range(0..1_000_000))
}

/// Runs the faults one after the other.
fn endure(name: &str, mut cluster: Cluster, victim: Victim) {
    let seed = seed();
    eprintln!("{name}: WALHUB_TEST_SEED={seed}");
    let Victim { destination, mut faults } = victim;
    faults.shuffle(&mut StdRng::seed_from_u64(seed));
    cluster.add_folder(NEIGHBOUR);
    cluster.add(destination);
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    let mut writer = Writer::spawn(&database, &["--rate", "40"]);
    writer.await_acked(20);
    cluster.start_hub();
    cluster.start_agent("node");
    let (txid, _) = eventually("the first transactions are buffered", PATIENCE, || {
        let buffered = cluster.buffered("node", "app.db")?;
        ensure(buffered.0 > 5, || format!("{buffered:?}"))?;
        Ok(buffered)
    });
    cluster.await_everywhere("node", "app.db", txid);
    for fault in &faults {
        let (acked, (buffered, _)) = (writer.acked(), cluster.buffered("node", "app.db").expect("status"));
        fault.begin();
        eventually(&format!("{}: the status names the cause", fault.name), PATIENCE, || {
            let text = complaint(&cluster)?;
            ensure(fault.words.iter().any(|word| text.contains(word)), || format!("it says {text:?}"))
        });
        // The agents go on: what the application commits is buffered. And so does the neighbour.
        writer.await_acked(acked + 20);
        let now = eventually(&format!("{}: agents are not held up", fault.name), PATIENCE, || {
            let (now, _) = cluster.buffered("node", "app.db")?;
            ensure(now > buffered, || format!("still at {now}"))?;
            Ok(now)
        });
        holds(&cluster, NEIGHBOUR, now, &format!("{}: the neighbour goes on", fault.name));
        fault.end();
        let (txid, _) = cluster.buffered("node", "app.db").expect("status");
        holds(&cluster, VICTIM, txid, &format!("{}: it catches up", fault.name));
        eprintln!("{name}: {}: endured", fault.name);
    }
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    holds(&cluster, VICTIM, txid, "it holds the end");
    holds(&cluster, NEIGHBOUR, txid, "the neighbour holds the end");
    let out = cluster.restore("node/app.db", "out.db", &["--source", VICTIM]);
    live.assert_same(&Image::restored(&out), "what came through all of it");
    let checked = cluster.hubctl(&["destinations", "check", VICTIM, "--json"]).json();
    assert_eq!(checked[0]["passed"], true, "{checked}");
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn an_s3_destination_that_fails_troubles_nobody() {
    let cluster = Cluster::new("fault-matrix-s3");
    let Some(own) = OwnS3::start(&cluster.path("s3")) else { return };
    endure("s3", cluster, faults::of_s3(VICTIM, own));
}

#[test]
fn a_gcs_destination_that_fails_troubles_nobody() {
    let Some(server) = services::gcs() else { return };
    endure("gcs", Cluster::new("fault-matrix-gcs"), faults::of_gcs(VICTIM, server));
}

#[test]
fn an_azure_destination_that_fails_troubles_nobody() {
    let Some(server) = services::azure() else { return };
    endure("abs", Cluster::new("fault-matrix-abs"), faults::of_azure(VICTIM, server));
}

#[test]
fn a_folder_that_fails_troubles_nobody() {
    let scratch = tempfile::tempdir().expect("a folder");
    endure("file", Cluster::new("fault-matrix-file"), faults::of_folder(VICTIM, scratch.path(), 16));
}
