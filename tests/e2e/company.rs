//! Others on the same database: a second agent, and Litestream.

use rusqlite::Connection;
use std::process::Command;
use std::time::Duration;
use walhub_tests::cluster::{Cluster, PATIENCE};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::Process;
use walhub_tests::services;

fn database(cluster: &Cluster) -> Connection {
    let app = Connection::open(cluster.path("app.db")).expect("app.db");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.busy_timeout(Duration::from_secs(20)).expect("busy timeout");
    app.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").expect("rows");
    app
}

/// What an agent says of its one database; nothing while it starts.
fn said(cluster: &Cluster, agent: &str) -> serde_json::Value {
    let status = cluster.agent_command(agent, &["status", "--json"]);
    let mut status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    status.pointer_mut("/databases/0").map(serde_json::Value::take).unwrap_or_default()
}

#[test]
fn a_second_agent_waits_says_for_whom_and_takes_over() {
    let mut cluster = Cluster::new("company-agents");
    cluster.add_folder("copies");
    let app = database(&cluster);
    let path = cluster.path("app.db");
    for name in ["first", "second"] {
        cluster.agent(name, &[("app", &path)]);
        cluster.agent_lines(name, "poll-interval: 200ms\n");
    }
    cluster.start_hub();
    cluster.start_agent("first");
    cluster.await_buffered("first", "app", &path);
    let holder = cluster.agent_process("first").id();
    cluster.start_agent("second");
    eventually("the second agent says who is first", PATIENCE, || {
        let seen = said(&cluster, "second");
        let error = seen["last_error"].as_str().unwrap_or_default();
        let named = error.contains(&format!("held by process {holder} (walhub-agent)"));
        ensure(seen["state"] == "absent" && named, || seen.to_string())
    });
    app.execute_batch("INSERT INTO t VALUES (2)").expect("a row");
    cluster.await_buffered("first", "app", &path);
    cluster.kill_agent("first");
    app.execute_batch("INSERT INTO t VALUES (3)").expect("a row");
    cluster.await_buffered("second", "app", &path);
    assert_eq!(said(&cluster, "second")["last_error"], serde_json::Value::Null);
}

#[test]
fn litestream_beside_the_agent_is_noticed_and_named() {
    let Some(litestream) = services::litestream() else { return };
    let mut cluster = Cluster::new("company-litestream");
    cluster.add_folder("copies");
    let app = database(&cluster);
    let path = cluster.path("app.db");
    cluster.agent("node-1", &[("app", &path)]);
    cluster.agent_lines("node-1", "poll-interval: 500ms\ncheckpoint-frames: 50\nwal-limit: 8MiB\n");
    cluster.start_hub();
    cluster.start_agent("node-1");
    cluster.await_buffered("node-1", "app", &path);
    let config = cluster.path("litestream.yml");
    let replica = cluster.path("theirs");
    let text = format!(
        "dbs:\n  - path: {}\n    replica: {{type: file, path: {}, sync-interval: 1s}}\n",
        path.display(),
        replica.display()
    );
    std::fs::write(&config, text).expect("litestream.yml");
    let mut command = Command::new(litestream);
    command.args(["replicate", "-config"]).arg(&config);
    let theirs = Process::spawn("litestream", command, &cluster.path("logs/litestream.log"));
    eventually("status names Litestream", PATIENCE, || {
        for _ in 0..20 {
            app.execute_batch("INSERT INTO t VALUES (randomblob(3000))").expect("a row");
        }
        std::thread::sleep(Duration::from_millis(20));
        let seen = said(&cluster, "node-1");
        let text = |key: &str| seen[key].as_str().unwrap_or_default().to_owned();
        let named =
            text("last_error").contains("litestream") && text("what_to_do").contains("stop Litestream");
        ensure(seen["state"] == "following" && named, || seen.to_string())
    });
    drop(theirs);
    eventually("the WAL begins anew", PATIENCE, || {
        for _ in 0..20 {
            app.execute_batch("INSERT INTO t VALUES (randomblob(3000))").expect("a row");
        }
        std::thread::sleep(Duration::from_millis(20));
        let seen = said(&cluster, "node-1");
        ensure(seen["last_error"].is_null(), || seen.to_string())
    });
    cluster.await_buffered("node-1", "app", &path);
}
