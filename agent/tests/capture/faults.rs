//! Writers that die or fail at the worst instant, and wal-indexes they leave behind.

use crate::child::App;
use crate::hub::Place;
use walhub_agent::capture::{Absent, AttachError, Capture, CaptureError, Next};
use walhub_common::PageSize;
use walhub_common::wal::{WAL_HEADER_BYTES, WalHeader, WalReader};

/// Commit frames in the log file that verify: the published ones and the phantoms.
fn commits_in_file(place: &Place) -> usize {
    // The log is no file that SQLite locks, so another descriptor of it does no harm.
    let bytes = std::fs::read(place.db().with_file_name("app.db-wal")).unwrap();
    let header = WalHeader::parse(bytes.first_chunk::<WAL_HEADER_BYTES>().unwrap()).unwrap();
    let mut reader = WalReader::new(&header);
    let frames = bytes[WAL_HEADER_BYTES..].chunks_exact(reader.frame_bytes());
    frames.map_while(|frame| reader.push(frame).ok()).filter(|(_, frame)| frame.commit.is_some()).count()
}

#[test]
fn a_commit_that_was_never_published_is_never_shipped() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let mut phantoms = 0;
    for round in 0..20 {
        let mut victim = App::open(&place.db());
        victim.sql("PRAGMA synchronous=FULL");
        victim.sql("INSERT INTO t(a) VALUES ('before')");
        replica.drain(&mut capture);
        let published = commits_in_file(&place);
        victim.0.ask("die-in-sync");
        victim.0.tell("sql INSERT INTO t(a) VALUES ('phantom')");
        victim.0.expect_death();
        // The commit frame verifies, and is not a commit.
        phantoms += commits_in_file(&place) - published;
        assert_eq!(replica.drain(&mut capture), 0, "round {round}");
        app.insert();
        assert_eq!(replica.drain(&mut capture), 1);
        if round % 5 == 0 {
            replica.assert_is_live(&place.db());
        }
    }
    assert_eq!(phantoms, 20, "the test has not tested its point");
    assert_eq!(app.query("SELECT count(*) FROM t WHERE a = 'phantom'"), "0");
    assert_eq!(app.query("SELECT count(*) FROM t WHERE a = 'before'"), "20");
    replica.assert_is_live(&place.db());
}

#[test]
fn a_phantom_that_recovery_makes_real_is_shipped() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    replica.drain(&mut capture);
    capture.detach().unwrap();
    app.sql("PRAGMA synchronous=FULL");
    app.0.ask("die-in-sync");
    app.0.tell("sql INSERT INTO t(a) VALUES ('phantom')");
    app.0.expect_death();
    // Nobody has the database open any more: the attach itself recovers the log, and the frame counts.
    let mut capture = place.attach();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
    let mut app = App::open(&place.db());
    assert_eq!(app.query("SELECT count(*) FROM t WHERE a = 'phantom'"), "1");
}

#[test]
fn a_failed_sync_is_no_commit() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let mut victim = App::open(&place.db());
    victim.sql("PRAGMA synchronous=FULL; INSERT INTO t(a) VALUES ('before');");
    replica.drain(&mut capture);
    victim.0.ask("fail-in-sync");
    assert!(victim.try_sql("INSERT INTO t(a) VALUES ('failed')").is_err());
    assert_eq!(replica.drain(&mut capture), 0);
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_torn_wal_index_is_repaired_by_the_agent() {
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..10 {
        app.insert();
        replica.drain(&mut capture);
        let mut victim = App::open(&place.db());
        victim.sql("INSERT INTO t(a) VALUES ('before')");
        victim.0.ask("die-torn");
        victim.0.tell("sql INSERT INTO t(a) VALUES ('torn')");
        victim.0.expect_death();
        assert!(capture.header_moved());
        // The commit was complete in the log, so the recovery publishes it.
        assert_eq!(replica.drain(&mut capture), 2);
        app.insert();
        replica.drain(&mut capture);
    }
    replica.assert_is_live(&place.db());
    assert_eq!(app.query("SELECT count(*) FROM t WHERE a = 'torn'"), "10");
}

#[test]
fn a_writer_that_died_restarting_the_log_is_noticed_without_a_write_and_mended() {
    let place = Place::with_frames(1);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    replica.drain(&mut capture);
    assert!(!capture.header_moved() && !capture.is_torn());
    // Everything is backfilled: the next writer begins the log anew, and dies before it wrote a frame.
    let before = std::fs::metadata(place.db().with_file_name("app.db-wal")).unwrap().modified().unwrap();
    let mut victim = App::open(&place.db());
    victim.0.ask("die-torn");
    victim.0.tell("sql INSERT INTO t(a) VALUES ('torn')");
    victim.0.expect_death();
    let after = std::fs::metadata(place.db().with_file_name("app.db-wal")).unwrap().modified().unwrap();
    assert_eq!(before, after, "the log was written, and would have told the agent");
    assert!(capture.header_moved() && capture.is_torn());
    capture.mend().unwrap();
    assert!(!capture.is_torn());
    app.insert();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_published_frame_without_checksum_is_brought_in_by_sqlite_and_healed() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    replica.drain(&mut capture);
    for round in 0..3 {
        // As SQLite before 3.41 leaves it behind a ROLLBACK TO in a transaction that spilled.
        app.sql("INSERT INTO t(a) VALUES ('unverifiable')");
        let last_frame = capture.wal_bytes() - 4096 - 24;
        let log = std::fs::File::options().write(true).open(place.db().with_file_name("app.db-wal")).unwrap();
        log.write_all_at(&[0; 16], last_frame + 8).unwrap();
        app.insert_many(round * 5);
        let lost = capture.next(&mut replica);
        assert!(
            matches!(lost, Err(CaptureError::Broken(walhub_agent::capture::Broken::Chain(_)))),
            "{lost:?}"
        );
        assert_eq!(capture.standing(), walhub_agent::capture::Standing::Gap);
        app.insert();
        capture.heal(&mut replica).unwrap().unwrap();
        capture.acked(replica.position.unwrap().txid);
        replica.assert_is_live(&place.db());
        app.insert();
        assert_eq!(replica.drain(&mut capture), 1);
    }
    let rows = app.query("SELECT count(*) FROM t");
    replica.assert_is_live(&place.db());
    // Nobody is left who knows the log: its recovery loses nothing.
    app.0.kill();
    drop(capture);
    let mut app = App::open(&place.db());
    assert_eq!(app.query("SELECT count(*) FROM t"), rows);
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
}

#[test]
fn plain_kills_of_a_writer_under_full() {
    let place = Place::with_frames(60);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for round in 0..30_u64 {
        let mut victim = App::open(&place.db());
        victim.sql("PRAGMA synchronous=FULL");
        for _ in 0..8 {
            victim.0.tell("sql INSERT INTO t(a) VALUES (randomblob(900))");
        }
        victim.0.reply().unwrap().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(round * 137 % 3000));
        victim.0.kill();
        replica.drain(&mut capture);
        app.insert();
        replica.drain(&mut capture);
    }
    replica.assert_is_live(&place.db());
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
}

#[test]
fn a_database_replaced_by_rename_is_noticed_and_taken_up_anew() {
    let place = Place::with_frames(1);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let other = place.db().with_file_name("other.db");
    let mut maker = App::create(&other, "");
    maker.insert_many(10);
    maker.0.ask("close");
    app.insert();
    app.0.ask("close");
    while let Next::Sent(meta) = replica.step(&mut capture) {
        capture.acked(meta.range.max());
    }
    std::fs::rename(&other, place.db()).unwrap();
    assert!(matches!(capture.maintain(), Err(CaptureError::Moved)));
    capture.detach().unwrap();
    for file in ["app.db-wal", "app.db-shm"] {
        let _ = std::fs::remove_file(place.db().with_file_name(file));
    }
    let mut capture = place.attach();
    let healed = capture.heal(&mut replica).unwrap().unwrap();
    assert_eq!(healed.page_size, PageSize::new(4096).unwrap());
    replica.assert_is_live(&place.db());
}

#[test]
fn what_cannot_be_captured_says_why() {
    let place = Place::new();
    let absent = |what: &str| match Capture::attach(place.options()) {
        Err(AttachError::Absent(absent)) => absent,
        other => panic!("{what}: {:?}", other.map(|_| ())),
    };
    assert_eq!(absent("nothing"), Absent::Missing);
    std::fs::write(place.db(), b"").unwrap();
    assert_eq!(absent("empty"), Absent::Empty);
    std::fs::write(
        place.db(),
        "no database at all, but long enough to have a header of 100 bytes. ".repeat(9),
    )
    .unwrap();
    assert_eq!(absent("text"), Absent::NotADatabase);
    std::fs::write(place.db(), b"SQLite format 3\0").unwrap();
    assert_eq!(absent("cut off"), Absent::NotADatabase);
    std::fs::remove_file(place.db()).unwrap();
    std::fs::create_dir(place.db()).unwrap();
    assert_eq!(absent("folder"), Absent::NotADatabase);
    std::fs::remove_dir(place.db()).unwrap();
    let mut app = App::open(&place.db());
    app.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB)");
    assert!(matches!(absent("delete mode"), Absent::NotWal { .. }));
    app.sql("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; INSERT INTO t(a) VALUES (1);");
    assert_eq!(absent("exclusive"), Absent::Exclusive);
    app.0.ask("close");
    let mut app = App::open(&place.db());
    app.insert();
    let capture = place.attach();
    // A second agent, even in the same process.
    assert!(absent("taken").to_string().contains("this agent itself"), "{}", absent("taken"));
    drop(capture);
    place.attach().detach().unwrap();
}
