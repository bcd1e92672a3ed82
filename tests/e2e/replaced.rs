//! Databases of stopped applications brought back by another file: one that is open is left alone, missing and damaged ones and
//! those of another page size come back, what was there is a restore point or kept, and the history goes on.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::faults::Disk;
use walhub_tests::{Cluster, Image};

const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &str = "node/app.db";

fn commit(path: &Path, sql: &str) {
    let app = Connection::open(path).expect("the database");
    app.busy_timeout(PATIENCE).expect("a busy timeout");
    app.execute_batch(&format!("PRAGMA journal_mode=WAL; {sql}")).expect("a transaction");
}

/// A node, its hub, and a database with a good state and a bad one behind it.
struct Stage {
    cluster: Cluster,
    path: PathBuf,
    good: (Image, u64),
    bad: (Image, u64),
}

impl Stage {
    fn new(name: &str, kilobytes: u32) -> Stage {
        let cluster = Cluster::new(name);
        fs::create_dir_all(cluster.path("data")).expect("the folder");
        Stage::on(cluster, kilobytes)
    }

    /// The database lies in the folder `data`, which is there.
    fn on(mut cluster: Cluster, kilobytes: u32) -> Stage {
        cluster.add_folder("near");
        let path = cluster.path("data/app.db");
        let noise = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {kilobytes}) \
             INSERT INTO t SELECT randomblob(1000) FROM n"
        );
        commit(&path, &format!("CREATE TABLE t(x); {noise}"));
        cluster.agent("node", &[("app.db", &path)]);
        cluster.start_hub();
        cluster.start_agent("node");
        let good = cluster.await_buffered("node", "app.db", &path);
        commit(&path, "DELETE FROM t WHERE rowid % 2 = 0; INSERT INTO t VALUES ('bad')");
        let bad = cluster.await_buffered("node", "app.db", &path);
        Stage { cluster, path, good, bad }
    }

    fn order<'a>(&self, txid: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["restore", KEY, "--txid", txid, "--yes", "--json"][..], more].concat()
    }

    /// The line of a report about the database.
    fn replace(&self, txid: u64) -> Value {
        let txid = txid.to_string();
        let report = self.cluster.hubctl(&self.order(&txid, &["--replace"])).json();
        report["list"][0].clone()
    }

    /// Why it was not done.
    fn refused(&self, txid: u64, how: &str) -> String {
        let txid = txid.to_string();
        let said = self.cluster.hubctl(&self.order(&txid, &[how]));
        assert_eq!(said.code, 1, "{said:?}");
        let report: Value = serde_json::from_str(&said.stdout).expect("JSON");
        report["list"][0]["error"].as_str().expect("a reason").to_owned()
    }

    /// A part of the new file is there.
    fn await_half_fetched(&self) {
        eventually("the new file to be in the making", PATIENCE, || {
            let report = self.cluster.hubctl(&["jobs", "show", "--json"]).json();
            let bytes = report["list"][0]["bytes"].as_u64().unwrap_or(0);
            ensure(bytes > 200_000 && !self.beside().is_empty(), || report.to_string())
        });
    }

    /// What lies beside the database, but for what SQLite has there.
    fn beside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.parent().expect("a folder")).expect("the folder").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !["app.db", "app.db-wal", "app.db-shm"].contains(&name.as_str())).collect()
    }

    /// It is the good state, to the byte; the application writes on, and that follows.
    fn assert_good_and_followed(&self, what: &str) {
        self.good.0.assert_same(&Image::live(&self.path), what);
        commit(&self.path, "INSERT INTO t VALUES ('after')");
        self.cluster.await_buffered("node", "app.db", &self.path);
    }
}

#[test]
fn a_file_that_is_open_is_left_alone_and_a_closed_one_is_replaced_whatever_it_is() {
    let mut stage = Stage::new("replaced", 300);
    let (good, bad) = (stage.good.1, stage.bad.1);

    // Open: by this very process, which is not the agent.
    let app = Connection::open(&stage.path).expect("the application");
    app.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).expect("it reads");
    let why = stage.refused(good, "--replace");
    assert!(why.contains(&format!("process {} (", std::process::id())) && why.contains("stop it"), "{why}");
    stage.bad.0.assert_same(&Image::live(&stage.path), "it was left alone");
    assert!(stage.beside().is_empty(), "{:?}", stage.beside());
    drop(app);

    // Closed, and not what the operator wants: nothing is changed.
    let txid = good.to_string();
    let wrong = stage.order(&txid, &["--replace", "--check", "SELECT count(*) FROM t = 7"]);
    let said = stage.cluster.hubctl(&wrong);
    assert!(said.code == 1 && said.stdout.contains("gives 300, not 7"), "{said:?}");
    stage.bad.0.assert_same(&Image::live(&stage.path), "a check did not hold");
    assert!(stage.beside().is_empty(), "{:?}", stage.beside());

    // Closed, and sound: what is there is a restore point, nothing is kept.
    let line = stage.replace(good);
    assert_eq!((&line["safety_txid"], &line["kept_file"]), (&bad.into(), &Value::Null), "{line}");
    assert_eq!((line["new_txid"].as_u64(), &line["verdict"]), (Some(bad + 1), &"verified".into()), "{line}");
    stage.assert_good_and_followed("replaced");
    assert!(stage.beside().is_empty(), "{:?}", stage.beside());
    let before = stage.cluster.restore(KEY, "before.db", &["--txid", &bad.to_string()]);
    stage.bad.0.assert_same(&Image::restored(&before), "undone by its restore point");

    // Gone.
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", stage.path.display()));
    }
    let line = stage.replace(good);
    assert_eq!(line["kept_file"], Value::Null, "{line}");
    stage.assert_good_and_followed("made anew");

    // Damaged, so that nobody can follow it: kept as it is, to the byte.
    stage.cluster.stop_agent("node");
    commit(&stage.path, "INSERT INTO t VALUES ('last one out takes the log along')");
    let length = fs::metadata(&stage.path).expect("the file").len();
    let damage = vec![0xa5; usize::try_from(length).expect("small")];
    fs::write(&stage.path, &damage).expect("damage");
    stage.cluster.start_agent("node");
    let line = stage.replace(good);
    let kept = line["kept_file"].as_str().expect("the file is kept");
    assert!(kept.ends_with(".walhub-kept") && line["safety_txid"].is_null(), "{line}");
    assert_eq!(fs::read(kept).expect("the kept file"), damage);
    stage.assert_good_and_followed("in place of a damaged one");

    // Another page size, which in place is refused.
    stage.cluster.stop_agent("node");
    let app = Connection::open(&stage.path).expect("the application");
    app.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL")
        .expect("another page size");
    drop(app);
    stage.cluster.start_agent("node");
    let (_, other) = stage.cluster.await_buffered("node", "app.db", &stage.path);
    let why = stage.refused(good, "--in-place");
    assert!(why.contains("pages were 4096 bytes") && why.contains("--replace"), "{why}");
    let line = stage.replace(good);
    assert_eq!(line["safety_txid"], other, "{line}");
    stage.assert_good_and_followed("of another page size");
    assert_eq!(stage.beside().len(), 1, "only what is kept: {:?}", stage.beside());
}

#[test]
fn a_node_that_is_away_a_hub_and_an_agent_that_are_killed_while_it_fetches_change_nothing_and_the_order_ends()
{
    let mut stage = Stage::new("replaced-killed", 4000);
    let good = stage.good.1.to_string();
    stage.cluster.stop_agent("node");
    let slow = stage.order(&good, &["--replace", "--detach", "--bandwidth", "800KiB"]);
    stage.cluster.hubctl(&slow).success();
    stage.cluster.start_agent("node");
    stage.await_half_fetched();
    let job =
        stage.cluster.hubctl(&["jobs", "show", "--json"]).json()["job"].as_str().expect("its id").to_owned();
    stage.cluster.hubctl(&["jobs", "cancel", &job]).success();
    eventually("the cancelled restore to leave nothing", PATIENCE, || {
        ensure(stage.beside().is_empty(), || format!("{:?}", stage.beside()))
    });
    stage.bad.0.assert_same(&Image::live(&stage.path), "it was cancelled");

    stage.cluster.hubctl(&slow).success();
    stage.await_half_fetched();
    stage.cluster.kill_hub();
    stage.bad.0.assert_same(&Image::live(&stage.path), "the hub was killed");
    stage.cluster.start_hub();
    stage.await_half_fetched();
    stage.cluster.kill_agent("node");
    stage.bad.0.assert_same(&Image::live(&stage.path), "the agent was killed");
    assert!(!stage.beside().is_empty(), "in the middle");
    stage.cluster.start_agent("node");
    let report = stage.cluster.hubctl(&["jobs", "watch", "--json"]).json();
    assert_eq!(report["state"], "done", "{report}");
    assert_eq!(report["list"][0]["safety_txid"], stage.bad.1, "{report}");
    stage.assert_good_and_followed("after the kills");
    assert!(stage.beside().is_empty(), "{:?}", stage.beside());
}

#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_one_of_both_states() {
    let mut stage = Stage::new("replaced-any-moment", 300);
    let mut random = StdRng::seed_from_u64(28);
    let states = [stage.good.clone(), stage.bad.clone()];
    for round in 0..8 {
        let (wanted, txid) = &states[round % 2];
        let txid = txid.to_string();
        let order = stage.order(&txid, &["--replace", "--detach"]);
        stage.cluster.hubctl(&order).success();
        std::thread::sleep(Duration::from_millis(random.random_range(0..250)));
        stage.cluster.kill_agent("node");
        let left = Image::live(&stage.path);
        let whole = states.iter().any(|(state, _)| *state == left);
        assert!(whole, "round {round}: {left:?} is neither {states:?}; {:?}", stage.beside());
        stage.cluster.start_agent("node");
        let report = stage.cluster.hubctl(&["jobs", "watch", "--json"]).json();
        assert_eq!(report["state"], "done", "round {round}: {report}");
        assert_eq!(report["list"][0]["kept_file"], Value::Null, "round {round}: {report}");
        wanted.assert_same(&Image::live(&stage.path), "restored in the end");
        assert!(stage.beside().is_empty(), "round {round}: {:?}", stage.beside());
        stage.cluster.await_buffered("node", "app.db", &stage.path);
    }
}

#[test]
fn a_disk_without_room_for_a_second_file_refuses_with_the_numbers() {
    let cluster = Cluster::new("replaced-full");
    let Some(_disk) = Disk::mount(&cluster.path("data"), 32) else {
        eprintln!("skipped: only root may mount");
        return;
    };
    // The file and its log leave less than a second file takes.
    let stage = Stage::on(cluster, 12_000);
    let why = stage.refused(stage.good.1, "--replace");
    assert!(why.contains("MiB free") && why.contains("make room"), "{why}");
    stage.bad.0.assert_same(&Image::live(&stage.path), "the database is as it was");
    assert!(stage.beside().is_empty(), "{:?}", stage.beside());
}
