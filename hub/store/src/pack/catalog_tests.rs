//! The catalog against a plain list of files.

use super::*;
use proptest::prelude::*;
use walhub_common::PageSize;

fn key(database: u8, level: u8, min: u64, max: u64) -> FileKey {
    FileKey {
        database: format!("node/db{database}").parse().unwrap(),
        level: Level::new(level).unwrap(),
        range: TxidRange::from_raw(min, max).unwrap(),
    }
}

fn entry(key: FileKey, offset: u32, time_ms: i64) -> Entry {
    let hash = *blake3::hash(format!("{key} {offset}").as_bytes()).as_bytes();
    Entry {
        key,
        lineage: 1,
        post: None,
        time_ms,
        page_size: PageSize::new(4096).unwrap(),
        offset,
        length: 9,
        hash,
    }
}

/// Packs of one file per database, each one transaction further.
fn filled(catalog: &mut Catalog, packs: std::ops::RangeInclusive<u64>, databases: u8) {
    for seq in packs {
        catalog.add(seq, &entries_of(seq, databases));
    }
}

#[test]
fn a_file_takes_some_twenty_bytes() {
    let mut catalog = Catalog::default();
    filled(&mut catalog, 1..=1000, 10);
    let mean = catalog.bytes / 10_000;
    assert!((12..=MEAN_BYTES + 2).contains(&mean), "{mean} bytes");
    assert_eq!(catalog.files(&key(3, 0, 1, 1).database).len(), 1000);
}

#[test]
fn past_its_bound_the_oldest_packs_go_cold() {
    let mut catalog = Catalog::bounded(20_000);
    filled(&mut catalog, 1..=500, 4);
    let late = key(9, 0, 1, 1);
    catalog.add(501, &[entry(late.clone(), 8, 0)]);
    filled(&mut catalog, 502..=1000, 4);
    assert!(catalog.bytes <= 20_000, "{}", catalog.bytes);
    for n in 0..4 {
        let database = key(n, 0, 1, 1).database;
        let (warm, cold) = (catalog.files(&database), catalog.cold(&database));
        assert!(!warm.is_empty() && !cold.is_empty());
        let mut seqs: Vec<u64> = cold.iter().copied().chain(warm.iter().map(|place| place.seq)).collect();
        seqs.dedup();
        let expected: Vec<u64> = (1..=1000).filter(|seq| *seq != 501 || seqs.contains(&501)).collect();
        assert_eq!(seqs, expected, "every pack is warm or cold");
    }
    // Once the warm ones are gone, the cold ones come back and can go as well.
    let all: Vec<FileKey> = (0..4).flat_map(|n| (1..=1000).map(move |seq| key(n, 0, seq, seq))).collect();
    let mut gone = 0;
    for _ in 0..100 {
        while let Some(seq) = catalog.to_thaw() {
            let entries = if seq == 501 { vec![entry(late.clone(), 8, 0)] } else { entries_of(seq, 4) };
            catalog.thaw(seq, &entries);
        }
        catalog.forget(&all);
        for seq in catalog.emptied() {
            catalog.gone(seq);
            gone += 1;
        }
    }
    assert_eq!((gone, catalog.packs()), (999, 1), "all but the pack of the other database");
    assert_eq!(catalog.find(&late).unwrap().seq, 501);
}

fn entries_of(seq: u64, databases: u8) -> Vec<Entry> {
    let time_ms = 1_800_000_000_000 + seq as i64 * 1000;
    (0..databases).map(|n| entry(key(n, 0, seq, seq), 100_000 + u32::from(n), time_ms)).collect()
}

#[test]
fn a_database_of_one_cold_pack_needs_no_other() {
    let mut catalog = Catalog::bounded(5_000);
    let late = key(9, 0, 1, 1);
    filled(&mut catalog, 1..=100, 4);
    catalog.add(101, &[entry(late.clone(), 8, 0)]);
    filled(&mut catalog, 102..=1000, 4);
    assert_eq!(catalog.cold(&late.database), [101]);
}

#[test]
fn what_was_forgotten_before_a_pack_went_cold_counts_again_when_it_comes_back() {
    let mut catalog = Catalog::bounded(2_000);
    let files = [0, 1, 2].map(|database| key(database, 0, 1, 1));
    let entries: Vec<Entry> = files.iter().map(|file| entry(file.clone(), 8, 0)).collect();
    catalog.add(1, &entries);
    catalog.forget(&files[..1]);
    let fillers: Vec<FileKey> = (2..=200).map(|seq| key(9, 0, seq, seq)).collect();
    for filler in &fillers {
        catalog.add(filler.range.min().get(), &[entry(filler.clone(), 8, 0)]);
    }
    assert_eq!(catalog.cold(&files[1].database), [1]);
    catalog.forget(&fillers);
    assert_eq!(catalog.to_thaw(), Some(1));
    catalog.thaw(1, &entries);
    catalog.forget(&files[..2]);
    assert!(!catalog.emptied().contains(&1), "the third file still needs it");
    assert_eq!(catalog.find(&files[2]).unwrap().seq, 1);
    catalog.forget(&files[2..]);
    assert!(catalog.emptied().contains(&1));
}

proptest! {
    #[test]
    fn it_says_what_a_list_would(
        packs in proptest::collection::vec(
            proptest::collection::btree_map(0..4u8, (0..=9u8, 1..u64::MAX, 0..1000u64, any::<u32>(), any::<i64>()), 0..4), 0..20),
        order in any::<prop::sample::Index>(),
        forgotten in proptest::collection::vec((0..20usize, 0..4u8), 0..40),
    ) {
        let mut model: Vec<(u64, Vec<Entry>)> = Vec::new();
        for (seq, files) in packs.iter().enumerate() {
            let entries = files.iter().map(|(n, (level, min, more, offset, time_ms))| {
                entry(key(*n, *level, *min, min.saturating_add(*more)), *offset, *time_ms)
            });
            model.push((seq as u64 * 3, entries.collect()));
        }
        let mut catalog = Catalog::default();
        // One of them comes late.
        let late = if model.is_empty() { None } else { Some(order.index(model.len())) };
        for (n, (seq, entries)) in model.iter().enumerate() {
            if Some(n) != late {
                catalog.add(*seq, entries);
            }
        }
        if let Some(late) = late {
            catalog.add(model[late].0, &model[late].1);
            catalog.add(model[late].0, &model[late].1);
        }
        let mut gone = Vec::new();
        for (pack, n) in forgotten {
            let Some(found) = model.get(pack).and_then(|(_, e)| e.iter().find(|e| e.key.database == key(n, 0, 1, 1).database))
            else { continue };
            let asked = found.key.clone();
            let mut expected = Vec::new();
            for (seq, entries) in &mut model {
                let before = entries.len();
                entries.retain(|entry| entry.key != asked);
                if before > 0 && entries.is_empty() {
                    expected.push(*seq);
                }
            }
            catalog.forget(std::slice::from_ref(&asked));
            prop_assert_eq!(&catalog.emptied(), &expected);
            for seq in expected {
                catalog.gone(seq);
                gone.push(seq);
            }
        }
        for n in 0..4 {
            let database = key(n, 0, 1, 1).database;
            let expected: Vec<Place> = model.iter().flat_map(|(seq, entries)| {
                entries.iter().filter(|e| e.key.database == database).map(|e| Place::of(*seq, e))
            }).collect();
            prop_assert_eq!(catalog.files(&database), expected);
        }
        let left = model.iter().filter(|(seq, _)| !gone.contains(seq)).count();
        prop_assert_eq!(catalog.packs(), left);
    }
}
