//! What the application feels: its checkpoints are busy at once, its commits are not delayed, its WAL stays.

use crate::child::App;
use crate::hub::Place;
use std::time::{Duration, Instant};
use walhub_agent::capture::Maintained;

#[test]
fn the_applications_checkpoints_are_busy_at_once_and_stall_nobody() {
    let place = Place::with_frames(300);
    let mut app = App::create(&place.db(), "");
    let mut hostile = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    let mut slowest = Duration::ZERO;
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"].into_iter().cycle().take(60) {
        // A busy timeout of five seconds: with a read mark in its way this call would hold the writer lock that long.
        hostile.0.tell(&format!("query PRAGMA wal_checkpoint({mode})"));
        let begun = Instant::now();
        app.insert();
        slowest = slowest.max(begun.elapsed());
        let begun = Instant::now();
        assert_eq!(hostile.0.reply().unwrap().unwrap(), "1", "{mode} is busy");
        assert!(begun.elapsed() < Duration::from_secs(1), "{mode}");
        replica.drain(&mut capture);
    }
    assert!(slowest < Duration::from_secs(1), "a commit took {slowest:?}");
    replica.assert_is_live(&place.db());
}

/// A benchmark says how slow the slowest commit is; here only that nobody waits for the caller's five seconds.
#[test]
fn two_truncates_a_second_keep_no_writer_waiting() {
    let place = Place::with_frames(300);
    let mut app = App::create(&place.db(), "");
    let mut hostile = App::open(&place.db());
    // Whoever waits for a lock waits as long as this.
    hostile.sql("PRAGMA busy_timeout=60000");
    let (mut capture, mut replica) = place.follow();
    app.0.tell("pace 4000");
    for _ in 0..8 {
        hostile.0.tell("query PRAGMA wal_checkpoint(TRUNCATE)");
        let called = Instant::now();
        assert_eq!(hostile.0.reply().unwrap().unwrap(), "1", "busy");
        assert!(called.elapsed() < Duration::from_secs(30), "a TRUNCATE waited for {:?}", called.elapsed());
        while called.elapsed() < Duration::from_millis(500) {
            replica.drain(&mut capture);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let slowest = Duration::from_micros(app.0.reply().unwrap().unwrap().parse().unwrap());
    println!("slowest commit {slowest:?}");
    assert!(slowest < Duration::from_secs(30), "slowest commit {slowest:?}");
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn the_journal_mode_cannot_be_changed_while_attached() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    assert!(app.try_sql("PRAGMA journal_mode=DELETE").unwrap_err().contains("locked"));
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    capture.detach().unwrap();
    assert_eq!(app.query("PRAGMA journal_mode=DELETE"), "delete");
}

#[test]
fn a_reader_of_the_application_holds_the_backfill_back_and_nothing_else() {
    let place = Place::with_frames(10);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let mut reader = App::open(&place.db());
    reader.sql("BEGIN");
    let seen = reader.query("SELECT count(*) FROM t");
    for _ in 0..100 {
        app.insert();
        replica.drain(&mut capture);
    }
    assert_eq!(reader.query("SELECT count(*) FROM t"), seen);
    assert!(place.wal_bytes() > 400_000, "the log cannot restart under a reader");
    replica.assert_is_live(&place.db());
    reader.sql("COMMIT");
    for _ in 0..20 {
        app.insert_many(4);
        replica.drain(&mut capture);
    }
    assert!(capture.wal_bytes() < 400_000, "the log restarted: {}", capture.wal_bytes());
    replica.assert_is_live(&place.db());
}

#[test]
fn a_mark_is_held_until_the_acks_come() {
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(20);
    let sent = replica.step(&mut capture);
    assert!(matches!(sent, walhub_agent::capture::Next::Sent(_)));
    assert_eq!(capture.maintain().unwrap(), Maintained::Waiting);
    assert_eq!(capture.state(), walhub_agent::capture::State::Backfill);
    // More commits meanwhile, not acked: the backfill must stop before them.
    app.insert_many(5);
    replica.step(&mut capture);
    capture.acked(walhub_common::Txid::new(2).unwrap());
    assert_eq!(capture.maintain().unwrap(), Maintained::Backfilled { complete: false });
    assert_eq!(capture.state(), walhub_agent::capture::State::Tail);
    drop(capture);
    // Transaction 2 was saved before it was backfilled, 3 is still in the log.
    let mut capture = place.attach();
    assert_eq!(capture.position().unwrap().txid.get(), 2);
    assert!(matches!(capture.next(&mut crate::hub::Discard).unwrap(), walhub_agent::capture::Next::Sent(_)));
    assert_eq!(capture.position(), replica.position);
    app.insert();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}
