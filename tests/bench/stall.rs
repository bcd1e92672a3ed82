//! What an application feels that truncates its WAL by itself: two TRUNCATE calls a second with a busy timeout of 5 s beside
//! a writer of 500 commits a second; alone, beside the agent, beside litestream. Whoever keeps a read lock makes the call
//! wait, and the call keeps every writer out while it waits.

use crate::Plan;
use crate::setup::{self, commit, database};
use crate::table::Row;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

const RATE: u32 = 500;
const BETWEEN: Duration = Duration::from_millis(500);
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The slowest commit and the slowest TRUNCATE, ms.
#[derive(Clone, Copy)]
struct Felt {
    commit: f64,
    truncate: f64,
}

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let seconds = plan.pick(20, 6);
    let scratch = Scratch::new("bench-stall");
    let place = |name: &str| {
        let folder = scratch.join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        let path = folder.join("app.db");
        drop(database(&path, 1000));
        (folder, path)
    };
    let (_, path) = place("alone");
    let alone = feel(&path, seconds);
    let (folder, path) = place("ours");
    let ours = {
        let _company = setup::ours(&folder, &[("db".into(), path.clone())]);
        feel(&path, seconds)
    };
    let (folder, path) = place("theirs");
    let theirs = {
        let _company = setup::litestream(&folder, &[("db".into(), path.clone())]);
        feel(&path, seconds)
    };
    let (folder, path) = place("flood");
    let limit = flood(&folder, &path, plan.pick(60, 6));
    vec![
        Row::new(
            format!("two TRUNCATE/s beside 500 commits/s: slowest commit, ms (alone: {:.1})", alone.commit),
            ours.commit,
            Some(theirs.commit),
        )
        .goal("≤ 20 ms", |row| row.ours <= 20.0),
        Row::new(
            format!("the same: slowest TRUNCATE call, ms (alone: {:.1})", alone.truncate),
            ours.truncate,
            Some(theirs.truncate),
        ),
        Row::new("two writers without a pause: largest WAL, MiB (limit 256)", limit, None)
            .goal("under the limit", |row| row.ours <= 256.0),
    ]
}

fn feel(path: &Path, seconds: u32) -> Felt {
    let done = AtomicBool::new(false);
    // With patience: who waits for a TRUNCATE that waits must get its turn, to be measured.
    let app = patient(path);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let hostile = database(path, 0);
            hostile.busy_timeout(BUSY_TIMEOUT).expect("busy timeout");
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                // Busy or not: the row says so, and neither is an error.
                let _: i64 = hostile
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
                    .expect("a checkpoint's row");
                slowest = slowest.max(begun.elapsed());
                // A pause also after a call that took long: without one, writers beside it never get their turn.
                std::thread::sleep(BETWEEN);
            }
            slowest
        });
        let (began, mut slowest) = (Instant::now(), Duration::ZERO);
        for n in 1..=RATE * seconds {
            let start = Instant::now();
            commit(&app);
            slowest = slowest.max(start.elapsed());
            std::thread::sleep((Duration::from_secs(1) * n / RATE).saturating_sub(began.elapsed()));
        }
        done.store(true, Ordering::Relaxed);
        let truncate = storm.join().expect("the storm");
        Felt { commit: slowest.as_secs_f64() * 1000.0, truncate: truncate.as_secs_f64() * 1000.0 }
    })
}

/// The largest WAL, MiB, under two writers that never pause.
fn flood(folder: &Path, path: &Path, seconds: u64) -> f64 {
    let _company = setup::ours(folder, &[("db".into(), path.to_owned())]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let app = patient(path);
                while !done.load(Ordering::Relaxed) {
                    commit(&app);
                }
            });
        }
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let (wal, began, mut largest) = (PathBuf::from(wal), Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(seconds) {
            largest = largest.max(std::fs::metadata(&wal).map_or(0, |meta| meta.len()));
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        largest as f64 / f64::from(1 << 20)
    })
}

/// A writer that gives up on nothing.
fn patient(path: &Path) -> rusqlite::Connection {
    let app = database(path, 0);
    app.busy_timeout(Duration::from_secs(60)).expect("busy timeout");
    app
}
