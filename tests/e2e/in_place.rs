//! A live database goes to and fro in its history while an application reads and writes it, and is never seen in between.

use rusqlite::{Connection, Statement};
use serde_json::Value;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::{Cluster, Image, oracle};

const READERS: usize = 4;
const READS: u64 = 10_000;
const MARKS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
    CREATE TABLE item(id INTEGER PRIMARY KEY, amount INTEGER, body BLOB);
    CREATE TABLE total(amount INTEGER, weighted INTEGER, rows INTEGER, mark INTEGER);
    INSERT INTO total VALUES (0, 0, 0, 0);";
/// Right only of a whole state: the totals are kept by the application with every transaction.
const WHOLE: &str = "
    SELECT (SELECT coalesce(sum(amount), 0) FROM item) = amount
       AND (SELECT coalesce(sum(amount * id), 0) FROM item) = weighted
       AND (SELECT count(*) FROM item) = rows
      FROM total";

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("the database");
    connection.busy_timeout(PATIENCE).expect("a busy timeout");
    connection
}

/// One transaction of the application: rows are added, changed and removed, and the totals follow.
fn write(app: &Connection, n: i64) {
    let sql = format!(
        "BEGIN IMMEDIATE;
         INSERT INTO item(amount, body) VALUES ({n} % 97, randomblob(200 + {n} % 800));
         UPDATE item SET amount = amount + 1, body = randomblob(300) WHERE id % 31 = {n} % 31;
         DELETE FROM item WHERE {n} % 10 = 0 AND id % 17 = {n} % 17;
         UPDATE total SET amount = (SELECT coalesce(sum(amount), 0) FROM item),
                          weighted = (SELECT coalesce(sum(amount * id), 0) FROM item),
                          rows = (SELECT count(*) FROM item);
         COMMIT"
    );
    app.execute_batch(&sql).expect("a transaction of the application");
}

/// Two looks in one transaction see one state, and that is a whole one. Statements are prepared once, for life.
fn read(app: &Connection, whole: &mut Statement<'_>, rows: &mut Statement<'_>) -> bool {
    app.execute_batch("BEGIN").expect("begin");
    let first: i64 = rows.query_row([], |row| row.get(0)).expect("rows");
    let is_whole: bool = whole.query_row([], |row| row.get(0)).expect("the totals");
    let second: i64 = rows.query_row([], |row| row.get(0)).expect("rows");
    app.execute_batch("COMMIT").expect("commit");
    is_whole && first == second
}

fn restore(cluster: &Cluster, path: &Path, txid: u64) -> Value {
    let text = path.display().to_string();
    let arguments = ["restore", &text, "--in-place", "--txid", &txid.to_string(), "--json"];
    cluster.agent_command("node", &arguments).json()
}

#[test]
fn no_reader_ever_sees_a_mix_and_every_connection_goes_on() {
    let mut cluster = Cluster::new("in-place");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    open(&path).execute_batch(SCHEMA).expect("the schema");
    cluster.agent("node", &[("app.db", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "app.db", &path);

    let (stop, reads, torn, commits) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let writing = Mutex::new(());
    let (marks, restores) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let app = open(&path);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let turn = writing.lock().expect("the writer's turn");
                n += 1;
                write(&app, n);
                commits.fetch_add(1, Ordering::Relaxed);
                drop(turn);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for _ in 0..READERS {
            scope.spawn(|| {
                let app = open(&path);
                let mut whole = app.prepare(WHOLE).expect("a statement");
                let mut rows = app.prepare("SELECT count(*) FROM item").expect("a statement");
                while !stop.load(Ordering::Relaxed) {
                    if !read(&app, &mut whole, &mut rows) {
                        torn.fetch_add(1, Ordering::Relaxed);
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = StopAll(&stop);
        let app = open(&path);
        let mut marks = Vec::new();
        for mark in 1..=MARKS {
            let wanted = commits.load(Ordering::Relaxed) + 40;
            eventually("the application writes", PATIENCE, || {
                ensure(commits.load(Ordering::Relaxed) >= wanted, || "it is slow".into())
            });
            // The schema differs from mark to mark.
            let turn = writing.lock().expect("the writer's turn");
            app.execute_batch(&format!(
                "BEGIN IMMEDIATE; UPDATE total SET mark = {mark}; CREATE TABLE of_mark_{mark}(a); COMMIT"
            ))
            .expect("a mark");
            let synced = cluster.agent_command("node", &["sync", "app.db", "--json"]).json();
            drop(turn);
            marks.push(synced["txid"].as_u64().expect("a transaction"));
        }
        let mut restores: u64 = 0;
        while restores < 12 || reads.load(Ordering::Relaxed) < READS {
            let mark = (restores as usize * 3 + 1) % MARKS;
            let done = restore(&cluster, &path, marks[mark]);
            assert_eq!(done["txid"].as_u64(), Some(marks[mark]));
            let (new, safety) =
                (done["new_txid"].as_u64().expect("new"), done["safety_txid"].as_u64().expect("safety"));
            assert_eq!(new, safety + 1, "what was there before is the restore point right before: {done}");
            let is: i64 = app.query_row("SELECT mark FROM total", [], |row| row.get(0)).expect("a mark");
            assert_eq!(is, mark as i64 + 1);
            let tables: i64 = app
                .query_row("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'of_mark_%'", [], |row| {
                    row.get(0)
                })
                .expect("tables");
            assert_eq!(tables, mark as i64 + 1);
            restores += 1;
        }
        (marks, restores)
    });
    let (reads, torn) = (reads.into_inner(), torn.into_inner());
    let commits = commits.into_inner();
    println!("{restores} restores, {reads} reads, {commits} commits, {torn} torn");
    assert_eq!(torn, 0, "of {reads} reads");
    assert!(reads >= READS);

    // The history goes on behind it, and holds every state in between.
    let (image, txid) = cluster.await_buffered("node", "app.db", &path);
    let database = oracle::observer(&path);
    let verdict: String =
        database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a verdict");
    assert_eq!(verdict, "ok");
    let newest = cluster.restore("node/app.db", "newest.db", &[]);
    image.assert_same(&Image::restored(&newest), "the newest state");
    let undone = restore(&cluster, &path, marks[0]);
    assert_eq!(undone["safety_txid"].as_u64(), Some(txid));
    let again = restore(&cluster, &path, marks[0]);
    assert_eq!(again["new_txid"], Value::Null, "it is there already: {again}");
    let back = restore(&cluster, &path, txid);
    assert!(back["fetched_bytes"].as_u64() > Some(0));
    let rows = |path: &Path| -> i64 {
        oracle::observer(path).query_row("SELECT count(*) FROM item", [], |row| row.get(0)).expect("rows")
    };
    assert_eq!(rows(&path), rows(&newest));
}

/// Ends the other threads also when this one panics.
struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_cannot_be_done_in_place_says_why_and_changes_nothing() {
    let mut cluster = Cluster::new("in-place-refused");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let app = open(&path);
    app.execute_batch("PRAGMA page_size=1024; VACUUM").expect("a page size");
    app.execute_batch(SCHEMA).expect("the schema");
    cluster.agent("node", &[("app.db", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, txid) = cluster.await_buffered("node", "app.db", &path);
    let text = path.display().to_string();
    let in_place = |cluster: &Cluster, more: &[&str]| {
        let mut arguments = vec!["restore", &text, "--in-place"];
        arguments.extend(more);
        cluster.agent_command("node", &arguments)
    };
    write(&app, 1);
    let (before, _) = cluster.await_buffered("node", "app.db", &path);
    for (more, words) in [
        (&["--txid", "99999"][..], "1869f"),
        (&["--timestamp", "2001-01-01T00:00:00Z"], "2001"),
        (&["--txid", &txid.to_string(), "--check", "SELECT rows FROM total = 7"], "SELECT rows FROM total"),
        (&["--txid", &txid.to_string(), "--check", "SELECT * FROM nowhere = 7"], "nowhere"),
    ] {
        let said = in_place(&cluster, more);
        assert_eq!(said.code, 1, "{more:?}: {}", said.stderr);
        assert!(said.stderr.contains(words), "{more:?}: {}", said.stderr);
        Image::live(&path).assert_same(&before, "a refused restore");
    }
    let wrong = in_place(&cluster, &["--force"]);
    assert_eq!(wrong.code, 2, "{}", wrong.stderr);
    // A check that holds.
    in_place(&cluster, &["--txid", &txid.to_string(), "--check", "SELECT rows FROM total = 0"]).success();
    let rows: i64 = app.query_row("SELECT rows FROM total", [], |row| row.get(0)).expect("rows");
    assert_eq!(rows, 0);
    // Another page size since.
    drop(app);
    cluster.stop_agent("node");
    let app = open(&path);
    app.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=4096; VACUUM; PRAGMA journal_mode=WAL")
        .expect("another page size");
    cluster.start_agent("node");
    let (before, _) = cluster.await_buffered("node", "app.db", &path);
    let said = in_place(&cluster, &["--txid", &txid.to_string()]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("1024") && said.stderr.contains("4096"), "{}", said.stderr);
    Image::live(&path).assert_same(&before, "a refused restore");
    // Nobody to ask.
    cluster.stop_agent("node");
    let said = in_place(&cluster, &[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("no agent runs"), "{}", said.stderr);
}

/// What may happen while a restore is under way.
fn disturb(cluster: &mut Cluster, what: u32) {
    match what {
        0 => cluster.kill_agent("node"),
        1 => cluster.kill_hub(),
        _ => {
            cluster.kill_agent("node");
            cluster.kill_hub();
        }
    }
}

#[test]
fn whatever_dies_meanwhile_the_database_is_whole_and_the_hub_agrees() {
    let mut cluster = Cluster::new("in-place-killed");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let app = open(&path);
    app.execute_batch(SCHEMA).expect("the schema");
    cluster.agent("node", &[("app.db", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let mut marks = Vec::new();
    for mark in 1..=2 {
        (0..150).for_each(|n| write(&app, n + mark * 1000));
        app.execute_batch(&format!("UPDATE total SET mark = {mark}")).expect("a mark");
        marks.push(cluster.await_buffered("node", "app.db", &path).1);
    }
    let config = cluster.agent_config("node");
    let mut done = 0;
    for round in 0..8_u32 {
        let mut command = std::process::Command::new(walhub_tests::binaries::program("walhub-agent"));
        let txid = marks[round as usize % 2].to_string();
        command.args(["restore", "app.db", "--in-place", "--txid", &txid, "--config"]).arg(&config);
        let log = cluster.path("logs/asking.log");
        let mut asking = walhub_tests::process::Process::spawn("a restore", command, &log);
        // From before it has begun until after it is done, in uneven steps.
        std::thread::sleep(Duration::from_millis(u64::from(round * round * 7 % 180)));
        disturb(&mut cluster, round % 3);
        // An agent whose hub is away waits for it, and its asker with it.
        if round % 3 != 1 {
            done += u32::from(asking.wait(Duration::from_secs(180)).success());
        }
        let whole: bool = app.query_row(WHOLE, [], |row| row.get(0)).expect("the totals");
        assert!(whole, "round {round}: a mix");
        let mark: i64 = app.query_row("SELECT mark FROM total", [], |row| row.get(0)).expect("a mark");
        assert!(mark == 1 || mark == 2, "round {round}: mark {mark}");
        if round % 3 != 0 {
            cluster.start_hub();
        }
        if round % 3 != 1 {
            cluster.start_agent("node");
        } else {
            // With the hub back it is done, or has failed and says so.
            done += u32::from(asking.wait(Duration::from_secs(180)).success());
        }
        write(&app, i64::from(round));
        cluster.await_buffered("node", "app.db", &path);
    }
    println!("{done} of 8 restores came to their end");
    assert_eq!(oracle::integrity(&path), "ok");
    let restored = cluster.restore("node/app.db", "end.db", &[]);
    Image::live(&path).assert_same(&Image::restored(&restored), "the end");
}
