//! What programs and people on the node can ask of the agent: the README's example as written, and the commands.

use rusqlite::Connection;
use std::process::Command;
use std::time::Instant;
use walhub_tests::binaries::source_root;
use walhub_tests::cluster::Cluster;
use walhub_tests::process::run;

fn database(cluster: &Cluster) -> Connection {
    let app = Connection::open(cluster.path("app.db")).expect("app.db");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").expect("rows");
    app
}

/// A hub, and an agent that follows `app.db` as `app`.
fn cluster(name: &str) -> (Cluster, Connection) {
    let mut cluster = Cluster::new(name);
    cluster.add_folder("copies");
    let app = database(&cluster);
    let path = cluster.path("app.db");
    cluster.agent("node-1", &[("app", &path)]);
    cluster.start_hub();
    cluster.start_agent("node-1");
    cluster.await_buffered("node-1", "app", &path);
    (cluster, app)
}

#[test]
fn the_example_for_applications_works_as_written() {
    let (cluster, app) = cluster("local-readme");
    let readme = std::fs::read_to_string(source_root().join("README.md")).expect("README.md");
    let example = readme.split("```python\n").nth(1).and_then(|rest| rest.split("\n```").next());
    let example = example.expect("an example in Python").replace("agent-state", "node-1-state");
    std::fs::write(cluster.path("example.py"), example).expect("example.py");
    let mut python = Command::new("python3");
    python.arg("example.py").current_dir(cluster.path(""));
    let said = run(python).success();
    assert!(said.contains("'ok': True") && said.contains("'level': 'buffered'"), "{said}");
    let precious: i64 =
        app.query_row("SELECT count(*) FROM t WHERE a = 'precious'", [], |row| row.get(0)).expect("a count");
    assert_eq!(precious, 1);
    let out = cluster.path("restored.db");
    cluster.hubctl(&["restore", "node-1/app", "-o", out.to_str().expect("UTF-8")]).success();
    let restored = Connection::open(out).expect("restored.db");
    let there: i64 = restored
        .query_row("SELECT count(*) FROM t WHERE a = 'precious'", [], |row| row.get(0))
        .expect("a count");
    assert_eq!(there, 1, "what was synced can be restored");
}

#[test]
fn the_commands_of_the_node_have_exit_codes_that_mean_something() {
    let (mut cluster, app) = cluster("local-commands");
    let agent = |cluster: &Cluster, arguments: &[&str]| cluster.agent_command("node-1", arguments);
    app.execute_batch("INSERT INTO t VALUES (2)").expect("a row");
    let synced = agent(&cluster, &["sync", "app", "--wait", "durable", "--json"]).json();
    assert_eq!(synced["level"], "durable");
    let path = cluster.path("app.db");
    let done = agent(&cluster, &["checkpoint", path.to_str().expect("UTF-8"), "--shrink"]).success();
    assert!(done.contains("the -wal is empty"), "{done}");
    assert_eq!(std::fs::metadata(cluster.path("app.db-wal")).expect("the -wal").len(), 0);
    // The database file alone is the database now.
    std::fs::copy(&path, cluster.path("copy.db")).expect("a copy");
    let copy = Connection::open(cluster.path("copy.db")).expect("the copy");
    let rows: i64 = copy.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count");
    assert_eq!(rows, 2);

    agent(&cluster, &["pause", "--all", "--for", "1m"]).success();
    let busy: i64 = app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).expect("a row");
    assert_eq!(busy, 0, "the application checkpoints by itself");
    let paused = agent(&cluster, &["status"]).success();
    assert!(paused.contains("paused"), "{paused}");
    let resumed = agent(&cluster, &["resume", "--all", "--json"]).json();
    assert_eq!(
        (&resumed[0]["ok"], &resumed[0]["result"]["was_paused"]),
        (&serde_json::json!(true), &serde_json::json!(true))
    );
    agent(&cluster, &["sync", "--all"]).success();

    let unknown = agent(&cluster, &["sync", "ap"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("did you mean \"app\""), "{}", unknown.stderr);
    cluster.stop_hub();
    app.execute_batch("INSERT INTO t VALUES (3)").expect("a row");
    let begun = Instant::now();
    let late = agent(&cluster, &["sync", "app", "--timeout", "300ms"]);
    assert_eq!(late.code, 75, "{}", late.stderr);
    assert!(late.stderr.contains("not safe in time") && begun.elapsed().as_secs() < 10, "{}", late.stderr);
    let late = agent(&cluster, &["sync", "--all", "--timeout", "300ms", "--json"]);
    assert_eq!(late.code, 75, "{}", late.stderr);
    assert!(late.stdout.contains("\"timeout\""), "{}", late.stdout);
    cluster.stop_agent("node-1");
    let nobody = agent(&cluster, &["sync", "app"]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("no agent runs"), "{}", nobody.stderr);
}
