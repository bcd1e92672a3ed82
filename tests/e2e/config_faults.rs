//! What people get wrong: every fault of a configuration at once, with its line and a suggestion; and databases that are
//! not what the configuration says, one clear line each, while the others go on.

use rusqlite::Connection;
use std::path::Path;
use std::process::Command;
use walhub_tests::binaries::program;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::{Output, run};
use walhub_tests::scratch::Scratch;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

const BAD_CONFIG: i32 = 64;

const BAD_HUB: &str = "\
listen: 127.0.0.1:0
data-dir: /tmp/walhub-never-made
tls:
  ca: /does/not/exist/ca.crt
  cert: /does/not/exist/hub.crt
  key: /does/not/exist/hub.key
bufer:
  max-bytes: 1GiB
destinations:
  - name: near
    type: file
    path: /tmp/walhub-never-made/near
    sync-interval: 5 parsecs
  - name: cloud
    type: s3
    region: eu-west-1
  - name: near
    type: file
    path: /tmp/walhub-never-made/twice
  - name: tape
    type: tape
    path: /dev/st0
";

fn check(binary: &str, arguments: &[&str], config: &Path) -> Output {
    let mut command = Command::new(program(binary));
    command.args(arguments).arg("--config").arg(config);
    run(command)
}

/// One line of `output` names the line of the file and says all of `words`.
#[track_caller]
fn says(output: &Output, config: &Path, line: usize, words: &[&str]) {
    let place = format!("{}:{line}:", config.display());
    let found = output.stderr.lines().any(|said| {
        said.contains(&place) && words.iter().all(|word| said.to_lowercase().contains(&word.to_lowercase()))
    });
    assert!(found, "nothing says {words:?} at line {line}:\n{}", output.stderr);
}

#[test]
fn a_hub_configuration_shows_all_its_faults_at_once() {
    let scratch = Scratch::new("bad-hub");
    let config = scratch.join("hub.yml");
    std::fs::write(&config, BAD_HUB).expect("config");
    for arguments in [&["check-config"][..], &["run"][..]] {
        let output = check("walhub-hub", arguments, &config);
        assert_eq!(output.code, BAD_CONFIG, "{output:?}");
        says(&output, &config, 4, &["/does/not/exist/ca.crt"]);
        says(&output, &config, 7, &["bufer", "did you mean", "buffer"]);
        says(&output, &config, 13, &["5 parsecs"]);
        says(&output, &config, 14, &["bucket"]);
        says(&output, &config, 17, &["near"]);
        says(&output, &config, 21, &["tape"]);
        assert_eq!(output.stdout, "");
    }
    assert!(!Path::new("/tmp/walhub-never-made").exists(), "a refused configuration had an effect");
}

#[test]
fn an_agent_configuration_shows_all_its_faults_at_once() {
    let scratch = Scratch::new("bad-agent");
    let config = scratch.join("agent.yml");
    let text = "\
hub: no-port-here
state-dir: /tmp/walhub-never-made
tls: {ca: /does/not/exist/ca.crt, cert: /does/not/exist/a.crt, key: /does/not/exist/a.key}
poll-intervall: 5s
wal-limit: plenty
databases:
  - path: /srv/one.db
    name: app.db
  - path: /srv/two.db
    name: app.db
  - name: nowhere
";
    std::fs::write(&config, text).expect("config");
    for arguments in [&["check-config"][..], &["run"][..]] {
        let output = check("walhub-agent", arguments, &config);
        assert_eq!(output.code, BAD_CONFIG, "{output:?}");
        says(&output, &config, 1, &["no-port-here"]);
        says(&output, &config, 3, &["/does/not/exist/ca.crt"]);
        says(&output, &config, 4, &["poll-intervall", "did you mean", "poll-interval"]);
        says(&output, &config, 5, &["plenty"]);
        says(&output, &config, 10, &["app.db"]);
        says(&output, &config, 11, &["path"]);
    }
}

#[test]
fn a_file_that_is_not_yaml_or_not_there_is_a_clear_line() {
    let scratch = Scratch::new("no-yaml");
    let config = scratch.join("hub.yml");
    let missing = check("walhub-hub", &["check-config"], &config);
    assert_eq!(missing.code, BAD_CONFIG, "{missing:?}");
    assert!(missing.stderr.contains("hub.yml"), "{}", missing.stderr);
    std::fs::write(&config, "listen: [1, 2\nfoo").expect("config");
    let broken = check("walhub-hub", &["check-config"], &config);
    assert_eq!(broken.code, BAD_CONFIG, "{broken:?}");
    assert!(broken.stderr.contains("hub.yml:"), "{}", broken.stderr);
    for binary in ["walhub-hub", "walhub-agent", "hubctl"] {
        let usage = run({
            let mut command = Command::new(program(binary));
            command.arg("no-such-command");
            command
        });
        assert_eq!(usage.code, 2, "{usage:?}");
    }
}

#[test]
fn a_database_that_is_not_right_is_a_clear_line_and_is_picked_up_when_it_becomes_right() {
    let mut cluster = Cluster::new("absent");
    cluster.add_folder("near");
    let data = cluster.path("data");
    let good = data.join("good.db");
    let (missing, text, rollback) = (data.join("missing.db"), data.join("text.db"), data.join("rollback.db"));
    Writer::spawn(&good, &["--commits", "3"]).wait();
    std::fs::write(
        &text,
        "this is a letter, not a database, and it is long enough to be read as a header".repeat(9),
    )
    .expect("text");
    let app = Connection::open(&rollback).expect("database");
    app.execute_batch("PRAGMA journal_mode = delete; CREATE TABLE t(x); INSERT INTO t VALUES (1);")
        .expect("table");
    let named: [(&str, &Path); 4] =
        [("good.db", &good), ("missing.db", &missing), ("text.db", &text), ("rollback.db", &rollback)];
    cluster.agent("node", &named).agent_lines("node", "poll-interval: 200ms\n");
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "good.db", &good);

    eventually("status says what is wrong with each", PATIENCE, || {
        let output = cluster.agent_command("node", &["status"]);
        let said = output.stdout;
        for (name, word) in
            [("missing.db", "not exist"), ("text.db", "not a SQLite database"), ("rollback.db", "not WAL")]
        {
            let line = said.lines().find(|line| line.contains(name)).unwrap_or_default();
            ensure(said.contains(word) && !line.is_empty(), || format!("{name}: no {word:?} in:\n{said}"))?;
        }
        Ok(())
    });
    // The good one goes on meanwhile.
    Writer::spawn(&good, &["--commits", "5"]).wait();
    cluster.await_buffered("node", "good.db", &good);

    // Each becomes right, in its own way.
    Writer::spawn(&missing, &["--commits", "3"]).wait();
    std::fs::remove_file(&text).expect("remove");
    Writer::spawn(&text, &["--commits", "3"]).wait();
    app.pragma_update(None, "journal_mode", "wal").expect("wal");
    app.execute_batch("INSERT INTO t VALUES (2)").expect("row");
    for (name, path) in named {
        let (live, _) = cluster.await_buffered("node", name, path);
        let out = cluster.restore(&format!("node/{name}"), &format!("out-{name}"), &[]);
        live.assert_same(&Image::restored(&out), name);
    }
    // And wrong again: WAL mode is left while the agent watches, then entered again.
    drop(app);
}

#[test]
fn a_database_without_permission_is_a_clear_line_and_is_picked_up_afterwards() {
    use std::os::unix::fs::PermissionsExt;
    let mut cluster = Cluster::new("permission");
    cluster.add_folder("near");
    let (good, closed) = (cluster.path("data/good.db"), cluster.path("data/closed.db"));
    for path in [&good, &closed] {
        Writer::spawn(path, &["--commits", "3"]).wait();
    }
    let mode = |bits| std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(bits)).expect("mode");
    mode(0o000);
    if std::fs::File::open(&closed).is_ok() {
        // Root reads everything: a folder in the file's place cannot be opened by anybody.
        std::fs::remove_file(&closed).expect("remove");
        std::fs::create_dir(&closed).expect("folder");
    }
    cluster.agent("node", &[("good.db", &good), ("closed.db", &closed)]);
    cluster.agent_lines("node", "poll-interval: 200ms\n");
    cluster.start_hub();
    cluster.start_agent("node");
    cluster.await_buffered("node", "good.db", &good);
    eventually("status says it", PATIENCE, || {
        let said = cluster.agent_command("node", &["status"]).stdout.to_lowercase();
        let clear = ["permission", "cannot be opened", "not a database", "is a directory", "not a file"];
        ensure(said.contains("closed.db") && clear.iter().any(|word| said.contains(word)), || said.clone())
    });
    if closed.is_dir() {
        std::fs::remove_dir(&closed).expect("remove");
        Writer::spawn(&closed, &["--commits", "3"]).wait();
    } else {
        mode(0o644);
    }
    cluster.await_buffered("node", "closed.db", &closed);
}
