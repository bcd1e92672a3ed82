//! What is damaged is made good from whoever has it, and nothing is touched when nobody has.

use super::bench::{Fleet, HISTORY};
use super::good::choose;
use super::{Damage, Known, Mended, RepairError, Repairer, hole};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::Decoder;
use walhub_common::restore::Applier;
use walhub_common::{Level, Txid, TxidRange};
use walhub_store::destinations::{FileKey, Listed};
use walhub_store::restore::{Listing, Reach};

fn repairer(fleet: &Fleet) -> Repairer {
    let scratch = fleet.dir.path().join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let (buffer, board) = (fleet.buffer.clone(), fleet.board.clone());
    let (holds, pins) = (fleet.holds.clone(), fleet.pins.clone());
    Repairer::new(buffer, board, holds, pins, &scratch, CancellationToken::new())
}

fn object(fleet: &Fleet, level: u8, min: u64, max: u64) -> FileKey {
    let range = TxidRange::from_raw(min, max).unwrap();
    FileKey { database: fleet.key(), level: Level::new(level).unwrap(), range }
}

fn corrupt(fleet: &Fleet, level: u8, min: u64, max: u64) -> Damage {
    Damage { object: object(fleet, level, min, max), there: true, reason: "corrupt".into() }
}

async fn mend(fleet: &Fleet, place: &str, damage: &Damage) -> Result<String, RepairError> {
    mend_beside(fleet, place, damage, &[]).await.map(|mended| mended.done)
}

/// Where these objects are locked, and known to be damaged.
async fn mend_beside(
    fleet: &Fleet,
    place: &str,
    damage: &Damage,
    locked: &[FileKey],
) -> Result<Mended, RepairError> {
    use crate::buffer::WalBuffer;
    let database = fleet.buffer.find(&fleet.key()).unwrap();
    let known = Known { damaged: std::slice::from_ref(damage), locked };
    let cancel = CancellationToken::new();
    let done = repairer(fleet).mend(&fleet.place(place), &database, damage, known, &cancel).await;
    let scratch = fleet.dir.path().join("scratch");
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "nothing lies around");
    done
}

fn spoil(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// The pages of a file.
fn pages(path: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let mut decoder = Decoder::new(&bytes[..]).unwrap();
    let (mut found, mut page) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        found.push((pgno.get(), page.clone()));
    }
    decoder.finish().unwrap();
    found
}

/// What is restored from the files of a folder, along the cheapest chain.
fn restored(fleet: &Fleet, place: &str) -> Vec<u8> {
    let mut files: Vec<(PathBuf, Listed)> = Vec::new();
    for level in 0..10u8 {
        let any = fleet.file(place, level, 1, 1);
        let Ok(entries) = std::fs::read_dir(any.parent().unwrap()) else { continue };
        for entry in entries.map(Result::unwrap) {
            let range = walhub_common::ltx::name::parse(entry.file_name().to_str().unwrap()).unwrap();
            let size = entry.metadata().unwrap().len();
            let listed = Listed { level: Level::new(level).unwrap(), range, size, time_ms: 0 };
            files.push((entry.path(), listed));
        }
    }
    let all = files.iter().map(|(_, listed)| listed.clone()).collect();
    let listings = [Listing { source: place.parse().unwrap(), files: all }];
    let plan = Reach::new(&listings, None).chain_to(Txid::new(HISTORY).unwrap()).expect("a chain");
    let out = fleet.dir.path().join("restored");
    let mut applier = Applier::new(&out, true).unwrap();
    for file in &plan.files {
        let found = files.iter().find(|(_, listed)| (listed.level, listed.range) == (file.level, file.range));
        applier.apply("a file", std::fs::File::open(&found.unwrap().0).unwrap()).unwrap();
    }
    applier.finish(None).unwrap();
    std::fs::read(out).unwrap()
}

#[tokio::test]
async fn the_same_file_of_a_sibling_takes_the_place_of_a_damaged_one() {
    let fleet = Fleet::new(&["near", "far"]).await;
    let (bad, good) = (fleet.file("far", 0, 3, 3), fleet.file("near", 0, 3, 3));
    spoil(&bad);
    let done = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap();
    assert!(done.contains("repaired from near"), "{done}");
    assert_eq!(pages(&bad), pages(&good));
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
}

#[tokio::test]
async fn the_buffer_and_the_other_levels_of_the_same_place_will_do() {
    let fleet = Fleet::buffered(&["near"]).await;
    spoil(&fleet.file("near", 0, 4, 4));
    let done = mend(&fleet, "near", &corrupt(&fleet, 0, 4, 4)).await.unwrap();
    assert!(done.contains("repaired from buffer"), "{done}");
    assert_eq!(restored(&fleet, "near"), fleet.image().bytes());

    let fleet = Fleet::new(&["near"]).await;
    for (level, min, max) in [(1, 3, 6), (9, 1, 5)] {
        fleet.put("near", level, min, max).await;
        let path = fleet.file("near", level, min, max);
        let before = pages(&path);
        spoil(&path);
        let done = mend(&fleet, "near", &corrupt(&fleet, level, min, max)).await.unwrap();
        assert!(done.contains("repaired from near"), "{done}");
        assert_eq!(pages(&path), before);
    }
    assert_eq!(restored(&fleet, "near"), fleet.image().bytes());
}

#[tokio::test]
async fn a_hole_is_filled_with_what_a_sibling_has_in_several_files() {
    let fleet = Fleet::new(&["near", "far"]).await;
    for txid in 3..=5 {
        std::fs::remove_file(fleet.file("far", 0, txid, txid)).unwrap();
    }
    let range = TxidRange::from_raw(3, 5).unwrap();
    let done = mend(&fleet, "far", &hole(&fleet.key(), range)).await.unwrap();
    assert!(done.contains("put again from near"), "{done}");
    assert!(fleet.file("far", 0, 3, 5).exists());
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
}

#[tokio::test]
async fn a_snapshot_stands_in_where_nobody_has_these_transactions_alone() {
    let fleet = Fleet::new(&["near", "far"]).await;
    // The sibling has only a snapshot of a state in between, and what follows.
    for txid in 1..=5 {
        std::fs::remove_file(fleet.file("near", 0, txid, txid)).unwrap();
    }
    fleet.put("near", 9, 1, 5).await;
    spoil(&fleet.file("far", 0, 3, 3));
    let done = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap();
    assert!(done.contains("replaced by a snapshot of transaction 5 from near"), "{done}");
    assert!(!fleet.file("far", 0, 3, 3).exists() && fleet.file("far", 9, 1, 5).exists());
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
}

#[tokio::test]
async fn nothing_is_touched_without_a_good_copy() {
    let fleet = Fleet::new(&["near", "far"]).await;
    let bad = fleet.file("far", 0, 3, 3);
    let spoiled = spoil(&bad);
    // The sibling's is damaged in another place: it is read whole before it is believed.
    spoil(&fleet.file("near", 0, 3, 3));
    let error = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap_err().to_string();
    assert!(error.contains("no other copy gives transactions 3 to 3"), "{error}");
    assert!(error.contains("0000000000000003-0000000000000003.ltx of near: corrupt"), "{error}");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    fleet.set_down("near", true);
    let error = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap_err().to_string();
    assert!(error.contains("destination near"), "{error}");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
}

#[tokio::test]
async fn holds_and_readers_are_respected() {
    let fleet = Fleet::new(&["near", "far"]).await;
    let bad = fleet.file("far", 0, 3, 3);
    let spoiled = spoil(&bad);
    fleet.holds.add(&fleet.key(), "case 7").await.unwrap();
    let error = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap_err();
    assert!(matches!(error, RepairError::OnHold), "{error}");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    fleet.holds.release(&fleet.key()).await.unwrap();
    let pin = fleet.pins.pin(&fleet.key()).await;
    let damage = corrupt(&fleet, 0, 3, 3);
    let mending = mend(&fleet, "far", &damage);
    tokio::pin!(mending);
    tokio::select! {
        done = &mut mending => panic!("a reader was disturbed: {done:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(300)) => {}
    }
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    drop(pin);
    mending.await.unwrap();
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
}

#[tokio::test]
async fn a_locked_object_stays_and_a_snapshot_stands_in() {
    let fleet = Fleet::new(&["near", "far"]).await;
    let bad = fleet.file("far", 0, 3, 3);
    let spoiled = spoil(&bad);
    fleet.set_locked("far", true);
    let done = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap();
    assert!(
        done.contains("is locked and stays (") && done.contains("a snapshot of transaction 3 from"),
        "{done}"
    );
    assert!(done.contains("run `hubctl repair node/app --destination far`"), "{done}");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
    // Now the other files lead past it: it takes no second snapshot.
    let before = files(&fleet, "far");
    let done = mend(&fleet, "far", &corrupt(&fleet, 0, 3, 3)).await.unwrap();
    assert!(done.contains("the other files there lead past it"), "{done}");
    assert_eq!(files(&fleet, "far"), before);
}

#[tokio::test]
async fn the_name_of_a_locked_object_is_not_taken_for_another() {
    // A snapshot is damaged itself, and nothing else leads to it: the one that stands in is of a later state.
    let fleet = Fleet::new(&["near", "far"]).await;
    fleet.put("far", 9, 1, 5).await;
    for txid in 1..=5 {
        std::fs::remove_file(fleet.file("far", 0, txid, txid)).unwrap();
    }
    spoil(&fleet.file("far", 9, 1, 5));
    fleet.set_locked("far", true);
    let done = mend(&fleet, "far", &corrupt(&fleet, 9, 1, 5)).await.unwrap();
    assert!(done.contains("a snapshot of transaction 6 from"), "{done}");
    std::fs::remove_file(fleet.file("far", 9, 1, 5)).unwrap();
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
    // What stood in for a locked file is gone: the hole is not filled under its name.
    let fleet = Fleet::new(&["near", "far"]).await;
    let bad = fleet.file("far", 0, 3, 3);
    let spoiled = spoil(&bad);
    fleet.set_locked("far", true);
    let range = TxidRange::from_raw(3, 3).unwrap();
    let locked = [object(&fleet, 0, 3, 3)];
    let mended = mend_beside(&fleet, "far", &hole(&fleet.key(), range), &locked).await.unwrap();
    assert!(mended.stays.is_none() && mended.done.contains("a snapshot of transaction 3"), "{mended:?}");
    assert_eq!(std::fs::read(&bad).unwrap(), spoiled);
    assert_eq!(restored(&fleet, "far"), fleet.image().bytes());
}

/// Names of all that lies there.
fn files(fleet: &Fleet, place: &str) -> Vec<PathBuf> {
    let levels = fleet.file(place, 0, 1, 1);
    let levels = std::fs::read_dir(levels.parent().unwrap().parent().unwrap()).unwrap();
    let mut found: Vec<PathBuf> = levels
        .flat_map(|level| std::fs::read_dir(level.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    found.sort();
    found
}

/// Whatever is held where and whatever is bad: what is chosen gives the object's transactions or a state from which the place goes
/// on, and takes nothing that is bad.
#[test]
fn what_is_chosen_leads_there() {
    let names = ["buffer", "near", "far"];
    let (mut exact, mut stood_in, mut none) = (0, 0, 0);
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let newest = random.random_range(3..20u64);
        let mut listings = Vec::new();
        for name in names {
            let mut files: Vec<(u8, u64, u64)> = Vec::new();
            for txid in 1..=newest {
                if random.random_range(0..4) > 0 {
                    files.push((0, txid, txid));
                }
                if random.random_range(0..5) == 0 {
                    files.push((1, txid, random.random_range(txid..=newest)));
                }
                if random.random_range(0..8) == 0 {
                    files.push((9, 1, txid));
                }
            }
            let listed = |&(level, min, max): &(u8, u64, u64)| Listed {
                level: Level::new(level).unwrap(),
                range: TxidRange::from_raw(min, max).unwrap(),
                size: random.random_range(1..1 << 20),
                time_ms: 0,
            };
            let files: Vec<Listed> = files.iter().map(listed).collect();
            listings.push(Listing { source: name.parse().unwrap(), files });
        }
        let far = &listings[2];
        let Some(object) = far.files.get(random.random_range(0..far.files.len().max(1))) else { continue };
        let mut bad = HashSet::from([(far.source.clone(), object.level, object.range)]);
        for listing in &listings {
            let spoiled = listing.files.iter().filter(|_| random.random_range(0..6) == 0);
            bad.extend(spoiled.map(|file| (listing.source.clone(), file.level, file.range)));
        }
        let key = FileKey { database: "n/d".parse().unwrap(), level: object.level, range: object.range };
        let reach = Txid::new(newest).unwrap();
        let Some(recipe) = choose(&listings, &bad, &far.source, &key, reach, true) else {
            none += 1;
            continue;
        };
        let mut state = recipe.range.min().get() - 1;
        for file in &recipe.plan.files {
            assert!(!bad.contains(&(file.source.clone(), file.level, file.range)), "seed {seed}: {recipe:?}");
            let (min, max) = (file.range.min().get(), file.range.max().get());
            assert!(
                min >= recipe.range.min().get() && min - 1 <= state && max > state,
                "seed {seed}: {recipe:?}"
            );
            state = max;
        }
        assert_eq!(state, recipe.range.max().get(), "seed {seed}");
        if recipe.range == object.range && recipe.level == object.level {
            exact += 1;
            continue;
        }
        stood_in += 1;
        assert_eq!((recipe.level, recipe.range.min()), (Level::SNAPSHOT, Txid::FIRST), "seed {seed}");
        let mut files: Vec<Listed> = far.files.clone();
        files.retain(|file| !bad.contains(&(far.source.clone(), file.level, file.range)));
        files.push(Listed { level: Level::SNAPSHOT, range: recipe.range, size: 1, time_ms: 0 });
        let after = [Listing { source: far.source.clone(), files }];
        assert_eq!(Reach::new(&after, None).newest(), Some(reach), "seed {seed}: {recipe:?}");
    }
    assert!(exact > 50 && stood_in > 10 && none > 0, "{exact} {stood_in} {none}: the cases say nothing");
}
