//! Restores over the buffer's twin in memory and a real folder: what is reached, from where, and what is said when it
//! cannot be.

use super::{Batch, ChecksumsError, FoldError, PrepareError, Request, Restores, Table};
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, DatabaseId, EveryDatabase, SegmentMeta, WalBuffer};
use crate::copies::InService;
use crate::testutil::{Image, Segment};
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::expand;
use walhub_common::restore::Applier;
use walhub_common::{Checksum, DatabaseKey, DestinationName, Level, PageSet, Pgno, Pos, Txid};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, DynDestination, FileKey, PutMeta};
use walhub_store::restore::{Ask, DynSource, Piece, PlanError, Prepared, RestoreError, Target};

/// Hub time of transaction n is this plus n; in the segments' headers stands the agent's time.
const EPOCH_MS: i64 = 1_800_000_000_000;

struct Bench {
    dir: tempfile::TempDir,
    buffer: Arc<MemoryBuffer>,
    disk: Arc<Faulty>,
    restores: Restores,
    id: DatabaseId,
    image: Image,
    states: Vec<Image>,
}

fn key() -> DatabaseKey {
    "node/app".parse().unwrap()
}

fn lane() -> DestinationName {
    "disk".parse().unwrap()
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Arc::new(MemoryBuffer::new(20_000));
        let folder = FileDestination::new(lane(), &FileConfig { path: dir.path().join("disk") });
        let disk = Arc::new(Faulty::new(Arc::new(folder), Faults::default(), 1));
        disk.probe(&CancellationToken::new()).await.unwrap();
        let destinations = [disk.clone() as DynDestination];
        let restores =
            Restores::new(buffer.clone(), InService::fixed(&destinations), CancellationToken::new());
        let id = buffer.register(&key(), None, "").await.unwrap().id;
        Self { dir, buffer, disk, restores, id, image: Image::new(6), states: Vec::new() }
    }

    /// Buffers the next `count` transactions.
    async fn append(&mut self, count: u32) -> Vec<Segment> {
        let mut segments = Vec::new();
        for _ in 0..count {
            let segment = match self.image.txid() {
                0 => self.image.first(),
                txid => self.image.commit(&[txid as u32 % 6 + 1]),
            };
            self.states.push(self.image.clone());
            let meta = SegmentMeta {
                range: segment.range,
                pre: segment.pre,
                post: segment.post,
                time_ms: EPOCH_MS + segment.txid().get() as i64,
                agent_time_ms: 1,
            };
            let data = segment.ltx.clone();
            let chunk = Chunk { database: self.id, meta, number: 0, last: true, data };
            self.buffer.append(chunk).await.unwrap();
            segments.push(segment);
        }
        segments
    }

    async fn copy(&self, segments: &[Segment]) {
        for segment in segments {
            let key = FileKey { database: key(), level: Level::RAW, range: segment.range };
            let meta = PutMeta { time_ms: 5, post: Some(segment.post) };
            let body = Body::Bytes(segment.ltx.clone());
            self.disk.put(&key, body, meta, &CancellationToken::new()).await.unwrap();
        }
    }

    /// Fills the buffer until it has given the first `txid` transactions back.
    async fn forget(&mut self, txid: u64) {
        self.buffer.set_cursor(&lane(), self.id, Txid::new(txid).unwrap()).unwrap();
        while self.buffer.list(self.id, None, 1).unwrap()[0].meta.range.min().get() <= txid {
            self.append(1).await;
            self.buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
        }
    }

    fn ask(&self, target: Target, after: u64, source: Option<&str>) -> Request {
        let source = source.map(|name| name.parse().unwrap());
        Request { database: key(), target, after: Txid::new(after), source }
    }

    async fn prepare(&self, request: &Request) -> Result<Prepared, PrepareError> {
        let sources = self.restores.select(request.source.as_ref()).unwrap();
        self.restores.prepare(&sources, request).await
    }

    /// Every page of the plan comes once, and is that of the image.
    async fn pages_are(&self, sources: &[DynSource], prepared: &Prepared, image: &[u8]) {
        let size = prepared.header.unwrap().page_size;
        let none = PageSet::empty((image.len() / size.bytes()) as u32);
        let mut frames = self.restores.pages(sources, &key(), prepared, Ask::new(none));
        let (mut found, mut page) = (vec![0; image.len()], Vec::new());
        let mut seen = BTreeSet::new();
        while let Some(frames) = frames.next().await {
            for (pgno, block) in frames.unwrap().iter() {
                assert!(seen.insert(pgno), "{pgno} came twice");
                expand(block, size, &mut page).unwrap();
                found[pgno.index() * size.bytes()..][..size.bytes()].copy_from_slice(&page);
            }
        }
        assert!(found == image, "{seen:?}");
    }

    /// Restores the target and compares with the source at that transaction.
    async fn restores_to(&self, target: Target, source: Option<&str>, txid: u64) -> Prepared {
        let request = self.ask(target, 0, source);
        let prepared = self.prepare(&request).await.unwrap();
        assert_eq!(prepared.plan.reached.get(), txid);
        let sources = self.restores.select(request.source.as_ref()).unwrap();
        let mut files: Vec<Vec<u8>> = Vec::new();
        let mut pieces = self.restores.fetch(&sources, &key(), &prepared.plan);
        while let Some(piece) = pieces.next().await {
            match piece.unwrap() {
                Piece::Start(_) => files.push(Vec::new()),
                Piece::Data(data) => files.last_mut().unwrap().extend_from_slice(&data),
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
        self.pages_are(&sources, &prepared, &state.bytes()).await;
        prepared
    }
}

#[tokio::test]
async fn every_buffered_transaction_is_a_restore_point_by_number_and_by_the_hubs_time() {
    let mut bench = Bench::new().await;
    bench.append(8).await;
    bench.restores_to(Target::Latest, None, 8).await;
    for txid in 1..=8 {
        bench.restores_to(Target::Txid(Txid::new(txid).unwrap()), None, txid).await;
        bench.restores_to(Target::TimestampMs(EPOCH_MS + txid as i64), None, txid).await;
    }
}

#[tokio::test]
async fn files_and_buffer_make_one_chain() {
    let mut bench = Bench::new().await;
    let first = bench.append(5).await;
    bench.copy(&first).await;
    bench.forget(5).await;
    let newest = bench.image.txid();
    let prepared = bench.restores_to(Target::Latest, None, newest).await;
    let from = |name: &str| prepared.plan.files.iter().filter(|f| f.source.as_str() == name).count();
    assert!(from("disk") == 5 && from("buffer") > 0, "{:?}", prepared.plan.files);
}

#[tokio::test]
async fn one_source_gives_what_it_has_and_an_unknown_one_is_named() {
    let mut bench = Bench::new().await;
    let segments = bench.append(6).await;
    bench.copy(&segments[..4]).await;
    bench.restores_to(Target::Latest, Some("disk"), 4).await;
    bench.restores_to(Target::Latest, Some("buffer"), 6).await;
    let unknown = bench.restores.select(Some(&"tape".parse().unwrap())).unwrap_err().to_string();
    assert!(unknown.contains("tape") && unknown.contains("buffer, disk"), "{unknown}");
}

#[tokio::test]
async fn only_what_follows_is_sent_to_whoever_has_the_rest() {
    let mut bench = Bench::new().await;
    bench.append(6).await;
    let prepared = bench.prepare(&bench.ask(Target::Latest, 4, None)).await.unwrap();
    let ranges: Vec<_> = prepared.plan.files.iter().map(|f| f.range.min().get()).collect();
    assert_eq!(ranges, [5, 6]);
    let nothing = bench.prepare(&bench.ask(Target::Latest, 6, None)).await.unwrap();
    assert!(nothing.plan.files.is_empty());
}

#[tokio::test]
async fn a_point_that_does_not_exist_names_its_neighbours() {
    let mut bench = Bench::new().await;
    bench.append(3).await;
    let beyond = bench.prepare(&bench.ask(Target::Txid(Txid::new(9).unwrap()), 0, None)).await.unwrap_err();
    assert!(matches!(
        &beyond,
        PrepareError::Restore(RestoreError::Plan { error: PlanError::BeyondNewest { .. }, .. })
    ));
    let old = bench.prepare(&bench.ask(Target::TimestampMs(EPOCH_MS - 1), 0, None)).await.unwrap_err();
    assert!(old.to_string().contains("oldest restore point is transaction"), "{old}");
}

#[tokio::test]
async fn a_restore_never_ends_short_because_a_source_is_away_or_has_lost_files() {
    let mut bench = Bench::new().await;
    let segments = bench.append(5).await;
    bench.copy(&segments).await;
    bench.forget(5).await;
    bench.disk.set_down(true);
    for target in [Target::Latest, Target::TimestampMs(EPOCH_MS + 3)] {
        let error = bench.prepare(&bench.ask(target, 0, None)).await.unwrap_err().to_string();
        assert!(error.contains("destination disk"), "the source that did not answer is named: {error}");
    }
    bench.disk.set_down(false);
    // Everything was copied, the buffer has given all back, and then the newest files are lost.
    let all = bench.image.txid();
    bench.buffer.set_cursor(&lane(), bench.id, Txid::new(all).unwrap()).unwrap();
    let lost = MemoryBuffer::new(1);
    let emptied =
        Restores::new(Arc::new(lost), InService::fixed(&[bench.disk.clone()]), CancellationToken::new());
    let sources = emptied.select(None).unwrap();
    let request = bench.ask(Target::Latest, 0, None);
    assert_eq!(emptied.prepare(&sources, &request).await.unwrap().plan.reached.get(), 5);
    // The same files, asked by a hub that has acknowledged more.
    let only_disk = bench.restores.select(Some(&lane())).unwrap();
    for target in [Target::Latest, Target::TimestampMs(EPOCH_MS + 1_000)] {
        let short = bench.restores.prepare(&only_disk, &bench.ask(target, 0, None)).await.unwrap_err();
        assert!(matches!(&short, PrepareError::Short { reached, .. } if reached.get() == 5), "{short}");
    }
}

fn all_checksums(image: &Image) -> BTreeMap<u32, u64> {
    let sum = |(page, bytes): (u32, &[u8])| (page, Checksum::of_page(Pgno::new(page).unwrap(), bytes).get());
    (1..).zip(image.bytes().chunks(512)).map(sum).collect()
}

fn taken(table: &Table) -> BTreeMap<u32, u64> {
    let (mut all, mut from) = (BTreeMap::new(), 1);
    while let Some((batch, next)) = table.pages.batch(from, 4) {
        match batch {
            Batch::Run(first, sums) => all.extend((first..).zip(sums)),
            Batch::List(pages, sums) => all.extend(pages.into_iter().zip(sums)),
        }
        from = next;
    }
    all
}

#[tokio::test]
async fn page_checksums_are_those_of_the_source_wherever_the_files_lie() {
    let mut bench = Bench::new().await;
    let first = bench.append(5).await;
    bench.copy(&first).await;
    bench.forget(5).await;
    for txid in [3, bench.image.txid()] {
        let image = bench.states[txid as usize - 1].clone();
        let until = Pos { txid: Txid::new(txid).unwrap(), checksum: image.checksum() };
        let table = bench.restores.checksums(&key(), None, until).await.unwrap();
        assert!(table.pages.whole());
        assert_eq!(taken(&table), all_checksums(&image));
        drop(table);
        let part = bench.restores.checksums(&key(), Txid::new(2), until).await.unwrap();
        assert!(!part.pages.whole());
        let mut followed = all_checksums(&bench.states[1]);
        followed.extend(taken(&part));
        assert_eq!(followed, all_checksums(&image));
        let forged = Pos { checksum: Checksum::EMPTY, ..until };
        for after in [None, Txid::new(2)] {
            let error = bench.restores.checksums(&key(), after, forged).await.unwrap_err();
            assert!(
                matches!(error, ChecksumsError::Fold { error: FoldError::Elsewhere { .. }, .. }),
                "{error}"
            );
        }
        let all = bench.restores.checksums(&key(), Some(until.txid), until).await.unwrap_err();
        assert!(matches!(all, ChecksumsError::NothingNew(_)));
    }
}

#[tokio::test]
async fn one_agent_cannot_take_all_turns_and_a_dropped_table_gives_its_own_back() {
    let mut bench = Bench::new().await;
    bench.append(2).await;
    let until = Pos { txid: Txid::new(2).unwrap(), checksum: bench.image.checksum() };
    let mut tables = Vec::new();
    for _ in 0..4 {
        tables.push(bench.restores.checksums(&key(), None, until).await.unwrap());
    }
    let refused = bench.restores.checksums(&key(), None, until).await.unwrap_err();
    assert!(matches!(refused, ChecksumsError::TooMany(_)), "{refused}");
    tables.pop();
    bench.restores.checksums(&key(), None, until).await.unwrap();
}
