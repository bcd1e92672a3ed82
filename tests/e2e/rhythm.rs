//! The configuration that people bring from a fleet with several copies, as they write it: every destination keeps its own
//! rhythm, by the times at which its server stored the objects, a database with an interval of its own keeps that one,
//! and each of them restores.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, ledger, services};

/// Long enough for a second flush of the database that is flushed every minute.
const RUN: Duration = Duration::from_secs(75);

/// Milliseconds between the moments at which objects were stored.
fn gaps(mut stored: Vec<i64>) -> Vec<i64> {
    stored.sort_unstable();
    stored.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// At least `least` gaps, and the middle one about the interval: what a put takes comes and goes. Where the interval is
/// longer than a put ever takes, no gap is much shorter.
fn assert_rhythm(name: &str, stored: Vec<i64>, interval_s: i64, least: usize) {
    let gaps = gaps(stored);
    assert!(gaps.len() >= least, "{name}: only {gaps:?}");
    let interval = interval_s * 1000;
    let mut sorted = gaps.clone();
    sorted.sort_unstable();
    let (shortest, median) = (sorted[0], sorted[sorted.len() / 2]);
    assert!((interval * 9 / 10..=interval * 3 / 2).contains(&median), "{name}: {median} ms: {gaps:?}");
    assert!(
        interval_s < 10 || shortest >= interval * 8 / 10,
        "{name}: a flush after {shortest} ms: {gaps:?}"
    );
    eprintln!("{name}: {} flushes, {median} ms between two of them, at least {shortest} ms", gaps.len() + 1);
}

/// When files of level 0 were put into a folder (a file's own time is that of its newest transaction).
fn put_into(folder: &Path) -> Vec<i64> {
    let files = std::fs::read_dir(folder.join("ltx/0")).expect("level 0");
    let changed = |file: std::fs::DirEntry| {
        let metadata = file.metadata().expect("metadata");
        metadata.ctime() * 1000 + metadata.ctime_nsec() / 1_000_000
    };
    let mut stored: Vec<i64> = files.flatten().map(changed).collect();
    stored.sort_unstable();
    // The newest transaction of a flush is a file of its own in a folder.
    stored.dedup_by(|later, before| *later - *before < 100);
    stored
}

#[test]
fn the_seed_configuration_runs_as_written_and_every_destination_keeps_its_rhythm() {
    let Some(server) = services::s3() else { return };
    let mut cluster = Cluster::new("rhythm");
    let bucket = |name: &str| format!("rhythm-{name}-{}", std::process::id());
    let (primary, dr) = (bucket("primary"), bucket("dr"));
    server.make_bucket(&primary);
    server.make_bucket(&dr);
    cluster.add(
        Destination::s3("s3-primary", &server, &primary, "backup")
            .every_ms(1000)
            .with("snapshot-interval: 4h")
            .with("retention: 720h"),
    );
    let far = Destination::s3("s3-dr", &server, &dr, "backup").every_ms(10_000);
    cluster.add(far.with("snapshot-interval: 24h").with("retention: 2160h"));
    let folder = cluster.path("local");
    let local = Destination::file("local", &folder).every_ms(1000);
    cluster.add(local.with("snapshot-interval: 1h").with("retention: 168h"));
    cluster.hub_lines(
        "policy: {copies: 3, media: 2, offsite: 1}\ndatabases:\n  - match: node/archive.db\n    destinations: [s3-primary]\n    \
         sync-interval: 60s\n    policy: {copies: 2, offsite: 1}\n",
    );
    let (app, archive) = (cluster.path("data/app.db"), cluster.path("data/archive.db"));
    cluster.agent("node", &[("app.db", &app), ("archive.db", &archive)]);
    let mut writers = [&app, &archive].map(|database| Writer::spawn(database, &["--rate", "10"]));
    for writer in &mut writers {
        writer.await_acked(1);
    }
    cluster.start_hub();
    cluster.start_agent("node");
    let started = Instant::now();
    // One look a second, as an operator would: nobody notices.
    while started.elapsed() < RUN {
        std::thread::sleep(Duration::from_secs(1));
        let status = cluster.client().status().expect("status");
        assert!(
            status.destinations.iter().all(|d| d.healthy || d.last_error.contains("not answered yet")),
            "{status:?}"
        );
    }

    let level_0 = |bucket: &str, database: &str| {
        let objects = server.stored(bucket, &format!("backup/node/{database}/0000/"));
        objects.into_iter().map(|(_, time)| time).collect::<Vec<i64>>()
    };
    assert_rhythm("local", put_into(&folder.join("node/app.db")), 1, 40);
    assert_rhythm("s3-primary", level_0(&primary, "app.db"), 1, 40);
    assert_rhythm("s3-dr", level_0(&dr, "app.db"), 10, 5);
    assert_rhythm("archive at s3-primary", level_0(&primary, "archive.db"), 60, 1);
    assert!(!folder.join("node/archive.db").exists() && level_0(&dr, "archive.db").is_empty());

    let [app_writer, archive_writer] = writers;
    let (app_acked, archive_acked) = (app_writer.stop(), archive_writer.stop());
    let (live, txid) = cluster.await_buffered("node", "app.db", &app);
    cluster.await_everywhere("node", "app.db", txid);
    for source in ["s3-primary", "s3-dr", "local"] {
        let out = cluster.restore("node/app.db", &format!("{source}.db"), &["--source", source]);
        live.assert_same(&Image::restored(&out), source);
        assert_eq!(ledger::audit(&out).expect("ledger").last(), app_acked, "{source}");
    }
    let out = cluster.restore("node/archive.db", "archive-out.db", &["--source", "s3-primary"]);
    let restored = ledger::audit(&out).expect("ledger").last();
    assert!(restored > 0 && restored <= archive_acked, "{restored} of {archive_acked}");
    if let Some(litestream) = Litestream::find() {
        for (bucket, name) in [(&primary, "primary"), (&dr, "dr")] {
            let out = cluster.path(format!("litestream-{name}.db"));
            litestream.restore_s3(&server, bucket, "backup/node/app.db", &out, &[]).success();
            live.assert_same(&Image::restored(&out), name);
        }
        let out = cluster.path("litestream-local.db");
        litestream.restore_file(&folder.join("node/app.db"), &out, &[]).success();
        live.assert_same(&Image::restored(&out), "local by stock litestream");
    }
    eventually("the policies are met", PATIENCE, || {
        let database = cluster.database("node", "app.db")?;
        ensure(database.durable_txid >= txid && database.policy_missing.is_empty(), || {
            format!("{database:?}")
        })
    });
    let missing = cluster.database("node", "archive.db").expect("status").policy_missing;
    assert!(missing.is_empty() || missing.ends_with("not yet in s3-primary"), "{missing}");
}

#[test]
fn google_and_azure_in_the_place_of_s3_keep_their_rhythm_as_well() {
    let (Some(google), Some(azure)) = (services::gcs(), services::azure()) else { return };
    let mut cluster = Cluster::new("rhythm-clouds");
    let prefix = format!("rhythm-{}", std::process::id());
    cluster.add(Destination::gcs("google", &google, "walhub", &prefix).every_ms(1000));
    cluster.add(Destination::azure("azure", &azure, "walhub", &prefix).every_ms(10_000));
    cluster.hub_lines("policy: {copies: 3, media: 2, offsite: 2}\n");
    let app = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &app)]);
    let mut writer = Writer::spawn(&app, &["--rate", "10"]);
    writer.await_acked(1);
    cluster.start_hub();
    cluster.start_agent("node");
    writer.await_acked(350);
    let acked = writer.stop();
    let stored = |source: &str| {
        let files = cluster.client().files("node", "app.db", source).expect("files").files;
        // A listing of a bucket shows when the server stored a file, in whole seconds.
        files.iter().filter(|file| file.level == 0).map(|file| file.timestamp_ms).collect::<Vec<i64>>()
    };
    assert_rhythm("google", stored("google"), 1, 20);
    assert_rhythm("azure", stored("azure"), 10, 2);
    let (live, txid) = cluster.await_buffered("node", "app.db", &app);
    cluster.await_everywhere("node", "app.db", txid);
    for source in ["google", "azure"] {
        let out = cluster.restore("node/app.db", &format!("{source}.db"), &["--source", source]);
        live.assert_same(&Image::restored(&out), source);
        assert_eq!(ledger::audit(&out).expect("ledger").last(), acked, "{source}");
    }
    assert!(cluster.database("node", "app.db").expect("status").policy_missing.is_empty());
}
