//! kill -9 of a real process.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const CHILD_FOLDER: &str = "WALHUB_TEST_BUFFER_FOLDER";
const CHILD_LANES: &str = "WALHUB_TEST_BUFFER_LANES";
const CHILD_DATABASES: u64 = 8;

/// Not a test: the process that is killed. It appends, takes, trims, and says what was acknowledged.
#[test]
#[ignore = "started by the kill test"]
fn child() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let buffer = DiskBuffer::open(options(Path::new(&folder))).unwrap();
    // Without a lane nothing is ever given back: room comes from squashing alone.
    let lanes = if std::env::var_os(CHILD_LANES).is_some() { vec![lane()] } else { Vec::new() };
    let takers = EveryDatabase::by(&lanes);
    let append = async |n: u64| {
        let name = format!("k{n}");
        let registered = buffer.register(&key(&name), None, "/x").await.unwrap();
        let id = registered.id;
        if let Some(position) = registered.position {
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
        }
        buffer.trim(takers.clone()).await.unwrap();
        loop {
            let position = append_next(&buffer, &name).await.unwrap();
            writeln!(io::stdout().lock(), "acked {n} {}", position.txid.get()).unwrap();
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
            if position.txid.get() % 64 == 0 {
                buffer.trim(takers.clone()).await.unwrap();
            }
        }
    };
    runtime.block_on(futures_util::future::join_all((0..CHILD_DATABASES).map(append)));
}

fn options(folder: &Path) -> Options {
    let when_full = WhenFull::Squash;
    Options { file_bytes: 40_000, when_full, merger: Arc::new(Fold), ..Options::new(folder, 800_000) }
}

#[test]
fn a_killed_hub_has_everything_that_it_acknowledged() {
    kill_in_rounds(true);
}

#[test]
fn a_hub_killed_while_it_squashes_has_everything_that_it_acknowledged() {
    kill_in_rounds(false);
}

fn kill_in_rounds(lanes: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<u64, u64> = HashMap::new();
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "buffer::disk::tests::killed::child", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, dir.path())
            .envs(lanes.then_some((CHILD_LANES, "1")))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after = rng.random_range(1..1500);
        let mut count = 0;
        for line in lines {
            // The last line may be cut off by the kill.
            let line = line.unwrap();
            let Some(rest) = line.strip_prefix("acked ") else { continue };
            let Some((n, txid)) = rest.split_once(' ') else { continue };
            let (Ok(n), Ok(txid)) = (n.parse(), txid.parse::<u64>()) else { continue };
            let best = acked.entry(n).or_default();
            *best = txid.max(*best);
            count += 1;
            if count == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(count >= kill_after, "round {round}: the child ended by itself");
        let buffer = open(&options(dir.path()));
        for (n, txid) in &acked {
            let position = verify(&buffer, &format!("k{n}"));
            assert!(position >= *txid, "round {round}: {position} of {txid}");
        }
    }
    assert_eq!(acked.len() as u64, CHILD_DATABASES);
    if !lanes {
        let buffer = open(&options(dir.path()));
        let held = |name: &str| buffer.list(buffer.find(&key(name)).unwrap().id, None, usize::MAX).unwrap();
        let merged =
            (0..CHILD_DATABASES).flat_map(|n| held(&format!("k{n}"))).any(|s| s.meta.range.count() > 2);
        assert!(merged, "it never squashed");
    }
}
