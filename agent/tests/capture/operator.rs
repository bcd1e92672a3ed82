//! What an operator can ask for: a checkpoint now, an empty log, the lock back for a while. Always beside writers.

use crate::child::App;
use crate::hub::{Place, Replica};
use std::time::{Duration, Instant};
use walhub_agent::capture::{
    Absent, AttachError, Capture, CaptureError, Maintained, Next, NoCheckpoint, Standing, State,
};

/// Reads everything that is committed, acks it.
fn read_all(capture: &mut Capture, replica: &mut Replica) {
    while let Next::Sent(meta) = replica.step(capture) {
        capture.acked(meta.range.max());
    }
}

#[test]
fn a_checkpoint_brings_everything_into_the_file() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..10 {
        app.insert();
    }
    // Nothing was read before: it is taken under the lock, and handed out afterwards.
    let done = capture.checkpoint(false).unwrap().unwrap();
    assert!(done.complete && !done.truncated, "{done:?}");
    assert!(done.held < Duration::from_secs(1), "writers were kept out for {:?}", done.held);
    assert!(capture.header_moved());
    assert_eq!(replica.drain(&mut capture), 10);
    replica.assert_is_live(&place.db());
    assert_eq!(std::fs::read(place.db()).unwrap(), replica.image, "the file alone is the database");
    app.insert();
    assert!(capture.wal_bytes() < 60_000, "the log began anew: {}", capture.wal_bytes());
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_log_is_shrunk_again_and_again_under_a_writer_without_losing_anything() {
    let place = Place::with_frames(200);
    let mut app = App::create(&place.db(), "");
    let mut other = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    app.0.tell("pace 2000");
    let begun = Instant::now();
    let (mut truncated, mut refused, mut longest) = (0, 0, Duration::ZERO);
    while begun.elapsed() < Duration::from_millis(2100) {
        read_all(&mut capture, &mut replica);
        match capture.checkpoint(true).unwrap() {
            Ok(done) => {
                truncated += u32::from(done.truncated);
                longest = longest.max(done.held);
            }
            Err(NoCheckpoint::WriterBusy | NoCheckpoint::Behind(_)) => refused += 1,
            Err(e) => panic!("{e}"),
        }
        capture.maintain().unwrap();
    }
    app.0.reply().unwrap().unwrap();
    read_all(&mut capture, &mut replica);
    println!("{truncated} truncations, {refused} refused, writers kept out for {longest:?} at most");
    assert!(truncated > 5, "{truncated} truncations");
    other.insert();
    read_all(&mut capture, &mut replica);
    let done = capture.checkpoint(true).unwrap().unwrap();
    assert!(done.complete && done.truncated, "{done:?}");
    assert_eq!(place.wal_bytes(), 0);
    replica.assert_is_live(&place.db());
    // An empty log is shrunk as well, and followed afterwards.
    assert!(capture.checkpoint(true).unwrap().unwrap().complete);
    assert!(capture.checkpoint(false).unwrap().unwrap().complete);
    other.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
    assert_eq!(other.query("PRAGMA integrity_check"), "ok");
}

#[test]
fn a_reader_keeps_the_log_from_shrinking_and_nothing_breaks() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    let mut reader = App::open(&place.db());
    reader.sql("BEGIN");
    let seen = reader.query("SELECT count(*) FROM t");
    app.insert();
    replica.drain(&mut capture);
    for shrink in [true, false] {
        let done = capture.checkpoint(shrink).unwrap().unwrap();
        assert!(!done.complete && !done.truncated, "{done:?}");
    }
    app.insert();
    assert_eq!(reader.query("SELECT count(*) FROM t"), seen);
    reader.sql("COMMIT");
    replica.drain(&mut capture);
    assert!(capture.checkpoint(true).unwrap().unwrap().truncated);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_transaction_that_stays_open_is_not_waited_for_long() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.sql("BEGIN IMMEDIATE; INSERT INTO t(a) VALUES (1)");
    let begun = Instant::now();
    assert_eq!(capture.checkpoint(false).unwrap(), Err(NoCheckpoint::WriterBusy));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    app.sql("COMMIT");
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn while_the_lock_is_given_back_the_application_checkpoints_itself() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "1", "busy while followed");
    capture.yield_lock().unwrap();
    assert_eq!(capture.state(), State::Yield);
    assert!(matches!(capture.next(&mut replica), Err(CaptureError::Yielded)));
    assert!(matches!(capture.checkpoint(true), Err(CaptureError::Yielded)));
    assert_eq!(capture.maintain().unwrap(), Maintained::Nothing);
    app.insert();
    assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "0");
    assert_eq!(place.wal_bytes(), 0);
    // SHARED stays: nobody can take the WAL away, and a last close does not either.
    assert!(app.try_sql("PRAGMA journal_mode=DELETE").unwrap_err().contains("locked"));
    app.insert();
    capture.reclaim().unwrap();
    assert_eq!(capture.standing(), Standing::Gap);
    assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "1");
    let healed = capture.heal(&mut replica).unwrap().unwrap();
    capture.acked(healed.range.max());
    replica.assert_is_live(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_log_that_only_grew_meanwhile_is_read_on_without_a_gap() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    // Sent, not acked: the acks come during the pause.
    let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
    capture.yield_lock().unwrap();
    capture.acked(meta.range.max());
    for _ in 0..5 {
        app.insert();
    }
    assert_eq!(app.query("PRAGMA wal_checkpoint(PASSIVE)"), "0");
    capture.reclaim().unwrap();
    assert_eq!(capture.standing(), Standing::Aligned);
    assert_eq!(replica.drain(&mut capture), 5);
    replica.assert_is_live(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_lock_that_another_took_meanwhile_is_not_taken_back() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    capture.yield_lock().unwrap();
    let mut other = crate::agents::Agent::start(&place);
    other.sync();
    assert!(matches!(capture.reclaim(), Err(AttachError::Absent(Absent::TakenByAnotherAgent(_)))));
    other.0.kill();
    capture.reclaim().unwrap();
    app.insert();
    if capture.standing() == Standing::Gap {
        capture.heal(&mut replica).unwrap();
    }
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}
