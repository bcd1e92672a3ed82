//! Joined transactions: one segment for many, and everything else as if they had been read one by one.

use crate::child::App;
use crate::hub::{Place, Replica, pages};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use walhub_agent::capture::{Capture, CaptureError, Next, Standing};

impl Replica {
    /// Takes what is committed, joined as far as it may be; segments and transactions taken.
    fn take_joined(&mut self, capture: &mut Capture) -> (u64, u64) {
        let (mut segments, mut transactions) = (0, 0);
        while let Next::Sent(meta) = capture.next_joined(self).unwrap() {
            segments += 1;
            transactions += meta.range.count();
        }
        assert_eq!(capture.position(), self.position);
        (segments, transactions)
    }
}

#[test]
fn what_is_there_becomes_one_segment_with_each_page_once() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..40 {
        app.sql("INSERT INTO t(a) VALUES (randomblob(20))");
    }
    assert_eq!(replica.take_joined(&mut capture), (1, 40));
    let (meta, bytes) = replica.segments.last().unwrap();
    assert_eq!((meta.range.min().get(), meta.range.max().get()), (2, 41));
    assert!(pages(bytes).len() <= 4, "40 rows of 20 bytes lie on one page or two");
    replica.assert_is_live(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    assert_eq!(replica.position.unwrap().txid.get(), 42);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_failed_sink_gets_the_same_transactions_again() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    (0..10).for_each(|_| app.insert());
    let before = capture.position();
    replica.fail_at = Some(0);
    assert!(matches!(capture.next_joined(&mut replica), Err(CaptureError::Sink(_))));
    assert_eq!(capture.position(), before);
    app.insert();
    assert_eq!(replica.take_joined(&mut capture), (1, 11));
    replica.assert_is_live(&place.db());
}

#[test]
fn a_transaction_that_takes_pages_away_stays_alone_and_a_large_one_as_well() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "PRAGMA auto_vacuum=1");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(100);
    replica.drain(&mut capture);
    app.insert();
    app.insert();
    app.sql("DELETE FROM t WHERE id % 10 <> 0");
    app.insert_many(60);
    app.insert();
    // 6 MB: more than is held of one segment.
    app.insert_many(1500);
    app.insert();
    app.insert();
    replica.take_joined(&mut capture);
    let counts: Vec<u64> =
        replica.segments.iter().rev().take(5).map(|(meta, _)| meta.range.count()).collect();
    assert_eq!(counts, [2, 1, 2, 1, 2]);
    replica.assert_is_live(&place.db());
}

/// One statement, one transaction, of a kind that the seed chooses.
fn commit(app: &mut App, dice: &mut StdRng) {
    let some = dice.random_range(2..9);
    // Something is always changed: the first row stays.
    let touch = "UPDATE t SET a = randomblob(50) WHERE id = 1;";
    match dice.random_range(0..20) {
        0 => app.sql(&format!("BEGIN; {touch} DELETE FROM t WHERE id > 1 AND id % {some} <> 0; COMMIT")),
        1 => app
            .sql(&format!("BEGIN; {touch} UPDATE t SET a = randomblob(1500) WHERE id % {some} = 1; COMMIT")),
        2 => app.insert_many(some * 20),
        3 => app.sql("INSERT INTO t(a) VALUES (randomblob(90000))"),
        4 => {
            app.sql("BEGIN");
            app.insert_many(30);
            app.sql("ROLLBACK");
            app.insert();
        }
        5..10 => app.sql(touch),
        _ => app.insert(),
    }
}

#[test]
fn any_history_joined_at_any_place_is_the_live_file_with_every_commit_counted() {
    for seed in 0..6 {
        let mut dice = StdRng::seed_from_u64(seed);
        let place = Place::with_frames(dice.random_range(20..400));
        let size = 512 << dice.random_range(0..6);
        let vacuum = dice.random_range(0..2);
        let mut app =
            App::create(&place.db(), &format!("PRAGMA page_size={size}; PRAGMA auto_vacuum={vacuum}"));
        let (mut capture, mut replica) = place.follow();
        app.insert_many(5);
        let mut commits = 1;
        for _ in 0..30 {
            for _ in 0..dice.random_range(0..25) {
                commit(&mut app, &mut dice);
                commits += 1;
            }
            if dice.random_bool(0.2) {
                replica.drain(&mut capture);
            } else {
                replica.take_joined(&mut capture);
            }
            if dice.random_bool(0.5) {
                capture.acked(replica.position.unwrap().txid);
                capture.maintain().unwrap();
                replica.take_joined(&mut capture);
            }
        }
        replica.drain(&mut capture);
        assert_eq!(replica.position.unwrap().txid.get(), 1 + commits, "seed {seed}");
        replica.assert_is_live(&place.db());
    }
}

/// The hub stands at the end of a joined segment, and the agent's state knows nothing of it.
#[test]
fn after_a_crash_single_transactions_lead_through_the_ends_of_the_joined_ones() {
    for seed in 0..4 {
        let mut dice = StdRng::seed_from_u64(seed);
        let place = Place::new();
        let mut app = App::create(&place.db(), "PRAGMA auto_vacuum=1");
        let (mut capture, mut replica) = place.follow();
        let saved = replica.clone();
        app.insert_many(5);
        for _ in 0..10 {
            (0..dice.random_range(1..8)).for_each(|_| commit(&mut app, &mut dice));
            replica.take_joined(&mut capture);
        }
        drop(capture);
        let mut capture = place.attach();
        assert_eq!(capture.standing(), Standing::Aligned);
        let mut again = saved;
        let mut ends = Vec::new();
        while let Next::Sent(meta) = again.step(&mut capture) {
            assert_eq!(meta.range.count(), 1);
            ends.push(meta.position());
        }
        assert!(replica.segments.iter().skip(1).all(|(meta, _)| ends.contains(&meta.position())));
        assert_eq!(again.position, replica.position, "seed {seed}");
        again.assert_is_live(&place.db());
    }
}
