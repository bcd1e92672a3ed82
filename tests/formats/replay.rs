//! The entry functions of the fuzz targets on real input: whole, cut, and with bytes changed, by a fixed seed.

use crate::follower::Follower;
use crate::golden;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use walhub_common::testutil::{fuzz_ltx_decoder, fuzz_ltx_verifier, fuzz_wal};
use walhub_tests::oracle::observer;
use walhub_tests::scratch::Scratch;

const ROUNDS: usize = 300;

/// The log of a small database, and the LTX files captured from it.
fn seeds() -> (Vec<u8>, Vec<Vec<u8>>) {
    let scratch = Scratch::new("replay");
    let path = scratch.join("live.db");
    std::fs::File::create_new(&path).unwrap();
    let connection = observer(&path);
    connection
        .execute_batch(
            "PRAGMA page_size = 512; CREATE TABLE first(x); PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0",
        )
        .unwrap();
    let mut follower = Follower::start(&path);
    connection
        .execute_batch(
            "CREATE TABLE t(v); INSERT INTO t VALUES (zeroblob(2000)); UPDATE t SET v = 'short'; DELETE FROM t;
             INSERT INTO t VALUES ('a row that stays'); VACUUM",
        )
        .unwrap();
    follower.follow();
    let mut files = follower.files;
    let stock = [golden::SNAPSHOT, golden::DELTA, golden::OLD_SNAPSHOT, golden::OLD_DELTA];
    files.extend(stock.map(golden::bytes));
    (std::fs::read(scratch.join("live.db-wal")).unwrap(), files)
}

/// One of the small damages that disks, networks and people do.
fn mutate(rng: &mut StdRng, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, rng.random()),
            4 => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                bytes[at..end].fill(if rng.random() { 0 } else { 0xff });
            }
            _ => {
                let from = rng.random_range(0..bytes.len());
                let length = rng.random_range(1..600).min(bytes.len() - at.max(from));
                bytes.copy_within(from..from + length, at);
            }
        }
    }
    bytes
}

#[test]
fn mutated_logs_break_no_promise() {
    let (log, _) = seeds();
    assert!(log.len() > 10 * 536, "a log of several frames");
    fuzz_wal(&log);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..ROUNDS {
        fuzz_wal(&mutate(&mut rng, &log));
    }
}

#[test]
fn mutated_files_break_no_promise() {
    let (_, files) = seeds();
    let mut rng = StdRng::seed_from_u64(2);
    for file in &files {
        fuzz_ltx_decoder(file);
        for _ in 0..ROUNDS {
            let bytes = mutate(&mut rng, file);
            fuzz_ltx_decoder(&bytes);
            fuzz_ltx_verifier(&bytes);
        }
    }
}
