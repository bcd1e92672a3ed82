//! Once per release: a database of more than 1 GiB, in which the page of SQLite's lock bytes lies. It is the one page that is
//! in no file and in no checksum. `tests/run --release` runs it, with release programs.

use crate::snapshot::fill;
use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, Instant};
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::{Litestream, Replica};
use walhub_tests::{Cluster, Image, services};

const MEGABYTES: u32 = 1_100;
/// Number of the page of the lock bytes, of 4 KiB.
const LOCK_PAGE: usize = 262_145;
const LONG: Duration = Duration::from_secs(900);
const BUCKET: &str = "large";

/// Snapshots that the hub made.
fn snapshots(cluster: &Cluster, source: &str) -> Vec<u64> {
    let said = cluster.hubctl(&["wal", "node/app.db", "--source", source, "--json"]).json();
    let files = said["files"].as_array().expect("files");
    files
        .iter()
        .filter(|file| file["level"] == 9)
        .map(|file| file["max_txid"].as_u64().expect("a number"))
        .collect()
}

/// Changes pages on both sides of the lock page, and appends some.
fn change(database: &Path) {
    let app = Connection::open(database).expect("open");
    app.busy_timeout(Duration::from_secs(60)).expect("busy timeout");
    for which in ["id <= 40", "id BETWEEN 262000 AND 262300", "id > (SELECT max(id) - 40 FROM big)"] {
        app.execute(&format!("UPDATE big SET x = randomblob(3900) WHERE {which}"), []).expect("update");
    }
    app.execute("INSERT INTO big(x) SELECT randomblob(3900) FROM big LIMIT 200", []).expect("insert");
}

#[test]
#[ignore = "once per release, see the module doc"]
fn a_database_with_the_lock_page_restores_from_a_folder_and_a_bucket() {
    let (Some(litestream), Some(s3)) = (Litestream::find(), services::s3()) else { return };
    s3.make_bucket(BUCKET);
    let mut cluster = Cluster::new("large");
    let (near, prefix) = (cluster.path("near"), format!("large-{}", std::process::id()));
    cluster.add(Destination::file("near", &near).with("snapshot-interval: 60s"));
    cluster.add(Destination::s3("far", &s3, BUCKET, &prefix).with("snapshot-interval: 60s"));
    cluster.hub_lines("levels: [2s, 10s]\nbuffer: {max-bytes: 4GiB}\n");
    let database = cluster.path("data/app.db");
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>4} s: {what}", began.elapsed().as_secs());
    let bytes = fill(&database, MEGABYTES);
    assert!(bytes > (LOCK_PAGE as u64 + 1_000) * 4096, "{bytes} bytes do not reach the lock page");
    told("the database is filled");

    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    eventually("the first snapshot is everywhere", LONG, || {
        let copies = cluster.database("node", "app.db")?.copies;
        ensure(copies.len() == 2 && copies.iter().all(|copy| copy.txid > 0), || format!("{copies:?}"))
    });
    told("the first snapshot is everywhere");
    change(&database);
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    assert!(live.pages() > LOCK_PAGE + 1_000);
    cluster.await_everywhere("node", "app.db", txid);
    told("so are later transactions");

    let folder = near.join("node/app.db");
    let path = format!("{prefix}/node/app.db");
    let replicas = [
        ("near", Replica::File(&folder)),
        ("far", Replica::S3 { server: &s3, bucket: BUCKET, prefix: &path }),
    ];
    let judge = |what: &str| {
        for (source, replica) in &replicas {
            let out = cluster.path("out.db");
            litestream.restore_at(replica, &out, &[]).success();
            live.assert_same(&Image::restored(&out), &format!("litestream, {source}, {what}"));
            std::fs::remove_file(&out).expect("remove");
            let out = cluster.restore("node/app.db", "ours.db", &["--source", source]);
            live.assert_same(&Image::restored(&out), &format!("hubctl, {source}, {what}"));
            std::fs::remove_file(&out).expect("remove");
        }
        told(what);
    };
    judge("restored");
    eventually("the hub made a snapshot of its own", LONG, || {
        let both = ["near", "far"].map(|source| snapshots(&cluster, source));
        ensure(both.iter().all(|found| found.contains(&txid)), || format!("{both:?}, not {txid}"))
    });
    told("the hub made a snapshot of its own");
    judge("restored once more, from the hub's snapshot");
    cluster.stop_agent("node");
    cluster.stop_hub();
}
