//! What watching costs when nothing happens: CPU and memory with 1, 100 and 1,000 databases.

use crate::setup::{self, Database, database};
use crate::table::Row;
use crate::{Plan, process};
use std::time::Duration;
use walhub_tests::scratch::Scratch;

/// Goals: databases, MB.
const MEMORY: [(usize, f64); 3] = [(1, 10.0), (100, 20.0), (1000, 60.0)];
/// Goals: databases, percent of a core.
const CPU: [(usize, f64); 2] = [(100, 0.05), (1000, 0.2)];

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
        if let Some((_, most)) = MEMORY.iter().find(|(of, _)| *of == count) {
            rss = rss.goal(format!("≤ {most} MB"), |row| row.ours <= *most);
        }
        if let Some((_, most)) = CPU.iter().find(|(of, _)| *of == count) {
            cpu = cpu.goal(format!("≤ {most} %"), |row| row.ours <= *most);
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
