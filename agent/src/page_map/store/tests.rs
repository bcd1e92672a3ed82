use super::*;
use crate::page_map::Change;
use proptest::prelude::*;
use walhub_common::wal::{FrameNo, Salts};
use walhub_common::{Checksum, Pgno, Txid};

fn open(folder: &Path) -> Result<Loaded, StateError> {
    Store::open(crate::disk::real(), folder)
}

const SIZE: PageSize = PageSize::new(512).unwrap();

fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

fn sum(n: u64) -> Checksum {
    Checksum::new(1 << 63 | n).unwrap()
}

fn anchor(map: &PageMap, txid: u64) -> Anchor {
    Anchor {
        lineage: 77,
        position: Some(Pos { txid: Txid::new(txid).unwrap(), checksum: map.checksum() }),
        wal: Some(WalPosition { salts: Salts([1, 2]), frame: FrameNo(txid as u32), checksum: [3, 4] }),
    }
}

/// A map and its store, both changed by the same transactions.
struct Twin {
    folder: tempfile::TempDir,
    map: PageMap,
    store: Store,
    txid: u64,
}

impl Twin {
    fn new(pages: u32) -> Twin {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).unwrap().store;
        let mut map = PageMap::new(SIZE, Room::beside(folder.path()));
        let changes: Vec<Change> = (1..=pages).map(|p| (pgno(p), sum(p.into()))).collect();
        map.apply(&changes, pages, Txid::FIRST).unwrap();
        store.rewrite(anchor(&map, 1), Some(&map)).unwrap();
        Twin { folder, map, store, txid: 1 }
    }

    fn change(&mut self, page: u32, commit: u32) {
        self.txid += 1;
        let txid = Txid::new(self.txid).unwrap();
        let mut changes: Vec<Change> =
            self.map.grown(commit).map(|p| (p, sum(self.txid << 32 | u64::from(p.get())))).collect();
        if page <= self.map.commit().min(commit) {
            changes.insert(0, (pgno(page), sum(self.txid)));
        }
        self.map.apply(&changes, commit, txid).unwrap();
        let entries: Vec<_> = changes.iter().map(|(p, c)| (p.get(), Entry::new(*c, txid))).collect();
        self.store.append(anchor(&self.map, self.txid), SIZE, commit, &entries).unwrap();
    }

    fn assert_loads(&self) {
        let loaded = open(self.folder.path()).unwrap();
        assert_eq!(loaded.discarded, None);
        assert_eq!(loaded.map.as_ref(), Some(&self.map));
        assert_eq!(loaded.store.anchor(), self.store.anchor());
    }
}

#[test]
fn an_empty_folder_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = open(&folder.path().join("new/deep")).unwrap();
    assert!(loaded.map.is_none() && loaded.discarded.is_none());
    assert_eq!(loaded.store.anchor(), &Anchor::default());
    assert!(loaded.store.wants_rewrite());
}

#[test]
fn a_lineage_can_be_saved_before_there_is_a_map() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap().store;
    store.rewrite(Anchor { lineage: 5, ..Anchor::default() }, None).unwrap();
    let loaded = open(folder.path()).unwrap();
    assert!(loaded.map.is_none());
    assert_eq!(loaded.store.anchor().lineage, 5);
}

#[test]
fn growth_shrink_and_rewrites_are_read_back() {
    let mut twin = Twin::new(10);
    for (page, commit) in [(1, 10), (3, 14), (2, 4), (2, 9), (9, 9)] {
        twin.change(page, commit);
        twin.assert_loads();
    }
    twin.store.rewrite(anchor(&twin.map, twin.txid), Some(&twin.map)).unwrap();
    twin.assert_loads();
    twin.change(1, 20);
    twin.assert_loads();
}

#[test]
fn a_journal_of_an_older_base_is_not_replayed() {
    let mut twin = Twin::new(4);
    twin.change(1, 4);
    let old = fs::read(twin.folder.path().join("journal")).unwrap();
    twin.change(2, 4);
    twin.store.rewrite(anchor(&twin.map, twin.txid), Some(&twin.map)).unwrap();
    // Killed between the rename of the base and the first record of the new journal.
    fs::write(twin.folder.path().join("journal"), &old).unwrap();
    twin.assert_loads();
    twin.change(3, 4);
    twin.assert_loads();
}

#[test]
fn a_journal_larger_than_its_base_asks_for_a_rewrite() {
    let mut twin = Twin::new(4);
    assert!(!twin.store.wants_rewrite());
    while twin.store.journal_bytes <= SMALL_JOURNAL {
        assert!(!twin.store.wants_rewrite());
        twin.change(1, 4);
    }
    assert!(twin.store.wants_rewrite());
}

#[test]
fn entries_that_do_not_add_up_are_not_used() {
    let mut twin = Twin::new(4);
    let wrong =
        Anchor { position: Some(Pos { txid: Txid::FIRST, checksum: sum(12345) }), ..anchor(&twin.map, 1) };
    twin.store.rewrite(wrong, Some(&twin.map)).unwrap();
    let loaded = open(twin.folder.path()).unwrap();
    assert!(loaded.map.is_none() && loaded.discarded.is_some());
    assert_eq!(loaded.store.anchor(), &Anchor::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Cut the journal anywhere, or garble a byte: what loads is one of the saved states, the newest that is whole, and
    /// it can be continued.
    #[test]
    fn a_damaged_journal_gives_an_earlier_state(
        steps in proptest::collection::vec((1_u32..12, 1_u32..12), 1..12),
        at in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut twin = Twin::new(6);
        let mut states = vec![(16, twin.map.clone())];
        for (page, commit) in steps {
            twin.change(page, commit);
            states.push((twin.store.journal_bytes, twin.map.clone()));
        }
        let path = twin.folder.path().join("journal");
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 0x41 }
        fs::write(&path, &bytes).unwrap();
        let whole = states.iter().rev().find(|(end, _)| *end <= at as u64).unwrap_or(&states[0]);
        let loaded = open(twin.folder.path()).unwrap();
        prop_assert_eq!(loaded.map.as_ref(), Some(&whole.1));
        let mut twin = Twin { map: whole.1.clone(), store: loaded.store, ..twin };
        twin.change(1, 3);
        twin.assert_loads();
    }

    #[test]
    fn a_damaged_base_is_never_half_used(pages in 0_u32..9, at in any::<prop::sample::Index>(), cut in any::<bool>()) {
        let twin = Twin::new(pages);
        let path = twin.folder.path().join("base");
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 0x41 }
        fs::write(&path, &bytes).unwrap();
        let loaded = open(twin.folder.path()).unwrap();
        prop_assert!(loaded.map.is_none() && loaded.discarded.is_some());
        let mut store = loaded.store;
        prop_assert!(store.wants_rewrite());
        store.rewrite(anchor(&twin.map, 1), Some(&twin.map)).unwrap();
        let again = open(twin.folder.path()).unwrap();
        prop_assert_eq!(again.map.as_ref(), Some(&twin.map));
    }

    #[test]
    fn arbitrary_files_never_panic(base in proptest::collection::vec(any::<u8>(), 0..200), journal in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("base"), base).unwrap();
        fs::write(folder.path().join("journal"), journal).unwrap();
        let loaded = open(folder.path()).unwrap();
        prop_assert!(loaded.map.is_none());
    }
}
