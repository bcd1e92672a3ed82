//! The first snapshot of a large live database: broken off in every way, and never begun anew.

use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, SystemTime};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::wire::Wire;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

/// A WAL database with so many megabytes of noise; bytes of its file.
pub(super) fn fill(path: &Path, megabytes: u32) -> u64 {
    let app = Connection::open(path).expect("open");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL");
    app.pragma_update(None, "synchronous", "off").expect("synchronous");
    app.execute_batch("CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB)").expect("schema");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 256)
                INSERT INTO big(x) SELECT randomblob(3900) FROM n";
    for _ in 0..megabytes {
        app.execute(rows, []).expect("fill");
    }
    app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
    std::fs::metadata(path).expect("size").len()
}

/// Waits until so many bytes went up.
fn sent(wire: &Wire, bytes: u64) {
    eventually("more of the snapshot is sent", Duration::from_secs(60), || {
        ensure(wire.up() >= bytes, || format!("{} bytes went up", wire.up()))
    });
}

/// Names in the hub's folder of parts for the database; none when there is no folder.
fn parts(cluster: &Cluster) -> Vec<String> {
    let folder = cluster.path("hub-data/staging/node/app.db");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn broken_links_and_killed_programs_do_not_send_it_anew() {
    let mut cluster = Cluster::new("snapshot-breaks");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    let bytes = fill(&database, 110);
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    let wire = Wire::to(&cluster.address());
    cluster.agent_hub("node", wire.address());
    cluster.agent_lines("node", "snapshot-rate: 40MiB\nwal-limit: 4MiB\n");
    let mut writer = Writer::spawn(&database, &["--rate", "100", "--sync", "normal"]);
    writer.await_acked(10);
    cluster.start_agent("node");

    sent(&wire, bytes / 8);
    let status = cluster.agent_command("node", &["status", "--json"]).json();
    let snapshot = &status["databases"][0]["snapshot"];
    let (done, pages) = (snapshot["pages_done"].as_u64(), snapshot["pages"].as_u64());
    assert!(done > Some(0) && done < pages, "{status}");
    wire.cut();
    sent(&wire, bytes * 2 / 8);
    // A pause ends the work at once; afterwards it goes on.
    cluster.agent_command("node", &["pause", "app.db"]).success();
    let paused = wire.up();
    cluster.agent_command("node", &["resume", "app.db"]).success();
    sent(&wire, paused + bytes / 16);
    cluster.kill_agent("node");
    cluster.start_agent("node");
    sent(&wire, bytes * 3 / 8);
    cluster.kill_hub();
    cluster.start_hub();
    sent(&wire, bytes * 4 / 8);
    wire.cut();
    sent(&wire, bytes * 5 / 8);
    cluster.kill_agent("node");
    cluster.start_agent("node");
    sent(&wire, bytes * 6 / 8);
    wire.cut();
    assert_eq!(cluster.buffered("node", "app.db").expect("known").0, 0, "it was over too soon");

    eventually("the first snapshot is complete", Duration::from_secs(120), || {
        ensure(cluster.buffered("node", "app.db")?.0 > 0, || format!("{:?}", parts(&cluster)))
    });
    let took = wire.up();
    assert!(took * 10 <= bytes * 13, "{took} bytes were sent for a database of {bytes}");
    let seen = writer.acked();
    writer.await_acked(seen + 20);
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    for source in ["buffer", "near"] {
        let out = cluster.restore("node/app.db", &format!("{source}.db"), &["--source", source]);
        live.assert_same(&Image::restored(&out), source);
    }
    eventually("nothing of the parts is left", Duration::from_secs(10), || {
        ensure(parts(&cluster).is_empty(), || format!("{:?}", parts(&cluster)))
    });
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn parts_of_a_database_that_does_not_come_back_are_removed() {
    let mut cluster = Cluster::new("snapshot-vanished");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    let bytes = fill(&database, 70);
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    let wire = Wire::to(&cluster.address());
    cluster.agent_hub("node", wire.address());
    cluster.agent_lines("node", "snapshot-rate: 20MiB\n");
    cluster.start_agent("node");
    sent(&wire, bytes / 3);
    cluster.stop_agent("node");
    cluster.stop_hub();
    assert!(parts(&cluster).len() > 1, "{:?}", parts(&cluster));
    // A hub that starts a day later still keeps them, a week later it does not.
    for (days, kept) in [(1, true), (8, false)] {
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        for name in parts(&cluster) {
            let path = cluster.path("hub-data/staging/node/app.db").join(name);
            let file = std::fs::File::options().append(true).open(path).expect("a part");
            file.set_modified(then).expect("set its time");
        }
        cluster.start_hub();
        if kept {
            assert!(!parts(&cluster).is_empty());
        } else {
            eventually("old parts are removed", Duration::from_secs(20), || {
                ensure(parts(&cluster).is_empty(), || format!("{:?}", parts(&cluster)))
            });
        }
        cluster.stop_hub();
    }
}
