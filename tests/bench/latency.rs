//! How soon a commit is safe: commit → `buffered` ack, and commit → visible at the file destination.

use crate::Plan;
use crate::setup::{self, commit, database, newest_file};
use crate::table::{Row, quantile};
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let scratch = Scratch::new("bench-latency");
    let (mut acks, mut copies) = ours(&scratch, plan);
    let mut theirs = theirs(&scratch, plan);
    let their_p50 = quantile(&mut theirs, 0.5);
    let their_p99 = quantile(&mut theirs, 0.99);
    vec![
        Row::new(
            "commit → safe off the node, p50 ms (ours: `buffered` ack; theirs: file)",
            quantile(&mut acks, 0.5),
            Some(their_p50),
        )
        .goal("≥ 40x", |row| row.ratio().is_some_and(|r| r >= 40.0)),
        Row::new("commit → safe off the node, p99 ms", quantile(&mut acks, 0.99), Some(their_p99)),
        Row::new(
            "commit → visible at the file destination, p50 ms",
            quantile(&mut copies, 0.5),
            Some(their_p50),
        ),
        Row::new(
            "commit → visible at the file destination, p99 ms",
            quantile(&mut copies, 0.99),
            Some(their_p99),
        ),
    ]
}

fn ours(scratch: &Scratch, plan: &Plan) -> (Vec<f64>, Vec<f64>) {
    let path = scratch.join("ours.db");
    let connection = database(&path, 1000);
    let ours = setup::ours(&scratch.join("ours"), &[("db".into(), path)]);
    let acks = ours.acks();
    let mut acked = acks.buffered("db");
    let mut to_ack = Vec::new();
    for round in 0..plan.pick(500u64, 50) {
        // Not in step with any timer of either side.
        std::thread::sleep(Duration::from_micros(11_000 + round * 7919 % 23_000));
        commit(&connection);
        let began = Instant::now();
        acked += 1;
        while acks.buffered("db") < acked {
            assert!(began.elapsed() < Duration::from_secs(20), "TXID {acked} is not acked");
            std::thread::sleep(Duration::from_micros(100));
        }
        to_ack.push(ms(began));
    }
    let mut to_copy = Vec::new();
    for round in 0..plan.pick(40u64, 5) {
        std::thread::sleep(Duration::from_millis(300 + round * 7919 % 1100));
        commit(&connection);
        let began = Instant::now();
        acked += 1;
        while ours.copied("db") < acked {
            assert!(began.elapsed() < Duration::from_secs(20), "TXID {acked} is not copied");
            std::thread::sleep(Duration::from_micros(500));
        }
        to_copy.push(ms(began));
    }
    (to_ack, to_copy)
}

fn theirs(scratch: &Scratch, plan: &Plan) -> Vec<f64> {
    let path = scratch.join("theirs.db");
    let connection = database(&path, 1000);
    let dir = scratch.join("theirs");
    std::fs::create_dir_all(&dir).expect("folder");
    let (_litestream, replicas) = setup::litestream(&dir, &[("db".into(), path)]);
    let folder = replicas.join("db/ltx/0");
    let mut to_file = Vec::new();
    for round in 0..plan.pick(40u64, 5) {
        std::thread::sleep(Duration::from_millis(1500 + round * 7919 % 1100));
        let before = newest_file(&folder);
        commit(&connection);
        let began = Instant::now();
        while newest_file(&folder) <= before {
            assert!(began.elapsed() < Duration::from_secs(20), "litestream does not replicate");
            std::thread::sleep(Duration::from_micros(500));
        }
        to_file.push(ms(began));
    }
    to_file
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
