//! Histories in real folders, read while sources fail, lie and vanish: every page comes once, and is the right one.

use super::*;
use crate::destinations::config::FileConfig;
use crate::destinations::error::Operation;
use crate::destinations::faulty::{Faults, Faulty};
use crate::destinations::file::FileDestination;
use crate::destinations::{Body, Destination, FileKey, PutMeta};
use crate::restore::{DestinationSource, Target, prepare};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use walhub_common::ltx::{Encoder, Provenance, expand, name};
use walhub_common::{Checksum, DestinationName, PageSize, Pgno};

const SIZE: PageSize = PageSize::new(512).unwrap();

fn key() -> DatabaseKey {
    "node/app.db".parse().unwrap()
}

type Pages = Vec<Vec<u8>>;

fn checksum(pages: &Pages) -> Checksum {
    let sums = (1..).map_while(Pgno::new).zip(pages).map(|(pgno, page)| Checksum::of_page(pgno, page));
    sums.fold(Checksum::EMPTY, Checksum::toggle)
}

/// A database after each of its transactions.
struct History {
    states: Vec<Pages>,
    /// False: as Litestream would write it.
    ours: bool,
}

impl History {
    fn new(random: &mut StdRng, transactions: usize, pages: usize) -> History {
        let mut states: Vec<Pages> = vec![(0..pages).map(|_| page(random)).collect()];
        while states.len() < transactions {
            let mut state = states.last().unwrap().clone();
            match random.random_range(0..10) {
                0 => state.truncate((state.len() / 2).max(1)),
                1 | 2 => (0..random.random_range(1..pages)).for_each(|_| state.push(page(random))),
                _ => {}
            }
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..state.len());
                state[at] = page(random);
            }
            states.push(state);
        }
        History { states, ours: true }
    }

    fn state(&self, txid: u64) -> &Pages {
        &self.states[txid as usize - 1]
    }

    fn ltx(&self, min: u64, max: u64) -> Vec<u8> {
        let after = self.state(max);
        // A page that was away in between counts as changed.
        let smallest = (min.max(2) - 1..=max).map(|txid| self.state(txid).len()).min().unwrap();
        let changed = |at: usize| {
            min == 1
                || at >= smallest
                || (min..=max).any(|txid| self.state(txid).get(at) != self.state(txid - 1).get(at))
        };
        let pre = (min > 1).then(|| checksum(self.state(min - 1)));
        let header = Header {
            page_size: SIZE,
            commit: after.len() as u32,
            range: TxidRange::from_raw(min, max).unwrap(),
            timestamp_ms: max as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: self.ours.then(|| Provenance { pre, post: checksum(after) }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (at, page) in after.iter().enumerate().filter(|(at, _)| changed(*at)) {
            encoder.page(Pgno::new(at as u32 + 1).unwrap(), page).unwrap();
        }
        encoder.finish().unwrap().0
    }
}

fn page(random: &mut StdRng) -> Vec<u8> {
    let mut page = vec![random.random(); SIZE.bytes()];
    random.fill(&mut page[..300]);
    page
}

struct Place {
    folder: tempfile::TempDir,
    disk: Arc<Faulty>,
}

impl Place {
    fn new(name: &str, faults: Faults) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let config = FileConfig { path: folder.path().to_owned() };
        let inner = FileDestination::new(DestinationName::new(name).unwrap(), &config);
        Place { folder, disk: Arc::new(Faulty::new(Arc::new(inner), faults, 7)) }
    }

    /// By a way that does not fail.
    async fn put(&self, history: &History, level: u8, min: u64, max: u64) {
        let config = FileConfig { path: self.folder.path().to_owned() };
        let plain = FileDestination::new(self.disk.name().clone(), &config);
        let range = TxidRange::from_raw(min, max).unwrap();
        let file = FileKey { database: key(), level: Level::new(level).unwrap(), range };
        let body = Body::Bytes(history.ltx(min, max).into());
        plain.put(&file, body, PutMeta { time_ms: 1, post: None }, &CancellationToken::new()).await.unwrap();
    }

    fn path(&self, level: u8, min: u64, max: u64) -> PathBuf {
        let folder = name::fs_dir(Level::new(level).unwrap());
        let file = name::file_name(TxidRange::from_raw(min, max).unwrap());
        self.folder.path().join("node/app.db").join(folder).join(file)
    }

    fn source(&self) -> DynSource {
        Arc::new(DestinationSource(self.disk.clone()))
    }
}

async fn planned(sources: &[DynSource], txid: u64) -> Prepared {
    let target = Target::Txid(Txid::new(txid).unwrap());
    let cancel = CancellationToken::new();
    for _ in 0..200 {
        if let Ok(prepared) = prepare(sources, &key(), None, target, &cancel).await
            && prepared.unanswered.is_empty()
        {
            return prepared;
        }
    }
    panic!("no plan for {txid}");
}

/// What came: pages by number, each once.
async fn read(
    sources: &[DynSource],
    prepared: &Prepared,
    ask: Ask,
    mut meanwhile: impl FnMut(usize),
) -> Result<Vec<(u32, Vec<u8>)>, PagesError> {
    let mut frames = pages(sources, &key(), prepared, ask, &CancellationToken::new());
    let (mut found, mut seen, mut page) = (Vec::new(), BTreeSet::new(), Vec::new());
    while let Some(frames) = frames.next().await {
        for (pgno, block) in frames?.iter() {
            assert!(seen.insert(pgno), "{pgno} came twice");
            expand(block, SIZE, &mut page).unwrap();
            found.push((pgno.get(), page.clone()));
        }
        meanwhile(found.len());
    }
    found.sort();
    Ok(found)
}

fn numbered(state: &Pages) -> Vec<(u32, Vec<u8>)> {
    (1..).zip(state.iter().cloned()).collect()
}

fn none(prepared: &Prepared) -> Ask {
    Ask::new(PageSet::empty(prepared.header.unwrap().commit))
}

fn heard(ask: Ask) -> (Ask, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let told = Told(Arc::new(move |text: &str| told.lock().unwrap().push(text.to_owned())));
    (Ask { told, ..ask }, heard)
}

#[tokio::test]
async fn every_page_comes_once_whatever_the_files_and_the_faults() {
    for seed in 0..12_u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut history = History::new(&mut random, 40, 60);
        history.ours = seed % 3 != 0;
        let faults = Faults { fail: 0.05, break_read: 0.1, ..Faults::default() };
        let (near, far) = (Place::new("near", faults), Place::new("far", faults));
        for txid in 1..=40 {
            near.put(&history, 0, txid, txid).await;
        }
        let mut starts: Vec<u64> = (1..40).collect();
        starts.shuffle(&mut random);
        for min in &starts[..12] {
            let max = (min + random.random_range(1..12)).min(40);
            far.put(&history, 1, *min, max).await;
        }
        far.put(&history, 9, 1, random.random_range(2..40)).await;
        let sources = [near.source(), far.source()];
        for _ in 0..4 {
            let txid = random.random_range(1..=40);
            let prepared = planned(&sources, txid).await;
            let ask = Ask {
                small_bytes: [0, 2000, 1 << 20][random.random_range(0..3)],
                span_bytes: [1, 3000, 1 << 20][random.random_range(0..3)],
                verify: random.random_bool(0.3),
                ..none(&prepared)
            };
            let found = read(&sources, &prepared, ask.clone(), |_| {}).await;
            match found {
                Ok(found) => assert!(found == numbered(history.state(txid)), "seed {seed}: {ask:?}"),
                // Both sources may be given up when each failed four times in a row: rare, and said.
                Err(error) => assert!(error.to_string().contains("no other source leads there"), "{error}"),
            }
        }
    }
}

/// Two places with the same history: one large file and a few small ones.
async fn two_places() -> (History, Place, Place) {
    let mut random = StdRng::seed_from_u64(5);
    let history = History::new(&mut random, 10, 800);
    let (near, far) = (Place::new("near", Faults::default()), Place::new("far", Faults::default()));
    for place in [&near, &far] {
        place.put(&history, 9, 1, 5).await;
        for txid in 6..=10 {
            place.put(&history, 0, txid, txid).await;
        }
    }
    (history, near, far)
}

fn spans(prepared: &Prepared) -> Ask {
    Ask { small_bytes: 10_000, span_bytes: 20_000, ..none(prepared) }
}

#[tokio::test]
async fn a_source_that_dies_half_way_is_replaced_from_the_same_page_on() {
    let (history, near, far) = two_places().await;
    let sources = [near.source(), far.source()];
    let prepared = planned(&sources, 10).await;
    let half = history.state(10).len() / 3;
    let (ask, heard) = heard(spans(&prepared));
    let found = read(&sources, &prepared, ask, |pages| near.disk.set_down(pages > half)).await.unwrap();
    assert!(found == numbered(history.state(10)));
    let heard = heard.lock().unwrap().join("\n");
    assert!(heard.contains("destination near") && heard.contains("are read elsewhere"), "{heard}");
    // Less than a whole database was read from the other one.
    assert!(far.disk.calls(Operation::Open) < near.disk.calls(Operation::Open) + 40);
    // Without another one, the reason is said.
    let (sources, near) = ([near.source()], &near.disk);
    near.set_down(false);
    let prepared = planned(&sources, 10).await;
    let result = read(&sources, &prepared, spans(&prepared), |pages| near.set_down(pages > half)).await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("destination near: cannot open node/app.db"), "{error}");
    assert!(error.contains("no other source leads there"), "{error}");
}

#[tokio::test]
async fn a_missing_or_damaged_file_is_named_and_read_elsewhere() {
    for case in ["missing", "cut", "small damaged", "index damaged", "page damaged"] {
        let (history, near, far) = two_places().await;
        let sources = [near.source(), far.source()];
        let prepared = planned(&sources, 10).await;
        let (large, small) = (near.path(9, 1, 5), near.path(0, 8, 8));
        let mut bytes = std::fs::read(&large).unwrap();
        let middle = bytes.len() / 2;
        let flip = |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 0x10;
        match case {
            "missing" => std::fs::remove_file(&small).unwrap(),
            "cut" => std::fs::write(&large, &bytes[..middle]).unwrap(),
            "small damaged" => {
                let mut bytes = std::fs::read(&small).unwrap();
                flip(&mut bytes, 150);
                std::fs::write(&small, bytes).unwrap();
            }
            "index damaged" => {
                let at = bytes.len() - 100;
                flip(&mut bytes, at);
                std::fs::write(&large, &bytes).unwrap();
            }
            _ => {
                flip(&mut bytes, middle);
                std::fs::write(&large, &bytes).unwrap();
            }
        }
        let (ask, heard) = heard(Ask { verify: case == "page damaged", ..spans(&prepared) });
        let found = read(&sources, &prepared, ask.clone(), |_| {}).await.unwrap();
        assert!(found == numbered(history.state(10)), "{case}");
        let heard = heard.lock().unwrap().join("\n");
        let range = if case == "missing" || case == "small damaged" {
            "0000000000000008"
        } else {
            "0000000000000005"
        };
        assert!(heard.contains("destination near") && heard.contains(range), "{case}: {heard}");
        if case != "missing" {
            let alone = [near.source()];
            let result = read(&alone, &planned(&alone, 10).await, ask, |_| {}).await;
            let error = result.unwrap_err().to_string();
            assert!(error.contains("corrupt") && error.contains(range), "{case}: {error}");
        }
    }
}

#[tokio::test]
async fn files_that_nobody_signed_are_found_whole_before_a_page_is_given_out() {
    let mut random = StdRng::seed_from_u64(9);
    let mut history = History::new(&mut random, 3, 500);
    history.ours = false;
    let place = Place::new("near", Faults::default());
    place.put(&history, 9, 1, 3).await;
    let sources = [place.source()];
    let path = place.path(9, 1, 3);
    let whole = std::fs::read(&path).unwrap();
    for _ in 0..10 {
        let mut damaged = whole.clone();
        let at = random.random_range(100..whole.len());
        damaged[at] ^= 1 << random.random_range(0..8);
        std::fs::write(&path, damaged).unwrap();
        let prepared = planned(&sources, 3).await;
        let mut given = 0;
        let result = read(&sources, &prepared, spans(&prepared), |pages| given = pages).await;
        assert!(result.unwrap_err().to_string().contains("corrupt"), "byte {at}");
        assert_eq!(given, 0, "byte {at}");
    }
}

#[tokio::test]
async fn only_what_is_wanted_is_read() {
    let (history, near, _) = two_places().await;
    let sources = [near.source()];
    let prepared = planned(&sources, 10).await;
    let commit = prepared.header.unwrap().commit;
    let mut had = PageSet::empty(commit);
    had.insert_run(1..=commit);
    let wanted = [3, 4, commit - 1];
    wanted.iter().for_each(|page| had.remove(Pgno::new(*page).unwrap()));
    let before = near.disk.calls(Operation::Open);
    let ask = Ask { had: had.clone(), ..spans(&prepared) };
    let found = read(&sources, &prepared, ask, |_| {}).await.unwrap();
    let expected: Vec<_> =
        numbered(history.state(10)).into_iter().filter(|(page, _)| wanted.contains(page)).collect();
    assert!(found == expected);
    // Five small files, header and end of the large one, two ranges.
    assert!(near.disk.calls(Operation::Open) - before <= 9);
    had.insert_run(1..=commit);
    let ask = Ask { had, ..spans(&prepared) };
    assert!(read(&sources, &prepared, ask, |_| {}).await.unwrap().is_empty());
}
