//! BACKFILL and FENCE under load: the log stays bounded, and writers are kept out for moments only.

use crate::child::App;
use crate::hub::Place;
use std::time::{Duration, Instant};
use walhub_agent::capture::{Maintained, Next};

#[test]
fn writers_that_never_pause_do_not_grow_the_log_for_ever() {
    let place = Place::with_frames(100);
    let mut one = App::create(&place.db(), "");
    let mut two = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    // Both write as fast as they can.
    one.0.tell("torture seed=1 ms=3000 profile=tight");
    two.0.tell("torture seed=2 ms=3000 profile=tight");
    let begun = Instant::now();
    let (mut fences, mut kept_out, mut sent) = (0, Duration::ZERO, 0_u64);
    while begun.elapsed() < Duration::from_millis(3200) {
        while let Next::Sent(meta) = replica.step(&mut capture) {
            sent += 1;
            capture.acked(meta.range.max());
            if sent.is_multiple_of(200) {
                break;
            }
        }
        if let Maintained::Fenced { held, .. } = capture.maintain().unwrap() {
            fences += 1;
            kept_out = kept_out.max(held);
        }
    }
    one.0.reply().unwrap().unwrap();
    two.0.reply().unwrap().unwrap();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
    println!("{sent} transactions, {fences} fences, longest {kept_out:?}, wal {} bytes", place.wal_bytes());
    assert!(sent > 100, "{sent} transactions");
    assert!(place.wal_bytes() < 64 << 20, "the log has {} bytes", place.wal_bytes());
    assert!(kept_out < Duration::from_secs(1), "writers were kept out for {kept_out:?}");
}

#[test]
fn a_fence_hands_its_transactions_out_afterwards() {
    let place = Place::with_frames(10);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(60);
    let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
    // Committed, read by nobody yet; the backfill cannot be complete.
    assert_eq!(capture.maintain().unwrap(), Maintained::Waiting);
    app.insert();
    app.insert();
    capture.acked(meta.range.max());
    let Maintained::Fenced { complete, .. } = capture.maintain().unwrap() else { panic!("no fence") };
    assert!(complete);
    // The next writer restarts the log, and what the fence took is not lost.
    assert_eq!(capture.position(), Some(meta.position()));
    app.insert();
    assert!(capture.wal_bytes() < 60_000, "the log restarted: {}", capture.wal_bytes());
    assert!(capture.header_moved());
    assert_eq!(replica.drain(&mut capture), 3);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_crash_right_after_a_fence_costs_restore_points_at_most() {
    let place = Place::with_frames(10);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(60);
    let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
    assert_eq!(capture.maintain().unwrap(), Maintained::Waiting);
    app.insert();
    app.insert();
    capture.acked(meta.range.max());
    assert!(matches!(capture.maintain().unwrap(), Maintained::Fenced { complete: true, .. }));
    drop(capture);
    app.insert();
    let mut capture = place.attach();
    // Ahead of the hub, which never got them.
    assert_eq!(capture.position().unwrap().txid.get(), meta.range.max().get() + 2);
    capture.delta_since(replica.position, &mut replica).unwrap();
    replica.assert_is_live(&place.db());
}

#[test]
fn without_acks_the_mark_is_given_up_and_the_log_kept() {
    let place = Place::with_frames(5);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(30);
    replica.step(&mut capture);
    assert_eq!(capture.maintain().unwrap(), Maintained::Waiting);
    let begun = Instant::now();
    while capture.maintain().unwrap() == Maintained::Waiting {
        assert!(begun.elapsed() < Duration::from_secs(20), "a mark is held for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(capture.state(), walhub_agent::capture::State::Tail);
    app.insert_many(10);
    replica.step(&mut capture);
    drop(capture);
    // Nothing was backfilled, so everything can be replayed.
    let mut capture = place.attach();
    assert_eq!(capture.position().unwrap().txid.get(), 1);
    while capture.position() != replica.position {
        assert!(matches!(capture.next(&mut crate::hub::Discard).unwrap(), Next::Sent(_)));
    }
}

#[test]
fn an_offline_agent_squashes_and_lets_the_log_restart() {
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let mut given_up = 0;
    for _ in 0..200 {
        app.insert();
        given_up += capture.skip().unwrap();
        capture.maintain().unwrap();
    }
    given_up += capture.skip().unwrap();
    assert_eq!(given_up, 200);
    assert!(place.wal_bytes() < 1 << 20, "the log has {} bytes", place.wal_bytes());
    let meta = capture.delta_since(replica.position, &mut replica).unwrap();
    assert_eq!(meta.range.count(), 200);
    replica.assert_is_live(&place.db());
}
