//! Destinations that come back after the buffer had to make room.

use super::*;
use crate::merge::LtxMerger;
use std::collections::BTreeMap;
use walhub_common::TxidRange;
use walhub_common::ltx::{self, Stamp, name};

/// Files of a destination by range, of these levels.
fn files(bench: &Bench, lane: usize, levels: &[Level]) -> BTreeMap<TxidRange, PathBuf> {
    let mut found = BTreeMap::new();
    for level in levels {
        let folder = bench.folder(lane, "app").join(name::fs_dir(*level));
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if let Some(range) = name::parse(&path.file_name().unwrap().to_string_lossy()) {
                found.insert(range, path);
            }
        }
    }
    found
}

/// Joins level 0 files with these transactions into one file of another level, as compaction and retention do.
async fn compact(bench: &Bench, lane: usize, first: u64, last: u64, level: Level) {
    let mut inputs = files(bench, lane, &[Level::RAW]);
    let within = |range: TxidRange| first <= range.min().get() && range.max().get() <= last;
    inputs.retain(|range, _| within(*range));
    let decoders = inputs.values().map(|path| Decoder::new(std::fs::File::open(path).unwrap()).unwrap());
    let mut bytes = Vec::new();
    let stamp = Stamp { timestamp_ms: 7, node_id: bench.lineage(), ..Stamp::default() };
    let merged = ltx::merge(decoders.collect(), stamp, &mut bytes).unwrap();
    let database = key("app");
    let file = FileKey { database, level, range: merged.header.range };
    let meta = PutMeta { time_ms: 7, post: merged.header.provenance.map(|p| p.post) };
    let cancel = CancellationToken::new();
    bench.destinations[lane].put(&file, Body::Bytes(bytes.into()), meta, &cancel).await.unwrap();
    for path in inputs.into_values() {
        std::fs::remove_file(path).unwrap();
    }
}

impl Bench {
    fn lineage(&self) -> u64 {
        self.buffer.find(&key("app")).unwrap().lineage
    }

    /// Restores from all levels and compares with the source.
    fn assert_restores_from_all(&self, lane: usize, image: &Image) {
        let levels: Vec<Level> = Level::all().collect();
        let out = self.dir.path().join(format!("restored-all-{lane}"));
        let mut applier = Applier::new(&out, true).unwrap();
        let mut next = 1;
        for (range, path) in files(self, lane, &levels) {
            assert!(range.min().get() <= next, "a hole before {range:?}");
            if range.max().get() >= next {
                next = range.max().get() + 1;
                applier.apply(&range.to_string(), std::fs::File::open(path).unwrap()).unwrap();
            }
        }
        applier.finish(Some(image.checksum())).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), image.bytes());
    }
}

#[tokio::test]
async fn a_sibling_that_has_compacted_everything_still_brings_it_up() {
    for level in [1, 9] {
        let mut bench = Bench::reliable(2);
        bench.buffer = Arc::new(MemoryBuffer::new(100_000));
        bench.start();
        let (id, mut image) = (bench.register("app").await, Image::new(20));
        bench.append(id, &image.first()).await;
        for lane in 0..2 {
            bench.reaches(lane, id, 1).await;
        }
        bench.append(id, &image.commit(&[3])).await;
        bench.reaches(1, id, 2).await;
        bench.destinations[1].set_down(true);
        let lane: DestinationName = "d0".parse().unwrap();
        while bench.buffer.read(id, Txid::new(2), 1).is_ok() {
            bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
            bench.reaches(0, id, image.txid()).await;
            bench.buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await.unwrap();
        }
        // The lane that was away stands in the middle of what its sibling has.
        compact(&bench, 0, 1, image.txid() - 2, Level::new(level).unwrap()).await;
        bench.append(id, &image.commit(&[9])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.destinations[1].set_down(false);
        bench.reaches(1, id, image.txid()).await;
        bench.assert_restores_from_all(1, &image);
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_destination_in_the_middle_of_what_was_joined_gets_it_whole() {
    let mut bench = Bench::reliable(1);
    bench.buffer = Arc::new(MemoryBuffer::squashing(64 << 20, Arc::new(LtxMerger)));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    bench.append(id, &image.first()).await;
    for page in 1..6 {
        bench.append(id, &image.commit(&[page, 9])).await;
        bench.reaches(0, id, image.txid()).await;
    }
    bench.destinations[0].set_down(true);
    let reached = image.txid();
    // Many, so that they are merged in groups.
    for n in 0..300 {
        bench.append(id, &image.commit(&[n % 20 + 1])).await;
    }
    bench.buffer.trim(EveryDatabase::by(&[])).await.unwrap();
    bench.buffer.squash_one(id);
    let held = bench.buffer.list(id, None, 10).unwrap();
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(bench.buffer.given_up(id).points, reached + 299);
    bench.append(id, &image.commit(&[2])).await;
    bench.destinations[0].set_down(false);
    bench.reaches(0, id, image.txid()).await;
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}
