//! BACKFILL and FENCE under load: the log stays bounded, and writers are kept out for moments only.

use crate::child::App;
use crate::hub::{Discard, Place, Replica};
use std::time::{Duration, Instant};
use walhub_agent::capture::{Capture, Maintained, Next, Options};

/// What the agent does with one database under load, as `database::follower` and `database::wal_limit` do it. Once restore
/// points were given up the hub gets one delta, at the end.
fn follow_slice(capture: &mut Capture, replica: &mut Replica, limit: u64) -> Maintained {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(10) {
        let behind = capture.position() != replica.position;
        let next = if behind { capture.next(&mut Discard).unwrap() } else { replica.step(capture) };
        let Next::Sent(meta) = next else { break };
        capture.acked(meta.range.max());
    }
    let done = capture.maintain().unwrap();
    if capture.wal_bytes() > limit - limit / 4 && capture.held_back().is_none() {
        capture.make_room(true).unwrap();
    }
    done
}

/// The hub gets what it lacks. Says how many restore points it never got.
fn catch_up(capture: &mut Capture, replica: &mut Replica) -> u64 {
    while !matches!(capture.next(&mut Discard).unwrap(), Next::UpToDate) {}
    if capture.position() == replica.position {
        return 0;
    }
    let meta = capture.delta_since(replica.position, replica).unwrap();
    capture.acked(meta.range.max());
    meta.range.count() - 1
}

/// `WALHUB_LIMIT_SECONDS` makes it longer.
#[test]
fn two_writers_that_never_pause_cannot_push_the_log_past_its_limit() {
    const LIMIT: u64 = 128 << 20;
    let seconds = std::env::var("WALHUB_LIMIT_SECONDS").map_or(4, |text| text.parse().unwrap());
    let place = Place::with_frames(1000);
    let mut one = App::create(&place.db(), "");
    let mut two = App::open(&place.db());
    let options = Options { wal_limit_bytes: LIMIT, ..place.options() };
    let mut capture = Capture::attach(options).unwrap();
    let mut replica = Replica::default();
    replica.forget = true;
    let meta = capture.snapshot(&mut replica).unwrap();
    capture.acked(meta.range.max());
    one.0.tell(&format!("flood {}", seconds * 1000));
    two.0.tell(&format!("flood {}", seconds * 1000));
    let begun = Instant::now();
    let (mut fences, mut kept_out, mut largest) = (0, Duration::ZERO, 0);
    while begun.elapsed() < Duration::from_millis(seconds * 1000 + 200) {
        if let Maintained::Fenced { held, .. } = follow_slice(&mut capture, &mut replica, LIMIT) {
            fences += 1;
            kept_out = kept_out.max(held);
        }
        largest = largest.max(place.wal_bytes());
    }
    let commits: u64 =
        [&mut one, &mut two].map(|w| w.0.reply().unwrap().unwrap().parse::<u64>().unwrap()).iter().sum();
    let lost = catch_up(&mut capture, &mut replica);
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
    let txids = capture.position().unwrap().txid.get();
    println!(
        "{commits} commits in {seconds} s, WAL {} MiB at most, {fences} fences, writers kept out for {kept_out:?} at most, \
         {lost} restore points given up",
        largest >> 20
    );
    assert!(largest <= LIMIT, "the log had {largest} bytes");
    assert!(txids > commits, "every commit has its TXID: {txids} of {commits}");
    assert!(kept_out < Duration::from_secs(20), "writers were kept out for {kept_out:?}");
}

#[test]
fn a_reader_that_never_lets_go_is_named_and_fences_become_rare() {
    const LIMIT: u64 = 4 << 20;
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    let mut capture = Capture::attach(Options { wal_limit_bytes: LIMIT, ..place.options() }).unwrap();
    let mut replica = Replica::default();
    let meta = capture.snapshot(&mut replica).unwrap();
    capture.acked(meta.range.max());
    let mut reader = App::open(&place.db());
    app.insert();
    reader.sql("BEGIN");
    reader.query("SELECT count(*) FROM t");
    let begun = Instant::now();
    let mut fences = 0;
    while begun.elapsed() < Duration::from_secs(6) || capture.wal_bytes() < LIMIT {
        app.insert_many(8);
        let done = follow_slice(&mut capture, &mut replica, LIMIT);
        fences += u32::from(matches!(done, Maintained::Fenced { .. }));
        assert!(begun.elapsed() < Duration::from_secs(60), "{} bytes after a minute", capture.wal_bytes());
    }
    assert!(capture.held_back().is_some_and(|since| since >= Duration::from_secs(5)));
    let by = capture.held_by();
    assert!(by.holders.to_string().contains(&format!("process {}", reader.0.id())), "{}", by.holders);
    assert!(!by.litestream);
    // Far fewer than the log had room for: 4 MiB are 1,000 frames, so fifty times twenty.
    assert!((1..=12).contains(&fences), "{fences} fences");
    reader.sql("COMMIT");
    let begun = Instant::now();
    while capture.held_back().is_some() || capture.wal_bytes() > LIMIT / 2 {
        app.insert_many(8);
        follow_slice(&mut capture, &mut replica, LIMIT);
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the log does not begin anew: {} bytes",
            capture.wal_bytes()
        );
    }
    catch_up(&mut capture, &mut replica);
    replica.assert_is_live(&place.db());
}

/// A capture with a log limit of its own, after its first snapshot.
fn follow_limited(place: &Place, wal_limit_bytes: u64) -> (Capture, Replica) {
    let mut capture = Capture::attach(Options { wal_limit_bytes, ..place.options() }).unwrap();
    let mut replica = Replica::default();
    let meta = capture.snapshot(&mut replica).unwrap();
    capture.acked(meta.range.max());
    (capture, replica)
}

/// A copy in a stream makes nothing shorter, so most of them are left out; the log is synced as often as ever.
#[test]
fn in_a_stream_copies_become_rare_and_syncs_do_not() {
    const LIMIT: u64 = 64 << 20;
    const FRAMES: u32 = 50;
    let place = Place::with_frames(FRAMES);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = follow_limited(&place, LIMIT);
    let frames = |bytes: u64| (bytes / 4120) as u32;
    let (mut copies, mut done, mut left) = (Vec::new(), 0, 0);
    loop {
        app.insert_many(8);
        let mut sent = None;
        while let Next::Sent(meta) = replica.step(&mut capture) {
            sent = Some(meta.range.max());
        }
        if capture.wal_bytes() > LIMIT / 4 {
            // From here on acks are not waited for.
            break;
        }
        let mut said = capture.maintain().unwrap();
        if said == Maintained::Waiting {
            // The stream goes on while acks are on their way.
            app.insert_many(8);
            capture.acked(sent.unwrap());
            said = capture.maintain().unwrap();
        }
        capture.acked(sent.unwrap());
        let end = frames(capture.wal_bytes());
        match said {
            Maintained::Backfilled { complete } => {
                assert!(!complete);
                copies.push(end - left);
                (done, left) = (end, end);
            }
            Maintained::Synced => done = end,
            Maintained::Nothing => {}
            other => panic!("{other:?} after {end} frames"),
        }
        assert!(end - done <= 3 * FRAMES, "{} frames were neither copied nor synced", end - done);
    }
    let rare = copies.iter().filter(|frames| **frames >= 7 * FRAMES).count();
    assert!(rare >= 4, "copies after {copies:?} frames");
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

/// A log that was copied to its end and went on all the same, because somebody was still in it, comes under its limit when
/// restore points are given up: nothing but [`Capture::make_room`] is called while the hub is away and nothing is spooled.
#[test]
fn a_log_that_went_on_after_it_was_copied_is_copied_again() {
    const LIMIT: u64 = 1 << 20;
    let place = Place::with_frames(50);
    let mut app = App::create(&place.db(), "");
    let (mut capture, _) = follow_limited(&place, LIMIT);
    for _ in 0..3 {
        while capture.wal_bytes() <= LIMIT / 2 {
            app.insert_many(8);
        }
        let mut reader = App::open(&place.db());
        reader.sql("BEGIN");
        reader.query("SELECT count(*) FROM t");
        capture.make_room(false).unwrap();
        let copied = capture.wal_bytes();
        app.insert();
        assert!(capture.wal_bytes() > copied, "a reader is in the log, it cannot begin anew");
        reader.sql("COMMIT");
        capture.make_room(false).unwrap();
        app.insert();
        assert!(capture.wal_bytes() < LIMIT / 2, "{} bytes, it did not begin anew", capture.wal_bytes());
        // As the agent does: the place in the new log.
        while !matches!(capture.next(&mut Discard).unwrap(), Next::UpToDate) {}
    }
}

/// Whatever writers do, below the half of the limit nobody is kept out: programs without a busy timeout would fail.
#[test]
fn below_the_half_of_the_limit_writers_never_meet_a_fence() {
    const LIMIT: u64 = 64 << 20;
    let place = Place::with_frames(50);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = follow_limited(&place, LIMIT);
    let mut largest = 0;
    // The agent looks in the middle of each burst and is given no pause.
    for _ in 0..400 {
        app.insert_many(4);
        let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
        capture.acked(meta.range.max());
        if capture.maintain().unwrap() == Maintained::Waiting {
            app.insert();
        }
        assert!(!matches!(capture.maintain().unwrap(), Maintained::Fenced { .. }), "after {largest} bytes");
        app.insert();
        replica.step(&mut capture);
        largest = largest.max(capture.wal_bytes());
        assert!(largest < LIMIT / 2);
    }
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

/// A burst leaves a long log that no further frames are due for; the pause after it is used.
#[test]
fn a_long_log_is_brought_to_its_end_when_writers_rest() {
    let place = Place::with_frames(50);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = follow_limited(&place, 64 << 20);
    let mut ack = |capture: &mut Capture| {
        while let Next::Sent(meta) = replica.step(capture) {
            capture.acked(meta.range.max());
        }
    };
    app.insert_many(400);
    ack(&mut capture);
    // Copied but for what is committed meanwhile, which is too little for another copy.
    app.insert();
    assert_eq!(capture.maintain().unwrap(), Maintained::Waiting);
    app.insert();
    ack(&mut capture);
    app.insert();
    assert_eq!(capture.maintain().unwrap(), Maintained::Backfilled { complete: false });
    ack(&mut capture);
    assert!(!capture.rests(), "the last commit is a moment ago");
    assert_eq!(capture.maintain().unwrap(), Maintained::Nothing);
    let begun = Instant::now();
    while !capture.rests() {
        assert!(begun.elapsed() < Duration::from_secs(10), "a pause is never used");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(capture.maintain().unwrap(), Maintained::Backfilled { complete: true });
    assert!(!capture.rests());
    let before = capture.wal_bytes();
    app.insert();
    assert!(capture.wal_bytes() < before / 10, "the log began anew");
    ack(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_fence_hands_its_transactions_out_afterwards() {
    let place = Place::with_frames(10);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = follow_limited(&place, 256 << 10);
    app.insert_many(60);
    let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
    // Committed, read by nobody yet.
    app.insert();
    app.insert();
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
    let (mut capture, mut replica) = follow_limited(&place, 256 << 10);
    app.insert_many(60);
    let Next::Sent(meta) = replica.step(&mut capture) else { panic!("nothing sent") };
    app.insert();
    app.insert();
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
