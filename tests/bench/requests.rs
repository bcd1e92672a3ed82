//! What a fleet costs in requests to a real S3 server, counted by the server itself: a thousand databases that commit
//! once a second into packs, beside stock litestream with a few, whose requests grow with the databases.

use crate::Plan;
use crate::setup::{commit, database};
use crate::table::Row;
use rusqlite::Connection;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use walhub_tests::Cluster;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::fleet::Fleet;
use walhub_tests::litestream::Litestream;
use walhub_tests::scratch::Scratch;
use walhub_tests::services::{OwnS3, Requests};

/// US dollars per PUT, COPY, POST or LIST request: S3 Standard, us-east-1, list price of
/// https://aws.amazon.com/s3/pricing ($0.005 per 1,000).
const PUT_PRICE: f64 = 0.005 / 1000.0;
/// And per GET or any other request ($0.0004 per 1,000). Deletions are free.
const GET_PRICE: f64 = 0.0004 / 1000.0;
const SECONDS_PER_DAY: f64 = 86_400.0;
/// Files per database and day that compaction makes of packs: an hourly level and a daily snapshot.
const COMPACTED_PER_DAY: f64 = 25.0;
/// Databases of the litestream that is measured.
const THEIRS: usize = 10;
/// Longest pack that is one request, bytes.
const PACK_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let seconds = plan.pick(60, 8);
    let (nodes, databases) = plan.pick((10, 100), (5, 20));
    let scratch = Scratch::new("bench-requests");
    let s3 = OwnS3::launch(&scratch.join("s3"));
    let (ours, took, idle, bytes) = packed(&s3, nodes, databases, seconds);
    let (theirs, their_time) = litestream(&s3, &scratch, seconds);
    let fleet = nodes * databases;
    let rate = |count: u64| count as f64 / took.as_secs_f64();
    let per_database = |count: u64| count as f64 / their_time.as_secs_f64() / THEIRS as f64;
    let scaled = per_database(theirs.put) * fleet as f64;
    let mut rows = vec![
        Row::new(format!("PUT/s, {fleet} databases, each a commit a second"), rate(ours.put), Some(scaled))
            .goal("≤ 2", |row| row.ours <= 2.0),
        Row::new(
            format!("LIST/min, {fleet} databases"),
            rate(ours.list) * 60.0,
            Some(per_database(theirs.list) * fleet as f64 * 60.0),
        )
        .goal("≤ 1", |row| row.ours <= 1.0),
        Row::new(format!("other requests/s, {fleet} databases"), rate(ours.get + ours.delete), None),
        // Else the requests are those of a slower fleet.
        Row::new("commits/s of each database meanwhile", f64::from(seconds) / took.as_secs_f64(), None)
            .more_is_better()
            .goal("≥ 0.95", |row| row.ours >= 0.95),
        Row::new("requests of the idle fleet in 20 s", idle as f64, None).goal("0", |row| row.ours == 0.0),
    ];
    // More bytes a second than one pack takes make more packs.
    let bytes_per_database = rate(bytes) / fleet as f64;
    for count in [1.0, 100.0, 10_000.0] {
        let packs = rate(ours.put).max((bytes_per_database * count / PACK_BYTES).ceil());
        let our = (packs * SECONDS_PER_DAY + COMPACTED_PER_DAY * count) * PUT_PRICE
            + rate(ours.list) * SECONDS_PER_DAY * PUT_PRICE;
        let theirs_a_day = (per_database(theirs.put + theirs.list) * PUT_PRICE
            + per_database(theirs.get) * GET_PRICE)
            * SECONDS_PER_DAY
            * count;
        rows.push(Row::new(
            format!("$ of requests per day, {count} databases, S3 list prices"),
            our,
            Some(theirs_a_day),
        ));
    }
    rows
}

/// Requests while the fleet commits and how long that took, requests while it is idle, and bytes put.
fn packed(s3: &OwnS3, nodes: usize, databases: usize, seconds: u32) -> (Requests, Duration, u64, u64) {
    s3.server.make_bucket("packed");
    let mut cluster = Cluster::new("bench-packed");
    cluster.add(Destination::s3("bucket", &s3.server, "packed", "hub").every_ms(1000).with("layout: packed"));
    cluster.start_hub();
    let mut fleet = Fleet::join(&cluster.address(), cluster.authority(), nodes, databases);
    copied(&cluster, 1);
    let (before, bytes, began) = (settled(s3, "packed"), put_bytes(&cluster), Instant::now());
    fleet.commit_for(seconds);
    copied(&cluster, 1 + u64::from(seconds));
    let took = began.elapsed();
    let used = settled(s3, "packed");
    let bytes = put_bytes(&cluster) - bytes;
    std::thread::sleep(Duration::from_secs(20));
    (used.since(before), took, settled(s3, "packed").since(used).all(), bytes)
}

/// What the server counted, once its log has it.
fn settled(s3: &OwnS3, bucket: &str) -> Requests {
    std::thread::sleep(Duration::from_secs(1));
    s3.requests(bucket)
}

fn put_bytes(cluster: &Cluster) -> u64 {
    let status = cluster.client().status().expect("status");
    status.destinations.iter().map(|destination| destination.put_bytes).sum()
}

fn copied(cluster: &Cluster, txid: u64) {
    eventually("everything is copied", Duration::from_secs(120), || {
        let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
        let behind = status.databases.iter().filter(|d| d.copies.iter().any(|copy| copy.txid < txid)).count();
        ensure(behind == 0 && !status.databases.is_empty(), || format!("{behind} are behind"))
    });
}

fn litestream(s3: &OwnS3, scratch: &Scratch, seconds: u32) -> (Requests, Duration) {
    s3.server.make_bucket("stock");
    let program = Litestream::find().expect("set WALHUB_TEST_LITESTREAM to the stock binary");
    let open: Vec<(std::path::PathBuf, Connection)> = (0..THEIRS)
        .map(|n| {
            let path = scratch.join(format!("their-{n}.db"));
            let connection = database(&path, 10);
            (path, connection)
        })
        .collect();
    let config = scratch.join("litestream.yml");
    let paths: Vec<&Path> = open.iter().map(|(path, _)| path.as_path()).collect();
    std::fs::write(&config, their_config(s3, &paths)).expect("litestream.yml");
    let _running = program.replicate_by_config(&config, &scratch.join("litestream.log"));
    eventually("every database to be replicated", Duration::from_secs(60), || {
        let keys = s3.server.keys("stock", "");
        let done =
            (0..THEIRS).filter(|n| keys.iter().any(|key| key.starts_with(&format!("db-{n}/")))).count();
        ensure(done == THEIRS, || format!("{done} of {THEIRS} are"))
    });
    let (before, began) = (settled(s3, "stock"), Instant::now());
    for turn in 0..seconds * THEIRS as u32 {
        let due = Duration::from_secs(1) * turn / THEIRS as u32;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        commit(&open[turn as usize % THEIRS].1);
    }
    let took = began.elapsed();
    (settled(s3, "stock").since(before), took)
}

fn their_config(s3: &OwnS3, paths: &[&Path]) -> String {
    let server = &s3.server;
    let mut config = String::from("dbs:\n");
    for (n, path) in paths.iter().enumerate() {
        write!(
            config,
            "  - path: {}\n    replica:\n      type: s3\n      bucket: stock\n      path: db-{n}\n      region: {}\n      \
             endpoint: {}\n      access-key-id: {}\n      secret-access-key: {}\n      force-path-style: true\n      \
             sync-interval: 1s\n",
            path.display(),
            server.region,
            server.endpoint,
            server.access_key,
            server.secret_key
        )
        .expect("BUG: a string takes everything");
    }
    config
}
