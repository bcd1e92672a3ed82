//! What a hub with an empty or an old buffer makes of what its destinations hold.

use super::*;
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, SegmentMeta};
use crate::testutil::{Image, Segment};
use std::sync::Arc;
use walhub_common::ltx::{Decoder, Stamp, merge};
use walhub_common::{Checksum, DestinationName, Level, Txid};
use walhub_proto::v1::RefusalCode;
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, DynDestination, FileKey, PutMeta};

const LINEAGE: u64 = 0xfeed;

struct Bench {
    buffer: MemoryBuffer,
    near: Arc<Faulty>,
    far: Arc<Faulty>,
    origins: Origins,
    image: Image,
    segments: Vec<Segment>,
    dir: tempfile::TempDir,
}

fn key() -> DatabaseKey {
    "node/app".parse().unwrap()
}

impl Bench {
    /// Five transactions of which `near` holds four, `far` three.
    async fn new(lineage: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let destination = |name: &str| {
            let config = FileConfig { path: dir.path().join(name) };
            let folder = FileDestination::new(DestinationName::new(name).unwrap(), &config);
            Arc::new(Faulty::new(Arc::new(folder), Faults::default(), 1))
        };
        let (near, far) = (destination("near"), destination("far"));
        let destinations = [near.clone() as DynDestination, far.clone()];
        for destination in &destinations {
            destination.probe(&CancellationToken::new()).await.unwrap();
        }
        let origins = Origins::new(InService::fixed(&destinations), CancellationToken::new());
        let mut image = Image::new(6);
        let mut segments = vec![image.first()];
        segments.extend((2..=5).map(|page| image.commit(&[page])));
        let bench = Self { buffer: MemoryBuffer::new(1 << 20), near, far, origins, image, segments, dir };
        bench.copy(&bench.near, 4, lineage).await;
        bench.copy(&bench.far, 3, lineage).await;
        bench
    }

    async fn copy(&self, to: &Faulty, count: usize, lineage: u64) {
        for segment in &self.segments[..count] {
            let key = FileKey { database: key(), level: Level::RAW, range: segment.range };
            let mut file = Vec::new();
            let input = Decoder::new(&segment.ltx[..]).unwrap();
            let stamp = Stamp { timestamp_ms: 1_800_000_000_000, node_id: lineage, whole: false };
            merge(vec![input], stamp, &mut file).unwrap();
            let meta = PutMeta { time_ms: 5, post: Some(segment.post) };
            to.put(&key, Body::Bytes(file.into()), meta, &CancellationToken::new()).await.unwrap();
        }
    }

    /// The hub's own buffer holds the first `count` transactions.
    async fn hold(&self, count: usize) {
        let id = self.buffer.register(&key(), Some(LINEAGE), "").await.unwrap().id;
        for segment in &self.segments[..count] {
            let Segment { range, pre, post, ltx, .. } = segment.clone();
            let meta = SegmentMeta { range, pre, post, time_ms: 1, agent_time_ms: 1 };
            let chunk = Chunk { database: id, meta, number: 0, last: true, data: ltx };
            self.buffer.append(chunk).await.unwrap();
        }
    }

    fn at(&self, txid: u64) -> Option<Pos> {
        let checksum = self.segments.get(txid as usize - 1)?.post;
        Some(Pos { txid: Txid::new(txid)?, checksum })
    }

    async fn open(&self, lineage: u64, position: Option<Pos>) -> Result<Registered, RefusalCode> {
        let announced = Announced { key: key(), lineage, position, path: "/db".into() };
        match self.origins.register(&self.buffer, &announced).await {
            Ok(registered) => Ok(registered),
            Err(OpenError::Refused(refusal)) => Err(refusal.code),
            Err(OpenError::Buffer(error)) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_lost_disk_is_made_good_by_the_newest_copy_and_its_lineage() {
    for (announced, position) in [(0, None), (LINEAGE, Some(5)), (LINEAGE, Some(2))] {
        let bench = Bench::new(LINEAGE).await;
        let position = position.and_then(|txid| bench.at(txid));
        let registered = bench.open(announced, position).await.unwrap();
        assert_eq!((registered.lineage, registered.position), (LINEAGE, bench.at(4)));
        assert_eq!(registered.time_ms, 1_800_000_000_000);
        assert_eq!(bench.open(announced, position).await.unwrap(), registered, "once is enough");
    }
}

#[tokio::test]
async fn files_that_name_no_lineage_are_believed_by_their_name() {
    let bench = Bench::new(0).await;
    let registered = bench.open(77, bench.at(5)).await.unwrap();
    assert_eq!((registered.lineage, registered.position), (77, bench.at(4)));
}

#[tokio::test]
async fn another_history_is_refused_before_anything_is_registered() {
    let bench = Bench::new(LINEAGE).await;
    assert_eq!(bench.open(LINEAGE ^ 1, bench.at(5)).await, Err(RefusalCode::Fork));
    let forged = bench.at(4).map(|at| Pos { checksum: Checksum::EMPTY, ..at });
    assert_eq!(bench.open(LINEAGE, forged).await, Err(RefusalCode::Fork));
    assert_eq!(bench.buffer.find(&key()), None);
}

#[tokio::test]
async fn nothing_is_new_while_the_destinations_do_not_answer() {
    let bench = Bench::new(LINEAGE).await;
    bench.near.set_down(true);
    // Far answers, and holds less: its lane and its sibling's settle the rest.
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(3));
    let bench = Bench::new(LINEAGE).await;
    bench.near.set_down(true);
    bench.far.set_down(true);
    for (lineage, position) in [(0, None), (LINEAGE, bench.at(5))] {
        assert_eq!(bench.open(lineage, position).await, Err(RefusalCode::Busy));
    }
    assert_eq!(bench.buffer.find(&key()), None);
    bench.near.set_down(false);
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(4));
}

#[tokio::test]
async fn a_new_database_needs_one_answer_and_one_that_had_a_history_needs_all() {
    let bench = Bench::new(LINEAGE).await;
    bench.near.set_down(true);
    let announced = |lineage, position| Announced {
        key: "node/new".parse().unwrap(),
        lineage,
        position,
        path: String::new(),
    };
    let had = bench.origins.register(&bench.buffer, &announced(9, bench.at(2))).await;
    assert!(matches!(had, Err(OpenError::Refused(refusal)) if refusal.code == RefusalCode::Busy));
    let new = bench.origins.register(&bench.buffer, &announced(0, None)).await.unwrap();
    assert_eq!(new.position, None);
}

#[tokio::test]
async fn an_old_disk_catches_up_with_its_copies_once_and_needs_none_of_them() {
    let bench = Bench::new(LINEAGE).await;
    bench.hold(2).await;
    bench.near.set_down(true);
    bench.far.set_down(true);
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(2), "nobody is held up");
    let bench = Bench::new(LINEAGE).await;
    bench.hold(2).await;
    assert_eq!(bench.open(LINEAGE, bench.at(2)).await.unwrap().position, bench.at(2), "both agree");
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(4));
    let bench = Bench::new(LINEAGE).await;
    bench.hold(5).await;
    assert_eq!(bench.open(LINEAGE, bench.at(3)).await.unwrap().position, bench.at(5), "the hub has more");
    let bench = Bench::new(LINEAGE ^ 1).await;
    bench.hold(2).await;
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(2), "a stranger's files");
    assert_eq!(bench.image.txid(), 5);
}

#[tokio::test]
async fn a_destination_that_hangs_does_not_hold_up_a_database_that_is_known() {
    let hangs = Faults { delay: 1.0, max_delay: Duration::from_secs(1_000_000), ..Faults::default() };
    let mut bench = Bench::new(LINEAGE).await;
    let hanging = Arc::new(Faulty::new(bench.far.clone(), hangs, 1));
    bench.origins = Origins::new(InService::fixed(&[bench.near.clone(), hanging]), CancellationToken::new());
    bench.hold(2).await;
    let begun = std::time::Instant::now();
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, bench.at(4));
    assert!(begun.elapsed() < IMPATIENCE * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn files_without_their_beginning_are_no_place_for_a_new_history() {
    let bench = Bench::new(LINEAGE).await;
    for name in ["near", "far"] {
        let first = bench.dir.path().join(name).join("node/app/ltx/0/0000000000000001-0000000000000001.ltx");
        std::fs::remove_file(first).unwrap();
    }
    assert_eq!(bench.open(0, None).await, Err(RefusalCode::Fork));
    // A node that has the history itself brings its beginning again.
    assert_eq!(bench.open(LINEAGE, bench.at(5)).await.unwrap().position, None);
}
