//! Every restore point gives exactly the state it names: 200 marked transactions, restored by TXID and by time.

use rusqlite::Connection;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::{Cluster, Image, oracle};

const MARKS: u64 = 200;

#[test]
fn every_tenth_mark_comes_back_by_txid_and_by_the_time_before_it() {
    let mut cluster = Cluster::new("pitr");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    let app = Connection::open(&database).expect("database");
    app.pragma_update(None, "journal_mode", "wal").expect("wal");
    app.execute_batch("CREATE TABLE mark(number INTEGER PRIMARY KEY, body BLOB)").expect("table");
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, base) = cluster.await_buffered("node", "app.db", &database);

    let mut images = Vec::new();
    for number in 1..=MARKS {
        app.execute("INSERT INTO mark VALUES (?1, randomblob(300))", [number as i64]).expect("mark");
        if number % 10 == 0 || number % 10 == 9 {
            images.push((number, Image::live(&database)));
        }
        // The next mark waits for the promise, so that each has a time of its own.
        eventually("the mark is buffered", walhub_tests::cluster::PATIENCE, || {
            let (txid, _) = cluster.buffered("node", "app.db")?;
            ensure(txid == base + number, || format!("the hub is at {txid}, mark {number} after {base}"))
        });
    }

    let times = times(&cluster);
    for (number, image) in images.iter().filter(|(number, _)| number % 10 == 0) {
        let txid = base + number;
        let by_txid = restore(&cluster, &format!("txid-{number}"), &["--txid", &txid.to_string()]);
        image.assert_same(&Image::restored(&by_txid), &format!("mark {number} by TXID"));
        assert_eq!(marks(&by_txid), *number);

        let just_before = timestamp(times[&txid] - 1);
        let earlier = restore(&cluster, &format!("before-{number}"), &["--timestamp", &just_before]);
        let (_, image_before) = images.iter().find(|(n, _)| *n == number - 1).expect("kept");
        // Two transactions of one millisecond share their restore point.
        let same_ms = times[&(txid - 1)] == times[&txid];
        if !same_ms {
            image_before.assert_same(&Image::restored(&earlier), &format!("the time before mark {number}"));
            assert_eq!(marks(&earlier), number - 1);
        }
        let exactly = timestamp(times[&txid]);
        let at = restore(&cluster, &format!("at-{number}"), &["--timestamp", &exactly]);
        assert!(marks(&at) >= *number, "the time of mark {number} includes it");
    }
    let distinct = times.values().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct as u64 > MARKS / 2, "only {distinct} distinct times: the test says too little");
}

#[test]
fn a_point_that_does_not_exist_is_refused_and_nothing_is_written() {
    let mut cluster = Cluster::new("no-point");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    walhub_tests::workload::Writer::spawn(&database, &["--commits", "5"]).wait();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "app.db", &database);
    let out = cluster.path("out.db");
    let target = out.display().to_string();
    let beyond = ["restore", "node/app.db", "-o", &target, "--txid", "99999"];
    let before = ["restore", "node/app.db", "-o", &target, "--timestamp", "2001-01-01T00:00:00Z"];
    let unknown = ["restore", "node/other.db", "-o", &target];
    let no_time = ["restore", "node/app.db", "-o", &target, "--timestamp", "yesterday-ish"];
    for (arguments, word) in [
        (&beyond[..], "99999"),
        (&before[..], "2001"),
        (&unknown[..], "node/other.db"),
        (&no_time[..], "yesterday-ish"),
    ] {
        let output = cluster.hubctl(arguments);
        assert_ne!(output.code, 0, "{arguments:?}");
        let said = output.stderr.contains(word) || output.stderr.contains(&format!("{:016x}", 99_999));
        assert!(said, "{arguments:?} does not name its fault: {}", output.stderr);
        assert!(!out.exists(), "{arguments:?} left a file");
    }
    // A file that is there is never overwritten unasked.
    std::fs::write(&out, b"mine").expect("file");
    let output = cluster.hubctl(&["restore", "node/app.db", "-o", &target]);
    assert_ne!(output.code, 0);
    assert_eq!(std::fs::read(&out).expect("file"), b"mine");
}

/// Hub time of each transaction, from the buffer's segments (one transaction each here).
fn times(cluster: &Cluster) -> std::collections::BTreeMap<u64, i64> {
    let files = cluster.client().files("node", "app.db", "buffer").expect("files").files;
    files.iter().map(|file| (file.range.as_ref().expect("range").max, file.timestamp_ms)).collect()
}

fn timestamp(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).expect("a time").to_string()
}

fn restore(cluster: &Cluster, name: &str, options: &[&str]) -> std::path::PathBuf {
    cluster.restore("node/app.db", &format!("{name}.db"), options)
}

fn marks(path: &std::path::Path) -> u64 {
    let connection = oracle::observer(path);
    let (count, newest): (i64, Option<i64>) = connection
        .query_row("SELECT count(*), max(number) FROM mark", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("marks");
    assert_eq!(count, newest.unwrap_or(0), "marks are a prefix");
    count as u64
}
