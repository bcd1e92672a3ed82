//! An older or damaged copy becomes the database again, and little more than what differs travels.

use rusqlite::Connection;
use std::path::Path;
use walhub_tests::{Cluster, Image, oracle};

const ROWS: u32 = 5000;

/// One row a page, so that pages change one by one.
fn fill(app: &Connection) {
    app.execute_batch(&format!(
        "PRAGMA journal_mode=WAL;
         CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
         INSERT INTO t(body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         SELECT randomblob(3000) FROM n"
    ))
    .expect("rows");
}

/// Overwrites some bytes of a file in three places.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a copy");
    for part in 1..4 {
        let at = bytes.len() / 4 * part;
        bytes[at..at + 10].fill(0x55);
    }
    std::fs::write(path, bytes).expect("a damaged copy");
}

#[test]
fn one_page_in_a_hundred_changed_moves_little_more_than_that() {
    let mut cluster = Cluster::new("delta");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let app = Connection::open(&path).expect("the database");
    fill(&app);
    cluster.agent("node", &[("app.db", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (first, txid) = cluster.await_buffered("node", "app.db", &path);
    let copy = cluster.restore("node/app.db", "copy.db", &[]);
    first.assert_same(&Image::restored(&copy), "the first copy");
    app.execute_batch("UPDATE t SET body = randomblob(3000) WHERE id % 100 = 17").expect("one in a hundred");
    let (latest, _) = cluster.await_buffered("node", "app.db", &path);
    let changed = latest.differing(&first).len();
    assert!(changed * 100 <= latest.pages() + latest.pages() / 10, "{changed} pages of {}", latest.pages());

    let text = copy.display().to_string();
    let delta = |more: &[&str]| {
        let mut arguments = vec!["restore", "node/app.db", "-o", &text, "--delta", "--json"];
        arguments.extend(more);
        cluster.hubctl(&arguments).json()
    };
    let done = delta(&[]);
    latest.assert_same(&Image::restored(&copy), "the copy, brought up to date");
    let (received, bytes) =
        (done["received_bytes"].as_u64().expect("received"), done["bytes"].as_u64().expect("bytes"));
    println!(
        "{changed} pages changed, {received} bytes moved of {bytes}: {:.2} %",
        received as f64 * 100.0 / bytes as f64
    );
    assert!(received * 1000 <= bytes * 15, "{received} bytes of {bytes}");
    assert_eq!(done["verdict"], "verified");

    // Back again, and from a copy that rotted.
    delta(&["--txid", &txid.to_string()]);
    first.assert_same(&Image::restored(&copy), "the copy, brought back");
    damage(&copy);
    let done = delta(&["--txid", &txid.to_string()]);
    first.assert_same(&Image::restored(&copy), "the damaged copy");
    assert!(done["received_bytes"].as_u64() < Some(bytes / 100), "{done}");
    // Nothing differs: the checksums alone.
    let done = delta(&["--txid", &txid.to_string()]);
    assert_eq!(done["received_bytes"].as_u64(), Some(8 * first.pages() as u64));
    // No copy: everything.
    std::fs::remove_file(&copy).expect("no copy");
    delta(&[]);
    latest.assert_same(&Image::restored(&copy), "a new copy");

    // What would be mixed into it is named, and the copy stays.
    let wal = cluster.path("copy.db-wal");
    std::fs::write(&wal, b"").expect("a log");
    let said =
        cluster.hubctl(&["restore", "node/app.db", "-o", &text, "--delta", "--txid", &txid.to_string()]);
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains("copy.db-wal"), "{}", said.stderr);
    std::fs::remove_file(wal).expect("no log");
    latest.assert_same(&Image::restored(&copy), "the copy after a refusal");

    // The node's own command, on a file whose application and agent are stopped.
    drop(app);
    cluster.stop_agent("node");
    drop(oracle::observer(&path));
    for suffix in ["-wal", "-shm"] {
        // The last connection has brought everything into the file and taken them away, or leaves them empty.
        let _ = std::fs::remove_file(cluster.path(format!("data/app.db{suffix}")));
    }
    damage(&path);
    let text = path.display().to_string();
    let done = cluster.agent_command("node", &["restore", &text, "--delta", "--json"]).json();
    assert!(done["received_bytes"].as_u64() < Some(bytes / 20), "{done}");
    latest.assert_same(&Image::restored(&path), "the node's own file");
    assert_eq!(oracle::integrity(&path), "ok");
    cluster.start_agent("node");
    cluster.await_buffered("node", "app.db", &path);
}

#[test]
fn a_first_boot_restores_once_and_says_by_its_exit_code_what_it_did() {
    let mut cluster = Cluster::new("bootstrap");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let text = path.display().to_string();
    cluster.agent("node", &[("app.db", &path)]);
    cluster.start_hub();
    // Its configuration is there, and nothing else; the agent may not even have begun.
    cluster.start_agent("node");
    cluster.kill_agent("node");
    let boot = ["restore", &text, "--if-db-not-exists", "--if-replica-exists", "--json"];
    // The very first node: nothing to restore is no failure, unless it is asked to be.
    let first = cluster.agent_command("node", &boot).json();
    assert!(first["skipped"].as_str().is_some_and(|why| why.contains("holds nothing")), "{first}");
    assert!(!path.exists());
    assert_eq!(cluster.agent_command("node", &["restore", &text, "--if-db-not-exists"]).code, 1);
    let app = Connection::open(&path).expect("the database");
    fill(&app);
    cluster.start_agent("node");
    let (image, _) = cluster.await_buffered("node", "app.db", &path);
    let there = cluster.agent_command("node", &boot).json();
    assert!(there["skipped"].as_str().is_some_and(|why| why.contains("exists")), "{there}");
    // A new disk.
    drop(app);
    cluster.stop_agent("node");
    std::fs::remove_dir_all(cluster.path("data")).expect("the disk is lost");
    let done = cluster.agent_command("node", &boot).json();
    assert_eq!(done["verdict"], "verified", "{done}");
    image.assert_same(&Image::restored(&path), "the restored file");
    // The same for all databases of the node; for one that the configuration does not name there is no place.
    std::fs::remove_file(&path).expect("lost again");
    let all = ["restore", "--all", "--if-db-not-exists", "--if-replica-exists", "--json"];
    let done = cluster.agent_command("node", &all).json();
    assert_eq!((&done[0]["database"], &done[0]["verdict"]), (&"app.db".into(), &"verified".into()), "{done}");
    image.assert_same(&Image::restored(&path), "the restored file, by --all");
    let done = cluster.agent_command("node", &all).json();
    assert_eq!(done[0]["skipped"], "the file exists", "{done}");
    let written = std::fs::read_to_string(cluster.agent_config("node")).expect("agent.yml");
    let other = written.replace("name: app.db", "name: other.db");
    std::fs::write(cluster.agent_config("node"), other).expect("agent.yml");
    let left = cluster.agent_command("node", &all).json();
    assert!(left[0]["left_out"].as_str().is_some_and(|why| why.contains("does not name")), "{left}");
    std::fs::write(cluster.agent_config("node"), written).expect("agent.yml");
    // An unreachable hub is a failure: the application must not begin with an empty database.
    std::fs::remove_file(&path).expect("lost again");
    cluster.stop_hub();
    let said = cluster.agent_command("node", &boot);
    assert_eq!(said.code, 1, "{}", said.stdout);
    assert_eq!(cluster.agent_command("node", &all).code, 1);
    assert!(!path.exists());
    // Wrong usage, and a configuration that cannot work.
    assert_eq!(cluster.agent_command("node", &["restore"]).code, 2);
    std::fs::write(cluster.agent_config("node"), "hub: nowhere\n").expect("agent.yml");
    assert_eq!(cluster.agent_command("node", &boot).code, 64);
}
