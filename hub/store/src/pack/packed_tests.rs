//! Packs in real folders: what lies in them is there like any file, across restarts, damage and lies.

use super::*;
use crate::destinations::config::FileConfig;
use crate::destinations::contract;
use crate::destinations::faulty::{Faults, Faulty};
use crate::destinations::file::FileDestination;
use crate::pack::Writer;
use crate::pack::format::Facts;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walhub_common::{PageSize, TxidRange};

fn token() -> CancellationToken {
    CancellationToken::new()
}

fn key(database: &str, min: u64, max: u64) -> FileKey {
    FileKey {
        database: database.parse().unwrap(),
        level: Level::RAW,
        range: TxidRange::from_raw(min, max).unwrap(),
    }
}

/// The content of a file is its name, some times over.
fn content(key: &FileKey) -> Vec<u8> {
    key.to_string().repeat(key.range.max().get() as usize % 7 + 1).into_bytes()
}

fn pack_of(keys: &[FileKey]) -> Pack {
    let mut writer = Writer::default();
    for key in keys {
        let page_size = PageSize::new(4096).unwrap();
        let facts = Facts { key: key.clone(), lineage: 1, post: None, time_ms: 5, page_size };
        writer.push(facts, &content(key)).unwrap();
    }
    writer.finish()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn faulty(&self, faults: Faults, seed: u64) -> Arc<Faulty> {
        let name = DestinationName::new("disk").unwrap();
        let file = FileDestination::new(name, &FileConfig { path: self.folder.path().to_owned() });
        Arc::new(Faulty::new(Arc::new(file), faults, seed))
    }

    /// As after a restart.
    fn open(&self) -> PackedDestination {
        PackedDestination::new(self.faulty(Faults::default(), 0))
    }

    fn pack(&self, seq: u64) -> PathBuf {
        self.folder.path().join(load::path(seq).as_str())
    }

    fn damage(&self, seq: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.pack(seq)).unwrap();
        change(&mut bytes);
        std::fs::remove_file(self.pack(seq)).unwrap();
        std::fs::write(self.pack(seq), bytes).unwrap();
    }
}

async fn put(packed: &PackedDestination, keys: &[FileKey]) -> u64 {
    let seq = packed.next(&token()).await.unwrap();
    assert_eq!(packed.put_pack(seq, &pack_of(keys), &token()).await.unwrap(), Put::Created);
    seq
}

async fn ranges(packed: &PackedDestination, database: &str) -> Vec<(u64, u64)> {
    let listed = packed.list(&database.parse().unwrap(), Level::RAW, &token()).await.unwrap();
    listed.iter().map(|file| (file.range.min().get(), file.range.max().get())).collect()
}

async fn read(packed: &PackedDestination, key: &FileKey, offset: u64) -> Result<Bytes, DestinationError> {
    collect(packed.open(key, offset, &token()).await?, 1 << 20).await
}

fn is_there(path: &Path) -> bool {
    path.exists()
}

#[tokio::test]
async fn it_keeps_the_contract_of_every_destination() {
    let place = Place::new();
    contract::run(Arc::new(place.open())).await;
}

#[tokio::test]
async fn what_lies_in_packs_is_there_like_any_file_also_after_a_restart() {
    let place = Place::new();
    let packed = place.open();
    packed.probe(&token()).await.unwrap();
    let own = key("a/x", 1, 3);
    packed
        .put(&own, Body::Bytes(content(&own).into()), PutMeta { time_ms: 1, post: None }, &token())
        .await
        .unwrap();
    assert_eq!(put(&packed, &[key("a/x", 4, 6), key("a/y", 1, 1)]).await, 0);
    assert_eq!(put(&packed, &[key("a/x", 7, 7), key("b/x", 1, 9)]).await, 1);
    for packed in [packed, place.open()] {
        assert_eq!(packed.next(&token()).await.unwrap(), 2);
        assert_eq!(ranges(&packed, "a/x").await, [(1, 3), (4, 6), (7, 7)]);
        assert_eq!(ranges(&packed, "a/y").await, [(1, 1)]);
        assert_eq!(ranges(&packed, "c/x").await, []);
        let databases: Vec<String> =
            packed.list_databases(&token()).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(databases, ["a/x", "a/y", "b/x"]);
        for key in [own.clone(), key("a/x", 4, 6), key("a/x", 7, 7), key("b/x", 1, 9)] {
            let expected = content(&key);
            for offset in [0, 1, expected.len() - 1, expected.len(), expected.len() + 9] {
                let rest = &expected[offset.min(expected.len())..];
                assert_eq!(read(&packed, &key, offset as u64).await.unwrap(), rest, "{key} from {offset}");
            }
            assert_eq!(packed.read_start(&key, 4, &token()).await.unwrap(), expected[..4]);
            assert_eq!(packed.read_start(&key, 100_000, &token()).await.unwrap(), expected);
        }
        let error = read(&packed, &key("a/y", 2, 2), 0).await.unwrap_err();
        assert!(matches!(error.fault, Fault::NotFound), "{error}");
        let listed = packed.list(&"a/y".parse().unwrap(), Level::RAW, &token()).await.unwrap();
        assert_eq!((listed[0].size, listed[0].time_ms), (content(&key("a/y", 1, 1)).len() as u64, 5));
    }
}

#[tokio::test]
async fn after_the_start_only_puts_cost_requests() {
    let place = Place::new();
    put(&place.open(), &[key("a/x", 1, 1)]).await;
    let faulty = place.faulty(Faults::default(), 0);
    let packed = PackedDestination::new(faulty.clone());
    packed.next(&token()).await.unwrap();
    let (lists, opens) = (faulty.calls(Operation::List), faulty.calls(Operation::Open));
    assert!(lists <= 3 && opens == 2, "{lists} listings, {opens} reads");
    for n in 2..20 {
        for database in ["a/x", "never/seen"] {
            ranges(&packed, database).await;
        }
        put(&packed, &[key("a/x", n, n)]).await;
    }
    assert_eq!((faulty.calls(Operation::List), faulty.calls(Operation::Open)), (lists, opens));
    assert_eq!(faulty.calls(Operation::Put), 18);
}

#[tokio::test]
async fn a_damaged_pack_is_named_and_costs_its_own_files_only() {
    let place = Place::new();
    let packed = place.open();
    for n in 1..=4 {
        put(&packed, &[key("a/x", n, n), key("b/x", n, n)]).await;
    }
    // One loses its end, one an index byte, one a byte of a file.
    place.damage(1, |bytes| bytes.truncate(bytes.len() - 1));
    place.damage(2, |bytes| {
        let at = bytes.len() - 100;
        bytes[at] ^= 4;
    });
    place.damage(3, |bytes| bytes[9] ^= 1);
    let packed = place.open();
    assert_eq!(ranges(&packed, "a/x").await, [(1, 1), (4, 4)]);
    assert_eq!(packed.next(&token()).await.unwrap(), 4, "its number is not given again");
    read(&packed, &key("a/x", 1, 1), 0).await.unwrap();
    read(&packed, &key("b/x", 4, 4), 0).await.unwrap();
    let error = read(&packed, &key("a/x", 4, 4), 0).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Corrupt(_)), "{error}");
    assert!(error.to_string().contains("walhub/packs/0000000000000003.pack"), "{error}");
    // What is missing can be put again, and is found then.
    put(&packed, &[key("a/x", 2, 3)]).await;
    assert_eq!(ranges(&place.open(), "a/x").await, [(1, 1), (2, 3), (4, 4)]);
}

#[tokio::test]
async fn a_number_that_is_taken_is_a_conflict_and_the_other_pack_is_known() {
    let place = Place::new();
    let (first, second) = (place.open(), place.open());
    assert_eq!((first.next(&token()).await.unwrap(), second.next(&token()).await.unwrap()), (0, 0));
    put(&second, &[key("a/x", 1, 2)]).await;
    let mine = pack_of(&[key("a/x", 1, 3)]);
    let error = first.put_pack(0, &mine, &token()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Conflict(_)), "{error}");
    assert_eq!(ranges(&first, "a/x").await, [(1, 2)]);
    assert_eq!(put(&first, &[key("a/x", 3, 3)]).await, 1);
    // A damaged object in the way is passed by.
    std::fs::write(place.pack(2), b"no pack").unwrap();
    assert!(first.put_pack(2, &mine, &token()).await.is_err());
    assert_eq!(put(&first, &[key("a/x", 4, 4)]).await, 3);
    assert_eq!(ranges(&place.open(), "a/x").await, [(1, 2), (3, 3), (4, 4)]);
}

#[tokio::test]
async fn whatever_the_answers_say_every_pack_is_there_once() {
    for seed in 0..4 {
        let place = Place::new();
        let faults = Faults { fail: 0.2, lie: 0.3, break_read: 0.2, ..Faults::default() };
        let packed = PackedDestination::new(place.faulty(faults, seed));
        for n in 1..=20 {
            let seq = loop {
                match packed.next(&token()).await {
                    Ok(seq) => break seq,
                    Err(error) => assert!(!matches!(error.fault, Fault::Conflict(_)), "{error}"),
                }
            };
            let pack = pack_of(&[key("a/x", n, n), key("b/x", n, n)]);
            while let Err(error) = packed.put_pack(seq, &pack, &token()).await {
                assert!(!matches!(error.fault, Fault::Conflict(_)), "{error}");
                assert_eq!(packed.next(&token()).await.unwrap(), seq, "no other number before it is settled");
            }
        }
        let expected: Vec<_> = (1..=20).map(|n| (n, n)).collect();
        assert_eq!(ranges(&packed, "a/x").await, expected);
        assert_eq!(ranges(&place.open(), "b/x").await, expected);
        assert_eq!(std::fs::read_dir(place.pack(0).parent().unwrap()).unwrap().count(), 20);
    }
}

#[tokio::test]
async fn a_pack_goes_when_the_last_of_its_files_may() {
    let place = Place::new();
    let packed = place.open();
    put(&packed, &[key("a/x", 1, 1), key("b/x", 1, 1)]).await;
    put(&packed, &[key("a/x", 2, 2)]).await;
    put(&packed, &[key("c/x", 1, 1)]).await;
    packed.delete(&[key("a/x", 1, 1), key("never/seen", 1, 1)], &token()).await.unwrap();
    assert_eq!(ranges(&packed, "a/x").await, [(2, 2)]);
    assert!(is_there(&place.pack(0)), "b/x still needs it");
    read(&packed, &key("b/x", 1, 1), 0).await.unwrap();
    packed.delete(&[key("a/x", 2, 2)], &token()).await.unwrap();
    assert!(!is_there(&place.pack(1)) && is_there(&place.pack(0)));
    // What a restart forgot is asked for again by whoever decides.
    let packed = place.open();
    assert_eq!(ranges(&packed, "a/x").await, [(1, 1)]);
    packed.delete(&[key("a/x", 1, 1)], &token()).await.unwrap();
    packed.delete(&[key("b/x", 1, 1), key("a/x", 1, 1)], &token()).await.unwrap();
    assert!(!is_there(&place.pack(0)));
    packed.delete(&[key("c/x", 1, 1)], &token()).await.unwrap();
    assert!(packed.list_databases(&token()).await.unwrap().is_empty());
    assert_eq!(place.open().next(&token()).await.unwrap(), 3, "numbers are never given twice");
}

#[tokio::test]
async fn a_pack_whose_deletion_fails_is_deleted_with_the_next() {
    let place = Place::new();
    let faulty = place.faulty(Faults::default(), 0);
    let packed = PackedDestination::new(faulty.clone());
    for n in 1..=3 {
        put(&packed, &[key("a/x", n, n)]).await;
    }
    faulty.set_down(true);
    packed.delete(&[key("a/x", 1, 1)], &token()).await.unwrap_err();
    faulty.set_down(false);
    packed.delete(&[key("a/x", 2, 2)], &token()).await.unwrap();
    assert!(!is_there(&place.pack(0)) && !is_there(&place.pack(1)));
}

#[tokio::test]
async fn cold_packs_are_read_again_when_they_are_needed() {
    let place = Place::new();
    let packed = place.open();
    packed.next(&token()).await.unwrap();
    packed.ask(&token(), |known| known.catalog = Catalog::bounded(2_000)).await.unwrap();
    for n in 1..=200 {
        put(&packed, &[key("a/x", n, n), key("b/x", n, n)]).await;
    }
    let database = "a/x".parse().unwrap();
    let cold = packed.ask(&token(), |known| known.catalog.cold(&database).len()).await.unwrap();
    assert!(cold > 50, "{cold}");
    assert_eq!(ranges(&packed, "a/x").await.len(), 200);
    for n in [1, 2, 100, 200] {
        let key = key("b/x", n, n);
        assert_eq!(read(&packed, &key, 0).await.unwrap(), content(&key));
    }
    // Retention asks until nothing is left.
    let all: Vec<FileKey> =
        ["a/x", "b/x"].iter().flat_map(|name| (1..=200).map(|n| key(name, n, n))).collect();
    for _ in 0..50 {
        packed.delete(&all, &token()).await.unwrap();
    }
    assert!(ranges(&packed, "a/x").await.is_empty());
    assert_eq!(std::fs::read_dir(place.pack(0).parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test]
async fn nothing_is_known_of_a_place_that_was_gone() {
    let place = Place::new();
    let packed = place.open();
    let (root, aside) = (place.folder.path(), tempfile::tempdir().unwrap());
    let own = key("a/y", 1, 1);
    let meta = PutMeta { time_ms: 1, post: None };
    packed.put(&own, Body::Bytes(content(&own).into()), meta, &token()).await.unwrap();
    put(&packed, &[key("a/x", 1, 1)]).await;
    std::fs::rename(root, aside.path().join("old")).unwrap();
    let error = packed.put_pack(1, &pack_of(&[key("a/x", 2, 2)]), &token()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
    let error = packed.list_all(&"a/x".parse().unwrap(), &token()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Gone(_)), "it is not answered from memory: {error}");
    // What comes back is empty.
    std::fs::create_dir(root).unwrap();
    assert!(ranges(&packed, "a/x").await.is_empty() && ranges(&packed, "a/y").await.is_empty());
    assert!(packed.list_databases(&token()).await.unwrap().is_empty());
    assert_eq!(put(&packed, &[key("a/x", 1, 3)]).await, 0);
    // Then the first one comes back. A read notices as well as a put.
    std::fs::remove_dir_all(root).unwrap();
    let error = read(&packed, &key("a/x", 1, 3), 0).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
    std::fs::rename(aside.path().join("old"), root).unwrap();
    assert_eq!((ranges(&packed, "a/x").await, ranges(&packed, "a/y").await), (vec![(1, 1)], vec![(1, 1)]));
    assert_eq!(packed.next(&token()).await.unwrap(), 1);
}
