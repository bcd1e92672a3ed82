//! ALIGN: whatever happened while nobody looked, the replica ends up equal, and only the difference travels.

use crate::child::App;
use crate::hub::{Discard, Place, Replica, pages};
use std::fs;
use walhub_agent::capture::{Capture, CaptureError, Next, Standing};
use walhub_common::Txid;

/// Replays what the hub has, as a restarted agent does; every TXID must come with the checksum it had.
fn replay(capture: &mut Capture, replica: &Replica) {
    while capture.position() != replica.position {
        let next = capture.next(&mut Discard).unwrap();
        let Next::Sent(meta) = next else { panic!("{next:?}") };
        let known = replica.segments.iter().find(|(m, _)| m.range == meta.range).map(|(m, _)| m);
        let known = known.expect("the hub has no such transaction");
        assert_eq!((known.pre, known.post, known.commit), (meta.pre, meta.post, meta.commit));
    }
}

/// Gap, healed; says how many pages travelled.
fn heal(place: &Place, replica: &mut Replica) -> (Capture, usize) {
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Gap);
    assert_eq!(capture.position(), replica.position);
    let before = replica.segments.len();
    let healed = capture.heal(replica).unwrap();
    assert_eq!(healed.map(|m| m.position()).or(replica.position), capture.position());
    assert_eq!(capture.standing(), Standing::Aligned);
    replica.assert_is_live(&place.db());
    let pages = replica.segments[before..].iter().map(|(_, bytes)| pages(bytes).len()).sum();
    (capture, pages)
}

#[test]
fn a_restart_with_the_place_still_there_replays_the_same() {
    let place = Place::with_frames(30);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..70 {
        app.insert();
        replica.drain(&mut capture);
    }
    // Nothing of this is saved: acks never came.
    for _ in 0..9 {
        app.insert();
        replica.step(&mut capture);
    }
    drop(capture);
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Aligned);
    assert!(capture.position().unwrap().txid < replica.position.unwrap().txid);
    replay(&mut capture, &replica);
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn frames_appended_while_the_agent_was_away_are_replayed_one_by_one() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    replica.drain(&mut capture);
    capture.detach().unwrap();
    for _ in 0..5 {
        app.insert();
    }
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Aligned);
    assert_eq!(replica.drain(&mut capture), 5);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_checkpoint_by_the_application_before_the_attach_does_not_hide_frames() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert();
    replica.drain(&mut capture);
    drop(capture);
    // Backfilled to the end, but not yet restarted: the frames are still readable.
    for _ in 0..4 {
        app.insert();
    }
    app.sql("PRAGMA wal_checkpoint(PASSIVE)");
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Aligned);
    replay(&mut capture, &replica);
    let Next::Sent(_) = replica.step(&mut capture) else { panic!("nothing sent") };
    // Now the application restarts the log under the frames that are left.
    app.insert();
    assert_eq!(capture.next(&mut replica).unwrap(), Next::Lost(Standing::Gap));
    let healed = capture.heal(&mut replica).unwrap().unwrap();
    assert_eq!(healed.range.count(), 1);
    replica.assert_is_live(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

/// What an application can do while no agent is there.
const OFFLINE: &[(&str, &str)] = &[
    (
        "checkpoint and restart",
        "INSERT INTO t(a) VALUES (1); PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET a = 7 WHERE id = 3;",
    ),
    (
        "journal mode away and back",
        "PRAGMA journal_mode=DELETE; UPDATE t SET a = 8 WHERE id = 2; PRAGMA journal_mode=WAL;",
    ),
    (
        "vacuum",
        "DELETE FROM t WHERE id % 3 = 0; VACUUM; PRAGMA wal_checkpoint(RESTART); INSERT INTO t(a) VALUES (2);",
    ),
    ("grown", "INSERT INTO t(a) SELECT randomblob(5000) FROM t; PRAGMA wal_checkpoint(TRUNCATE);"),
];

#[test]
fn gaps_are_healed_by_the_pages_that_differ() {
    for (what, sql) in OFFLINE {
        let place = Place::new();
        let mut app = App::create(&place.db(), "");
        app.insert_many(200);
        let (capture, mut replica) = place.follow();
        drop(capture);
        app.sql(sql);
        let (mut capture, pages) = heal(&place, &mut replica);
        assert!(pages > 0, "{what}");
        app.insert();
        assert_eq!(replica.drain(&mut capture), 1, "{what}");
        replica.assert_is_live(&place.db());
    }
}

#[test]
fn a_small_change_in_a_gap_sends_a_few_pages() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(500);
    let (capture, mut replica) = place.follow();
    drop(capture);
    app.sql("PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET a = x'00' WHERE id = 250; PRAGMA wal_checkpoint(TRUNCATE);");
    let (_, pages) = heal(&place, &mut replica);
    assert!((1..6).contains(&pages), "{pages} pages");
}

#[test]
fn a_gap_without_a_change_sends_nothing() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (capture, mut replica) = place.follow();
    drop(capture);
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let at = replica.position;
    let (mut capture, pages) = heal(&place, &mut replica);
    assert_eq!((pages, replica.position), (0, at));
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

#[test]
fn last_close_deletes_the_wal_and_the_next_open_makes_another() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (capture, mut replica) = place.follow();
    drop(capture);
    app.insert();
    app.0.ask("close");
    assert_eq!(place.wal_bytes(), 0);
    let (mut capture, _) = heal(&place, &mut replica);
    let mut app = App::open(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
    // While the agent is attached the WAL stays.
    app.0.ask("close");
    assert!(place.wal_bytes() > 0);
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn an_empty_wal_proves_nothing() {
    // Twice the same empty log, and a change in between that left no trace in it.
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.0.ask("close");
    let (capture, mut replica) = place.follow();
    capture.detach().unwrap();
    let mut app = App::open(&place.db());
    app.insert();
    app.0.ask("close");
    assert_eq!(place.wal_bytes(), 0);
    let (_, pages) = heal(&place, &mut replica);
    assert!(pages > 0);
}

#[test]
fn another_page_size_is_a_new_image_in_the_same_history() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "PRAGMA page_size=1024");
    app.insert_many(50);
    let (capture, mut replica) = place.follow();
    drop(capture);
    app.sql("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL;");
    let at = replica.position.unwrap().txid;
    let (mut capture, _) = heal(&place, &mut replica);
    assert_eq!(replica.page_size, 8192);
    assert_eq!(replica.position.unwrap().txid, at.next());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    capture.detach().unwrap();
    assert!(place.attach().position() == replica.position);
}

#[test]
fn an_older_file_brought_back_becomes_the_newest_state() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.0.ask("close");
    let old = fs::read(place.db()).unwrap();
    let mut app = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    app.insert_many(20);
    replica.drain(&mut capture);
    capture.detach().unwrap();
    app.0.ask("close");
    fs::write(place.db(), old).unwrap();
    for file in ["app.db-wal", "app.db-shm"] {
        let _ = fs::remove_file(place.db().with_file_name(file));
    }
    heal(&place, &mut replica);
}

#[test]
fn a_hub_that_is_ahead_is_caught_up_with_and_then_corrected() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    capture.detach().unwrap();
    app.0.ask("close");
    let lost_disk = fs::read(place.db()).unwrap();
    let state = tempfile::tempdir().unwrap();
    copy_folder(&place.state(), state.path());
    let mut app = App::open(&place.db());
    capture = place.attach();
    capture.heal(&mut replica).unwrap();
    for _ in 0..6 {
        app.insert_many(5);
        replica.drain(&mut capture);
    }
    drop(capture);
    app.0.ask("close");
    drop(app);
    // A power cut: file, log and page map are those of before, the hub has what never reached this disk.
    fs::write(place.db(), lost_disk).unwrap();
    for file in ["app.db-wal", "app.db-shm"] {
        let _ = fs::remove_file(place.db().with_file_name(file));
    }
    copy_folder(state.path(), &place.state());
    let mut capture = place.attach();
    let ahead = replica.position.unwrap();
    assert!(capture.position().unwrap().txid < ahead.txid);
    assert!(matches!(capture.delta_since(replica.position, &mut Discard), Err(CaptureError::NoDelta { .. })));
    replica.roll(&mut capture).unwrap();
    assert_eq!(capture.position(), Some(ahead));
    assert_eq!(capture.standing(), Standing::Gap);
    let healed = capture.heal(&mut replica).unwrap().unwrap();
    assert_eq!(healed.range.min(), ahead.txid.next());
    replica.assert_is_live(&place.db());
    let mut app = App::open(&place.db());
    app.insert();
    assert_eq!(replica.drain(&mut capture), 1);
    replica.assert_is_live(&place.db());
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(to).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_lost_state_is_rebuilt_from_the_hub() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(50);
    app.sql("DELETE FROM t WHERE id > 20; VACUUM;");
    replica.drain(&mut capture);
    drop(capture);
    fs::remove_dir_all(place.state()).unwrap();
    app.insert();
    let mut capture = place.attach();
    assert_eq!((capture.standing(), capture.position()), (Standing::Fresh, None));
    assert!(matches!(capture.heal(&mut Discard), Err(CaptureError::NoPageMap)));
    replica.roll(&mut capture).unwrap();
    assert_eq!((capture.standing(), capture.position()), (Standing::Gap, replica.position));
    let healed = capture.heal(&mut replica).unwrap().unwrap();
    assert_eq!(healed.range.count(), 1);
    let (_, bytes) = replica.segments.last().unwrap();
    assert!(pages(bytes).len() < 6, "only what differs travels: {:?}", pages(bytes));
    replica.assert_is_live(&place.db());
}

#[test]
fn a_table_that_is_not_the_hubs_position_does_not_move_the_page_map() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(50);
    let (capture, mut replica) = place.follow();
    let start = replica.clone();
    capture.detach().unwrap();
    app.insert();
    let mut capture = place.attach();
    replica.drain(&mut capture);
    capture.detach().unwrap();
    fs::remove_dir_all(place.state()).unwrap();
    let mut capture = place.attach();
    let refused = |replica: &Replica, capture: &mut Capture| {
        let at = (capture.standing(), capture.position());
        assert!(matches!(replica.roll(capture), Err(CaptureError::RollForward { .. })));
        assert_eq!((capture.standing(), capture.position()), at);
    };
    let mut damaged = replica.clone();
    damaged.image[5000] ^= 1;
    refused(&damaged, &mut capture);
    let mut short = replica.clone();
    short.image.truncate(4096);
    refused(&short, &mut capture);
    start.roll(&mut capture).unwrap();
    // Again the same, and a part that leads elsewhere: our history is not the one of the hub.
    refused(&start, &mut capture);
    let at = capture.position();
    damaged.image[5000] ^= 1;
    damaged.position =
        Some(walhub_common::Pos { checksum: at.unwrap().checksum, ..replica.position.unwrap() });
    assert!(matches!(damaged.roll(&mut capture), Err(CaptureError::OtherHistory { .. })));
    assert_eq!(capture.position(), at);
    replica.roll(&mut capture).unwrap();
    assert_eq!((capture.standing(), capture.position()), (Standing::Gap, replica.position));
}

#[test]
fn a_map_of_another_page_size_is_replaced_by_the_hubs() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "PRAGMA page_size=1024");
    app.insert_many(50);
    let (capture, mut replica) = place.follow();
    capture.detach().unwrap();
    let state = tempfile::tempdir().unwrap();
    copy_folder(&place.state(), state.path());
    app.sql("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL;");
    heal(&place, &mut replica).0.detach().unwrap();
    // The page map of before the change comes back.
    copy_folder(state.path(), &place.state());
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Gap);
    replica.roll(&mut capture).unwrap();
    assert_eq!(capture.position(), replica.position);
    assert_eq!(capture.heal(&mut replica).unwrap(), None);
    replica.assert_is_live(&place.db());
}

#[test]
fn a_hub_that_is_behind_gets_one_delta() {
    let place = Place::with_frames(30);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(30);
    replica.drain(&mut capture);
    // The hub's disk goes back to here.
    let mut behind = replica.clone();
    for i in 0..25 {
        app.insert();
        if i == 12 {
            app.sql("DELETE FROM t WHERE id % 2 = 0; VACUUM;");
        }
        replica.drain(&mut capture);
    }
    app.insert();
    let from = behind.position.unwrap().txid;
    let meta = capture.delta_since(behind.position, &mut behind).unwrap();
    assert_eq!(meta.range.min(), from.next());
    capture.acked(meta.range.max());
    assert_eq!(capture.position(), behind.position);
    behind.assert_is_live(&place.db());
    app.insert();
    assert_eq!(behind.drain(&mut capture), 1);
    behind.assert_is_live(&place.db());
    // And a hub with nothing gets a snapshot up to the same transaction.
    let mut empty = Replica::default();
    let meta = capture.snapshot(&mut empty).unwrap();
    assert_eq!((meta.range.min(), meta.range.max()), (Txid::FIRST, behind.position.unwrap().txid));
    assert_eq!((empty.position, &empty.image), (behind.position, &behind.image));
    assert!(matches!(capture.delta_since(empty.position, &mut Discard), Err(CaptureError::NoDelta { .. })));
}

#[test]
fn a_delta_across_a_gap_brings_both_what_was_known_and_what_was_not() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(100);
    let (mut capture, mut replica) = place.follow();
    let mut behind = replica.clone();
    app.sql("UPDATE t SET a = 1 WHERE id = 5");
    replica.drain(&mut capture);
    drop(capture);
    app.sql(
        "PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET a = 2 WHERE id = 95; PRAGMA wal_checkpoint(TRUNCATE);",
    );
    let mut capture = place.attach();
    assert_eq!(capture.standing(), Standing::Gap);
    let meta = capture.delta_since(behind.position, &mut behind).unwrap();
    assert_eq!(capture.standing(), Standing::Aligned);
    assert_eq!(capture.position(), Some(meta.position()));
    behind.assert_is_live(&place.db());
}

#[test]
fn skipped_transactions_keep_their_numbers() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    for _ in 0..7 {
        app.insert();
    }
    assert_eq!(capture.skip().unwrap(), 7);
    assert_eq!(capture.skip().unwrap(), 0);
    let meta = capture.delta_since(replica.position, &mut replica).unwrap();
    assert_eq!((meta.range.min().get(), meta.range.max().get()), (2, 8));
    replica.assert_is_live(&place.db());
}

#[test]
fn the_lineage_is_kept() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut capture = place.attach();
    assert_eq!(capture.lineage(), 0);
    capture.set_lineage(99).unwrap();
    drop(capture);
    let mut capture = place.attach();
    assert_eq!((capture.lineage(), capture.standing()), (99, Standing::Fresh));
    let mut replica = Replica::default();
    capture.snapshot(&mut replica).unwrap();
    app.insert();
    replica.drain(&mut capture);
    capture.detach().unwrap();
    let mut capture = place.attach();
    assert_eq!((capture.lineage(), capture.position()), (99, replica.position));
    capture.set_lineage(100).unwrap();
    drop(capture);
    let capture = place.attach();
    assert_eq!((capture.lineage(), capture.position()), (100, replica.position));
}
