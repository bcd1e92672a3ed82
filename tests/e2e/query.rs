//! `hubctl query`: what it says of the past is what the live database said then, little moves for it, and nothing is written.

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_common::clock;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::{Output, Process, run};
use walhub_tests::report::report;
use walhub_tests::{Cluster, oracle};

const ROWS: u32 = 1000;
const ALL: &str = "SELECT id, n, body, note FROM t ORDER BY id";

fn database(path: &Path, seed: u32) -> Connection {
    let app = Connection::open(path).expect("open");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n, body BLOB, note TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO t SELECT i, i * {seed}, randomblob(3000), iif(i % 3, 'row ' || i, NULL) FROM n;"
    ))
    .expect("rows");
    app
}

/// What a query prints of a database, computed on the live one.
fn live(path: &Path, sql: &str) -> Value {
    let connection = oracle::observer(path);
    let mut select = connection.prepare(sql).expect("a query");
    let columns = select.column_count();
    let mut rows = select.query([]).expect("rows");
    let mut all = Vec::new();
    while let Some(row) = rows.next().expect("a row") {
        let cell = |at: usize| match row.get_ref(at).expect("a cell") {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => json!(number),
            ValueRef::Real(number) => json!(number),
            ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
            ValueRef::Blob(bytes) => {
                json!({ "hex": bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() })
            }
        };
        all.push((0..columns).map(cell).collect::<Value>());
    }
    Value::Array(all)
}

fn cache(cluster: &Cluster) -> PathBuf {
    cluster.path("cache")
}

fn command(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = cluster.hubctl_command(&["query"]);
    command.args(words).env("XDG_CACHE_HOME", cache(cluster));
    command
}

fn query(cluster: &Cluster, words: &[&str]) -> Output {
    run(command(cluster, words))
}

/// A time that lies behind everything the hub has and before everything that comes.
fn moment() -> String {
    let now = clock::now_ms();
    eventually("the clock to move on", PATIENCE, || {
        ensure(clock::now_ms() > now + 5, || "it stands still".to_owned())
    });
    clock::format_ms(now + 2)
}

struct Point {
    txid: String,
    time: String,
    rows: Value,
}

#[test]
fn the_past_is_what_it_was_and_little_moves_for_it() {
    let mut cluster = Cluster::new("query");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let app = database(&path, 1);
    cluster.agent("node", &[("app", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let mut points = Vec::new();
    for step in 0..5_u32 {
        app.execute_batch(&format!(
            "BEGIN; UPDATE t SET body = randomblob(3000), n = {step}.5 WHERE id % 200 = {step};
             DELETE FROM t WHERE id = {ROWS} - {step}; INSERT INTO t(note) VALUES ('new {step}'); COMMIT"
        ))
        .expect("a step");
        if step == 3 {
            app.execute_batch("CREATE TABLE later(x)").expect("a table");
        }
        let (_, txid) = cluster.await_buffered("node", "app", &path);
        points.push(Point { txid: txid.to_string(), time: moment(), rows: live(&path, ALL) });
    }
    let ask = |words: &[&str]| {
        let words = [&["node/app", ALL, "--json", "--max-rows", "5000"], words].concat();
        query(&cluster, &words).json()
    };

    let first = ask(&["--timestamp", &points[2].time]);
    assert_eq!(first["rows"], points[2].rows, "the first query");
    assert_eq!(
        (&first["columns"], &first["verdict"]),
        (&json!(["id", "n", "body", "note"]), &json!("verified"))
    );
    let received = |done: &Value| done["received_bytes"].as_u64().expect("bytes");
    let bytes = first["bytes"].as_u64().expect("bytes");
    assert!(
        received(&first) > bytes / 2,
        "the first one fetches the database: {} of {bytes}",
        received(&first)
    );
    let mut most = 0;
    for at in [0, 4, 1, 3, 2, 0] {
        let Point { txid, time, rows } = &points[at];
        let by_time = ask(&["--timestamp", time]);
        assert_eq!(&by_time["rows"], rows, "point {at} by time");
        assert!(received(&by_time) > 0, "the copy was elsewhere");
        let by_txid = ask(&["--txid", txid]);
        assert_eq!(&by_txid["rows"], rows, "point {at} by TXID");
        assert_eq!(received(&by_txid), 0, "the copy was there already");
        most = most.max(received(&by_time));
    }
    assert!(most < bytes / 10, "{most} bytes moved for the next point, of {bytes}");
    report(
        "query of a past state",
        &format!("{bytes} bytes: the first moved {}, the next at most {most}, the same 0", received(&first)),
    );
    assert_eq!(ask(&[])["rows"], points[4].rows, "the newest");

    // A copy that rotted is not believed.
    let copy = find(&cache(&cluster), "copy.db").expect("a copy");
    let mut rotten = std::fs::read(&copy).expect("the copy");
    let middle = rotten.len() / 2;
    rotten[middle] ^= 0xff;
    std::fs::write(&copy, rotten).expect("rot");
    assert_eq!(ask(&[])["rows"], points[4].rows, "after rot in the cache");

    // Several at once, each at another point: each gets its own.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for point in &points {
                let ask = &ask;
                scope.spawn(move || assert_eq!(ask(&["--txid", &point.txid])["rows"], point.rows));
            }
        }
    });
    let beside: Vec<_> = std::fs::read_dir(copy.parent().expect("a folder")).expect("it").flatten().collect();
    assert_eq!(beside.len(), 3, "copy, checksum and lock, nothing else: {beside:?}");
}

#[test]
fn it_only_reads_and_it_ends() {
    let mut cluster = Cluster::new("query-refused");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    let app = database(&path, 1);
    app.execute_batch("CREATE TABLE two(a, b); INSERT INTO two VALUES (1, NULL), ('x,y', x'00ff')")
        .expect("rows");
    cluster.agent("node", &[("app", &path)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (image, _) = cluster.await_buffered("node", "app", &path);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let elsewhere = cluster.path("elsewhere.db");
    let small = cluster.path("small-cache").display().to_string();
    let vacuum = format!("VACUUM INTO '{}'", elsewhere.display());
    for (words, code, part) in [
        (&["node/app", "DELETE FROM t"][..], 1, "only be read"),
        (&["node/app", "INSERT INTO two VALUES (1, 2) RETURNING a"], 1, "only be read"),
        (&["node/app", "DROP TABLE t"], 1, "only be read"),
        (&["node/app", &vacuum], 1, "only be read"),
        (&["node/app", "SELECT 1; DELETE FROM t"], 1, "one statement"),
        (&["node/app", "SELECT * FROM missing"], 1, "no such table: missing"),
        (&["node/app", endless, "--timeout", "300ms"], 1, "longer than"),
        (&["node/app", "SELECT 1", "--txid", "99999"], 1, "99999"),
        (&["node/nothing", "SELECT 1"], 1, "node/nothing"),
        (&["node/app", "SELECT 1", "--cache-max", "1MiB", "--cache", &small], 1, "--cache-max"),
        (&["SELECT 1"], 2, "--selector"),
        (&["--all", "node/app", "SELECT 1"], 2, "only the SQL"),
        (&["app", "SELECT 1"], 2, "AGENT/NAME"),
    ] {
        let refused = query(&cluster, words);
        assert!(refused.code == code && refused.stderr.contains(part), "{words:?}: {refused:?}");
        assert!(refused.stdout.is_empty(), "{words:?}: {}", refused.stdout);
    }
    assert!(!elsewhere.exists());
    oracle_same(&cluster, &path, &image);

    let table = query(&cluster, &["node/app", "SELECT a, b FROM two"]).success();
    assert_eq!(table, "a    b\n1    NULL\nx,y  x'00ff'\n");
    let csv = query(&cluster, &["node/app", "SELECT a, b FROM two", "--csv"]).success();
    assert_eq!(csv, "a,b\r\n1,\r\n\"x,y\",00ff\r\n");
    let cut = query(&cluster, &["node/app", "SELECT id FROM t", "--csv", "--max-rows", "7"]);
    assert!(cut.stderr.contains("only the first 7 rows"), "{}", cut.stderr);
    assert_eq!(cut.success().lines().count(), 8);

    // Ctrl-C ends a statement that would never end.
    let words = ["node/app", endless, "--timeout", "1h"];
    let mut running = Process::spawn("query", command(&cluster, &words), &cluster.path("logs/query.log"));
    let ended = eventually("it ends", PATIENCE, || {
        running.signal("INT");
        running.ended().ok_or_else(|| "it runs".to_owned())
    });
    assert!(!ended.success());
    oracle_same(&cluster, &path, &image);
}

#[track_caller]
fn oracle_same(cluster: &Cluster, path: &Path, image: &walhub_tests::Image) {
    let (now, _) = cluster.await_buffered("node", "app", path);
    image.assert_same(&now, "the live database");
}

#[test]
fn many_are_asked_and_who_cannot_answer_is_named() {
    let mut cluster = Cluster::new("query-fleet");
    cluster.add_folder("near");
    cluster.start_hub();
    let start = |cluster: &mut Cluster, node: &str, seed: u32| {
        let path = cluster.path(format!("data/{node}.db"));
        let app = database(&path, seed);
        cluster.agent(node, &[("app", &path)]);
        cluster.start_agent(node);
        cluster.await_buffered(node, "app", &path);
        app
    };
    let first = start(&mut cluster, "n1", 1);
    start(&mut cluster, "n2", 2);
    let then = moment();
    // Too late for that time.
    start(&mut cluster, "n3", 3);
    first.execute_batch("DELETE FROM t WHERE id > 10").expect("a change");
    cluster.await_buffered("n1", "app", &cluster.path("data/n1.db"));
    cluster.hubctl(&["agents", "label", "n1", "site=here"]).success();
    cluster.hubctl(&["agents", "label", "n2", "site=here"]).success();

    let sql = "SELECT count(*) AS rows, sum(n) AS total FROM t";
    let total = |rows: u64, seed: u64| rows * (rows + 1) / 2 * seed;
    let asked = query(&cluster, &["--all", "--timestamp", &then, sql, "--csv"]);
    assert_eq!(asked.code, 1, "{asked:?}");
    assert!(
        asked.stderr.contains("n3/app: ") && asked.stderr.contains("2 answered, 1 failed"),
        "{}",
        asked.stderr
    );
    let expected = format!(
        "database,rows,total\r\nn1/app,1000,{}\r\nn2/app,1000,{}\r\n",
        total(1000, 1),
        total(1000, 2)
    );
    assert_eq!(asked.stdout, expected);

    let now = query(&cluster, &["--all", sql, "--json", "--parallelism", "2"]).json();
    let answers: Vec<(&Value, &Value)> = now["databases"]
        .as_array()
        .expect("databases")
        .iter()
        .map(|done| (&done["database"], &done["rows"][0]))
        .collect();
    assert_eq!(
        answers,
        [
            (&json!("n1/app"), &json!([10, total(10, 1)])),
            (&json!("n2/app"), &json!([1000, total(1000, 2)])),
            (&json!("n3/app"), &json!([1000, total(1000, 3)])),
        ]
    );
    let here = query(&cluster, &["--selector", "site=here", "--timestamp", &then, sql]);
    assert_eq!(here.code, 0, "{here:?}");
    assert!(here.stdout.contains("DATABASE") && !here.stdout.contains("n3"), "{}", here.stdout);
    let none = query(&cluster, &["--selector", "x*/*", sql]);
    assert!(none.code == 1 && none.stderr.contains("no database of this hub matches"), "{none:?}");

    // The cache holds as much as it may: three copies of 4 MB do not fit into 9 MiB.
    let small = query(&cluster, &["--all", sql, "--csv", "--cache-max", "9MiB", "--parallelism", "1"]);
    assert_eq!(small.code, 0, "{small:?}");
    let agents = cluster.path("cache/walhub/query");
    let copies = std::fs::read_dir(find(&agents, "n1").expect("n1").parent().expect("hub")).expect("it");
    let kept = copies.flatten().filter(|agent| agent.path().join("app/copy.db").exists()).count();
    assert!(kept < 3, "{kept} copies of {}", cluster.path("data/n2.db").metadata().expect("it").len());
}

/// The first entry of that name below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|found| found == name));
    here.cloned().or_else(|| entries.iter().find_map(|path| find(path, name)))
}
