//! Applications with an older SQLite than ours, bugs of those versions included.

use crate::shell::{ENGINES, Engine, Shell};
use std::path::{Path, PathBuf};
use walhub_tests::scratch::Scratch;
use walhub_tests::{Cluster, Image, oracle};

const FILL: &str = "INSERT INTO t(a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
                    SELECT randomblob(900) FROM n";

/// A WAL database with some pages, made by an engine whose connection stays open.
fn app(engine: Engine, database: &Path) -> Shell {
    let mut app = Shell::open(engine, database);
    app.sql("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;");
    app.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB); CREATE INDEX t_by_a ON t(a);");
    app.sql(FILL);
    app
}

/// A hub and an agent that follows `data/app.db`, which exists.
fn follow(name: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::new(name);
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    (cluster, database)
}

/// The restored copy is the live database and sound.
#[track_caller]
fn comes_back(cluster: &Cluster, database: &Path, out: &str) {
    let (live, _) = cluster.await_buffered("node", "app.db", database);
    let copy = cluster.restore("node/app.db", out, &[]);
    live.assert_same(&Image::restored(&copy), out);
    assert_eq!(oracle::integrity(&copy), "ok");
}

#[test]
fn applications_on_three_sqlites_are_captured_together() {
    let (mut cluster, database) = follow("engines");
    let mut apps: Vec<Shell> = vec![app(Engine::System, &database)];
    apps.extend(ENGINES[1..].iter().map(|engine| Shell::open(*engine, &database)));
    cluster.start_hub();
    cluster.start_agent("node");
    for round in 0..4 {
        for turn in 0..60 {
            let count = apps.len();
            apps[turn % count].sql("INSERT INTO t(a) VALUES (randomblob(abs(random()) % 3000))");
            apps[(turn + 1) % count].sql("DELETE FROM t WHERE id % 97 = abs(random()) % 97");
        }
        comes_back(&cluster, &database, &format!("round-{round}.db"));
    }
}

/// A checkpointer with the WAL-reset bug has read the header of a log that is wholly backfilled, and is held there while
/// a writer restarts the log. What the application's database is afterwards, and whether the checkpoint got that far.
fn a_paused_checkpointer(engine: Engine, database: &Path, mut writer: Shell) -> (String, bool) {
    let mut checkpointer = Shell::open(engine, database);
    checkpointer.sql("PRAGMA mmap_size=0");
    checkpointer.query("SELECT count(*) FROM t");
    writer.sql("DELETE FROM t WHERE id % 3 = 0");
    writer.sql(FILL);
    writer.query("PRAGMA wal_checkpoint(PASSIVE)");
    checkpointer.tell("pause-in-checkpoint");
    assert_eq!(checkpointer.line(), "ok");
    checkpointer.tell("query PRAGMA wal_checkpoint(PASSIVE)");
    let answer = checkpointer.line();
    let paused = answer == "paused";
    assert!(paused || answer == "ok 1", "the checkpoint is paused or busy, not {answer:?}");
    // The log begins anew and stays shorter than before.
    writer.sql("UPDATE t SET a = randomblob(700) WHERE id % 5 = 0");
    if paused {
        checkpointer.tell("go on");
        assert!(checkpointer.line().starts_with("ok"));
    }
    writer.sql("DELETE FROM t WHERE id % 7 = 0");
    writer.query("PRAGMA wal_checkpoint(PASSIVE)");
    // Everybody leaves, the last one checkpoints.
    checkpointer.close();
    writer.close();
    let mut reader = Shell::open(Engine::New, database);
    (reader.query("PRAGMA integrity_check"), paused)
}

#[test]
fn a_paused_checkpointer_with_the_wal_reset_bug_ruins_a_database_without_the_agent() {
    let scratch = Scratch::new("wal-reset");
    // Without this the next test would prove nothing.
    let old = scratch.join("old.db");
    let writer = app(Engine::New, &old);
    let (found, paused) = a_paused_checkpointer(Engine::Old, &old, writer);
    assert!(paused && found != "ok", "paused: {paused}, integrity: {found}");
    let new = scratch.join("new.db");
    let writer = app(Engine::New, &new);
    assert_eq!(a_paused_checkpointer(Engine::New, &new, writer), ("ok".to_owned(), true));
}

#[test]
fn a_paused_checkpointer_with_the_wal_reset_bug_does_no_harm_beside_the_agent() {
    let (mut cluster, database) = follow("wal-reset");
    let writer = app(Engine::New, &database);
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "app.db", &database);
    // Busy at once: it never comes to read the header.
    assert_eq!(a_paused_checkpointer(Engine::Old, &database, writer), ("ok".to_owned(), false));
    comes_back(&cluster, &database, "out.db");
}

/// Frames of a log whose salts are not those of the log: SQLite before 3.41 commits such frames after ROLLBACK TO.
fn frames_without_checksum(database: &Path) -> usize {
    let log = std::fs::read(format!("{}-wal", database.display())).expect("log");
    log[32..].chunks_exact(24 + 4096).filter(|frame| frame[8..16] == [0; 8]).count()
}

#[test]
fn commits_that_an_old_sqlite_left_without_checksum_are_captured_and_kept() {
    let (mut cluster, database) = follow("rollback-to");
    let mut app = app(Engine::System, &database);
    cluster.agent_lines("node", "wal-limit: 16MiB\n");
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "app.db", &database);
    app.sql("PRAGMA cache_size=5; BEGIN IMMEDIATE; SAVEPOINT a; UPDATE t SET a = randomblob(900);");
    app.sql("UPDATE t SET a = randomblob(900) WHERE id > 200; ROLLBACK TO a; RELEASE a;");
    app.sql("INSERT INTO t(a) VALUES ('kept'); COMMIT;");
    let (major, minor) =
        Engine::System.version().split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("x.y.z");
    if major == "3" && minor.split('.').next().and_then(|minor| minor.parse::<u32>().ok()) < Some(41) {
        assert!(frames_without_checksum(&database) > 0, "this SQLite does not show the bug");
    }
    for _ in 0..20 {
        app.sql("INSERT INTO t(a) VALUES ('kept')");
    }
    comes_back(&cluster, &database, "out.db");
    // The worst end: nobody checkpoints, everybody dies, and the next one must recover the log.
    drop(app);
    cluster.kill_agent("node");
    let mut reader = Shell::open(Engine::New, &database);
    assert_eq!(reader.query("SELECT count(*) FROM t WHERE a = 'kept'"), "21");
    assert_eq!(reader.query("PRAGMA integrity_check"), "ok");
}
