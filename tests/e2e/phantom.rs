//! A commit frame in the WAL is not a commit: the application is killed inside COMMIT under `synchronous=FULL`, with
//! every frame written and the wal-index header not yet moved, restarted, and killed again. What comes back must be the
//! live database, page for page, after every round. Stock litestream runs beside us; its result is shown, not judged.

use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_tests::eventually::try_eventually;
use walhub_tests::ledger::{self, Audit, mix};
use walhub_tests::litestream::Litestream;
use walhub_tests::process::Process;
use walhub_tests::report::{report, rounds};
use walhub_tests::scratch::Scratch;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, oracle};

#[test]
fn every_restore_equals_the_live_file_however_often_the_app_dies_inside_commit() {
    let mut cluster = Cluster::new("phantom");
    cluster.add_folder("near");
    let ours = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &ours)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let mut beside = Beside::start(&cluster);

    let rounds = rounds();
    let mut phantoms = 0;
    for round in 1..=rounds {
        let committed = live_in_rounds(&ours, round);
        if let Some(beside) = &mut beside {
            live_in_rounds(&beside.database, round);
        }
        phantoms += u64::from(wal_alone_shows(&cluster.path("copy"), &ours) > committed);

        let (live, txid) = cluster.await_buffered("node", "app.db", &ours);
        let out = cluster.restore("node/app.db", &format!("round-{round}.db"), &[]);
        live.assert_same(&Image::restored(&out), &format!("round {round}, TXID {txid}"));
        let (extra, missing) = audit(&out).against(&audit(&ours));
        assert_eq!((extra, missing), (0, 0), "round {round}: rows that never committed, and rows lost");
        remove(&out);
    }
    // A run in which the log alone never lied has not tested the point.
    assert!(phantoms * 2 > rounds, "only {phantoms} phantoms in {rounds} rounds");

    let (live, txid) = cluster.await_buffered("node", "app.db", &ours);
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "final.db", &["--source", "near"]);
    live.assert_same(&Image::restored(&out), "the destination");

    let mut lines = format!(
        "{rounds} kills inside COMMIT, a third as many under load; {phantoms} phantom commits in the WAL\n\
         walhub            pages that differ 0 of {}, rows never committed 0, committed rows missing 0\n",
        live.pages()
    );
    lines += &beside.map_or_else(String::new, |beside| beside.verdict());
    report("the application killed inside COMMIT, synchronous=FULL", &lines);
}

#[test]
fn an_io_error_in_the_fsync_of_a_commit_leaves_no_trace() {
    let mut cluster = Cluster::new("ioerr");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    for life in 1..=5 {
        let life = life.to_string();
        // The failed commit is answered with an error, and its number is taken by the next transfer.
        let options = ["--life", &life, "--commits", "12", "--fail-in-commit", "7", "--churn"];
        let (status, _) = Writer::spawn(&database, &options).wait();
        assert!(status.success());
        let (live, _) = cluster.await_buffered("node", "app.db", &database);
        let out = cluster.restore("node/app.db", &format!("life-{life}.db"), &[]);
        live.assert_same(&Image::restored(&out), "after a failed fsync");
        assert_eq!(audit(&out).against(&audit(&database)), (0, 0));
    }
}

/// In every third round a life under full load that is killed from outside; then always one that ends inside a COMMIT,
/// whose phantom the next round writes over. Gives the last transfer that really committed.
fn live_in_rounds(database: &Path, round: u64) -> u64 {
    let (first, second) = ((2 * round).to_string(), (2 * round + 1).to_string());
    // Rounds end now here, now there in the WAL.
    let dies_in = (3 + mix(round) % 25).to_string();
    if mix(round ^ 99).is_multiple_of(3) {
        let mut loaded = Writer::spawn(database, &["--life", &second, "--churn", "--note", "500"]);
        let until = loaded.acked() + 1;
        loaded.await_acked(until);
        loaded.kill9();
    }
    let life = ["--life", &first, "--kill-in-commit", &dies_in, "--churn"];
    let (status, _) = Writer::spawn(database, &life).wait();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it died inside COMMIT");
    ledger::last_seq(&oracle::observer(database)).expect("live ledger")
}

/// The last transfer a reader sees who trusts the log file alone: database and WAL copied without the wal-index.
fn wal_alone_shows(copy: &Path, database: &Path) -> u64 {
    let _ = std::fs::remove_dir_all(copy);
    std::fs::create_dir(copy).expect("folder");
    for suffix in ["", "-wal"] {
        let name = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        std::fs::copy(name(database), name(&copy.join("app.db"))).expect("copy");
    }
    ledger::last_seq(&oracle::observer(&copy.join("app.db"))).expect("ledger of the copy")
}

#[track_caller]
fn audit(path: &Path) -> Audit {
    ledger::audit_connection(&oracle::observer(path)).expect("ledger")
}

fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

/// Stock litestream on a database of its own, through the same rounds.
struct Beside {
    litestream: Litestream,
    database: PathBuf,
    replica: PathBuf,
    process: Process,
    scratch: Scratch,
}

impl Beside {
    fn start(cluster: &Cluster) -> Option<Beside> {
        let litestream = Litestream::find()?;
        let scratch = Scratch::new("beside");
        let (database, replica) = (scratch.join("app.db"), scratch.join("replica"));
        Writer::spawn(&database, &["--commits", "1"]).wait();
        let process = litestream.replicate(&database, &replica, &cluster.path("logs/litestream.log"));
        Some(Beside { litestream, database, replica, process, scratch })
    }

    /// Gives it 20 s of quiet to catch up, then restores and compares.
    fn verdict(mut self) -> String {
        let live = Image::live(&self.database);
        let mut attempt = 0;
        let mut compare = || {
            attempt += 1;
            let out = self.scratch.join(format!("out-{attempt}.db"));
            let restored = self.litestream.restore_file(&self.replica, &out, &[]);
            if restored.code != 0 {
                return Err(format!("restore failed: {}", restored.stderr.trim()));
            }
            let differing = live.differing(&Image::restored(&out)).len();
            if differing == 0 {
                return Ok(format!("pages that differ 0 of {}", live.pages()));
            }
            let rows = match ledger::audit(&out) {
                Ok(copy) => {
                    let (extra, missing) = copy.against(&audit(&self.database));
                    format!("rows never committed {extra}, committed rows missing {missing}")
                }
                Err(reason) => format!("not a consistent ledger: {reason}"),
            };
            Err(format!("pages that differ {differing} of {}, {rows}", live.pages()))
        };
        let verdict = try_eventually(Duration::from_secs(20), &mut compare).unwrap_or_else(|worst| worst);
        self.process.kill9();
        let errors = self.process.log().lines().filter(|line| line.contains("level=ERROR")).count();
        format!("litestream 0.5.17 {verdict}; {errors} errors in its log\n")
    }
}
