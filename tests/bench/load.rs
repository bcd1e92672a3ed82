//! What capture costs under 500 transactions a second: CPU, and bytes the process writes to the node's own disk.

use crate::setup::{self, commit, database};
use crate::table::Row;
use crate::{Plan, process};
use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

const RATE: u32 = 500;
/// A file system in memory: what is written there is no disk write of the process.
const MEMORY: &str = "/dev/shm";

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let seconds = plan.pick(20, 4);
    let scratch = Scratch::new("bench-load");
    let path = scratch.join("ours.db");
    let connection = database(&path, 1000);
    let ours = setup::ours(&scratch.join("ours"), &[("db".into(), path)]);
    let our = measure(ours.agent.id(), &connection, seconds);
    drop(ours);
    let path = scratch.join("theirs.db");
    let connection = database(&path, 1000);
    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let (litestream, _) = setup::litestream(&dir, &[("db".into(), path)]);
    let their = measure(litestream.id(), &connection, seconds);
    drop(litestream);
    let mut rows = vec![
        Row::new("CPU on the node at 500 txn/s, ms per 1,000 transactions", our.cpu, Some(their.cpu))
            .goal("≤ half", |row| row.ratio().is_some_and(|r| r >= 2.0)),
        Row::new(
            "disk writes of the process at 500 txn/s, checkpoints and copies included, % of WAL bytes",
            our.disk,
            Some(their.disk),
        ),
    ];
    if Path::new(MEMORY).is_dir() {
        rows.push(
            Row::new(
                "the agent's own disk writes at 500 txn/s, % of WAL bytes",
                own(&scratch, seconds),
                None,
            )
            .goal("< 2 %", |row| row.ours < 2.0),
        );
    }
    rows
}

/// With the database in memory, what the agent writes to disk is its own: state and logs, no checkpoint.
fn own(scratch: &Scratch, seconds: u32) -> f64 {
    let memory = tempfile::tempdir_in(MEMORY).expect("a folder in memory");
    let path = memory.path().join("own.db");
    let connection = database(&path, 1000);
    let ours = setup::ours(&scratch.join("own"), &[("db".into(), path)]);
    measure(ours.agent.id(), &connection, seconds).disk
}

struct Cost {
    /// Milliseconds per 1,000 transactions.
    cpu: f64,
    /// Percent of the bytes that the application wrote, which is this process and writes nothing but its WAL.
    disk: f64,
}

fn measure(pid: u32, connection: &Connection, seconds: u32) -> Cost {
    std::thread::sleep(Duration::from_secs(2));
    let (before, app) = (read(pid), read(std::process::id()));
    let began = Instant::now();
    for n in 1..=RATE * seconds {
        commit(connection);
        let due = Duration::from_secs(1) * n / RATE;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let wal = app.said(&read(std::process::id()));
    // What was committed last is still to be captured: count it.
    std::thread::sleep(Duration::from_secs(2));
    let after = read(pid);
    Cost {
        cpu: before.cpu(&after).as_secs_f64() * 1e6 / f64::from(RATE * seconds),
        disk: 100.0 * before.written(&after) as f64 / wal as f64,
    }
}

fn read(pid: u32) -> process::Reading {
    process::read(pid).expect("read the process")
}
