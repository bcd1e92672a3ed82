//! What capture costs under 500 transactions a second: CPU, and bytes the process writes to the node's own disk.

use crate::setup::{self, commit, database};
use crate::table::Row;
use crate::{Plan, process};
use rusqlite::Connection;
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

const RATE: u32 = 500;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let seconds = plan.pick(20, 4);
    let scratch = Scratch::new("bench-load");
    let path = scratch.join("ours.db");
    let connection = database(&path, 1000);
    let ours = setup::ours(&scratch.join("ours"), &[("db".into(), path)]);
    let (our_cpu, our_disk) = measure(ours.agent.id(), &connection, seconds);
    drop(ours);
    let path = scratch.join("theirs.db");
    let connection = database(&path, 1000);
    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let (litestream, _) = setup::litestream(&dir, &[("db".into(), path)]);
    let (their_cpu, their_disk) = measure(litestream.id(), &connection, seconds);
    vec![
        Row::new("CPU on the node at 500 txn/s, ms per 1,000 transactions", our_cpu, Some(their_cpu)),
        Row::new("disk writes of the process at 500 txn/s, KB/s", our_disk, Some(their_disk)),
    ]
}

fn measure(pid: u32, connection: &Connection, seconds: u32) -> (f64, f64) {
    std::thread::sleep(Duration::from_secs(2));
    let before = process::read(pid).expect("read the process");
    let began = Instant::now();
    for n in 1..=RATE * seconds {
        commit(connection);
        let due = Duration::from_secs(1) * n / RATE;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    // What was committed last is still to be captured: count it.
    std::thread::sleep(Duration::from_secs(2));
    let after = process::read(pid).expect("read the process");
    let cpu = before.cpu(&after).as_secs_f64() * 1000.0 / f64::from(RATE * seconds) * 1000.0;
    (cpu, before.written(&after) as f64 / 1000.0 / f64::from(seconds))
}
