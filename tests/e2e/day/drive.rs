//! A hub's buffer, lanes, compaction and retention, over the destinations of a real configuration, at hub times of the
//! test's choice.

use super::source::Source;
use rand::rngs::StdRng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};
use walhub_hub::buffer::disk::{DiskBuffer, Options};
use walhub_hub::buffer::{Chunk, DatabaseId, SegmentMeta, WalBuffer};
use walhub_hub::compact::ByHand;
use walhub_hub::config::Config;
use walhub_hub::copies::Board;
use walhub_hub::fanout::Fanout;
use walhub_hub::reload::first_roster;
use walhub_hub::retain::{Holds, Pins, Retainer};
use walhub_store::destinations::DynDestination;
use walhub_store::destinations::faulty::{Faults, Faulty};

/// A restore point as the agent made it.
pub(super) struct Point {
    pub(super) txid: u64,
    pub(super) time_ms: i64,
    pub(super) image: Vec<u8>,
}

/// See the module doc.
pub(super) struct Day {
    buffer: Arc<DiskBuffer>,
    board: Arc<Board>,
    fanout: Fanout,
    compactor: ByHand,
    retainer: Retainer,
    deletions: TaskGroup,
    destinations: Vec<DynDestination>,
    clock: Arc<AtomicI64>,
    key: DatabaseKey,
    id: DatabaseId,
    source: Source,
    pub(super) points: Vec<Point>,
    /// Files that retention deleted, by destination.
    pub(super) deleted: Vec<usize>,
}

impl Day {
    pub(super) async fn new(config: &Config, key: &str, folder: &Path) -> Day {
        let clock = Arc::new(AtomicI64::new(0));
        let mut destinations: Vec<DynDestination> = Vec::new();
        for entry in &config.destinations {
            let made = entry.config.build(entry.name.clone()).await.expect("destination");
            let file = made.kind() == "file";
            let timed = Faulty::new(made, Faults::default(), 0);
            destinations.push(Arc::new(if file { timed } else { timed.with_clock(clock.clone()) }));
        }
        let board = Arc::new(Board::new(first_roster(config, destinations.clone())));
        let buffer =
            Arc::new(DiskBuffer::open(Options::new(folder.join("buffer"), 256 << 20)).expect("buffer"));
        let key: DatabaseKey = key.parse().expect("a key");
        let id = buffer.register(&key, Some(0xda1), "").await.expect("register").id;
        let as_buffer: Arc<dyn WalBuffer> = buffer.clone();
        let fanout = Fanout::start(as_buffer.clone(), board.clone(), &folder.join("tmp")).expect("lanes");
        let (holds, pins) = (Arc::new(Holds::open(folder).expect("holds")), Pins::default());
        let making = folder.join("compaction");
        let levels = config.levels.clone();
        let compactor =
            ByHand::new(as_buffer.clone(), board.clone(), levels, &making, holds.clone(), pins.clone());
        let deletions = TaskGroup::new("retention");
        let retainer = Retainer::start(as_buffer, board.clone(), holds, pins, deletions.clone());
        let (compactor, source) = (compactor.expect("compaction"), Source::new());
        let deleted = vec![0; destinations.len()];
        let points = Vec::new();
        Day {
            buffer,
            board,
            fanout,
            compactor,
            retainer,
            deletions,
            destinations,
            clock,
            key,
            id,
            source,
            points,
            deleted,
        }
    }

    /// `count` transactions at this hub time, as one segment.
    pub(super) async fn commit(&mut self, now_ms: i64, count: u64, random: &mut StdRng) {
        self.clock.store(now_ms, Ordering::SeqCst);
        let segment = self.source.commit(count, random);
        let (range, pre, post) = (segment.range, segment.pre, segment.post);
        let meta = SegmentMeta { range, pre, post, time_ms: now_ms, agent_time_ms: 0 };
        let chunk = Chunk { database: self.id, meta, number: 0, last: true, data: segment.ltx };
        self.buffer.append(chunk).await.expect("append");
        let image = self.source.image().to_vec();
        self.points.push(Point { txid: range.max().get(), time_ms: now_ms, image });
    }

    /// Waits until the lanes have brought everything everywhere.
    pub(super) async fn arrive(&self) {
        let newest = self.points.last().and_then(|point| Txid::new(point.txid));
        let began = Instant::now();
        loop {
            let row = self.board.row(self.id, &self.key);
            if (0..self.destinations.len()).all(|lane| row.held(lane) >= newest) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "the lanes do not get on: {row:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Compaction does what is due at this hub time.
    pub(super) async fn compact(&mut self, now_ms: i64) {
        self.clock.store(now_ms, Ordering::SeqCst);
        self.compactor.pass(now_ms).await;
    }

    /// A round of retention at every destination, at this hub time.
    pub(super) async fn retain(&mut self, now_ms: i64) {
        let names: Vec<_> = self.destinations.iter().map(|destination| destination.name().clone()).collect();
        for (deleted, name) in self.deleted.iter_mut().zip(names) {
            let take = |report: walhub_hub::retain::Report| {
                assert_eq!(report.error, None, "{name}");
                *deleted += report.deleted;
                std::future::ready(true)
            };
            self.retainer.now(Some(&name), None, true, now_ms, take).await.expect("a destination");
        }
    }

    /// Ends everything; what each destination holds, by level and transactions.
    pub(super) async fn end(self) -> (Vec<Point>, Vec<Vec<(Level, TxidRange)>>) {
        let totals = self.board.compaction().totals();
        assert_eq!((totals.failures, totals.skipped), (0, 0), "{totals:?}");
        self.fanout.shutdown(Duration::from_secs(10)).await;
        self.compactor.end().await;
        assert!(self.deletions.shutdown(Duration::from_secs(10)).await);
        let mut held = Vec::new();
        for destination in &self.destinations {
            let mut files = Vec::new();
            for level in Level::all() {
                let found =
                    destination.list(&self.key, level, &CancellationToken::new()).await.expect("a listing");
                files.extend(found.into_iter().map(|file| (file.level, file.range)));
            }
            held.push(files);
        }
        self.buffer.close().await.expect("the buffer closes");
        (self.points, held)
    }
}
