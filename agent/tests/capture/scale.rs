//! Cost: latency of a small transaction, and nothing in proportion to what did not change.

use crate::child::App;
use crate::hub::{Discard, Place};
use std::io;
use std::time::{Duration, Instant};
use walhub_agent::capture::{Capture, Next, Pace, Parts, Sink, Staged, Standing, Walk};

#[test]
fn a_small_transaction_costs_the_same_in_a_long_log() {
    let place = Place::with_frames(1_000_000);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(4000);
    replica.drain(&mut capture);
    let mut best = Duration::MAX;
    for _ in 0..200 {
        app.insert();
        let begun = Instant::now();
        assert!(matches!(capture.next(&mut Discard).unwrap(), Next::Sent(_)));
        best = best.min(begun.elapsed());
    }
    // Unoptimised code on a busy machine; a scan of this log of 16 MB would take many times longer.
    println!("best of 200: {best:?}");
    assert!(best < Duration::from_millis(2), "{best:?}");
}

/// A hub that takes everything.
struct Endless(Discard);

impl Parts for Endless {
    fn part(&mut self) -> &mut dyn Sink {
        &mut self.0
    }
    fn last(&mut self) -> &mut dyn Sink {
        &mut self.0
    }
}

struct Hurry;

impl Pace for Hurry {
    fn rest(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn progress(&mut self, _: u32, _: u32) {}
}

/// The most memory this process ever had, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A first snapshot, transactions after it, and a restart; the peak of this process afterwards, KiB.
fn followed(pages: u32) -> u64 {
    let place = Place::new();
    let mut app = App::open(&place.db());
    app.sql("PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(x); CREATE TABLE s(x)");
    // The pages of a large blob have but 4 bytes of their own.
    let (bytes, rows) = (20_000 * 508, pages / 20_000);
    for _ in 0..rows {
        app.sql(&format!("INSERT INTO t VALUES(zeroblob({bytes}))"));
    }
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let mut capture = place.attach();
    assert!(capture.image_bytes().unwrap() / 512 >= u64::from(pages));
    let mut staged = Staged::create(&place.state()).unwrap();
    let walk = capture.stage(&mut staged, &mut Endless(Discard), &mut Hurry).unwrap();
    let Walk::Complete(meta) = walk else { panic!("not all the way around") };
    capture.acked(meta.range.max());
    for _ in 0..20 {
        app.sql("INSERT INTO s VALUES(zeroblob(5000))");
        while let Next::Sent(meta) = capture.next(&mut Discard).unwrap() {
            capture.acked(meta.range.max());
        }
    }
    capture.detach().unwrap();
    let capture: Capture = place.attach();
    assert_eq!(capture.standing(), Standing::Aligned);
    peak()
}

/// Pages are what counts: these are as many as 4 GB of 4 KiB pages have. Their page map alone would take 10 MB, and 26 while it
/// is read.
#[test]
fn the_memory_of_a_first_snapshot_hardly_depends_on_the_size_of_the_database() {
    let small = followed(140_000);
    let large = followed(1_040_000);
    println!("peak {small} KiB with a small database, {large} KiB with a large one");
    assert!(large - small < 8 << 10, "{small} KiB grew to {large} KiB");
}
