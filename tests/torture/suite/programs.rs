//! SQLite's own test programs give the same results with the agent on their database as without.
//!
//! They are built from the source package of the machine's SQLite by `tests/torture/programs`. Where that was not run the
//! tests say so and pass, unless `WALHUB_TEST_REQUIRE_SERVICES` is set, as `tests/run` does.

use crate::shell::cache;
use rusqlite::Connection;
use rusqlite::types::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_tests::oracle::observer;
use walhub_tests::process::{Output, run};
use walhub_tests::report::report;
use walhub_tests::scratch::Scratch;
use walhub_tests::{Cluster, Image};

/// How much of the content two runs must have in common.
#[derive(Clone, Copy)]
enum Rows {
    /// All of it.
    Equal,
    /// Tables, columns and sizes: the program writes random bytes.
    Alike,
}

fn programs() -> Option<PathBuf> {
    let folder = cache().join("programs");
    if folder.join("mptest").is_file() {
        return Some(folder);
    }
    let required = std::env::var_os("WALHUB_TEST_REQUIRE_SERVICES").is_some();
    assert!(!required, "SQLite's programs are not built: tests/torture/programs");
    eprintln!("skipped: SQLite's programs are not built (tests/torture/programs)");
    None
}

/// Every row of every table, or its shape; without mptest's `task`, which holds times of day.
fn rows(database: &Path, rows: Rows) -> Vec<String> {
    let db = observer(database);
    let names = |sql: &str| -> Vec<String> {
        let mut statement = db.prepare(sql).expect("schema");
        let found = statement.query_map([], |row| row.get(0)).expect("schema");
        found.collect::<Result<_, _>>().expect("schema")
    };
    let mut found =
        names("SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1");
    for table in names("SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'task' ORDER BY 1") {
        let mut statement = db.prepare(&format!("SELECT * FROM \"{table}\"")).expect("table");
        let columns = statement.column_count();
        let mut cursor = statement.query([]).expect("rows");
        while let Some(row) = cursor.next().expect("row") {
            let values = (0..columns).map(|column| row.get::<_, Value>(column).expect("value"));
            let line: Vec<String> = match rows {
                Rows::Equal => values.map(|value| format!("{value:?}")).collect(),
                Rows::Alike => values.map(shape).collect(),
            };
            found.push(format!("{table}: {}", line.join(" | ")));
        }
    }
    found
}

fn shape(value: Value) -> String {
    match value {
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

/// Runs the same commands without and with the agent, on a copy of `seed` if there is one, which the agent follows by then: whoever
/// opens a database first has it for himself for a moment, and these programs wait for nobody; `commands` gets the database. Exit codes, what `results` keeps of the
/// output, and the rows must be the same; and what comes back from the hub is the live file.
fn same_with_and_without(
    name: &str,
    seed: Option<&Path>,
    least_transactions: u64,
    agent_lines: &str,
    kept: Rows,
    results: fn(&str) -> String,
    commands: impl Fn(&Path) -> Vec<Command>,
) {
    let play = |database: &Path| -> Vec<(i32, String)> {
        let outputs = commands(database).into_iter().map(run);
        outputs.map(|Output { code, stdout, stderr }| (code, results(&(stdout + &stderr)))).collect()
    };
    let scratch = Scratch::new(name);
    let alone = scratch.join("app.db");
    let copy_seed = |to: &Path| seed.map(|seed| std::fs::copy(seed, to).expect("the same start"));
    copy_seed(&alone);
    let expected = play(&alone);
    assert!(expected.iter().all(|(code, _)| *code == 0), "{expected:#?}");

    let mut cluster = Cluster::new(name);
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]).agent_lines("node", agent_lines);
    cluster.start_hub();
    let seeded = copy_seed(&database).is_some();
    cluster.start_agent("node");
    if seeded {
        cluster.await_buffered("node", "app.db", &database);
    }
    let began = std::time::Instant::now();
    let found = play(&database);
    let lasted = began.elapsed();
    assert_eq!(found, expected, "results with the agent, and without");
    let (with, without) = (rows(&database, kept), rows(&alone, kept));
    assert!(!without.is_empty());
    let differ = with.iter().zip(&without).find(|(a, b)| a != b);
    assert!(
        with == without,
        "the rows differ: {} with, {} without, first {differ:?}",
        with.len(),
        without.len()
    );

    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    assert!(txid >= least_transactions, "the agent saw {txid} transactions only: it was not there");
    let copy = cluster.restore("node/app.db", "out.db", &[]);
    live.assert_same(&Image::restored(&copy), name);
    report(
        &format!("SQLite's {name} beside the agent"),
        &format!("same results, same rows; {txid} transactions captured in {:.1} s", lasted.as_secs_f32()),
    );
}

/// Everything but times.
fn without_times(text: &str) -> String {
    let lines = text.lines().filter(|line| {
        !["TOTAL", "Total elapsed", "Microseconds", "Content"]
            .iter()
            .any(|word| line.trim().starts_with(word))
    });
    let untimed = lines.map(|line| line.trim_end_matches(|c: char| c.is_ascii_digit() || ". s".contains(c)));
    untimed.collect::<Vec<_>>().join("\n")
}

/// It has no busy timeout and never pauses: a checkpoint under the writer lock would fail it.
#[test]
fn speedtest1() {
    let Some(programs) = programs() else { return };
    same_with_and_without("speedtest1", None, 10, "", Rows::Equal, without_times, |database| {
        let mut command = Command::new(programs.join("speedtest1"));
        command.args(["--journal", "wal", "--size", "15", "--verify", "--checkpoint", "--testset", "main"]);
        command.arg(database);
        vec![command]
    });
}

/// As [`speedtest1`].
#[test]
fn kvtest() {
    let Some(programs) = programs() else { return };
    let seed = Scratch::new("kvtest-seed");
    let made = seed.join("kv.db");
    let mut init = Command::new(programs.join("kvtest"));
    run({
        init.arg("init").arg(&made).args(["--count", "1500", "--size", "4000", "--variance", "3000"]);
        init
    })
    .success();
    let made_wal = Connection::open(&made).and_then(|db| db.pragma_update(None, "journal_mode", "wal"));
    made_wal.expect("a database in WAL mode");
    same_with_and_without("kvtest", Some(&made), 500, "", Rows::Alike, without_times, |database| {
        let options: [&[&str]; 4] = [
            &["--count", "3000", "--random", "--update", "--multitrans"],
            &["--count", "3000", "--random", "--update", "--blob-api", "--multitrans"],
            &["--count", "3000", "--random", "--multitrans"],
            &["--count", "3000", "--desc", "--blob-api", "--integrity-check"],
        ];
        let command = |options: &&[&str]| {
            let mut command = Command::new(programs.join("kvtest"));
            // Names are shown; both runs get the same.
            command
                .current_dir(database.parent().expect("a folder"))
                .args(["run", "app.db", "--jmode", "wal"]);
            command.args(*options);
            command
        };
        options.iter().map(command).collect()
    });
}

/// The verdict, without process ids and the order in which processes ran.
fn summary(text: &str) -> String {
    text.lines().filter(|line| line.starts_with("Summary:")).collect::<Vec<_>>().join("\n")
}

/// One script: it deletes the database of the one before, but not a log that still lies beside it.
fn mptest(script: &str, least_transactions: u64) {
    let Some(programs) = programs() else { return };
    let lines = "checkpoint-frames: 100\n";
    same_with_and_without(script, None, least_transactions, lines, Rows::Alike, summary, |database| {
        let mut command = Command::new(programs.join("mptest"));
        command.current_dir(&programs).arg(database).arg(script).args(["--journalmode", "WAL"]);
        vec![command]
    });
}

#[test]
fn mptest_with_many_writers() {
    mptest("multiwrite01.test", 40);
}

#[test]
fn mptest_with_crashes() {
    mptest("crash01.test", 40);
}
