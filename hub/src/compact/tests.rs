//! A day of hub time in seconds: what lies at the destinations afterwards, and what can be restored from it.

use super::tail::Tails;
use super::work::Worker;
use super::*;
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, DatabaseId, SegmentMeta};
use crate::config::{DEFAULT_LEVELS, DestinationEntry};
use crate::copies::policy::Policy;
use crate::copies::{Roster, Rules};
use crate::testutil::{Image, Segment};
use walhub_common::ltx::{Decoder, Stamp, merge};
use walhub_common::restore::Applier;
use walhub_common::{DatabaseKey, DestinationName, Level, Txid, TxidRange};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, DynDestination, FileKey, Listed, PutMeta};

const DAY_MS: i64 = 86_400_000;
/// A midnight.
const START_MS: i64 = 1_795_305_600_000;

struct Bench {
    dir: tempfile::TempDir,
    buffer: Arc<MemoryBuffer>,
    board: Arc<Board>,
    destinations: Vec<DynDestination>,
    faulty: Vec<Arc<Faulty>>,
    tasks: TaskGroup,
    worker: Worker,
    id: DatabaseId,
    image: Image,
    /// (transaction, time, bytes) of every restore point.
    points: Vec<(u64, i64, Vec<u8>)>,
}

fn key() -> DatabaseKey {
    "node/app".parse().unwrap()
}

impl Bench {
    /// Destinations `d0`, `d1`, … with these snapshot intervals, in hours.
    async fn new(hours: &[u64]) -> Self {
        Self::with_buffer(hours, 64 << 20).await
    }

    /// With a buffer of this many bytes.
    async fn with_buffer(hours: &[u64], bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Vec::new();
        let mut destinations: Vec<DynDestination> = Vec::new();
        let mut faulty: Vec<Arc<Faulty>> = Vec::new();
        for (lane, hours) in hours.iter().enumerate() {
            let name = DestinationName::new(format!("d{lane}")).unwrap();
            let path = dir.path().join(name.as_str());
            let mut entry = DestinationEntry::folder(name.as_str(), &path);
            entry.snapshot_interval = Duration::from_secs(hours * 3600);
            let inner: DynDestination = Arc::new(FileDestination::new(name, &FileConfig { path }));
            faulty.push(Arc::new(Faulty::new(inner, Faults::default(), 7)));
            let destination: DynDestination = faulty[lane].clone();
            destination.probe(&CancellationToken::new()).await.unwrap();
            destinations.push(destination.clone());
            places.push(Arc::new(Place { lane, entry, destination }));
        }
        let board = Arc::new(Board::new(Roster::new(places, Rules::new(Vec::new(), Policy::default()))));
        for lane in 0..hours.len() {
            board.post_health(lane, |health| health.healthy = true);
        }
        let buffer = Arc::new(MemoryBuffer::new(bytes));
        let id = buffer.register(&key(), Some(9), "").await.unwrap().id;
        let (tasks, worker) = worker(&buffer, &board, dir.path());
        Self {
            dir,
            buffer,
            board,
            destinations,
            faulty,
            tasks,
            worker,
            id,
            image: Image::new(24),
            points: Vec::new(),
        }
    }

    /// A hub that was killed: a new worker that knows nothing.
    async fn restart(&mut self) {
        self.tasks.shutdown(Duration::from_secs(10)).await;
        (self.tasks, self.worker) = worker(&self.buffer, &self.board, self.dir.path());
    }

    /// One transaction at a time; its segment goes to level 0 of the destinations `to`, as a lane would put it.
    async fn commit(&mut self, time_ms: i64, to: &[usize]) {
        self.stream(time_ms, 1, to).await;
    }

    /// Several transactions as one segment.
    async fn stream(&mut self, time_ms: i64, count: u64, to: &[usize]) {
        let segment = if self.image.txid() == 0 {
            self.image.first()
        } else {
            let page = (self.image.txid() % 24) as u32 + 1;
            self.image.commit_run(count, &[page])
        };
        let Segment { range, pre, post, ltx, .. } = segment.clone();
        let meta = SegmentMeta { range, pre, post, time_ms, agent_time_ms: 0 };
        self.buffer
            .append(Chunk { database: self.id, meta, number: 0, last: true, data: ltx.clone() })
            .await
            .unwrap();
        self.points.push((self.image.txid(), time_ms, self.image.bytes()));
        for lane in to {
            let file = FileKey { database: key(), level: Level::RAW, range };
            let mut stamped = Vec::new();
            let inputs = vec![Decoder::new(&ltx[..]).unwrap()];
            let stamp = Stamp { timestamp_ms: time_ms, node_id: 9, whole: false };
            merge(inputs, stamp, &mut stamped).unwrap();
            let meta = PutMeta { time_ms, post: Some(post) };
            self.destinations[*lane]
                .put(&file, Body::Bytes(stamped.into()), meta, &CancellationToken::new())
                .await
                .unwrap();
            self.arrived(*lane, range.max());
        }
    }

    /// What a lane says when it has put a file of level 0.
    fn arrived(&self, lane: usize, txid: Txid) {
        self.board.points().reached(lane, self.id, Level::RAW, txid);
        self.board.post_copy(lane, self.id, &key(), Some(txid));
    }

    /// A lane that was away for a while puts these transactions as one file, from another one's.
    async fn put_at_once(&self, lane: usize, from: usize, min: u64, max: u64) {
        let range = TxidRange::from_raw(min, max).unwrap();
        let files: Vec<Vec<u8>> = (self.list(from, 0).await.iter())
            .filter(|file| file.range.min() >= range.min() && file.range.max() <= range.max())
            .map(|file| std::fs::read(self.path(from, 0, file.range)).unwrap())
            .collect();
        let inputs = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
        let time_ms = self.points[max as usize - 1].1;
        let stamp = Stamp { timestamp_ms: time_ms, node_id: 9, whole: false };
        let mut merged = Vec::new();
        let made = merge(inputs, stamp, &mut merged).unwrap();
        assert_eq!(made.header.range, range);
        let file = FileKey { database: key(), level: Level::RAW, range };
        let meta = PutMeta { time_ms, post: made.header.provenance.map(|p| p.post) };
        let body = Body::Bytes(merged.into());
        self.destinations[lane].put(&file, body, meta, &CancellationToken::new()).await.unwrap();
        self.arrived(lane, range.max());
    }

    fn path(&self, lane: usize, level: u8, range: TxidRange) -> PathBuf {
        self.dir.path().join(format!("d{lane}/node/app/ltx/{level}/{range}.ltx"))
    }

    /// Lets the worker do what is due at this time, and waits until what it made is put.
    async fn pass(&mut self, now_ms: i64) {
        self.worker.look(now_ms);
        self.worker.pass(now_ms).await;
        let mut unfinished = self.worker.unfinished();
        let done = unfinished.wait_for(|count| *count == 0);
        tokio::time::timeout(Duration::from_secs(30), done).await.expect("puts end").unwrap();
    }

    async fn list(&self, lane: usize, level: u8) -> Vec<Listed> {
        self.destinations[lane]
            .list(&key(), Level::new(level).unwrap(), &CancellationToken::new())
            .await
            .unwrap()
    }

    /// Restores `txid` from the files of these levels alone.
    async fn restores(&self, lane: usize, levels: &[u8], txid: u64) -> Option<Vec<u8>> {
        let mut files = Vec::new();
        for level in levels {
            files.extend(self.list(lane, *level).await);
        }
        let source = self.destinations[lane].name().clone();
        let listings = [walhub_store::restore::Listing { source, files }];
        let plan = walhub_store::restore::Reach::new(&listings, None).chain_to(Txid::new(txid)?)?;
        let out = self.dir.path().join(format!("restored-{lane}-{txid}"));
        let mut applier = Applier::new(&out, true).unwrap();
        for file in &plan.files {
            let path =
                self.dir.path().join(format!("d{lane}/node/app/ltx/{}/{}.ltx", file.level, file.range));
            applier.apply(&file.range.to_string(), &std::fs::read(path).unwrap()[..]).unwrap();
        }
        applier.finish(None).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        Some(bytes)
    }

    fn leftovers(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("tmp")).unwrap().count()
    }
}

fn worker(buffer: &Arc<MemoryBuffer>, board: &Arc<Board>, dir: &Path) -> (TaskGroup, Worker) {
    let folder = prepare(&dir.join("tmp")).unwrap();
    let tasks = TaskGroup::new("compaction");
    let buffer: Arc<dyn WalBuffer> = buffer.clone();
    let (levels, abort) = (DEFAULT_LEVELS.to_vec(), CancellationToken::new());
    let holds = Arc::new(Holds::open(dir).unwrap());
    let tails = Tails::new(holds, Pins::default(), folder.clone(), abort.clone());
    let worker = Worker::new(buffer, board.clone(), levels, folder, tasks.clone(), tails, abort);
    (tasks, worker)
}

/// No hole, one file per window, each with the time of its newest transaction.
fn assert_level(files: &[Listed], interval_ms: i64, points: &[(u64, i64, Vec<u8>)]) {
    let mut next = 2;
    let mut last = i64::MIN;
    for file in files {
        assert_eq!(file.range.min().get(), next, "a hole or an overlap");
        next = file.range.max().get() + 1;
        let time_of = |txid: u64| points[txid as usize - 1].1;
        assert_eq!(file.time_ms, time_of(next - 1));
        let window = file.time_ms.div_euclid(interval_ms);
        assert_eq!(
            time_of(file.range.min().get()).div_euclid(interval_ms),
            window,
            "two windows in one file"
        );
        assert!(window > last, "two files of one window");
        last = window;
    }
}

#[tokio::test]
async fn a_day_gives_every_level_and_restores_from_each_with_restarts_in_between() {
    let mut bench = Bench::new(&[6, 24]).await;
    let mut now = START_MS + 1_000;
    let mut pause = 7_u64;
    while now < START_MS + DAY_MS + DAY_MS / 4 {
        bench.commit(now, &[0, 1]).await;
        pause = pause.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Bursts, minutes of silence, now and then hours.
        let step = match (pause >> 33) % 40 {
            0..20 => 3_000,
            20..39 => 90_000,
            _ => 5_000_000,
        };
        for _ in 0..5 {
            now += step / 5;
            bench.pass(now).await;
        }
        if (pause >> 40).is_multiple_of(50) {
            bench.restart().await;
        }
    }
    bench.pass(now + 8_000_000).await;
    let newest = bench.image.txid();
    for lane in [0, 1] {
        for (level, interval) in [(1, 30_000), (2, 300_000), (3, 3_600_000)] {
            let files = bench.list(lane, level).await;
            assert_level(&files, interval, &bench.points);
            let reach = files.last().unwrap().range.max().get();
            assert_eq!(reach, newest, "level {level} lags");
            for file in files.iter().step_by(7) {
                let txid = file.range.max().get();
                let base: Vec<Listed> = bench.list(lane, 0).await;
                assert_eq!(base[0].range.max().get(), 1);
                let bytes = bench.restores(lane, &[0, level], txid).await.unwrap();
                assert!(bytes == bench.points[txid as usize - 1].2, "level {level} at {txid}");
            }
        }
        let snapshots = bench.list(lane, 9).await;
        assert!(snapshots.len() >= [3, 1][lane], "{snapshots:?}");
        for snapshot in &snapshots {
            let txid = snapshot.range.max().get();
            let bytes = bench.restores(lane, &[9], txid).await.unwrap();
            assert!(bytes == bench.points[txid as usize - 1].2, "snapshot {txid}");
        }
        // Without level 0 everything newer than the first snapshot is there.
        let bytes = bench.restores(lane, &[1, 2, 3, 9], newest).await.unwrap();
        assert!(bytes == bench.image.bytes());
    }
    assert_eq!(bench.leftovers(), 0);
    let totals = bench.board.compaction().totals();
    assert_eq!((totals.failures, totals.waiting_bytes), (0, 0), "{totals:?}");
}

#[tokio::test]
async fn a_destination_that_is_behind_gets_nothing_beyond_its_reach_and_delays_nobody() {
    let mut bench = Bench::new(&[24, 24]).await;
    bench.commit(START_MS, &[0, 1]).await;
    for n in 1..10 {
        bench.commit(START_MS + n * 1_000, &[0]).await;
    }
    bench.worker.look(START_MS + 40_000);
    bench.worker.pass(START_MS + 40_000).await;
    let mut unfinished = bench.worker.unfinished();
    unfinished.wait_for(|count| *count == 1).await.unwrap();
    assert_eq!(bench.list(0, 1).await.len(), 1);
    assert!(bench.list(1, 1).await.is_empty(), "its newest transaction is 1");
    bench.board.post_copy(1, bench.id, &key(), Txid::new(10));
    unfinished.wait_for(|count| *count == 0).await.unwrap();
    assert_eq!(bench.list(1, 1).await, bench.list(0, 1).await);
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn where_a_stream_rests_its_last_transaction_lies_alone() {
    let mut bench = Bench::new(&[24]).await;
    bench.commit(START_MS, &[0]).await;
    bench.stream(START_MS + 1_000, 7, &[0]).await;
    bench.stream(START_MS + 2_000, 5, &[0]).await;
    let ranges = |files: &[Listed]| -> Vec<(u64, u64)> {
        files.iter().map(|file| (file.range.min().get(), file.range.max().get())).collect()
    };
    assert_eq!(ranges(&bench.list(0, 0).await), [(1, 1), (2, 8), (9, 13)]);
    bench.pass(START_MS + 40_000).await;
    assert_eq!(ranges(&bench.list(0, 1).await), [(2, 13)]);
    assert_eq!(ranges(&bench.list(0, 0).await), [(1, 1), (2, 8), (13, 13)]);
    assert!(bench.restores(0, &[0, 1], 13).await.unwrap() == bench.image.bytes());
    assert!(
        bench.restores(0, &[0], 13).await.is_none(),
        "it follows a state that no file of level 0 leads to"
    );
    let folder = bench.dir.path().join("d0/node/app/ltx/0");
    let alone = std::fs::read(folder.join("000000000000000d-000000000000000d.ltx")).unwrap();
    let header = walhub_common::ltx::Header::decode(&alone).unwrap();
    assert_eq!((header.wal_offset, header.node_id), (32, 9));
    assert_eq!(header.provenance.map(|known| (known.pre, known.post)), Some((None, bench.image.checksum())));
    // It goes on as if nothing had happened, and a crash in the middle is made up for.
    bench.stream(START_MS + 50_000, 4, &[0]).await;
    let file = folder.join("000000000000000e-0000000000000011.ltx");
    let bytes = std::fs::read(&file).unwrap();
    bench.pass(START_MS + 100_000).await;
    assert!(!file.exists());
    std::fs::write(&file, &bytes).unwrap();
    bench.restart().await;
    bench.pass(START_MS + 110_000).await;
    assert!(!file.exists(), "what a crash left is removed");
    assert_eq!(ranges(&bench.list(0, 0).await), [(1, 1), (2, 8), (13, 13), (17, 17)]);
    assert!(bench.restores(0, &[0, 1], 17).await.unwrap() == bench.image.bytes());
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn what_files_are_made_of_stays_while_they_are_made() {
    let mut bench = Bench::new(&[24]).await;
    for n in 0..5 {
        bench.commit(START_MS + n * 1_000, &[0]).await;
    }
    let pins = bench.worker.tails.pins.clone();
    let claim = pins.claim(&key()).unwrap();
    bench.pass(START_MS + 40_000).await;
    assert!(bench.list(0, 1).await.is_empty(), "something is being deleted");
    assert!(!claim.stop().is_cancelled(), "and nobody hurries it");
    drop(claim);
    bench.pass(START_MS + 43_000).await;
    bench.pass(START_MS + 43_001).await;
    assert_eq!(bench.list(0, 1).await.len(), 1);
    let totals = bench.board.compaction().totals();
    assert_eq!((totals.failures, totals.puts), (0, 1), "{totals:?}");
    // Seen whenever a file that is made waits for the disk: now and then it does not wait at all.
    let mut read = false;
    for n in 1..50 {
        let at_ms = START_MS + n * 60_000;
        bench.commit(at_ms, &[0]).await;
        bench.worker.look(at_ms + 43_000);
        {
            let mut pass = std::pin::pin!(bench.worker.pass(at_ms + 43_000));
            std::future::poll_fn(|cx| {
                let ended = pass.as_mut().poll(cx);
                read |= ended.is_pending() && pins.in_use(&key());
                ended
            })
            .await;
        }
        assert!(!pins.in_use(&key()));
    }
    assert!(read, "inputs may be deleted while they are read");
}

#[tokio::test]
async fn a_database_that_rests_costs_nothing() {
    let mut bench = Bench::new(&[24]).await;
    for n in 0..5 {
        bench.commit(START_MS + n * 1_000, &[0]).await;
    }
    let mut now = START_MS;
    for _ in 0..400 {
        now += 900_000;
        bench.pass(now).await;
    }
    let made = bench.board.compaction().totals();
    assert_eq!((made.files, made.snapshots), (3, 1));
    assert_eq!(bench.worker.pass(now + 100 * DAY_MS).await, None, "nothing is due ever again");
    // A hub that starts long after leaves it alone: not one request.
    bench.restart().await;
    bench.worker.look(now + 100 * DAY_MS);
    assert_eq!(bench.worker.pass(now + 100 * DAY_MS).await, None);
}

#[path = "lacking_tests.rs"]
mod lacking;
