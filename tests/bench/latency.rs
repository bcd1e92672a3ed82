//! How soon a commit is captured, how soon it is safe, and how soon it is visible at the file destination; lone commits,
//! and a stream of 500 a second.
//!
//! *Captured* is when the agent's own report says that the transaction was read and given to the link (asked over its
//! socket all the time, so the answer is late by the asking, about 0.2 ms), for Litestream when its local LTX file is
//! there. *Safe* is the `buffered` ack, for Litestream the file of the replica.

use crate::Plan;
use crate::setup::{self, Acks, commit, database, newest_file};
use crate::table::{Row, quantile};
use rusqlite::Connection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

/// Commits per second of the stream.
const RATE: u32 = 500;

/// Milliseconds from commit to there, each.
#[derive(Default)]
struct Times {
    captured: Vec<f64>,
    safe: Vec<f64>,
    copied: Vec<f64>,
    stream_captured: Vec<f64>,
    stream_safe: Vec<f64>,
}

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let scratch = Scratch::new("bench-latency");
    let mut ours = ours(&scratch, plan);
    let mut theirs = theirs(&scratch, plan);
    let row = |what: &str, q: f64, ours: &mut Vec<f64>, theirs: Option<&mut Vec<f64>>| {
        let name = if q == 0.5 { "p50" } else { "p99" };
        Row::new(format!("{what}, {name} ms"), quantile(ours, q), theirs.map(|t| quantile(t, q)))
    };
    let (captured, safe) = ("commit → captured", "commit → safe off the node");
    let copied = "commit → visible at the file destination";
    let mut rows = Vec::new();
    for q in [0.5, 0.99] {
        rows.push(row(captured, q, &mut ours.captured, Some(&mut theirs.captured)));
    }
    rows.push(
        row(safe, 0.5, &mut ours.safe, Some(&mut theirs.safe))
            .goal("≥ 40x", |row| row.ratio().is_some_and(|r| r >= 40.0)),
    );
    rows.push(row(safe, 0.99, &mut ours.safe, Some(&mut theirs.safe)));
    for q in [0.5, 0.99] {
        rows.push(row(copied, q, &mut ours.copied, Some(&mut theirs.safe)));
    }
    for q in [0.5, 0.99] {
        rows.push(row("the same under 500 txn/s: captured", q, &mut ours.stream_captured, None));
        rows.push(row("the same under 500 txn/s: safe off the node", q, &mut ours.stream_safe, None));
    }
    rows
}

fn ours(scratch: &Scratch, plan: &Plan) -> Times {
    let path = scratch.join("ours.db");
    let connection = database(&path, 1000);
    let ours = setup::ours(&scratch.join("ours"), &[("db".into(), path)]);
    let mut acks = ours.acks();
    let mut times = Times::default();
    let mut txid = acks.progress("db").buffered;
    for round in 0..plan.pick(500u64, 50) {
        // Not in step with any timer of either side.
        std::thread::sleep(Duration::from_micros(11_000 + round * 7919 % 23_000));
        commit(&connection);
        let began = Instant::now();
        txid += 1;
        let mut captured = None;
        loop {
            let at = acks.progress("db");
            if at.captured >= txid {
                captured.get_or_insert_with(|| ms(began));
            }
            if at.buffered >= txid {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "TXID {txid} is not acked");
            std::thread::sleep(Duration::from_micros(100));
        }
        times.safe.push(ms(began));
        times.captured.extend(captured);
    }
    for round in 0..plan.pick(40u64, 5) {
        std::thread::sleep(Duration::from_millis(300 + round * 7919 % 1100));
        commit(&connection);
        let began = Instant::now();
        txid += 1;
        while ours.copied("db") < txid {
            assert!(began.elapsed() < Duration::from_secs(20), "TXID {txid} is not copied");
            std::thread::sleep(Duration::from_micros(500));
        }
        times.copied.push(ms(began));
    }
    stream(&connection, acks, txid, plan.pick(10, 2), &mut times);
    times
}

/// Commits at a steady rate while another thread asks how far the agent is.
fn stream(connection: &Connection, mut acks: Acks, before: u64, seconds: u32, times: &mut Times) {
    let end = AtomicBool::new(false);
    let last = before + u64::from(RATE * seconds);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut seen = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let at = acks.progress("db");
                if seen.last().is_none_or(|(_, before)| *before != at) {
                    seen.push((Instant::now(), at));
                }
                if at.buffered >= last {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        let began = Instant::now();
        let mut commits = Vec::new();
        for n in 1..=RATE * seconds {
            commit(connection);
            commits.push(Instant::now());
            let due = Duration::from_secs(1) * n / RATE;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        std::thread::sleep(Duration::from_secs(2));
        end.store(true, Ordering::Relaxed);
        let seen = asking.join().expect("the asking thread");
        for (txid, committed) in (before + 1..).zip(commits) {
            // Seen at the end of an answer, so it may have been so a little before the commit returned.
            let since = |at: Option<&(Instant, setup::Progress)>| {
                at.map(|(at, _)| at.saturating_duration_since(committed).as_secs_f64() * 1000.0)
            };
            times.stream_captured.extend(since(seen.iter().find(|(_, at)| at.captured >= txid)));
            times.stream_safe.extend(since(seen.iter().find(|(_, at)| at.buffered >= txid)));
        }
    });
}

fn theirs(scratch: &Scratch, plan: &Plan) -> Times {
    let path = scratch.join("theirs.db");
    let connection = database(&path, 1000);
    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let (_litestream, replicas) = setup::litestream(&dir, &[("db".into(), path)]);
    let local = scratch.join(".theirs.db-litestream/ltx/0");
    let folder = replicas.join("db/ltx/0");
    let mut times = Times::default();
    for round in 0..plan.pick(40u64, 5) {
        std::thread::sleep(Duration::from_millis(1500 + round * 7919 % 1100));
        let (captured, before) = (newest_file(&local), newest_file(&folder));
        commit(&connection);
        let began = Instant::now();
        let mut seen = false;
        while newest_file(&folder) <= before {
            if !seen && newest_file(&local) > captured {
                times.captured.push(ms(began));
                seen = true;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "litestream does not replicate");
            std::thread::sleep(Duration::from_micros(500));
        }
        times.safe.push(ms(began));
        if !seen {
            times.captured.push(ms(began));
        }
    }
    times
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
