//! kill -9 of a real process.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const CHILD_FOLDER: &str = "WALHUB_TEST_BUFFER_FOLDER";
const CHILD_DATABASES: u64 = 8;

/// Not a test: the process that is killed. It appends, takes, trims, and says what was acknowledged.
#[test]
#[ignore = "started by the kill test"]
fn child() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let max_bytes = 3 << 20;
    let options = Options { file_bytes: 100_000, ..Options::new(folder, max_bytes) };
    let buffer = DiskBuffer::open(options).unwrap();
    let append = async |n: u64| {
        let name = format!("k{n}");
        let registered = buffer.register(&key(&name), None, "/x").await.unwrap();
        let id = registered.id;
        if let Some(position) = registered.position {
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
        }
        buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
        loop {
            let position = append_next(&buffer, &name).await.unwrap();
            writeln!(io::stdout().lock(), "acked {n} {}", position.txid.get()).unwrap();
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
            if position.txid.get() % 64 == 0 {
                buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
            }
        }
    };
    runtime.block_on(futures_util::future::join_all((0..CHILD_DATABASES).map(append)));
}

#[test]
fn a_killed_hub_has_everything_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<u64, u64> = HashMap::new();
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "buffer::disk::tests::killed::child", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, dir.path())
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
        let buffer = open(&Options { file_bytes: 100_000, ..Options::new(dir.path(), 3 << 20) });
        for (n, txid) in &acked {
            let position = verify(&buffer, &format!("k{n}"));
            assert!(position >= *txid, "round {round}: {position} of {txid}");
        }
    }
    assert_eq!(acked.len() as u64, CHILD_DATABASES);
}
