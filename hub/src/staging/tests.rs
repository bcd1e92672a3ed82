//! Parts in, snapshot out: whatever is staged in whatever order, with crashes in between.

use super::*;
use crate::buffer::Payloads;
use crate::testutil::{Image, Segment};
use proptest::prelude::*;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use walhub_common::TxidRange;
use walhub_common::ltx::Decoder;

fn database() -> DatabaseKey {
    "node/app".parse().unwrap()
}

const ID: DatabaseId = DatabaseId(3);

fn opened(dir: &Path, max_bytes: u64) -> Staging {
    Staging::open(dir, max_bytes, Arc::new(Sealed::open(dir).unwrap())).unwrap()
}

fn stage(staging: &Staging, part: &Segment) -> Result<u32, StagingError> {
    let mut incoming = staging.begin(&database())?;
    for piece in part.ltx.chunks(1000) {
        incoming.write(piece)?;
    }
    staging.finish(&database(), incoming)
}

fn sealed(staging: &Staging, image: &Image, last_part: u32) -> Result<Vec<u8>, StagingError> {
    let range = TxidRange::from_raw(1, 7).unwrap();
    let seal = Seal { range, post: image.checksum(), last_part, agent_time_ms: 5 };
    staging.seal(&database(), ID, &seal, || false)?;
    assert!(staging.is_sealing(&database()));
    let mut file = Vec::new();
    staging.sealed.open(ID, range).unwrap().unwrap().read_to_end(&mut file).unwrap();
    assert_eq!(staging.sealed.bytes(ID, range), Some(file.len() as u64));
    // As if the segment could not be appended.
    staging.settle(&database(), ID, false).unwrap();
    assert!(!staging.is_sealing(&database()));
    let mut decoder = Decoder::new(&file[..]).unwrap();
    assert_eq!(decoder.header().range, range);
    assert_eq!(decoder.header().provenance.unwrap().post, image.checksum());
    let (mut bytes, mut page) = (Vec::new(), Vec::new());
    while decoder.next_page(&mut page).unwrap().is_some() {
        bytes.extend_from_slice(&page);
    }
    decoder.finish().unwrap();
    Ok(bytes)
}

fn all(pages: u32) -> Vec<u32> {
    (1..=pages).collect()
}

/// Bytes on disk, counted the slow way.
fn on_disk(dir: &Path) -> u64 {
    let dir = dir.join("staging/node/app");
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let parts = entries.map(Result::unwrap).filter(|e| e.file_name().to_string_lossy().starts_with("part-"));
    // What an image holds as well counts there.
    let own = parts.map(|e| e.metadata().unwrap()).filter(|metadata| metadata.nlink() == 1);
    own.map(|metadata| metadata.len()).sum()
}

#[test]
fn the_newest_version_of_each_page_makes_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let mut image = Image::new(40);
    image.first();
    assert_eq!(stage(&staging, &image.part(2, &all(30))).unwrap(), 2);
    image.commit(&[3, 17, 41]);
    assert_eq!(stage(&staging, &image.part(3, &(25..=41).collect::<Vec<_>>())).unwrap(), 3);
    assert_eq!(stage(&staging, &image.part(4, &[3, 17])).unwrap(), 4);
    let held = staging.held(&database()).unwrap().unwrap();
    assert_eq!((held.next, held.pages), (5, 41));
    assert_eq!(sealed(&staging, &image, 4).unwrap(), image.bytes());
    assert_eq!(staging.used(), on_disk(dir.path()));
    staging.discard(&database()).unwrap();
    assert_eq!((staging.used(), staging.held(&database()).unwrap()), (0, None));
    assert!(!staging.has(&database()));
}

#[test]
fn a_database_that_shrank_ends_where_the_last_part_says() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let (mut large, mut small) = (Image::new(60), Image::new(10));
    large.first();
    small.first();
    stage(&staging, &large.part(2, &all(60))).unwrap();
    stage(&staging, &small.part(3, &all(10))).unwrap();
    assert_eq!(sealed(&staging, &small, 3).unwrap(), small.bytes());
}

#[test]
fn what_is_no_part_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let mut image = Image::new(20);
    let first = image.first();
    stage(&staging, &image.part(2, &all(5))).unwrap();
    let (used, held) = (staging.used(), staging.held(&database()).unwrap());
    let good = image.part(3, &all(20));
    for at in [3, 30, 150, good.ltx.len() / 2, good.ltx.len() - 3] {
        let mut bad = good.clone();
        let mut bytes = bad.ltx.to_vec();
        bytes[at] ^= 4;
        bad.ltx = bytes.into();
        assert!(stage(&staging, &bad).is_err(), "{at}");
    }
    let mut short = good.clone();
    short.ltx = good.ltx.slice(..good.ltx.len() - 1);
    assert!(matches!(stage(&staging, &short), Err(StagingError::Corrupt(_))));
    assert!(matches!(stage(&staging, &first), Err(StagingError::Corrupt(_))), "from TXID 1");
    let early = stage(&staging, &image.part(5, &[1]));
    assert!(matches!(early, Err(StagingError::OutOfOrder { found: 5, due: 3 })));
    assert_eq!((staging.used(), staging.held(&database()).unwrap()), (used, held));
    assert_eq!(staging.used(), on_disk(dir.path()));
    assert_eq!(stage(&staging, &good).unwrap(), 3);
}

#[test]
fn parts_that_are_not_the_database_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let mut image = Image::new(20);
    image.first();
    stage(&staging, &image.part(2, &all(19))).unwrap();
    assert!(matches!(sealed(&staging, &image, 2), Err(StagingError::Corrupt(_))), "page 20 is missing");
    assert_eq!(staging.used(), 0);
    stage(&staging, &image.part(2, &all(20))).unwrap();
    image.commit(&[4]);
    assert!(matches!(sealed(&staging, &image, 2), Err(StagingError::Corrupt(_))), "page 4 is old");
    assert!(!staging.has(&database()));
}

#[test]
fn a_flipped_bit_on_disk_is_found_when_the_snapshot_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let mut image = Image::new(20);
    image.first();
    stage(&staging, &image.part(2, &all(20))).unwrap();
    let path = dir.path().join("staging/node/app/part-2");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(sealed(&staging, &image, 2), Err(StagingError::Corrupt(_))));
    assert_eq!((staging.used(), on_disk(dir.path())), (0, 0));
}

#[test]
fn a_crash_before_the_pages_were_entered_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = dir.path().join("staging/node/app/catalog");
    let mut image = Image::new(20);
    image.first();
    for before in [2, 3] {
        let staging = opened(dir.path(), 1 << 20);
        assert_eq!(staging.held(&database()).unwrap().map(|held| held.next), (before > 2).then_some(3));
        let old = (before > 2).then(|| fs::read(&catalog).unwrap());
        image.commit(&[before]);
        let pages = if before == 2 { all(20) } else { all(10) };
        stage(&staging, &image.part(before, &pages)).unwrap();
        match old {
            Some(old) => fs::write(&catalog, old).unwrap(),
            None => fs::remove_file(&catalog).unwrap(),
        }
        fs::write(dir.path().join("staging/node/app/incoming-9"), b"half").unwrap();
    }
    let staging = opened(dir.path(), 1 << 20);
    assert_eq!(staging.used(), on_disk(dir.path()));
    assert_eq!(staging.held(&database()).unwrap().unwrap().next, 4);
    assert_eq!(sealed(&staging, &image, 3).unwrap(), image.bytes());
}

#[test]
fn a_missing_part_or_catalog_begins_anew() {
    for lost in ["catalog", "part-2"] {
        let dir = tempfile::tempdir().unwrap();
        let mut image = Image::new(20);
        image.first();
        let staging = opened(dir.path(), 1 << 20);
        stage(&staging, &image.part(2, &all(10))).unwrap();
        stage(&staging, &image.part(3, &(11..=20).collect::<Vec<_>>())).unwrap();
        fs::remove_file(dir.path().join("staging/node/app").join(lost)).unwrap();
        let staging = opened(dir.path(), 1 << 20);
        assert_eq!(staging.held(&database()).unwrap(), None, "{lost}");
        assert_eq!((staging.used(), on_disk(dir.path())), (0, 0), "{lost}");
        stage(&staging, &image.part(2, &all(20))).unwrap();
        assert_eq!(sealed(&staging, &image, 2).unwrap(), image.bytes());
    }
}

#[test]
fn all_databases_together_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 20_000);
    let mut image = Image::new(30);
    image.first();
    stage(&staging, &image.part(2, &all(30))).unwrap();
    let full = stage(&staging, &image.part(3, &all(30)));
    assert!(matches!(full, Err(StagingError::Full { max: 20_000, .. })));
    assert_eq!(staging.used(), on_disk(dir.path()));
    // What supersedes everything makes room again.
    let staging = opened(dir.path(), 40_000);
    for number in 3..30 {
        image.commit(&all(30));
        stage(&staging, &image.part(number, &all(30))).unwrap();
        assert_eq!(staging.used(), on_disk(dir.path()));
    }
    assert_eq!(sealed(&staging, &image, 29).unwrap(), image.bytes());
}

#[test]
fn what_nobody_continues_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let staging = opened(dir.path(), 1 << 20);
    let image = Image::new(20);
    stage(&staging, &image.part(2, &all(10))).unwrap();
    assert_eq!(staging.expire(MAX_AGE).unwrap(), []);
    assert!(staging.has(&database()));
    let old = SystemTime::now() - MAX_AGE - Duration::from_secs(60);
    for name in ["part-2", "catalog"] {
        let file = fs::File::options().append(true).open(dir.path().join("staging/node/app").join(name));
        file.unwrap().set_modified(old).unwrap();
    }
    assert_eq!(staging.expire(MAX_AGE).unwrap(), [database()]);
    assert_eq!((staging.used(), on_disk(dir.path())), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The catalog agrees with a model after every part, whatever restarts in between, and what is sealed is the image.
    #[test]
    fn any_order_of_parts_commits_and_restarts_gives_the_image(
        steps in proptest::collection::vec((any::<bool>(), proptest::collection::btree_set(1_u32..50, 1..30)), 1..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut staging = opened(dir.path(), 1 << 20);
        let mut image = Image::new(50);
        image.first();
        let mut next = FIRST_PART;
        let mut model = std::collections::BTreeMap::new();
        for (restart, pages) in steps {
            let pages: Vec<u32> = pages.into_iter().collect();
            image.commit(&pages[..pages.len() / 2]);
            prop_assert_eq!(stage(&staging, &image.part(next, &pages)).unwrap(), next);
            let bytes = image.bytes();
            for page in &pages {
                let at = (*page as usize - 1) * 512;
                model.insert(*page, Checksum::of_page(Pgno::new(*page).unwrap(), &bytes[at..at + 512]));
            }
            next += 1;
            if restart {
                drop(staging);
                staging = opened(dir.path(), 1 << 20);
            }
            let sums = staging.checksums(&database(), Pgno::FIRST, 100).unwrap();
            let held = sums.iter().enumerate().filter_map(|(i, s)| Some((i as u32 + 1, (*s)?)));
            prop_assert_eq!(held.collect::<std::collections::BTreeMap<_, _>>(), model.clone());
            prop_assert_eq!(staging.held(&database()).unwrap().unwrap().pages as usize, model.len());
            prop_assert_eq!(staging.used(), on_disk(dir.path()));
        }
        stage(&staging, &image.part(next, &all(50))).unwrap();
        prop_assert_eq!(sealed(&staging, &image, next).unwrap(), image.bytes());
    }
}
