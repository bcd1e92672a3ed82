//! An operator's day with hubctl: an authority and certificates from nothing, what `--json` says, and a whole node
//! brought back.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use walhub_tests::binaries::program;
use walhub_tests::certs::Files;
use walhub_tests::process::{Output, run};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

fn hubctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(program("hubctl"));
    command.args(arguments);
    run(command)
}

fn issued(dir: &Path, who: &[&str]) -> Files {
    let text = dir.display().to_string();
    let mut arguments = vec!["cert", "issue", "--dir", &text, "--json"];
    arguments.extend(who);
    let said = hubctl(&arguments).json();
    let path = |name: &str| said[name].as_str().unwrap_or_else(|| panic!("no {name} in {said}")).into();
    Files { ca: path("ca"), cert: path("certificate"), key: path("key") }
}

#[test]
fn certificates_made_by_hubctl_carry_a_whole_cluster() {
    let mut cluster = Cluster::new("hubctl-ca");
    let pki = cluster.path("pki");
    hubctl(&["ca", "init", "--dir", &pki.display().to_string()]).success();
    let again = hubctl(&["ca", "init", "--dir", &pki.display().to_string()]);
    assert_eq!(again.code, 1, "an authority must never be overwritten: {again:?}");

    let hub = issued(&pki, &["--hub", "hub", "--host", "127.0.0.1", "--host", "localhost"]);
    let (node, operator) = (issued(&pki, &["--agent", "node"]), issued(&pki, &["--operator", "ann"]));
    for key in [&hub.key, &node.key, &operator.key, &pki.join("ca.key")] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(key).expect("key file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is readable by others", key.display());
    }

    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "20"]).wait();
    cluster.add_folder("near");
    cluster.operator_certificate(operator).hub_certificate(hub);
    cluster.agent("node", &[("app.db", &database)]).agent_certificate("node", node);
    cluster.start_hub();
    cluster.start_agent("node");
    let (live, _) = cluster.await_buffered("node", "app.db", &database);
    let out = cluster.restore("node/app.db", "out.db", &[]);
    live.assert_same(&Image::restored(&out), "with certificates of hubctl");
}

#[test]
fn json_tells_programs_what_the_tables_tell_people() {
    let mut cluster = Cluster::new("hubctl-json");
    cluster.add_folder("near");
    cluster.add_folder("far");
    let (one, two) = (cluster.path("data/one.db"), cluster.path("data/two.db"));
    for path in [&one, &two] {
        Writer::spawn(path, &["--commits", "10"]).wait();
    }
    cluster.agent("node", &[("one.db", &one), ("two.db", &two)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (image_one, txid) = cluster.await_buffered("node", "one.db", &one);
    let (image_two, _) = cluster.await_buffered("node", "two.db", &two);
    cluster.await_everywhere("node", "one.db", txid);

    let status = cluster.hubctl(&["status", "--json"]).json();
    let database = find(&status["databases"], "database", "node/one.db");
    assert_eq!(database["buffered_txid"], txid);
    assert_eq!(database["buffered_checksum"], image_one.checksum().to_string());
    assert_eq!(database["copies"].as_array().map(Vec::len), Some(2));
    assert_eq!(find(&status["destinations"], "name", "near")["healthy"], true);
    assert_eq!(find(&status["agents"], "name", "node")["connected"], true);

    let agents = cluster.hubctl(&["agents", "list", "--json"]).json();
    assert_eq!(find(&agents, "name", "node")["databases"], 2);
    let databases = cluster.hubctl(&["databases", "list", "--json"]).json();
    assert_eq!(find(&databases, "database", "node/two.db")["open"], true);
    let snapshots = cluster.hubctl(&["snapshots", "node/one.db", "--json"]).json();
    assert_eq!(find(&snapshots["files"], "source", "near")["min_txid"], 1);
    let wal = cluster.hubctl(&["wal", "node/one.db", "--json"]).json();
    assert!(wal["files"].as_array().is_some_and(|files| !files.is_empty()), "{wal}");

    // The same for people, on stdout and nothing else there.
    for arguments in [
        &["status"][..],
        &["agents", "list"],
        &["databases", "list"],
        &["snapshots", "node/one.db"],
        &["wal", "node/one.db"],
    ] {
        let said = cluster.hubctl(arguments).success();
        assert!(said.contains("node") || said.contains("near"), "{arguments:?}: {said}");
    }

    for (flag, folder) in [(&["--all"][..], "fleet"), (&["--agent", "node"], "one-node")] {
        let to = cluster.path(folder);
        let target = to.display().to_string();
        let mut arguments = vec!["restore"];
        arguments.extend(flag);
        arguments.extend(["--to", &target]);
        cluster.hubctl(&arguments).success();
        image_one.assert_same(&Image::restored(&to.join("node/one.db")), "one.db of the node");
        image_two.assert_same(&Image::restored(&to.join("node/two.db")), "two.db of the node");
    }
}

#[test]
fn an_unreachable_hub_is_one_clear_line() {
    let cluster = Cluster::new("hubctl-no-hub");
    let output = cluster.hubctl(&["status"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains(&cluster.address()), "{}", output.stderr);
    assert_eq!(output.stdout, "");
}

#[track_caller]
fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let rows = list.as_array().unwrap_or_else(|| panic!("not a list: {list}"));
    rows.iter().find(|row| row[key] == value).unwrap_or_else(|| panic!("no {key} {value:?} in {list}"))
}
