//! A node is away for so long that everything it is to be restored from has expired, at its destination and in the hub's
//! buffer; the hub dies meanwhile. What its job waits for is there when it comes back, and goes when nobody waits.

use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::{Cluster, Image};

const PATIENCE: Duration = Duration::from_secs(120);
/// Windows and ages of a second: whatever can expire has.
const LINES: &str =
    "retention: 1s\n    l0-retention: 0s\n    retention-check-interval: 1s\n    snapshot-interval: 2s";
const KEY: &str = "away/app.db";

fn commit(path: &Path, sql: &str) {
    let app = Connection::open(path).expect("the database");
    app.busy_timeout(PATIENCE).expect("a busy timeout");
    app.execute_batch(&format!("PRAGMA journal_mode=WAL; {sql}")).expect("a transaction");
}

/// More than the buffer holds goes through it, and its database is compacted with the other one.
fn pass_by(cluster: &Cluster, path: &Path) {
    for _ in 0..3 {
        commit(
            path,
            "INSERT INTO t SELECT randomblob(1400000) FROM (VALUES (1),(2),(3),(4),(5),(6),(7),(8),(9),(10))",
        );
        let (_, txid) = cluster.await_buffered("busy", "noise.db", path);
        cluster.await_everywhere("busy", "noise.db", txid);
    }
}

/// Whether a transaction can be restored at all.
fn restorable(cluster: &Cluster, txid: u64) -> bool {
    cluster.hubctl(&["restore", KEY, "--txid", &txid.to_string(), "--dry-run"]).code == 0
}

#[test]
fn a_node_that_comes_back_late_finds_its_point_although_everything_else_has_expired() {
    let mut cluster = Cluster::new("awaited");
    let near = cluster.path("near");
    // A flush every few seconds: the points between two of them lie in the buffer alone.
    cluster.add(Destination::file("near", &near).every_ms(2000).with(LINES));
    cluster.hub_lines("levels: [1s, 2s]\nbuffer: {max-bytes: 32MiB}\n");
    let (path, noise) = (cluster.path("data/app.db"), cluster.path("data/noise.db"));
    commit(&path, "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(20000))");
    commit(&noise, "CREATE TABLE t(x)");
    cluster.agent("away", &[("app.db", &path)]);
    cluster.agent("busy", &[("noise.db", &noise)]);
    cluster.start_hub();
    cluster.start_agent("away");
    cluster.start_agent("busy");
    let (_, first) = cluster.await_buffered("away", "app.db", &path);
    cluster.await_everywhere("away", "app.db", first);
    // Each of these is a point of its own, and no flush need end with it.
    let mut points = Vec::new();
    for _ in 0..6 {
        commit(&path, "INSERT INTO t VALUES (randomblob(5000))");
        points.push(cluster.await_buffered("away", "app.db", &path));
    }
    let ((good, asked), (_, other)) = (&points[2], &points[3]);
    commit(&path, "DELETE FROM t");
    let (_, last) = cluster.await_buffered("away", "app.db", &path);
    cluster.await_everywhere("away", "app.db", last);
    cluster.stop_agent("away");

    let asked_text = asked.to_string();
    let order = ["restore", KEY, "--txid", &asked_text, "--in-place", "--yes", "--detach"];
    cluster.hubctl(&order).success();
    cluster.hubctl(&["jobs", "pause"]).success();
    for round in 0..2 {
        cluster.kill_hub();
        cluster.start_hub();
        if round == 0 {
            pass_by(&cluster, &noise);
            eventually("what nobody waits for to expire", PATIENCE, || {
                ensure(!restorable(&cluster, *other), || format!("transaction {other} is there"))
            });
        }
        assert!(restorable(&cluster, *asked), "transaction {asked} is gone in round {round}");
    }
    let said = cluster.hubctl(&["retention", KEY, "--dry-run", "--all", "--json"]).json();
    let files = said["files"].as_array().expect("files");
    let told = |file: &serde_json::Value| file["reason"].as_str().is_some_and(|why| why.contains("(job "));
    assert!(files.iter().any(told), "{said}");
    let shown = cluster.hubctl(&["jobs", "show"]).success();
    assert!(shown.contains("retention keeps what leads to the points of 1 databases"), "{shown}");

    cluster.hubctl(&["jobs", "resume"]).success();
    cluster.start_agent("away");
    let report = cluster.hubctl(&["jobs", "watch", "--json"]).json();
    assert_eq!((&report["state"], &report["kept"]), (&"done".into(), &0.into()), "{report}");
    let (live, good) = (Image::live(&path).page_checksums(), good.page_checksums());
    assert_eq!(live.len(), good.len());
    // Page 1 has counters of SQLite that are younger.
    assert_eq!((1..live.len()).filter(|at| live[*at] != good[*at]).count(), 0, "not the state asked for");

    // Nobody waits any more: it goes as everything else did.
    eventually("the point to expire", PATIENCE, || {
        pass_by(&cluster, &noise);
        ensure(!restorable(&cluster, *asked), || format!("transaction {asked} is there"))
    });
}
