//! What a destination no longer keeps goes, by itself and when asked for; holds keep it.

use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

fn level(folder: &Path, level: u8) -> usize {
    std::fs::read_dir(folder.join(format!("ltx/{level}"))).map_or(0, Iterator::count)
}

fn going(said: &Value) -> usize {
    let files = said["files"].as_array().expect("files");
    files.iter().filter(|file| file["delete"] == true).count()
}

#[test]
fn an_operator_sees_what_would_go_holds_it_and_lets_it_go() {
    let mut cluster = Cluster::new("retention");
    let near = cluster.path("near");
    let lines = "retention: 1s\n    l0-retention: 0s\n    retention-check-interval: 1h";
    cluster.add(Destination::file("near", &near).with(lines));
    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "20"]).wait();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    Writer::spawn(&database, &["--commits", "50"]).wait();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);

    // A snapshot of the first transaction: what a file of level 0 holds, and it is of age soon.
    let folder = near.join("node/app.db");
    let name = format!("{:016x}-{:016x}.ltx", 1, 1);
    std::fs::create_dir_all(folder.join("ltx/9")).expect("folder");
    std::fs::copy(folder.join("ltx/0").join(&name), folder.join("ltx/9").join(&name)).expect("snapshot");
    let before = level(&folder, 0);
    eventually("the first file is too old", Duration::from_secs(20), || {
        let said = cluster.hubctl(&["retention", "node/app.db", "--dry-run", "--json"]).json();
        ensure(going(&said) == 1 && said["deleted"] == 0, || said.to_string())
    });
    assert_eq!(level(&folder, 0), before, "a dry run deletes nothing");

    cluster.hubctl(&["hold", "add", "node/app.db", "--reason", "case 7"]).success();
    cluster.stop_hub();
    cluster.start_hub();
    let holds = cluster.hubctl(&["hold", "list", "--json"]).json();
    assert_eq!((&holds[0]["database"], &holds[0]["reason"]), (&"node/app.db".into(), &"case 7".into()));
    let held = cluster.hubctl(&["retention", "--run", "--all", "--json"]).json();
    assert_eq!((going(&held), level(&folder, 0)), (0, before), "{held}");
    assert_eq!(held["files"][0]["reason"], "on hold");
    let unknown = cluster.hubctl(&["hold", "add", "node/other.db"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("knows no database"), "{unknown:?}");
    cluster.hubctl(&["hold", "release", "node/app.db"]).success();
    assert_eq!(cluster.hubctl(&["hold", "release", "node/app.db"]).code, 1);

    let node = cluster.authority().issue(walhub_tests::certs::Who::Agent("other"));
    let refused = cluster.hubctl_as(&node, &["retention", "--run"]);
    assert!(refused.code == 1 && refused.stderr.contains("operator"), "{refused:?}");
    assert_eq!(level(&folder, 0), before);
    let run = cluster.hubctl(&["retention", "--run", "--destination", "near", "--json"]).json();
    assert_eq!((going(&run), &run["deleted"]), (1, &1.into()), "{run}");
    assert_eq!((level(&folder, 0), level(&folder, 9)), (before - 1, 1));
    let out = cluster.restore("node/app.db", "out.db", &["--source", "near"]);
    live.assert_same(&Image::restored(&out), "after retention");
    assert_eq!(cluster.hubctl(&["retention", "--run", "--destination", "nowhere"]).code, 1);
    assert_eq!(cluster.hubctl(&["retention"]).code, 2, "one of --dry-run and --run");
}

#[test]
fn the_hub_looks_by_itself() {
    let mut cluster = Cluster::new("retention-itself");
    let near = cluster.path("near");
    let lines = "retention: 1s\n    l0-retention: 0s\n    retention-check-interval: 1s";
    cluster.add(Destination::file("near", &near).with(lines));
    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "20"]).wait();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let (_, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let folder = near.join("node/app.db");
    let name = format!("{:016x}-{:016x}.ltx", 1, 1);
    std::fs::create_dir_all(folder.join("ltx/9")).expect("folder");
    std::fs::copy(folder.join("ltx/0").join(&name), folder.join("ltx/9").join(&name)).expect("snapshot");
    Writer::spawn(&database, &["--commits", "5"]).wait();
    eventually("the first file went", Duration::from_secs(30), || {
        ensure(!folder.join("ltx/0").join(&name).exists(), || "it is there".to_owned())
    });
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "out.db", &["--source", "near"]);
    live.assert_same(&Image::restored(&out), "after retention");
}
