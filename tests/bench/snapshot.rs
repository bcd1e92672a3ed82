//! The first snapshot of a large database beside an application that commits: how long it takes, how much memory of the agent
//! and of the hub, from the first page until everything is copied, and what the application feels. `--gb N` sets its size (1);
//! it needs about three times that on disk. Above [`BOTH_SIDES_GB`] only our side runs.

use crate::setup::{self, commit, database};
use crate::table::{Row, quantile};
use crate::{Plan, process};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::scratch::Scratch;

const PACE: u32 = 1000;
/// The application is paced for so long, then goes flat out for so long, and again.
const PACED: Duration = Duration::from_secs(3);
const FLAT_OUT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(3600);
const BOTH_SIDES_GB: f64 = 2.0;

/// What the application did.
struct Felt {
    paced: f64,
    flat_out: f64,
    p99: f64,
}

/// One side's first snapshot.
struct Taken {
    seconds: f64,
    peak: f64,
    felt: Felt,
}

/// Memory of our processes, MB.
struct Memory {
    /// Agent and hub, before the database appeared.
    idle: (f64, f64),
    /// Most of the hub.
    hub: f64,
}

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let gigabytes = plan.gigabytes.unwrap_or_else(|| plan.pick(1.0, 0.2));
    let scratch = Scratch::new("bench-snapshot");
    let path = scratch.join("filled.db");
    fill(&path, gigabytes);
    let application = Application::start(&path);
    thread::sleep(2 * (PACED + FLAT_OUT));
    let alone = application.end();
    let (ours, memory) = ours(&scratch, &path);
    let theirs = (gigabytes <= BOTH_SIDES_GB).then(|| theirs(&scratch, &path));
    let of = |during: f64, alone: f64| during / alone;
    let theirs = |value: &dyn Fn(&Taken) -> f64| theirs.as_ref().map(value);
    vec![
        Row::new(
            format!("first snapshot of {gigabytes} GB beside a writer, s"),
            ours.seconds,
            theirs(&|t| t.seconds),
        ),
        Row::new(
            format!("first snapshot of {gigabytes} GB: peak memory, MB"),
            ours.peak,
            theirs(&|t| t.peak),
        ),
        Row::new(
            format!("first snapshot of {gigabytes} GB: memory above idle, MB"),
            ours.peak - memory.idle.0,
            None,
        )
        .goal("≤ 32 MB", |row| row.ours <= 32.0),
        Row::new(
            format!("first snapshot of {gigabytes} GB: hub's memory above idle, MB"),
            memory.hub - memory.idle.1,
            None,
        ),
        Row::new(
            "first snapshot: app paced at 1,000 commits/s, share of its rate alone",
            of(ours.felt.paced, alone.paced),
            theirs(&|t| of(t.felt.paced, alone.paced)),
        )
        .more_is_better()
        .goal("≥ 0.9", |row| row.ours >= 0.9),
        Row::new(
            format!("first snapshot: app flat out, share of its rate alone ({:.0}/s)", alone.flat_out),
            of(ours.felt.flat_out, alone.flat_out),
            theirs(&|t| of(t.felt.flat_out, alone.flat_out)),
        )
        .more_is_better(),
        Row::new(
            format!("first snapshot: app paced, p99 ms (alone: {:.3})", alone.p99),
            ours.felt.p99,
            theirs(&|t| t.felt.p99),
        ),
    ]
}

/// A database of rows that are noise to an eighth, and text that compression makes smaller.
fn fill(path: &Path, gigabytes: f64) {
    let app = database(path, 0);
    app.pragma_update(None, "synchronous", "off").expect("synchronous");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2560)
                INSERT INTO t(note, data)
                SELECT substr(replace(hex(zeroblob(220)), '00', 'row ' || i || ' of many, '), 1, 3400), randomblob(500)
                FROM n";
    for _ in 0..(gigabytes * 100.0).round() as u32 {
        app.execute(rows, []).expect("fill");
    }
    app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
}

/// Ours: the database appears under the eyes of an agent that is idle. The memory is that of the whole way, until all that the
/// application wrote meanwhile was copied as well.
fn ours(scratch: &Scratch, filled: &Path) -> (Taken, Memory) {
    let small = scratch.join("small.db");
    let _open = database(&small, 10);
    let path = scratch.join("ours.db");
    let dir = scratch.join("ours");
    let ours = setup::start(&dir, &[("small".into(), small), ("db".into(), path.clone())]);
    let processes = [ours.agent.id(), ours.hub.id()];
    eventually("the small database to be buffered", PATIENCE, || buffered(&ours, "small"));
    thread::sleep(Duration::from_secs(1));
    let idle = processes.map(|id| process::resident(id).expect("read the process") as f64 / 1e6);
    let begun = Instant::now();
    std::fs::rename(filled, &path).expect("the database appears");
    let application = Application::start(&path);
    eventually("the first snapshot to be buffered", PATIENCE, || buffered(&ours, "db"));
    let seconds = begun.elapsed().as_secs_f64();
    let felt = application.end();
    eventually("everything to be copied", PATIENCE, || copied(&ours));
    let [peak, hub] = processes.map(|id| process::peak(id).expect("read the process") as f64 / 1e6);
    drop(ours);
    std::fs::remove_dir_all(&dir).expect("the disk is needed");
    std::fs::rename(&path, filled).expect("back to its place");
    for suffix in ["wal", "shm"] {
        let _ = std::fs::remove_file(path.with_extension(format!("db-{suffix}")));
    }
    (Taken { seconds, peak, felt }, Memory { idle: (idle[0], idle[1]), hub })
}

fn copied(ours: &setup::Ours) -> Result<(), String> {
    let captured = ours.acks().progress("db").captured;
    let status = ours.client.status().map_err(|e| e.to_string())?;
    let at = |d: &walhub_proto::v1::DatabaseStatus| d.copies.iter().map(|c| c.txid).min();
    let is_it =
        |d: &&walhub_proto::v1::DatabaseStatus| d.database.as_ref().is_some_and(|key| key.name == "db");
    let copied = status.databases.iter().find(is_it).and_then(at).unwrap_or(0);
    ensure(copied >= captured, || format!("{copied} of {captured} transactions are"))
}

fn buffered(ours: &setup::Ours, name: &str) -> Result<(), String> {
    let status = ours.client.status().map_err(|e| e.to_string())?;
    let is_it =
        |d: &&walhub_proto::v1::DatabaseStatus| d.database.as_ref().is_some_and(|key| key.name == name);
    let at = status.databases.iter().find(is_it).and_then(|d| d.buffered).map_or(0, |p| p.txid);
    ensure(at > 0, || format!("{name} is not buffered"))
}

fn theirs(scratch: &Scratch, filled: &Path) -> Taken {
    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let application = Application::start(filled);
    let begun = Instant::now();
    let (litestream, _) = setup::litestream(&dir, &[("db".into(), filled.to_path_buf())]);
    let seconds = begun.elapsed().as_secs_f64();
    let felt = application.end();
    let peak = process::peak(litestream.id()).expect("read the process") as f64 / 1e6;
    Taken { seconds, peak, felt }
}

/// Commits in a thread until it is told to end.
struct Application {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Felt>,
}

impl Application {
    fn start(path: &Path) -> Application {
        let connection = database(path, 0);
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        Application { thread: thread::spawn(move || work(&connection, &ends)), stop }
    }

    fn end(self) -> Felt {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the application ends")
    }
}

fn work(connection: &Connection, stop: &AtomicBool) -> Felt {
    let (mut waits, mut paced, mut flat) = (Vec::new(), Duration::ZERO, (0, Duration::ZERO));
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut commits = 0;
        while begun.elapsed() < PACED && !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            commit(connection);
            waits.push(start.elapsed().as_secs_f64() * 1000.0);
            commits += 1;
            thread::sleep((Duration::from_secs(1) * commits / PACE).saturating_sub(begun.elapsed()));
        }
        paced += begun.elapsed();
        let begun = Instant::now();
        while begun.elapsed() < FLAT_OUT && !stop.load(Ordering::Relaxed) {
            commit(connection);
            flat.0 += 1;
        }
        flat.1 += begun.elapsed();
    }
    Felt {
        paced: waits.len() as f64 / paced.as_secs_f64(),
        flat_out: f64::from(flat.0) / flat.1.as_secs_f64(),
        p99: quantile(&mut waits, 0.99),
    }
}
