//! TAIL: what the application commits is what the replica gets, and nothing else.

use crate::child::App;
use crate::hub::{Place, Replica};
use walhub_agent::capture::{CaptureError, Next, Standing, State};

#[test]
fn every_small_commit_is_one_transaction() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    replica.assert_is_live(&place.db());
    assert_eq!((capture.standing(), capture.state()), (Standing::Aligned, State::Tail));
    for i in 0..50 {
        assert_eq!(replica.step(&mut capture), Next::UpToDate);
        assert!(!capture.header_moved());
        app.insert();
        assert!(capture.header_moved());
        let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
        assert_eq!((meta.range.min().get(), meta.range.count()), (i + 2, 1));
        if i % 10 == 0 {
            replica.assert_is_live(&place.db());
        }
    }
    replica.assert_is_live(&place.db());
    capture.detach().unwrap();
}

#[test]
fn many_commits_between_two_looks_stay_apart() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..40 {
        app.insert();
    }
    assert_eq!(replica.drain(&mut capture), 40);
    replica.assert_is_live(&place.db());
}

#[test]
fn spilled_rolled_back_and_nested_transactions() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.sql("PRAGMA cache_size=12");
    // Spills uncommitted frames, overwrites some in place, rolls a savepoint back, commits.
    app.sql("BEGIN");
    app.insert_many(200);
    assert_eq!(replica.drain(&mut capture), 0, "nothing is committed");
    app.sql("SAVEPOINT s; UPDATE t SET a = randomblob(2000) WHERE id % 3 = 0;");
    assert_eq!(replica.drain(&mut capture), 0);
    app.sql("ROLLBACK TO s; UPDATE t SET a = randomblob(1500) WHERE id % 5 = 0; RELEASE s; COMMIT;");
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
    // A large rollback leaves frames in the file that never were committed.
    app.sql("BEGIN; DELETE FROM t;");
    app.insert_many(300);
    app.sql("ROLLBACK");
    assert_eq!(replica.drain(&mut capture), 0);
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn vacuum_shrinks_and_grows_again() {
    for auto_vacuum in [0, 1, 2] {
        let place = Place::new();
        let mut app = App::create(&place.db(), &format!("PRAGMA auto_vacuum={auto_vacuum}"));
        let (mut capture, mut replica) = place.follow();
        app.insert_many(300);
        replica.drain(&mut capture);
        app.sql("DELETE FROM t WHERE id % 4 <> 0");
        app.sql("PRAGMA incremental_vacuum(20)");
        replica.drain(&mut capture);
        replica.assert_is_live(&place.db());
        app.sql("VACUUM");
        replica.drain(&mut capture);
        replica.assert_is_live(&place.db());
        app.sql("CREATE TABLE u AS SELECT * FROM t; DROP TABLE t; ALTER TABLE u RENAME TO t;");
        app.sql("INSERT INTO t(a) VALUES (randomblob(90000))");
        replica.drain(&mut capture);
        replica.assert_is_live(&place.db());
    }
}

#[test]
fn every_page_size_is_followed() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let place = Place::with_frames(40);
        let mut app = App::create(&place.db(), &format!("PRAGMA page_size={page_size}"));
        let (mut capture, mut replica) = place.follow();
        assert_eq!(replica.page_size, page_size);
        for _ in 0..3 {
            app.insert_many(60);
            app.sql("DELETE FROM t WHERE id % 2 = 0");
            replica.drain(&mut capture);
        }
        replica.assert_is_live(&place.db());
    }
}

#[test]
fn a_transaction_larger_than_memory_is_streamed() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    // 12 MB in one transaction; pages written more than once.
    app.sql("PRAGMA cache_size=20; BEGIN");
    app.insert_many(3000);
    app.sql("UPDATE t SET a = randomblob(3100) WHERE id % 2 = 0; COMMIT");
    assert_eq!(replica.drain(&mut capture), 1);
    assert!(replica.segments.last().unwrap().1.len() > 8 << 20);
    replica.assert_is_live(&place.db());
}

#[test]
fn an_error_of_the_sink_changes_nothing() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut capture = place.attach();
    let mut replica = Replica::failing_at(0);
    assert!(matches!(capture.snapshot(&mut replica), Err(CaptureError::Sink(_))));
    assert_eq!((capture.standing(), capture.position()), (Standing::Fresh, None));
    capture.snapshot(&mut replica).unwrap();
    app.insert();
    let before = capture.position();
    replica.fail_at = Some(0);
    assert!(matches!(capture.next(&mut replica), Err(CaptureError::Sink(_))));
    assert_eq!((capture.standing(), capture.position()), (Standing::Aligned, before));
    assert_eq!(replica.drain(&mut capture), 1);
    // In the middle of a large one.
    app.insert_many(2000);
    replica.fail_at = Some(3);
    assert!(matches!(capture.next(&mut replica), Err(CaptureError::Sink(_))));
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn the_log_restarts_while_it_is_followed() {
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..400 {
        app.insert();
        assert_eq!(replica.drain(&mut capture), 1);
    }
    replica.assert_is_live(&place.db());
    // 400 transactions of 2 frames and more: without restarts this would be 3 MB.
    assert!(place.wal_bytes() < 1 << 20, "the log has {} bytes", place.wal_bytes());
}

#[test]
fn a_wal_that_is_empty_and_a_database_of_one_page() {
    let place = Place::new();
    let mut app = App::open(&place.db());
    app.sql("PRAGMA journal_mode=WAL");
    let (mut capture, mut replica) = place.follow();
    assert_eq!(replica.image.len(), 4096);
    replica.assert_is_live(&place.db());
    app.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB)");
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn two_writers_at_once() {
    let place = Place::with_frames(100);
    let mut one = App::create(&place.db(), "");
    let mut two = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    for _ in 0..60 {
        one.0.tell("sql INSERT INTO t(a) VALUES (randomblob(700))");
        two.0.tell("sql UPDATE t SET a = randomblob(300) WHERE id = (SELECT max(id) FROM t)");
        replica.drain(&mut capture);
        one.0.reply().unwrap().unwrap();
        two.0.reply().unwrap().unwrap();
    }
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn another_sqlite_writes() {
    const WRITER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
for i in range(300):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t(a) VALUES (randomblob(?))", (i * 7,))
    db.execute("DELETE FROM t WHERE id = ?", (i // 2,))
    db.execute("ROLLBACK" if i % 9 == 8 else "COMMIT")
    if i % 50 == 0:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
"#;
    let place = Place::with_frames(100);
    App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let mut python =
        std::process::Command::new("python3").args(["-c", WRITER]).arg(place.db()).spawn().unwrap();
    let ended = loop {
        replica.drain(&mut capture);
        if let Some(ended) = python.try_wait().unwrap() {
            break ended;
        }
    };
    assert!(ended.success());
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_file_system_that_needs_padded_commits() {
    let place = Place::new();
    App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    // Without powersafe overwrite a commit under FULL repeats its last frame up to the next sector.
    let mut app = App::open(std::path::Path::new(&format!("file:{}?psow=0", place.db().display())));
    app.sql("PRAGMA synchronous=FULL");
    for _ in 0..20 {
        app.insert();
        replica.drain(&mut capture);
    }
    assert!(replica.segments.len() > 21, "no commit was padded");
    replica.assert_is_live(&place.db());
}

#[test]
fn the_whole_content_replaced_by_the_backup_api() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(100);
    let (mut capture, mut replica) = place.follow();
    let other = place.db().with_file_name("other.db");
    let mut source = App::create(&other, "");
    source.insert_many(40);
    app.0.ask(&format!("copy-from {}", other.display()));
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}
