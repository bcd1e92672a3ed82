//! The way of a transaction: first snapshot, live capture, orderly restarts of either side, and back again.

use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, ledger, replica};

/// A hub with two folders and one agent that follows `data/app.db`.
fn cluster(name: &str) -> (Cluster, std::path::PathBuf) {
    let mut cluster = Cluster::new(name);
    cluster.add_folder("near");
    cluster.add_folder("far");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    (cluster, database)
}

#[test]
fn a_live_database_comes_back_from_the_buffer_and_from_every_destination() {
    let (mut cluster, database) = cluster("replicate");
    let mut writer = Writer::spawn(&database, &["--rate", "200", "--churn"]);
    writer.await_acked(20);
    cluster.start_hub();
    cluster.start_agent("node");
    let seen = writer.acked();
    writer.await_acked(seen + 200);
    let acked = writer.stop();

    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    for source in ["buffer", "near", "far"] {
        let out = cluster.restore("node/app.db", &format!("{source}.db"), &["--source", source]);
        live.assert_same(&Image::restored(&out), source);
        assert_eq!(ledger::audit(&out).expect("ledger").last(), acked, "{source}");
    }
    for folder in ["near", "far"] {
        let audited = replica::audit(&cluster.path(folder).join("node/app.db")).expect(folder);
        assert_eq!(audited, (txid, live.checksum()), "{folder}");
    }
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn one_transaction_is_one_txid() {
    let (mut cluster, database) = cluster("txid");
    Writer::spawn(&database, &["--commits", "1"]).wait();
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, before) = cluster.await_buffered("node", "app.db", &database);
    Writer::spawn(&database, &["--commits", "100", "--note", "2000"]).wait();
    let (_, after) = cluster.await_buffered("node", "app.db", &database);
    assert_eq!(after, before + 100);
}

#[test]
fn an_agent_that_was_away_heals_without_a_new_snapshot() {
    let (mut cluster, database) = cluster("away");
    Writer::spawn(&database, &["--commits", "300", "--note", "4000", "--sync", "off"]).wait();
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, before) = cluster.await_buffered("node", "app.db", &database);
    cluster.stop_agent("node");
    // More than one WAL generation passes by.
    Writer::spawn(&database, &["--commits", "400", "--sync", "off", "--autocheckpoint", "50"]).wait();
    cluster.start_agent("node");
    let (live, after) = cluster.await_buffered("node", "app.db", &database);
    assert!(after > before, "{after} after {before}");
    let out = cluster.restore("node/app.db", "out.db", &[]);
    live.assert_same(&Image::restored(&out), "after the pause");

    cluster.await_everywhere("node", "app.db", after);
    let near = replica::files(&cluster.path("near/node/app.db")).expect("near");
    let snapshots = near.iter().filter(|file| file.range.min().get() == 1).count();
    assert_eq!(snapshots, 1, "{near:?}");
    let healed: u64 =
        near.iter().filter(|file| file.range.min().get() > before).map(|file| size_of(&file.path)).sum();
    let snapshot = size_of(&near[0].path);
    assert!(healed < snapshot / 2, "healing took {healed} bytes, the snapshot had {snapshot}");
}

fn size_of(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).expect("size").len()
}

#[test]
fn a_hub_that_was_away_catches_up_and_its_agent_reconnects_by_itself() {
    let (mut cluster, database) = cluster("hub-away");
    let mut writer = Writer::spawn(&database, &["--rate", "100"]);
    writer.await_acked(1);
    cluster.start_agent("node");
    cluster.start_hub();
    eventually("first transactions arrive", Duration::from_secs(60), || {
        ensure(cluster.buffered("node", "app.db")?.0 > 0, || "nothing buffered".to_owned())
    });
    cluster.stop_hub();
    let seen = writer.acked();
    writer.await_acked(seen + 100);
    cluster.start_hub();
    let seen = writer.acked();
    writer.await_acked(seen + 50);
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "out.db", &["--source", "far"]);
    live.assert_same(&Image::restored(&out), "after the hub's pause");
}
