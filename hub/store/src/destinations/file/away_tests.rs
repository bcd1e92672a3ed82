//! Disks that are not mounted, that hang, and that are others: nothing is written where it does not belong, and no call waits for
//! ever.

use super::*;
use crate::destinations::{Fault, contract};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use walhub_common::TxidRange;
use walhub_common::backoff::Class;

#[derive(Debug, Default)]
struct Notes(Mutex<Option<String>>);

impl Memory for Notes {
    fn id(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }

    fn remember(&self, id: &str) -> io::Result<()> {
        *self.0.lock().unwrap() = Some(id.to_owned());
        Ok(())
    }
}

fn destination(root: &Path, notes: Option<&Arc<Notes>>) -> FileDestination {
    let memory = notes.map(|notes| notes.clone() as Arc<dyn Memory>);
    let config = FileConfig { path: root.to_owned() };
    FileDestination::remembered(DestinationName::new("disk").unwrap(), &config, memory)
}

fn key(txid: u64) -> FileKey {
    FileKey {
        database: "node/app.db".parse().unwrap(),
        level: Level::RAW,
        range: TxidRange::from_raw(txid, txid).unwrap(),
    }
}

async fn put(to: &FileDestination, txid: u64, body: Body) -> Result<Put, DestinationError> {
    to.put(&key(txid), body, PutMeta { time_ms: 0, post: None }, &CancellationToken::new()).await
}

fn small() -> Body {
    Body::Bytes(Bytes::from_static(b"ltx"))
}

/// Every path below, with its content.
fn tree(root: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            found.push((path.strip_prefix(root).unwrap().display().to_string(), content));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Any call; the outcome of one that found nothing counts as well.
async fn call(to: &FileDestination, which: u32, txid: u64) -> Result<(), DestinationError> {
    let (cancel, path) = (CancellationToken::new(), ObjectPath::new("walhub/x").unwrap());
    match which {
        0 => put(to, txid, small()).await.map(drop),
        1 => to.list(&key(1).database, Level::RAW, &cancel).await.map(drop),
        2 => to.list_databases(&cancel).await.map(drop),
        3 => to.delete(&[key(txid)], &cancel).await,
        4 => to.put_object(&path, small(), PutMode::Replace, &cancel).await.map(drop),
        5 => to.list_objects(&path, None, &cancel).await.map(drop),
        6 => to.delete_objects(&[path], &cancel).await,
        7 => to.read_at(&key(1), 0..3, &cancel).await.map(drop),
        _ => to.probe(&cancel).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_for_a_folder_that_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    contract::run(Arc::new(destination(&folder.path().join("a"), Some(&Arc::default())))).await;
}

/// The disk comes and goes, another one is in its place, and the hub is started anew at any moment.
#[tokio::test]
async fn whatever_lies_in_the_place_only_the_right_folder_is_touched() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let (root, notes) = (folder.path().join("mnt"), Arc::new(Notes::default()));
        let aside = |name: &str| folder.path().join(name);
        // Another hub's disk with the same databases, one that nobody marked, an empty mount point.
        let other = destination(&aside("other"), Some(&Arc::default()));
        other.probe(&CancellationToken::new()).await.unwrap();
        put(&other, 1, small()).await.unwrap();
        fs::create_dir_all(aside("unmarked/node/app.db/ltx/0")).unwrap();
        fs::create_dir(aside("empty")).unwrap();
        let mut to = destination(&root, Some(&notes));
        to.probe(&CancellationToken::new()).await.unwrap();
        put(&to, 1, small()).await.unwrap();
        let mut there = Some("disk");
        for step in 0..120 {
            if random.random_range(0..4) == 0 {
                if let Some(name) = there {
                    fs::rename(&root, aside(name)).unwrap();
                }
                there = [Some("disk"), Some("other"), Some("unmarked"), Some("empty"), None]
                    [random.random_range(0..5)];
                if let Some(name) = there {
                    fs::rename(aside(name), &root).unwrap();
                }
            }
            if random.random_range(0..8) == 0 {
                to = destination(&root, Some(&notes));
            }
            let before = tree(folder.path());
            let (which, txid) = (random.random_range(0..9), random.random_range(2..9));
            let done = call(&to, which, txid).await;
            if there == Some("disk") {
                done.unwrap_or_else(|error| panic!("seed {seed} step {step}: {error}"));
                right += 1;
                continue;
            }
            wrong += 1;
            assert_eq!(tree(folder.path()), before, "seed {seed} step {step}: call {which} at {there:?}");
            // What lies under the same name in another's place can be read; nothing follows from it.
            let Err(error) = done else {
                assert!(which == 7 && there == Some("other"), "seed {seed} step {step}: {which} {there:?}");
                continue;
            };
            assert!(matches!(error.fault, Fault::Gone(_)), "seed {seed} step {step}: {error}");
            assert!(error.to_string().contains("is its disk mounted?"), "{error}");
            assert_eq!(error.class(), Class::Transient, "it may come back at any moment");
        }
    }
    assert!(right > 200 && wrong > 200, "{right} {wrong}");
}

#[tokio::test]
async fn a_folder_keeps_its_id_wherever_it_is_moved_and_an_operator_can_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let (notes, cancel) = (Arc::new(Notes::default()), CancellationToken::new());
    let first = destination(&old, Some(&notes));
    first.probe(&cancel).await.unwrap();
    assert_eq!(tree(&old).len(), 2, "the marker and its folder: {:?}", tree(&old));
    assert!(first.list_databases(&cancel).await.unwrap().is_empty(), "it is no database");
    fs::rename(&old, &new).unwrap();
    let moved = Arc::new(Notes::default());
    destination(&new, Some(&moved)).probe(&cancel).await.unwrap();
    assert_eq!(moved.id(), notes.id());
    // A new disk on purpose: what the message says is what to do.
    let error = first.probe(&cancel).await.unwrap_err().to_string();
    let (_, command) = error.split_once("to begin anew in it: ").unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success());
    first.probe(&cancel).await.unwrap();
    put(&first, 1, small()).await.unwrap();
    // No id, no destination.
    fs::write(new.join("walhub/folder.id"), "x").unwrap();
    let error = destination(&new, Some(&Arc::default())).probe(&cancel).await.unwrap_err().to_string();
    assert!(error.contains("folder.id") && error.contains("gets a new one"), "{error}");
}

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_hang_are_given_up_and_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let to = destination(folder.path(), None).with_limit(Duration::from_millis(100));
    put(&to, 1, small()).await.unwrap();
    // Whoever opens a pipe waits in the kernel for somebody at its other end, as for a disk that hangs.
    let (read, body) = (
        folder.path().join("node/app.db/ltx/0/0000000000000002-0000000000000002.ltx"),
        folder.path().join("body"),
    );
    pipe(&read);
    pipe(&body);
    let cancel = CancellationToken::new();
    let error = put(&to, 3, Body::File(body.clone())).await.unwrap_err();
    assert!(matches!(error.fault, Fault::TimedOut { .. }) && error.class() == Class::Unknown, "{error}");
    assert!(error.to_string().starts_with("destination disk: cannot put node/app.db"), "{error}");
    let mut refused = 0;
    for _ in 0..20 {
        let error = to.read_at(&key(2), 0..9, &cancel).await.unwrap_err();
        match &error.fault {
            Fault::TimedOut { .. } => assert_eq!(refused, 0, "it was full"),
            Fault::Unavailable(text) => {
                assert!(text.contains("8 calls hang"), "{text}");
                refused += 1;
            }
            _ => panic!("{error}"),
        }
    }
    assert_eq!(refused, 20 - 7);
    // It wakes up: the calls end by themselves, and nothing half lies there.
    let awake = OpenOptions::new().read(true).write(true).open(&read).unwrap();
    OpenOptions::new().write(true).open(&body).unwrap().write_all(b"late").unwrap();
    let again = async {
        while to.read_at(&key(1), 0..9, &cancel).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("it works again");
    drop(awake);
    fs::remove_file(&read).unwrap();
    // The put ends by itself as well, and takes away what it had begun.
    let ended = async {
        loop {
            let level = fs::read_dir(read.parent().unwrap()).unwrap();
            let names: Vec<_> = level.map(|entry| entry.unwrap().file_name()).collect();
            if names == ["0000000000000001-0000000000000001.ltx"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("nothing half lies there");
}

/// Callers with a patience of their own, and those that are cancelled, leave threads behind as well.
#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_callers_have_gone_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let to = destination(folder.path(), None).with_limit(Duration::from_secs(1));
    put(&to, 1, small()).await.unwrap();
    let read = folder.path().join("node/app.db/ltx/0/0000000000000002-0000000000000002.ltx");
    pipe(&read);
    let (mut gone, mut refused) = (0, None);
    while gone < 100 && refused.is_none() {
        let (file, cancel) = (key(2), CancellationToken::new());
        match tokio::time::timeout(Duration::from_millis(50), to.read_at(&file, 0..9, &cancel)).await {
            Ok(answer) => refused = Some(answer.unwrap_err()),
            Err(_) => gone += 1,
        }
    }
    // The disk wakes up before anything can fail: threads that hang would outlive the test.
    let awake = OpenOptions::new().read(true).write(true).open(&read).unwrap();
    let refused = refused.unwrap_or_else(|| panic!("{gone} calls hang")).to_string();
    assert!(refused.contains("calls hang"), "{refused}");
    let again = async {
        while to.read_at(&key(1), 0..9, &CancellationToken::new()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("it works again");
    drop(awake);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_slowly_is_not_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(2);
    let to = destination(folder.path(), None).with_limit(limit);
    to.probe(&CancellationToken::new()).await.unwrap();
    let body = folder.path().join("body");
    pipe(&body);
    let source = body.clone();
    let writing = std::thread::spawn(move || {
        let mut out = OpenOptions::new().write(true).open(source).unwrap();
        let began = std::time::Instant::now();
        let mut pieces = 0;
        while began.elapsed() < limit * 2 + limit / 2 {
            out.write_all(&[7; 1000]).unwrap();
            pieces += 1;
            std::thread::sleep(limit / 20);
        }
        pieces * 1000
    });
    let result = put(&to, 1, Body::File(body)).await;
    assert_eq!(result.unwrap(), Put::Created);
    let listed = to.list(&key(1).database, Level::RAW, &CancellationToken::new()).await.unwrap();
    assert_eq!(listed[0].size, writing.join().unwrap());
}
