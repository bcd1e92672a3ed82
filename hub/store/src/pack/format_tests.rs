//! Packs come back as they were made, and nothing else is taken for one.

use super::*;
use crate::testutil::fuzz_pack;
use proptest::prelude::*;

fn facts(database: &str, min: u64, max: u64) -> Facts {
    Facts {
        key: FileKey {
            database: database.parse().unwrap(),
            level: Level::RAW,
            range: TxidRange::from_raw(min, max).unwrap(),
        },
        lineage: 7,
        post: Checksum::new(1 << 63 | min),
        time_ms: 1_800_000_000_000,
        page_size: PageSize::new(4096).unwrap(),
    }
}

fn pack_of(files: &[(&str, &[u8])]) -> Pack {
    let mut writer = Writer::default();
    for (n, (database, bytes)) in files.iter().enumerate() {
        writer.push(facts(database, n as u64 + 1, n as u64 + 3), bytes).unwrap();
    }
    writer.finish()
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, PackError> {
    let footer = Footer::parse(bytes)?;
    if footer.pack_bytes() != bytes.len() as u64 {
        return Err(PackError::Footer("of another object"));
    }
    let index = footer.index_offset as usize..(footer.index_offset + footer.index_bytes) as usize;
    parse_index(&footer, &bytes[index])
}

fn sample() -> Pack {
    pack_of(&[("a/x.db", b"first"), ("a/y.db", b"second one"), ("b/x.db", &[9; 3000])])
}

#[test]
fn every_file_lies_where_the_index_says() {
    let pack = sample();
    let entries = read(&pack.bytes).unwrap();
    assert_eq!(entries, pack.entries);
    for (entry, expected) in entries.iter().zip([&b"first"[..], b"second one", &[9; 3000]]) {
        let found = &pack.bytes[entry.offset as usize..][..entry.length as usize];
        assert_eq!(found, expected);
        assert_eq!(blake3::hash(found).as_bytes(), &entry.hash);
    }
    assert!(read(&Writer::default().finish().bytes).unwrap().is_empty());
}

#[test]
fn every_flipped_bit_of_index_and_footer_is_found() {
    let pack = sample();
    let index = read(&pack.bytes).map(|_| Footer::parse(&pack.bytes).unwrap().index_offset as usize).unwrap();
    for at in index..pack.bytes.len() {
        for bit in 0..8 {
            let mut bytes = pack.bytes.to_vec();
            bytes[at] ^= 1 << bit;
            assert!(read(&bytes).is_err(), "bit {bit} of byte {at}");
        }
    }
    for length in 0..pack.bytes.len() {
        assert!(read(&pack.bytes[..length]).is_err(), "cut to {length}");
    }
}

/// An index under a right checksum, whatever it says.
fn sealed(files: u32, index_offset: u64, index: &[u8]) -> Result<Vec<Entry>, PackError> {
    let footer = encode_footer(index_offset, files, index);
    parse_index(&Footer::parse(&footer)?, index)
}

#[test]
fn a_rule_that_is_broken_under_a_right_checksum_is_named() {
    let entry = |change: &dyn Fn(&mut Entry)| {
        let mut entry = sample().entries[0].clone();
        change(&mut entry);
        let mut index = Vec::new();
        encode_entry(&entry, &mut index);
        index
    };
    let good = entry(&|_| {});
    assert_eq!(sealed(1, 13, &good).unwrap().len(), 1);
    let reason = |files, offset, index: &[u8]| sealed(files, offset, index).unwrap_err().to_string();
    for (change, word) in [
        (&(|e: &mut Entry| e.offset = 9) as &dyn Fn(&mut Entry), "does not begin where"),
        (&|e| e.length = 0, "impossible length"),
        (&|e| e.length = 4 << 20 | 1, "impossible length"),
    ] {
        let text = reason(1, 13, &entry(change));
        assert!(text.contains(word), "{word}: {text}");
    }
    let twice = [good.clone(), entry(&|e| e.offset = 13)].concat();
    assert!(reason(2, 18, &twice).contains("databases must ascend"));
    assert!(reason(1, 14, &good).contains("do not end where"));
    assert!(reason(1, 13, &[&good[..], b"x"].concat()).contains("longer than its entries"));
    assert!(reason(2, 13, &good).contains("too small"));
    assert!(reason(0, 7, &[]).contains("outside"));
    assert!(reason(0, u64::MAX, &[]).contains("outside"));
    // Bytes of the entry itself: level, transactions, page size, checksum, name.
    let names = 2 + 1 + "x.db".len();
    for (at, byte, word) in [
        (names, 10, "no such level"),
        (names + 16, 0, "no range"),
        (names + 9, 1, "no range"),
        (names + 25, 1, "impossible database checksum"),
        (names + 44, 0xff, "impossible page size"),
        (0, 0, "bad agent name"),
        (1, 0xff, "a name is not readable"),
        (1, b'/', "bad agent name"),
    ] {
        let mut index = good.clone();
        index[at] = byte;
        let text = reason(1, 13, &index);
        assert!(text.contains(word), "byte {at} = {byte}: {text}");
    }
}

#[test]
fn a_pack_is_full_before_it_is_too_large() {
    let mut writer = Writer::default();
    let file = vec![1; 3 << 20];
    writer.push(facts("a/1", 1, 1), &file).unwrap();
    writer.push(facts("a/2", 1, 1), &file).unwrap();
    assert_eq!(writer.push(facts("a/3", 1, 1), &file), Err(Full));
    writer.push(facts("a/3", 1, 1), b"small").unwrap();
    assert_eq!(writer.files(), 3);
    let pack = writer.finish();
    assert!(pack.bytes.len() as u64 <= MAX_PACK_BYTES);
    assert_eq!(read(&pack.bytes).unwrap(), pack.entries);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        files in proptest::collection::btree_map("[a-z][a-z0-9._-]{0,30}/[a-z0-9][a-z0-9._-]{0,30}",
            (proptest::collection::vec(any::<u8>(), 1..200), 1..u64::MAX, 0..1000u64), 0..20)
    ) {
        let mut given: Vec<(DatabaseKey, _)> = files.iter().map(|(k, v)| (k.parse().unwrap(), v)).collect();
        given.sort_by(|a, b| a.0.cmp(&b.0));
        let mut writer = Writer::default();
        for (database, (bytes, min, more)) in &given {
            writer.push(facts(&database.to_string(), *min, min.saturating_add(*more)), bytes).unwrap();
        }
        let pack = writer.finish();
        let entries = read(&pack.bytes).unwrap();
        prop_assert_eq!(&entries, &pack.entries);
        for (entry, (_, (bytes, ..))) in entries.iter().zip(&given) {
            prop_assert_eq!(&pack.bytes[entry.offset as usize..][..entry.length as usize], &bytes[..]);
        }
        fuzz_pack(&pack.bytes);
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_pack(&bytes);
    }

    #[test]
    fn no_change_of_a_pack_breaks_the_reader(at in 0..10_000usize, byte in any::<u8>()) {
        let mut bytes = sample().bytes.to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        fuzz_pack(&bytes);
    }
}
