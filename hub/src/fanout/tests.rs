//! Lanes over real folders: what arrives there is one gap-free history, whatever the destinations do.

use super::Fanout;
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, DatabaseId, EveryDatabase, SegmentMeta, WalBuffer};
use crate::config::DestinationEntry;
use crate::copies::{Board, Place, Policy, Roster, Row, Rules};
use crate::testutil::{Image, Segment, key};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Decoder;
use walhub_common::restore::Applier;
use walhub_common::{DestinationName, Level, Pos, Txid};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::error::Operation;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, DynDestination, FileKey, PutMeta};

const INTERVAL: Duration = Duration::from_millis(20);

struct Bench {
    dir: tempfile::TempDir,
    buffer: Arc<MemoryBuffer>,
    board: Arc<Board>,
    destinations: Vec<Arc<Faulty>>,
    fanout: Option<Fanout>,
}

impl Bench {
    /// Destinations `d0`, `d1`, … in folders, with these faults.
    fn new(faults: &[Faults]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let destination = |(n, faults): (usize, &Faults)| {
            let name = DestinationName::new(format!("d{n}")).unwrap();
            let config = FileConfig { path: dir.path().join(format!("d{n}")) };
            let inner: DynDestination = Arc::new(FileDestination::new(name, &config));
            Arc::new(Faulty::new(inner, *faults, 7 + n as u64))
        };
        let destinations: Vec<Arc<Faulty>> = faults.iter().enumerate().map(destination).collect();
        let board = board(&destinations);
        let buffer = Arc::new(MemoryBuffer::new(64 << 20));
        Self { dir, buffer, board, destinations, fanout: None }
    }

    fn reliable(lanes: usize) -> Self {
        Self::new(&vec![Faults::default(); lanes])
    }

    fn start(&mut self) {
        let tmp = self.dir.path().join("tmp");
        self.fanout = Some(Fanout::start(self.buffer.clone(), self.board.clone(), &tmp).unwrap());
    }

    async fn stop(&mut self) {
        if let Some(fanout) = self.fanout.take() {
            fanout.shutdown(Duration::from_secs(10)).await;
        }
    }

    /// A restart of the hub; `forget` loses what the buffer knew of the lanes.
    async fn restart(&mut self) {
        self.stop().await;
        self.board = board(&self.destinations);
        self.start();
    }

    async fn register(&self, name: &str) -> DatabaseId {
        self.buffer.register(&key(name), None, "").await.unwrap().id
    }

    async fn append(&self, id: DatabaseId, segment: &Segment) {
        append(&self.buffer, id, segment).await;
    }

    fn row(&self, id: DatabaseId) -> Row {
        let registered = self.buffer.databases().into_iter().find(|database| database.id == id);
        self.board.row(id, &registered.unwrap().key)
    }

    fn held(&self, lane: usize, id: DatabaseId) -> u64 {
        self.row(id).held(lane).map_or(0, Txid::get)
    }

    async fn reaches(&self, lane: usize, id: DatabaseId, txid: u64) {
        let what = format!("lane {lane} to hold {txid}");
        eventually(&what, || self.held(lane, id) == txid).await;
    }

    fn folder(&self, lane: usize, name: &str) -> PathBuf {
        self.dir.path().join(format!("d{lane}/{}", key(name)))
    }

    /// Names of the level 0 files, in order.
    fn files(&self, lane: usize, name: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder(lane, name).join("ltx/0"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Restores from the level 0 files alone and compares with the source.
    fn assert_restores(&self, lane: usize, name: &str, image: &Image) {
        let out = self.dir.path().join(format!("restored-{lane}-{name}"));
        let mut applier = Applier::new(&out, true).unwrap();
        let mut next = 1;
        for file in self.files(lane, name) {
            let bytes = std::fs::read(self.folder(lane, name).join("ltx/0").join(&file)).unwrap();
            let header = *Decoder::new(&bytes[..]).unwrap().header();
            assert!(header.range.min().get() <= next, "hole before {file}");
            if header.range.max().get() < next {
                continue; // Covered by a file that filled a hole.
            }
            assert!(header.wal_offset >= 32, "stock replicate could not take over");
            next = header.range.max().get() + 1;
            applier.apply(&file, &bytes[..]).unwrap();
        }
        let report = applier.finish(Some(image.checksum())).unwrap();
        assert_eq!(report.position().txid.get(), image.txid());
        assert_eq!(std::fs::read(&out).unwrap(), image.bytes());
    }
}

/// Served every [`INTERVAL`]; the cursor of destination `d0` is called so.
fn place(lane: usize, destination: &Arc<Faulty>) -> Arc<Place> {
    let entry = DestinationEntry::folder(destination.name().as_str(), Path::new(&destination.location()));
    let entry = DestinationEntry { sync_interval: INTERVAL, cursor: entry.name.clone(), ..entry };
    Arc::new(Place { lane, entry, destination: destination.clone() })
}

fn board(destinations: &[Arc<Faulty>]) -> Arc<Board> {
    let places = destinations.iter().enumerate().map(|(lane, destination)| place(lane, destination));
    Arc::new(Board::new(Roster::new(places.collect(), Rules::new(Vec::new(), Policy::default()))))
}

async fn append(buffer: &MemoryBuffer, database: DatabaseId, segment: &Segment) {
    let time_ms = 1_800_000_000_000 + segment.txid().get() as i64;
    let meta =
        SegmentMeta { range: segment.range, pre: segment.pre, post: segment.post, time_ms, agent_time_ms: 1 };
    let pieces = segment.ltx.len().div_ceil(1 << 20);
    for n in 0..pieces {
        let data = segment.ltx.slice(n << 20..segment.ltx.len().min((n + 1) << 20));
        let chunk = Chunk { database, meta, number: n as u32, last: n + 1 == pieces, data };
        buffer.append(chunk).await.unwrap();
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_snapshot_and_merged_ranges_arrive_everywhere() {
    let mut bench = Bench::reliable(2);
    let (id, mut image) = (bench.register("app").await, Image::new(12));
    bench.append(id, &image.first()).await;
    for n in 0..9 {
        bench.append(id, &image.commit(&[n % 12 + 1, 12 + n / 3])).await;
    }
    bench.start();
    for lane in 0..2 {
        bench.reaches(lane, id, 10).await;
        let names = ["0000000000000001-0000000000000009.ltx", "000000000000000a-000000000000000a.ltx"];
        assert_eq!(bench.files(lane, "app"), names, "the last transaction lies alone");
    }
    bench.append(id, &image.commit(&[3])).await;
    for lane in 0..2 {
        bench.reaches(lane, id, 11).await;
        bench.assert_restores(lane, "app", &image);
        let file = bench.folder(lane, "app").join("ltx/0/000000000000000b-000000000000000b.ltx");
        let header = *Decoder::new(&std::fs::read(&file).unwrap()[..]).unwrap().header();
        assert_eq!(header.timestamp_ms, 1_800_000_000_011, "the hub's time, not the agent's");
    }
    assert_eq!(bench.row(id).durable, Txid::new(11));
    let health = [0, 1].map(|lane| bench.board.health(lane));
    assert!(health.iter().all(|h| h.healthy && h.puts == 3 && h.put_bytes > 0), "{health:?}");
    bench.stop().await;
}

#[tokio::test]
async fn many_segments_become_one_file_by_merging_in_groups() {
    let mut bench = Bench::reliable(1);
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    bench.append(id, &image.first()).await;
    for n in 0..500u32 {
        bench.append(id, &image.commit(&[n % 20 + 1])).await;
    }
    bench.start();
    bench.reaches(0, id, 501).await;
    assert_eq!(bench.files(0, "app").len(), 2);
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn a_large_segment_takes_the_way_over_a_file_that_is_removed() {
    let mut bench = Bench::reliable(1);
    let (id, mut image) = (bench.register("app").await, Image::new(40_000));
    let first = image.first();
    assert!(first.ltx.len() as u64 > super::build::MAX_FILE_BYTES);
    bench.append(id, &first).await;
    bench.append(id, &image.commit(&[5])).await;
    bench.start();
    bench.reaches(0, id, 2).await;
    assert_eq!(bench.files(0, "app").len(), 2);
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
    assert_eq!(std::fs::read_dir(bench.dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_destination_that_is_down_holds_up_nobody_and_catches_up() {
    let mut bench = Bench::reliable(2);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    bench.reaches(1, id, 1).await;
    bench.destinations[1].set_down(true);
    for n in 0..40 {
        bench.append(id, &image.commit(&[n % 6 + 1])).await;
        bench.reaches(0, id, image.txid()).await;
    }
    eventually("the lane to be red", || !bench.board.health(1).healthy).await;
    let error = bench.board.health(1).last_error.clone();
    assert!(error.contains("destination d1") && error.contains("unavailable"), "{error}");
    assert_eq!(bench.held(1, id), 1);
    assert_eq!(bench.row(id).durable, Txid::new(41), "one copy is enough here");
    bench.destinations[1].set_down(false);
    bench.reaches(1, id, 41).await;
    assert!(bench.board.health(1).healthy);
    bench.assert_restores(0, "app", &image);
    bench.assert_restores(1, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn a_lying_failing_destination_ends_up_gap_free() {
    let bad =
        Faults { fail: 0.2, lie: 0.2, delay: 0.2, max_delay: Duration::from_millis(5), ..Faults::default() };
    let mut bench = Bench::new(&[Faults::default(), bad]);
    bench.start();
    let mut databases = Vec::new();
    for n in 0..6 {
        databases.push((bench.register(&format!("db{n}")).await, Image::new(5)));
    }
    for (id, image) in &mut databases {
        bench.append(*id, &image.first()).await;
    }
    for round in 0..15u32 {
        for (id, image) in &mut databases {
            bench.append(*id, &image.commit(&[round % 5 + 1])).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for lane in 0..2 {
        for (n, (id, image)) in databases.iter().enumerate() {
            bench.reaches(lane, *id, image.txid()).await;
            bench.assert_restores(lane, &format!("db{n}"), image);
        }
    }
    assert!(bench.destinations[1].failed() > 0);
    bench.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_behind_what_is_there() {
    let mut bench = Bench::reliable(1);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.append(id, &image.commit(&[2])).await;
    bench.reaches(0, id, 2).await;
    // The record of the cursor is lost, as in a crash right after the put.
    let lane = "d0".parse().unwrap();
    bench.stop().await;
    bench.buffer.set_cursor(&lane, id, Txid::new(1).unwrap()).unwrap();
    let files = bench.files(0, "app");
    bench.append(id, &image.commit(&[3])).await;
    bench.restart().await;
    bench.reaches(0, id, 3).await;
    let after = bench.files(0, "app");
    assert_eq!(after[..files.len()], files[..], "nothing was put twice");
    assert_eq!(after.last().unwrap(), "0000000000000003-0000000000000003.ltx");
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn a_hole_at_a_destination_is_filled_after_a_restart() {
    let mut bench = Bench::reliable(1);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    for _ in 0..3 {
        bench.append(id, &image.commit(&[2, 4])).await;
        bench.reaches(0, id, image.txid()).await;
    }
    bench.stop().await;
    std::fs::remove_file(bench.folder(0, "app").join("ltx/0/0000000000000003-0000000000000003.ltx")).unwrap();
    bench.append(id, &image.commit(&[1])).await;
    bench.restart().await;
    bench.reaches(0, id, 5).await;
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn another_history_stops_one_database_at_one_destination_only() {
    let mut bench = Bench::reliable(2);
    // Somebody else's files lie at d1 under the name of this database.
    let mut foreign = Image::new(9);
    let first = foreign.first();
    let put = FileKey { database: key("app"), level: Level::RAW, range: first.range };
    let meta = PutMeta { time_ms: 5, post: Some(first.post) };
    let token = CancellationToken::new();
    bench.destinations[1].probe(&token).await.unwrap();
    bench.destinations[1].put(&put, Body::Bytes(first.ltx.clone()), meta, &token).await.unwrap();
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    let (other, mut other_image) = (bench.register("other").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.append(id, &image.commit(&[1])).await;
    bench.append(other, &other_image.first()).await;
    bench.reaches(0, id, 2).await;
    bench.reaches(0, other, 1).await;
    bench.reaches(1, other, 1).await;
    eventually("the fault to show", || bench.row(id).fault(1).is_some()).await;
    let fault = bench.row(id).fault(1).unwrap().to_owned();
    assert!(fault.contains("another history"), "{fault}");
    assert_eq!(bench.held(1, id), 0);
    assert_eq!(bench.files(1, "app").len(), 1);
    assert!(bench.board.health(1).healthy);
    bench.append(other, &other_image.commit(&[2])).await;
    bench.reaches(1, other, 2).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_hub_with_an_old_disk_puts_the_segment_in_whose_middle_a_destination_ends() {
    let mut bench = Bench::reliable(2);
    bench.start();
    let lineage = bench.buffer.register(&key("db"), None, "").await.unwrap().lineage;
    let id = bench.register("db").await;
    let mut image = Image::new(8);
    bench.append(id, &image.first()).await;
    let old = image.clone();
    for page in [2, 3, 4] {
        bench.append(id, &image.commit(&[page])).await;
    }
    bench.reaches(0, id, 4).await;
    bench.reaches(1, id, 4).await;
    bench.stop().await;
    // The disk of before comes back; the agent sends everything since as one segment.
    for (name, lineage, goes_on) in [("old", lineage, true), ("foreign", lineage ^ 1, false)] {
        bench.buffer = Arc::new(MemoryBuffer::new(64 << 20));
        let id = bench.buffer.register(&key("db"), Some(lineage), "").await.unwrap().id;
        let mut image = old.clone();
        let mut first = Image::new(8);
        bench.append(id, &first.first()).await;
        bench.append(id, &image.commit_run(9, &[2, 3, 4, 7])).await;
        bench.restart().await;
        if goes_on {
            bench.reaches(0, id, 10).await;
            bench.reaches(1, id, 10).await;
            bench.assert_restores(0, "db", &image);
            bench.assert_restores(1, "db", &image);
        } else {
            eventually("the lineage is refused", || {
                bench.row(id).fault(0).is_some_and(|fault| fault.contains("lineage"))
            })
            .await;
        }
        bench.stop().await;
        assert_eq!(bench.files(0, "db").len(), bench.files(1, "db").len(), "{name}");
    }
}

#[tokio::test]
async fn behind_an_adopted_position_lanes_go_on_and_laggards_ask_their_siblings() {
    let mut bench = Bench::reliable(2);
    bench.start();
    let id = bench.register("db").await;
    let lineage = bench.buffer.find(&key("db")).unwrap().lineage;
    let mut image = Image::new(8);
    bench.append(id, &image.first()).await;
    bench.reaches(1, id, 1).await;
    bench.destinations[1].set_down(true);
    for page in [2, 3, 4] {
        bench.append(id, &image.commit(&[page])).await;
    }
    bench.reaches(0, id, 4).await;
    bench.stop().await;
    // The hub's disk is gone.
    bench.buffer = Arc::new(MemoryBuffer::new(64 << 20));
    let id = bench.buffer.register(&key("db"), Some(lineage), "").await.unwrap().id;
    let position = Pos { txid: Txid::new(4).unwrap(), checksum: image.checksum() };
    bench.buffer.adopt(id, position, 5).await.unwrap();
    bench.destinations[1].set_down(false);
    bench.restart().await;
    bench.reaches(0, id, 4).await;
    bench.append(id, &image.commit(&[5])).await;
    bench.reaches(0, id, 5).await;
    bench.reaches(1, id, 5).await;
    bench.assert_restores(0, "db", &image);
    bench.assert_restores(1, "db", &image);
    bench.stop().await;
}

#[tokio::test]
async fn past_the_buffer_a_destination_catches_up_from_its_sibling() {
    let mut bench = Bench::reliable(2);
    bench.buffer = Arc::new(MemoryBuffer::new(100_000));
    bench.destinations[1].set_down(true);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    // Only d0 counts for trimming, as when d1 was added to the configuration later.
    let lane: DestinationName = "d0".parse().unwrap();
    while bench.buffer.read(id, None, 1).is_ok() {
        bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await.unwrap();
    }
    bench.append(id, &image.commit(&[9])).await;
    bench.reaches(0, id, image.txid()).await;
    assert_eq!(bench.held(1, id), 0);
    bench.destinations[1].set_down(false);
    bench.reaches(1, id, image.txid()).await;
    bench.assert_restores(1, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn what_nobody_has_any_more_is_named() {
    let mut bench = Bench::reliable(1);
    bench.buffer = Arc::new(MemoryBuffer::new(30_000));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    let lane: DestinationName = "d0".parse().unwrap();
    while bench.buffer.read(id, None, 1).is_ok() {
        bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await.unwrap();
    }
    bench.stop().await;
    std::fs::remove_dir_all(bench.folder(0, "app")).unwrap();
    bench.append(id, &image.commit(&[9])).await;
    bench.restart().await;
    eventually("the fault to show", || bench.row(id).fault(0).is_some()).await;
    let fault = bench.row(id).fault(0).unwrap().to_owned();
    assert!(fault.contains("transactions from") && fault.contains("no other destination"), "{fault}");
    bench.stop().await;
}

#[tokio::test]
async fn an_idle_lane_does_nothing() {
    let mut bench = Bench::reliable(1);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    let calls = |operation| bench.destinations[0].calls(operation);
    let before = (calls(Operation::Put), calls(Operation::List), calls(Operation::Open));
    tokio::time::sleep(INTERVAL * 10).await;
    assert_eq!((calls(Operation::Put), calls(Operation::List), calls(Operation::Open)), before);
    bench.stop().await;
}

#[path = "full_tests.rs"]
mod full;
#[path = "packed_tests.rs"]
mod packed;
#[path = "service_tests.rs"]
mod service;

#[path = "reload_tests.rs"]
mod reload;

#[path = "gone_tests.rs"]
mod gone;
