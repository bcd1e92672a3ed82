//! What watching costs when nothing happens: CPU and memory with 1, 100 and 1,000 databases.

use crate::setup::{self, Database, database};
use crate::table::Row;
use crate::{Plan, process};
use std::time::Duration;
use walhub_tests::scratch::Scratch;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    for count in plan.pick(vec![1, 100, 1000], vec![1, 20]) {
        let (our_cpu, our_rss) = side(count, plan, "ours", |dir, databases| {
            let ours = setup::ours(dir, databases);
            (ours.agent.id(), Box::new(ours))
        });
        let (their_cpu, their_rss) = side(count, plan, "theirs", |dir, databases| {
            let (litestream, _) = setup::litestream(dir, databases);
            (litestream.id(), Box::new(litestream))
        });
        let mut cpu =
            Row::new(format!("idle CPU with {count} databases, % of a core"), our_cpu, Some(their_cpu));
        let mut rss = Row::new(format!("idle memory with {count} databases, MB"), our_rss, Some(their_rss));
        if count == 1 {
            rss = rss.goal("≤ 12 MB", |row| row.ours <= 12.0);
        }
        if count == 100 {
            cpu = cpu.goal("≤ a tenth", |row| row.ours <= row.theirs.unwrap_or(0.0) / 10.0);
        }
        rows.extend([cpu, rss]);
    }
    rows
}

/// Starts one side over fresh databases and watches it do nothing.
fn side<F>(count: usize, plan: &Plan, name: &str, start: F) -> (f64, f64)
where
    F: FnOnce(&std::path::Path, &[Database]) -> (u32, Box<dyn std::any::Any>),
{
    let scratch = Scratch::new(&format!("bench-idle-{name}-{count}"));
    let databases: Vec<Database> = (0..count)
        .map(|n| {
            let path = scratch.join(format!("{n}.db"));
            drop(database(&path, 20));
            (format!("db-{n}"), path)
        })
        .collect();
    // Somebody has each database open, as in life: its WAL exists.
    let _open: Vec<_> = databases.iter().map(|(_, path)| database(path, 1)).collect();
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("folder");
    let (pid, _running) = start(&dir, &databases);
    std::thread::sleep(Duration::from_secs(plan.pick(15, 3)));
    let before = process::read(pid).expect("read the process");
    std::thread::sleep(Duration::from_secs(plan.pick(30, 5)));
    let after = process::read(pid).expect("read the process");
    let resident = process::resident(pid).expect("read the process") as f64 / 1e6;
    (before.core_percent(&after), resident)
}
