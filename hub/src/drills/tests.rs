//! Drills over real folders with a real history: what is wrong is found, named, and made good again.

use super::{Asked, Copy, Current, Drill, Drills, Ledger, Parts, Rules, Verdict};
use crate::repair::bench::Fleet;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use walhub_common::task::TaskGroup;

struct Bench {
    fleet: Fleet,
    drills: Drills,
    current: Current,
    tasks: TaskGroup,
}

impl Bench {
    async fn new(rules: Rules) -> Bench {
        let fleet = Fleet::new(&["near", "far"]).await;
        let current = Current::new(rules);
        let (drills, tasks) = start(&fleet, &current);
        Bench { fleet, drills, current, tasks }
    }

    async fn run(&self, destination: &str, repair: bool, every_file: bool) -> Drill {
        let copy = Copy { database: self.fleet.key(), destination: destination.parse().unwrap() };
        self.drills.run(Asked { copy, repair, every_file }).await.unwrap()
    }

    async fn end(self) {
        assert!(self.tasks.shutdown(Duration::from_secs(60)).await);
    }
}

fn start(fleet: &Fleet, rules: &Current) -> (Drills, TaskGroup) {
    let parts = Parts {
        buffer: fleet.buffer.clone(),
        board: fleet.board.clone(),
        pins: fleet.pins.clone(),
        holds: fleet.holds.clone(),
    };
    let (dir, tasks) = (fleet.dir.path(), TaskGroup::new("drills"));
    let drills = Drills::start(parts, Ledger::open(dir).unwrap(), rules.clone(), dir, &tasks).unwrap();
    (drills, tasks)
}

/// The images of these tests are no SQLite databases. Of older points only where they are meant.
fn plain() -> Rules {
    Rules { integrity: false, older_points: 0, ..Rules::default() }
}

fn flip(path: &PathBuf) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_good_copy_passes_and_says_what_it_took() {
    let bench = Bench::new(plain()).await;
    let drill = bench.run("near", true, true).await;
    assert_eq!((drill.verdict, drill.txid), (Verdict::Passed, bench.fleet.newest()), "{drill:?}");
    assert_eq!(drill.database_bytes, bench.fleet.image().bytes().len() as u64);
    assert!(drill.bytes > 0 && drill.requests > 10 && drill.message.is_empty(), "{drill:?}");
    assert_eq!(bench.drills.last(&drill.copy), Some(drill.clone()));
    let scratch = bench.fleet.dir.path().join("walhub-drills");
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "nothing lies around");
    bench.end().await;
}

#[tokio::test]
async fn a_flipped_byte_is_found_named_and_left_when_asked_to() {
    let bench = Bench::new(plain()).await;
    let path = bench.fleet.file("far", 0, 3, 3);
    flip(&path);
    let before = std::fs::read(&path).unwrap();
    let drill = bench.run("far", false, false).await;
    assert_eq!(drill.verdict, Verdict::Failed);
    assert!(
        drill.message.contains("level 0 file 0000000000000003-0000000000000003.ltx: corrupt"),
        "{drill:?}"
    );
    assert!(!drill.message.contains("0000000000000004"), "one file, not its neighbours: {drill:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(bench.run("near", false, false).await.verdict, Verdict::Passed);
    bench.end().await;
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    let bench = Bench::new(plain()).await;
    std::fs::remove_file(bench.fleet.file("far", 0, 3, 3)).unwrap();
    let drill = bench.run("far", false, false).await;
    assert_eq!(drill.verdict, Verdict::Failed);
    assert!(drill.message.contains("0000000000000003-0000000000000003.ltx: missing"), "{drill:?}");
    let newest = bench.fleet.newest();
    std::fs::remove_file(bench.fleet.file("near", 0, newest, newest)).unwrap();
    let drill = bench.run("near", false, false).await;
    assert!(drill.verdict == Verdict::Failed && drill.message.contains("missing"), "{drill:?}");
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_be_tried_is_no_failure() {
    let bench = Bench::new(Rules { scratch_max: 100, ..plain() }).await;
    let drill = bench.run("near", true, false).await;
    assert!(drill.verdict == Verdict::Undone && drill.message.contains("scratch-max is 100"), "{drill:?}");
    bench.end().await;
    let bench = Bench::new(plain()).await;
    bench.fleet.set_down("far", true);
    let drill = bench.run("far", true, false).await;
    assert!(drill.verdict == Verdict::Undone && drill.message.contains("destination far"), "{drill:?}");
    let copy = Copy { database: bench.fleet.key(), destination: "nowhere".parse().unwrap() };
    let drill = bench.drills.run(Asked { copy, repair: true, every_file: false }).await.unwrap();
    assert_eq!(drill.verdict, Verdict::Undone);
    bench.end().await;
}

#[tokio::test]
async fn a_copy_of_another_state_is_found_although_each_file_is_whole() {
    let bench = Bench::new(plain()).await;
    bench.fleet.forge("far", 3).await;
    let drill = bench.run("far", true, false).await;
    assert_eq!(drill.verdict, Verdict::Failed);
    assert!(drill.message.contains("every file is whole by itself"), "{drill:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_check_of_sqlite_that_fails_is_a_failure() {
    // The image is no database at all: SQLite says so.
    let bench = Bench::new(Rules { integrity: true, ..Rules::default() }).await;
    let drill = bench.run("near", true, false).await;
    assert!(drill.verdict == Verdict::Failed && drill.message.contains("restored database"), "{drill:?}");
    assert_eq!(drill.txid, bench.fleet.newest());
    bench.end().await;
}

#[tokio::test]
async fn the_schedule_tries_every_copy_and_goes_on_after_a_restart() {
    let rules = Rules { every: Some(Duration::from_millis(40)), sample: 100_000, ..plain() };
    let bench = Bench::new(rules.clone()).await;
    let Bench { fleet, drills, tasks, .. } = bench;
    let tried = async |drills: &Drills| {
        tokio::time::timeout(Duration::from_secs(60), async {
            while drills.list(None, None, false).len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("both copies are tried");
    };
    tried(&drills).await;
    assert!(drills.list(None, None, true).iter().all(|drill| drill.verdict == Verdict::Passed));
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
    let (drills, tasks) = start(&fleet, &Current::new(Rules { every: None, ..rules }));
    let all = drills.list(None, None, true);
    assert!(all.len() >= 2 && drills.list(None, None, false).len() == 2, "{all:?}");
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_drill_that_nobody_waits_for_is_given_up_and_a_slow_one_as_well() {
    let slow = Rules { download_limit: Some(1024), timeout: Duration::from_millis(50), ..plain() };
    let bench = Bench::new(slow.clone()).await;
    let drill = bench.run("near", true, true).await;
    assert!(drill.verdict == Verdict::Undone && drill.message.contains("longer than"), "{drill:?}");
    bench.end().await;
    let bench = Bench::new(Rules { timeout: Duration::from_secs(3600), ..slow }).await;
    {
        let running = bench.run("near", true, true);
        tokio::pin!(running);
        tokio::select! {
            drill = &mut running => panic!("{drill:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        while bench.drills.list(None, None, false).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is given up");
    assert_eq!(bench.drills.list(None, None, false)[0].verdict, Verdict::Undone);
    bench.end().await;
}

#[tokio::test]
async fn what_is_damaged_is_repaired_and_the_next_drill_is_green() {
    let bench = Bench::new(plain()).await;
    flip(&bench.fleet.file("far", 0, 3, 3));
    std::fs::remove_file(bench.fleet.file("far", 0, 6, 6)).unwrap();
    let drill = bench.run("far", true, false).await;
    assert_eq!(drill.verdict, Verdict::Repaired, "{drill:?}");
    assert_eq!(drill.repairs.len(), 2, "{drill:?}");
    assert!(drill.repairs.iter().all(|done| done.contains("from near")), "{drill:?}");
    let drill = bench.run("far", true, true).await;
    assert_eq!((drill.verdict, drill.txid), (Verdict::Passed, bench.fleet.newest()), "{drill:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_damaged_file_that_no_restore_takes_is_found_by_reading_every_file() {
    let bench = Bench::new(plain()).await;
    bench.fleet.put("far", 9, 1, 4).await;
    flip(&bench.fleet.file("far", 0, 2, 2));
    assert_eq!(bench.run("far", false, false).await.verdict, Verdict::Passed, "the snapshot is nearer");
    let drill = bench.run("far", true, true).await;
    assert!(drill.verdict == Verdict::Repaired && drill.repairs[0].contains("from near"), "{drill:?}");
    assert_eq!(bench.run("far", false, true).await.verdict, Verdict::Passed);
    bench.end().await;
}

#[tokio::test]
async fn a_repair_that_was_broken_off_is_settled_before_anything_else() {
    let fleet = Fleet::new(&["near", "far"]).await;
    let copy = Copy { database: fleet.key(), destination: "far".parse().unwrap() };
    // A hub that died when the damaged object was gone, and the good one not yet there.
    let begun = Drill { verdict: Verdict::Repairing, ..Drill::begin(copy.clone(), 1_000) };
    Ledger::open(fleet.dir.path()).unwrap().add(begun).unwrap();
    let gone = fleet.file("far", 0, 5, 5);
    std::fs::remove_file(&gone).unwrap();
    let (drills, tasks) = start(&fleet, &Current::new(Rules { repair: false, ..plain() }));
    tokio::time::timeout(Duration::from_secs(60), async {
        while drills.last(&copy).unwrap().verdict == Verdict::Repairing {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is settled without a schedule");
    let last = drills.last(&copy).unwrap();
    assert!(last.verdict == Verdict::Repaired && gone.exists(), "{last:?}");
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_damaged_object_under_a_lock_is_told_once_and_left_out_until_somebody_asks() {
    let Bench { fleet, drills, tasks, current } = Bench::new(plain()).await;
    // A snapshot that every restore would take.
    fleet.put("far", 9, 1, 6).await;
    let bad = fleet.file("far", 9, 1, 6);
    flip(&bad);
    let spoiled = std::fs::read(&bad).unwrap();
    fleet.set_locked("far", true);
    let copy = Copy { database: fleet.key(), destination: "far".parse().unwrap() };
    let scheduled = Asked { copy: copy.clone(), repair: true, every_file: false };
    let by_hand = Asked { every_file: true, ..scheduled.clone() };
    let drill = drills.run(scheduled.clone()).await.unwrap();
    let told = &drill.repairs[0];
    assert!(drill.verdict == Verdict::Repaired && told.contains("is locked and stays"), "{drill:?}");
    assert!(told.contains("the other files there lead past it"), "level 0 does: {drill:?}");
    let changes = fleet.changes("far");
    // A drill that found out nothing forgets nothing, nor does a hub that is started anew.
    fleet.set_down("far", true);
    assert_eq!(drills.run(scheduled.clone()).await.unwrap().verdict, Verdict::Undone);
    fleet.set_down("far", false);
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
    let (drills, tasks) = start(&fleet, &current);
    for _ in 0..3 {
        let drill = drills.run(scheduled.clone()).await.unwrap();
        assert!(drill.verdict == Verdict::Passed && drill.repairs.is_empty(), "{drill:?}");
        let lock =
            "without level 9 file 0000000000000001-0000000000000006.ltx, which is damaged and locked (";
        assert!(drill.message.starts_with(lock), "{drill:?}");
    }
    assert_eq!(fleet.changes("far"), changes, "nothing is tried again");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    // Whoever asks is told again; and when the lock is gone it is made good.
    let drill = drills.run(by_hand.clone()).await.unwrap();
    assert!(drill.repairs.len() == 1 && drill.repairs[0].contains("is locked and stays"), "{drill:?}");
    fleet.set_locked("far", false);
    let drill = drills.run(by_hand).await.unwrap();
    assert!(drill.verdict == Verdict::Repaired && drill.repairs[0].contains("repaired from"), "{drill:?}");
    let drill = drills.run(scheduled).await.unwrap();
    assert!(
        drill.verdict == Verdict::Passed && drill.message.is_empty() && drill.locked.is_empty(),
        "{drill:?}"
    );
    assert!(tasks.shutdown(Duration::from_secs(60)).await);
}

#[tokio::test]
async fn a_locked_object_that_retention_took_is_forgotten() {
    let bench = Bench::new(plain()).await;
    let bad = bench.fleet.file("far", 0, 3, 3);
    flip(&bad);
    bench.fleet.set_locked("far", true);
    let drill = bench.run("far", true, false).await;
    assert!(drill.repairs[0].contains("a snapshot of transaction 3"), "{drill:?}");
    assert_eq!(bench.run("far", true, false).await.locked.len(), 1);
    std::fs::remove_file(&bad).unwrap();
    let drill = bench.run("far", true, false).await;
    assert!(
        drill.verdict == Verdict::Passed && drill.locked.is_empty() && drill.message.is_empty(),
        "{drill:?}"
    );
    bench.end().await;
}

#[tokio::test]
async fn damage_that_the_newest_state_does_not_show_is_found_at_an_older_point() {
    let bench = Bench::new(Rules { older_points: 16, ..plain() }).await;
    bench.fleet.put("far", 9, 1, 4).await;
    let good = bench.run("far", false, false).await;
    assert_eq!((good.verdict, good.txid), (Verdict::Passed, bench.fleet.newest()), "{good:?}");
    let mut older: Vec<u64> = good.older.iter().map(|point| point.txid).collect();
    older.sort_unstable();
    assert_eq!(older, (1..bench.fleet.newest()).collect::<Vec<_>>());
    assert!(good.older.iter().all(|point| point.point_ms > 0), "{good:?}");

    flip(&bench.fleet.file("far", 0, 2, 2));
    let found = bench.run("far", false, false).await;
    assert_eq!((found.verdict, found.txid), (Verdict::Failed, bench.fleet.newest()), "{found:?}");
    assert!(
        found.message.contains("level 0 file 0000000000000002-0000000000000002.ltx: corrupt"),
        "{found:?}"
    );
    assert!(!found.message.contains("0000000000000003"), "one file, not its neighbours: {found:?}");
    let repaired = bench.run("far", true, false).await;
    assert!(
        repaired.verdict == Verdict::Repaired && repaired.repairs[0].contains("from near"),
        "{repaired:?}"
    );
    assert_eq!(repaired.older.len(), 7, "{repaired:?}");
    // Few of many: by chance, but a draw is found in the result, and never twice the same point.
    bench.current.replace(Rules { older_points: 3, ..plain() });
    for _ in 0..5 {
        let drill = bench.run("far", false, false).await;
        let points: BTreeSet<u64> = drill.older.iter().map(|point| point.txid).collect();
        assert!(drill.verdict == Verdict::Passed && points.len() == 3, "{drill:?}");
    }
    bench.end().await;
}

#[tokio::test]
async fn an_older_point_of_another_history_is_named() {
    let bench = Bench::new(Rules { older_points: 16, ..plain() }).await;
    bench.fleet.forge("far", 3).await;
    // At 3 itself two pages are forged alike, which a sum of CRCs does not see.
    bench.fleet.put("far", 9, 1, 5).await;
    let drill = bench.run("far", true, false).await;
    assert_eq!(drill.verdict, Verdict::Failed, "{drill:?}");
    assert!(drill.message.starts_with("at transaction 4: every file is whole by itself"), "{drill:?}");
    bench.end().await;
}

#[tokio::test]
async fn other_rules_hold_from_the_next_drill_on() {
    let bench = Bench::new(Rules { scratch_max: 100, ..plain() }).await;
    assert_eq!(bench.run("near", true, false).await.verdict, Verdict::Undone);
    let scratch = bench.fleet.dir.path().join("elsewhere");
    let rules = Rules { scratch: Some(scratch.clone()), ..plain() };
    std::fs::create_dir_all(rules.scratch_folder(bench.fleet.dir.path())).unwrap();
    bench.current.replace(rules.clone());
    assert_eq!(bench.run("near", true, false).await.verdict, Verdict::Passed);
    assert_eq!(bench.drills.outlook().rules.scratch, Some(scratch));
    // A schedule that was not there: both copies get their turn, without waiting for the look of the moment.
    bench.current.replace(Rules { every: Some(Duration::from_millis(40)), sample: 100_000, ..rules });
    tokio::time::timeout(Duration::from_secs(60), async {
        while bench.drills.list(None, None, true).len() < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the schedule begins");
    bench.end().await;
}
