//! Databases of every shape, written by SQLite, captured from the log and restored.

use crate::follower::Follower;
use rusqlite::Connection;
use std::os::unix::fs::FileExt;
use std::path::Path;
use walhub_common::ltx::{Decoder, Stamp, merge};
use walhub_common::restore::{Applier, Proof, Report};
use walhub_tests::Image;
use walhub_tests::oracle::{integrity, observer};
use walhub_tests::scratch::Scratch;

/// What an application does, one quiet point after each line.
const STEPS: &[&str] = &[
    "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE INDEX i ON t(v)",
    "INSERT INTO t(v) VALUES (randomblob(10)), (randomblob(5000)), (zeroblob(200000))",
    // Many transactions at one go.
    "INSERT INTO t(v) VALUES (1); INSERT INTO t(v) VALUES (2); UPDATE t SET v = randomblob(100) WHERE id < 4",
    // Larger than the cache: frames reach the log before the commit, some pages several times.
    "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
     INSERT INTO t(v) SELECT randomblob(200) FROM n; UPDATE t SET v = randomblob(150); COMMIT",
    // The same, rolled back: its frames stay in the file and must not count.
    "BEGIN; DELETE FROM t; CREATE TABLE gone AS SELECT randomblob(900) FROM sqlite_schema, (SELECT 1 UNION SELECT 2);
     UPDATE gone SET rowid = rowid + 100; ROLLBACK",
    "BEGIN; INSERT INTO t(v) VALUES ('kept'); SAVEPOINT s; UPDATE t SET v = randomblob(300); ROLLBACK TO s;
     RELEASE s; INSERT INTO t(v) VALUES ('kept too'); COMMIT",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "INSERT INTO t(v) VALUES ('the log starts over')",
    "DELETE FROM t WHERE id % 3 = 0",
    // A commit that touches no page number in order, and shrinks.
    "PRAGMA incremental_vacuum(50)",
    "DELETE FROM t WHERE id > 100; PRAGMA incremental_vacuum",
    "VACUUM",
    "PRAGMA wal_checkpoint(RESTART)",
    "CREATE TABLE u AS SELECT randomblob(3000) AS v FROM t",
    "DROP TABLE u; VACUUM",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    // Grows again over pages that the file once had.
    "CREATE TABLE w AS SELECT randomblob(3000) AS v FROM t; UPDATE w SET v = 1; DROP TABLE w",
    "CREATE TABLE x(v); INSERT INTO x VALUES (randomblob(70000)); DELETE FROM t",
    // Pages taken and given back within one transaction, which fits the cache.
    "PRAGMA cache_size = 4000; BEGIN; CREATE TABLE y(v); INSERT INTO y VALUES (randomblob(900000)); DROP TABLE y; COMMIT",
    "BEGIN; CREATE TABLE z AS SELECT randomblob(3000) FROM sqlite_schema; INSERT INTO x VALUES (randomblob(300000));
     DROP TABLE z; DELETE FROM x; COMMIT; PRAGMA cache_size = 12",
    "REINDEX; ANALYZE; PRAGMA user_version = 7",
];

fn application(path: &Path, page_size: u32, auto_vacuum: u32) -> Connection {
    let connection = observer_or_new(path);
    connection.pragma_update(None, "page_size", page_size).unwrap();
    connection.pragma_update(None, "auto_vacuum", auto_vacuum).unwrap();
    connection.execute_batch("CREATE TABLE first(x); INSERT INTO first VALUES ('before the log')").unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    connection.pragma_update(None, "cache_size", 12).unwrap();
    connection
}

fn observer_or_new(path: &Path) -> Connection {
    std::fs::File::create_new(path).unwrap();
    observer(path)
}

fn restore(files: &[Vec<u8>], to: &Path) -> Report {
    let mut applier = Applier::new(to, false).unwrap();
    for (txid, file) in (1u64..).zip(files) {
        applier.apply(&format!("transaction {txid}"), &file[..]).unwrap();
    }
    applier.finish(None).unwrap()
}

fn merge_all(files: &[Vec<u8>]) -> Vec<u8> {
    let inputs = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
    let mut merged = Vec::new();
    merge(inputs, Stamp::default(), &mut merged).unwrap();
    merged
}

fn round_trip(page_size: u32, auto_vacuum: u32) {
    let scratch = Scratch::new("history");
    let path = scratch.join("live.db");
    let connection = application(&path, page_size, auto_vacuum);
    let mut follower = Follower::start(&path);
    // The image, and how many files lead to it, after each step.
    let mut points = Vec::new();
    for step in STEPS {
        connection.execute_batch(step).unwrap_or_else(|error| panic!("{step}: {error}"));
        follower.follow();
        let live = Image::live(&path);
        assert_eq!(live.checksum(), follower.checksum(), "{page_size}/{auto_vacuum}: after {step}");
        points.push((follower.files.len(), live));
    }
    let last = points.last().unwrap().1.clone();
    assert!(follower.files.len() > 15 && follower.generations >= 3, "the steps exercise the log");
    let shrinks = points.windows(2).filter(|pair| pair[0].1.pages() > pair[1].1.pages()).count();
    assert!(shrinks >= 2, "the database shrinks, {shrinks} times");

    // All of it, one file after the other; then merged in two halves; then to every step.
    let report = restore(&follower.files, &scratch.join("all.db"));
    Image::restored(&report.path).assert_same(&last, "restored from single transactions");
    assert_eq!((report.checksum, report.proof), (last.checksum(), Proof::Source));
    assert_eq!(std::fs::read(&report.path).unwrap(), follower.image());
    assert_eq!(integrity(&report.path), "ok");

    let (older, newer) = follower.files.split_at(follower.files.len() / 2);
    let halves = [merge_all(older), merge_all(newer)];
    let report = restore(&halves, &scratch.join("halves.db"));
    Image::restored(&report.path).assert_same(&last, "restored from two merged files");
    assert_eq!(report.proof, Proof::Source);
    assert_eq!(report.position().txid.get(), follower.files.len() as u64);

    for (at, (files, image)) in points.iter().enumerate() {
        let merged = merge_all(&follower.files[..*files]);
        let report = restore(&[merged], &scratch.join(format!("{at}.db")));
        Image::restored(&report.path).assert_same(image, STEPS[at]);
    }
}

#[test]
fn pages_of_512_come_back() {
    round_trip(512, 0);
    round_trip(512, 2);
}

#[test]
fn pages_of_1024_and_2048_come_back() {
    round_trip(1024, 1);
    round_trip(2048, 2);
}

#[test]
fn pages_of_4096_come_back() {
    round_trip(4096, 0);
    round_trip(4096, 1);
    round_trip(4096, 2);
}

#[test]
fn pages_of_8192_to_65536_come_back() {
    round_trip(8192, 2);
    round_trip(16384, 0);
    round_trip(32768, 1);
    round_trip(65536, 2);
}

/// Beyond 1 GiB lies the page that nobody may touch: not in any file, zeros after a restore, skipped when growing.
#[test]
fn a_database_beyond_one_gibibyte_comes_back() {
    const LOCK_PAGE: u32 = 16_385;
    let scratch = Scratch::new("lockpage");
    let path = scratch.join("live.db");
    let connection = observer_or_new(&path);
    connection
        .execute_batch(
            "PRAGMA page_size = 65536; PRAGMA journal_mode = off; PRAGMA synchronous = off; CREATE TABLE t(v);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 255)
             INSERT INTO t SELECT zeroblob(4200000) FROM n;
             PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0",
        )
        .unwrap();
    let mut follower = Follower::start(&path);
    assert!(follower.commit() < LOCK_PAGE, "{} pages", follower.commit());
    connection.execute_batch("INSERT INTO t VALUES (randomblob(9000000))").unwrap();
    assert_eq!(follower.follow(), 1);
    assert!(follower.commit() > LOCK_PAGE, "{} pages", follower.commit());
    connection.execute_batch("UPDATE t SET v = 'short' WHERE rowid = 256").unwrap();
    assert_eq!(follower.follow(), 1);

    let files = [follower.files[0].clone(), merge_all(&follower.files[1..])];
    let report = restore(&files, &scratch.join("restored.db"));
    assert_eq!((report.pages, report.checksum), (follower.commit(), follower.checksum()));
    let restored = std::fs::File::open(&report.path).unwrap();
    assert_eq!(restored.metadata().unwrap().len(), follower.image().len() as u64);
    let mut piece = vec![0; 1 << 20];
    for (at, expected) in follower.image().chunks(piece.len()).enumerate() {
        let piece = &mut piece[..expected.len()];
        restored.read_exact_at(piece, (at as u64) << 20).unwrap();
        assert!(piece == expected, "the restored file differs in megabyte {at}");
    }
    let copy = observer(&report.path);
    let short: String = copy.query_row("SELECT v FROM t WHERE rowid = 256", [], |row| row.get(0)).unwrap();
    assert_eq!(short, "short");
}
