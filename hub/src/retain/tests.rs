//! Rounds over a real folder with a real history: what goes, what stays, and who can stop it.

use super::wall_clock::WallClock;
use super::{Holds, Report, Retainer};
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, SegmentMeta, WalBuffer};
use crate::config::DestinationEntry;
use crate::copies::{Board, Need, Place, Policy, Roster, Rules};
use crate::restore::Restores;
use crate::testutil::{Image, Segment};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{Decoder, Stamp, merge};
use walhub_common::restore::Applier;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, Level, TxidRange, clock};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, DynDestination, FileKey, PutMeta};
use walhub_store::retention::{self, Kept};

const HOUR: i64 = 3_600_000;
/// Transactions, one an hour; the newest is an hour old.
const HISTORY: u64 = 60;

struct Bench {
    dir: tempfile::TempDir,
    folder: Arc<Faulty>,
    buffer: Arc<MemoryBuffer>,
    retainer: Retainer,
    restores: Restores,
    tasks: TaskGroup,
    states: Vec<Image>,
    files: Vec<Segment>,
    now_ms: i64,
}

fn key() -> DatabaseKey {
    "node/app".parse().unwrap()
}

fn time_of(now_ms: i64, txid: u64) -> i64 {
    now_ms - (HISTORY + 1 - txid) as i64 * HOUR
}

impl Bench {
    /// A history with level 0, level 1 (six hours each) and a snapshot a day; 24 h are kept.
    async fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let name: walhub_common::DestinationName = "disk".parse().unwrap();
        let path = dir.path().join("disk");
        let inner = FileDestination::new(name, &FileConfig { path: path.clone() });
        let folder = Arc::new(Faulty::new(Arc::new(inner), Faults::default(), 1));
        folder.probe(&CancellationToken::new()).await.unwrap();
        let buffer = Arc::new(MemoryBuffer::new(1 << 30));
        let mut entry = DestinationEntry::folder("disk", &path);
        entry.retention.policy = retention::Policy { keep_daily: 1, ..retention::Policy::default() };
        let place = Place { lane: 0, entry, destination: folder.clone() as DynDestination };
        let roster = Roster::new(vec![Arc::new(place)], Rules::new(Vec::new(), Policy::default()));
        let board = Arc::new(Board::new(roster));
        let holds = Arc::new(Holds::open(dir.path()).unwrap());
        let in_service = crate::copies::InService::fixed(&[folder.clone() as DynDestination]);
        let restores = Restores::new(buffer.clone(), in_service, CancellationToken::new());
        let tasks = TaskGroup::new("retention");
        let retainer = Retainer::start(buffer.clone(), board, holds, restores.pins().clone(), tasks.clone());
        let (states, files, now_ms) = (Vec::new(), Vec::new(), clock::now_ms());
        let mut bench = Bench { dir, folder, buffer, retainer, restores, tasks, states, files, now_ms };
        bench.fill().await;
        bench
    }

    async fn fill(&mut self) {
        let registered = self.buffer.register(&key(), Some(7), "").await.unwrap();
        let mut image = Image::new(6);
        for txid in 1..=HISTORY {
            let segment = if txid == 1 { image.first() } else { image.commit(&[txid as u32 % 6 + 1]) };
            let time_ms = time_of(self.now_ms, txid);
            let (range, pre, post) = (segment.range, segment.pre, segment.post);
            let meta = SegmentMeta { range, pre, post, time_ms, agent_time_ms: 1 };
            let data = segment.ltx.clone();
            let chunk = Chunk { database: registered.id, meta, number: 0, last: true, data };
            self.buffer.append(chunk).await.unwrap();
            self.files.push(segment);
            self.states.push(image.clone());
            self.put(0, txid, txid).await;
            if txid % 6 == 0 {
                self.put(1, txid - 5, txid).await;
            }
            if txid % 24 == 0 {
                self.put(9, 1, txid).await;
            }
        }
    }

    async fn put(&self, level: u8, min: u64, max: u64) {
        let inputs = self.files[min as usize - 1..max as usize]
            .iter()
            .map(|segment| Decoder::new(&segment.ltx[..]).unwrap())
            .collect();
        let mut out = Vec::new();
        let time_ms = time_of(self.now_ms, max);
        merge(inputs, Stamp { timestamp_ms: time_ms, node_id: 7, whole: min == 1 }, &mut out).unwrap();
        let range = TxidRange::from_raw(min, max).unwrap();
        let key = FileKey { database: key(), level: Level::new(level).unwrap(), range };
        let meta = PutMeta { time_ms, post: None };
        self.folder.put(&key, Body::Bytes(out.into()), meta, &CancellationToken::new()).await.unwrap();
    }

    fn count(&self) -> usize {
        let mut count = 0;
        for level in std::fs::read_dir(self.dir.path().join("disk/node/app/ltx")).unwrap() {
            count += std::fs::read_dir(level.unwrap().path()).unwrap().count();
        }
        count
    }

    async fn now(&self, apply: bool) -> Report {
        let reports = Mutex::new(Vec::new());
        let take = |report: Report| {
            reports.lock().unwrap().push(report);
            std::future::ready(true)
        };
        self.retainer.now(None, None, apply, clock::now_ms(), take).await.unwrap();
        let mut reports = reports.into_inner().unwrap();
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    /// Restores a transaction from the folder alone.
    async fn restores_to(&self, txid: u64) -> Result<(), String> {
        use futures_util::StreamExt;
        let request = crate::restore::Request {
            database: key(),
            target: walhub_store::restore::Target::Txid(walhub_common::Txid::new(txid).unwrap()),
            after: None,
            source: Some("disk".parse().unwrap()),
        };
        let sources = self.restores.select(request.source.as_ref()).unwrap();
        let prepared = self.restores.prepare(&sources, &request).await.map_err(|e| e.to_string())?;
        let mut files: Vec<Vec<u8>> = Vec::new();
        let mut pieces = self.restores.fetch(&sources, &key(), &prepared.plan);
        while let Some(piece) = pieces.next().await {
            match piece.map_err(|e| e.to_string())? {
                walhub_store::restore::Piece::Start(_) => files.push(Vec::new()),
                walhub_store::restore::Piece::Data(data) => {
                    files.last_mut().unwrap().extend_from_slice(&data)
                }
            }
        }
        let out = self.dir.path().join("out");
        let mut applier = Applier::new(&out, true).unwrap();
        for file in &files {
            applier.apply("a file of the plan", &file[..]).unwrap();
        }
        let state = &self.states[txid as usize - 1];
        applier.finish(Some(state.checksum())).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), state.bytes());
        Ok(())
    }
}

async fn ends(bench: Bench) {
    assert!(bench.tasks.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_a_run_does_what_it_said() {
    let bench = Bench::new().await;
    let before = bench.count();
    let dry = bench.now(false).await;
    assert_eq!((dry.deleted, bench.count(), dry.error), (0, before, None));
    assert!(dry.plan.delete.len() > 40, "{:#?}", dry.plan);
    let run = bench.now(true).await;
    assert_eq!((run.deleted, run.plan.delete, run.error), (dry.plan.delete.len(), dry.plan.delete, None));
    assert_eq!(bench.count(), before - run.deleted);
    assert_eq!(bench.now(true).await.plan.delete, []);
    // 24 h, from the snapshot of transaction 24 (36 h old) on: every end of level 1, and the newest.
    for txid in [24, 30, 36, 42, 48, 54, 60] {
        bench.restores_to(txid).await.unwrap();
    }
    assert!(bench.restores_to(12).await.is_err() && bench.restores_to(31).await.is_err());
    ends(bench).await;
}

#[tokio::test]
async fn holds_and_readers_keep_everything() {
    let bench = Bench::new().await;
    let before = bench.count();
    bench.retainer.holds().add(&key(), "case 7").await.unwrap();
    let held = bench.now(true).await;
    assert!(held.plan.delete.is_empty() && held.plan.keep[0].1 == Kept::Hold);
    bench.retainer.holds().release(&key()).await.unwrap();
    let pin = bench.restores.pins().pin(&key()).await;
    let read = bench.now(true).await;
    assert!(read.plan.delete.is_empty() && read.plan.keep[0].1 == Kept::InUse);
    assert_eq!(bench.count(), before);
    drop(pin);
    assert!(bench.now(true).await.deleted > 40);
    ends(bench).await;
}

/// What a round does by itself, of a database that rests and whose files do not get older.
#[tokio::test]
async fn what_was_kept_for_a_reader_or_a_hold_is_looked_at_again() {
    let bench = Bench::new().await;
    let keeper = bench.retainer.keepers().values().next().unwrap().keeper.clone();
    // It rests for long.
    let mut database = bench.buffer.find(&key()).unwrap();
    database.time_ms -= 48 * HOUR;
    let now_ms = clock::now_ms();
    let pin = bench.restores.pins().pin(&key()).await;
    assert!(keeper.due(&database).await);
    assert_eq!(keeper.look(&database, true, now_ms).await.plan.keep[0].1, Kept::InUse);
    drop(pin);
    assert!(keeper.due(&database).await, "nobody reads it any more");
    bench.retainer.holds().add(&key(), "case 7").await.unwrap();
    assert!(!keeper.due(&database).await, "on hold, it costs no request");
    assert_eq!(keeper.look(&database, true, now_ms).await.plan.keep[0].1, Kept::Hold);
    bench.retainer.holds().release(&key()).await.unwrap();
    assert!(keeper.due(&database).await, "it is on hold no longer");
    assert!(keeper.look(&database, true, now_ms).await.deleted > 40);
    assert!(!keeper.due(&database).await, "there is nothing left to do");
    ends(bench).await;
}

/// The clock is as far ahead as a day of history is long.
#[tokio::test]
async fn a_round_deletes_nothing_while_the_clock_is_doubted() {
    let bench = Bench::new().await;
    let keeper = bench.retainer.keepers().values().next().unwrap().keeper.clone();
    let before = bench.count();
    let jumped = WallClock::new(clock::now_ms() - 24 * HOUR, Instant::now(), None);
    *bench.retainer.shared.clock.lock().unwrap() = jumped;
    keeper.round().await;
    assert_eq!(bench.count(), before);
    assert_eq!(keeper.rounds().last_success_ms, 0, "it counts as no round, for whoever is warned by that");
    *bench.retainer.shared.clock.lock().unwrap() = WallClock::new(clock::now_ms(), Instant::now(), None);
    keeper.round().await;
    assert!(bench.count() < before - 40 && keeper.rounds().last_success_ms > 0);
    ends(bench).await;
}

#[tokio::test]
async fn what_a_restore_waits_for_outlives_the_policy_and_goes_when_nobody_waits() {
    let bench = Bench::new().await;
    let awaited = bench.retainer.shared.board.awaited().clone();
    let wait = |txid, everything| {
        let txid = walhub_common::Txid::new(txid).unwrap();
        awaited.wait(&key(), Need { txid, buffered_from: None, everything }, &"job 7".into())
    };
    let waits = [wait(5, false), wait(31, false), wait(44, false)];
    let run = bench.now(true).await;
    assert!(run.deleted > 30, "{run:#?}");
    let why = Kept::Awaited(walhub_common::Txid::new(31).unwrap());
    assert!(run.plan.keep.iter().any(|(_, reason)| *reason == why), "{:#?}", run.plan);
    for txid in [5, 24, 31, 44, 60] {
        bench.restores_to(txid).await.unwrap();
    }
    assert!(bench.restores_to(13).await.is_err() && bench.restores_to(32).await.is_err());
    let all = wait(9, true);
    let held = bench.now(true).await;
    assert!(held.plan.delete.is_empty() && held.plan.keep[0].1 == Kept::Needs);
    drop((waits, all));
    assert!(bench.now(true).await.deleted > 0);
    for txid in [5, 31, 44] {
        assert!(bench.restores_to(txid).await.is_err(), "{txid}");
    }
    ends(bench).await;
}

#[tokio::test]
async fn a_destination_that_is_away_and_files_of_a_stranger_are_left_alone() {
    let bench = Bench::new().await;
    let before = bench.count();
    bench.folder.set_down(true);
    let away = bench.now(true).await;
    assert!(away.error.is_some() && away.plan.keep.is_empty());
    bench.folder.set_down(false);
    // A hub with the same name for another history.
    let other = MemoryBuffer::new(1 << 30);
    let stranger = other.register(&key(), Some(8), "").await.unwrap();
    let far = walhub_common::Pos {
        txid: walhub_common::Txid::new(90).unwrap(),
        checksum: bench.states[0].checksum(),
    };
    for position in [None, Some(far)] {
        if let Some(position) = position {
            other.adopt(stranger.id, position, 1).await.unwrap();
        }
        let registered = other.find(&key()).unwrap();
        let keeper = bench.retainer.keepers().values().next().unwrap().keeper.clone();
        let report = keeper.look(&registered, true, clock::now_ms()).await;
        let error = report.error.unwrap();
        assert!(error.contains("nothing is deleted"), "{error}");
    }
    assert_eq!(bench.count(), before);
    ends(bench).await;
}
