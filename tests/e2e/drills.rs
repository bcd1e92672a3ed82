//! Restores that are tried before they are needed: what is damaged at a destination is found, named, and made good from
//! another copy.

use serde_json::Value;
use std::path::{Path, PathBuf};
use walhub_common::{Txid, TxidRange};
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, replica, services};

const DATABASE: &str = "node/app.db";
/// Nothing is compacted before the day is over: one file for each flush, and each of them is needed.
const LEVELS: &str = "levels: [24h]\n";

/// A node whose history lies in several files at each destination.
fn history(cluster: &mut Cluster) -> (Image, u64) {
    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "20"]).wait();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    let mut state = settled(cluster, &database);
    for commits in ["30", "1", "1", "30", "1", "1"] {
        Writer::spawn(&database, &["--commits", commits]).wait();
        state = settled(cluster, &database);
    }
    state
}

fn settled(cluster: &Cluster, database: &Path) -> (Image, u64) {
    let (live, txid) = cluster.await_buffered("node", "app.db", database);
    cluster.await_everywhere("node", "app.db", txid);
    (live, txid)
}

/// A file of level 0 in the middle of what lies in a folder, of transactions that the sibling has alone as well: where a flush
/// ends is each destination's own affair.
fn victim(folder: &Path, sibling: &Path) -> PathBuf {
    let files = |folder: &Path| replica::files(&folder.join(DATABASE)).expect("whole files");
    let others = files(sibling);
    let alone = |range: TxidRange| {
        others.iter().any(|other| other.range.min() == range.min())
            && others.iter().any(|other| other.range.max() == range.max())
    };
    let mut files = files(folder);
    files.pop();
    files.retain(|file| file.range.min() > Txid::FIRST && alone(file.range));
    files.pop().expect("a common file").path
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).expect("an object");
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

fn shown(cluster: &Cluster, destination: &str) -> Value {
    cluster.hubctl(&["drills", "show", DATABASE, "--destination", destination, "--json"]).json()
}

/// What `hubctl` gives and says with `--json`, whether the drill passed or not.
fn drilled(cluster: &Cluster, arguments: &[&str]) -> (i32, Value) {
    let output = cluster.hubctl(&[arguments, &["--json"]].concat());
    let said = serde_json::from_str(&output.stdout);
    (output.code, said.unwrap_or_else(|error| panic!("not JSON ({error}): {output:?}")))
}

fn says(value: &Value, words: &str) -> bool {
    value.as_str().is_some_and(|text| text.contains(words))
}

#[test]
fn the_schedule_finds_a_flipped_byte_and_the_hub_repairs_it_from_the_sibling() {
    let mut cluster = Cluster::new("drills");
    let (near, far) = (cluster.add_folder("near"), cluster.add_folder("far"));
    cluster.hub_lines(LEVELS);
    history(&mut cluster);
    // A hub that lost its disk has nothing of it in its buffer, and drills from the start.
    cluster.stop_agent("node");
    cluster.stop_hub();
    std::fs::remove_dir_all(cluster.path("hub-data")).expect("the hub's disk");
    let bad = victim(&far, &near);
    flip(&bad);
    cluster.hub_lines(&format!("{LEVELS}drills: {{every: 2s, sample: 100%, scratch-max: 1GiB}}\n"));
    cluster.start_hub();
    cluster.start_agent("node");
    let (live, txid) = settled(&cluster, &cluster.path("data/app.db"));

    let mut repaired = Value::Null;
    eventually("the damage is found and repaired", PATIENCE, || {
        let drills = shown(&cluster, "far");
        let found = drills.as_array().expect("a list").iter().find(|drill| drill["verdict"] == "repaired");
        repaired = found.cloned().unwrap_or_default();
        ensure(found.is_some(), || drills.to_string())
    });
    assert!(says(&repaired["message"], &name(&bad)) && says(&repaired["message"], "corrupt"), "{repaired}");
    assert!(says(&repaired["repairs"][0], "repaired from near"), "{repaired}");
    assert_eq!(repaired["txid"], txid);
    assert!(bad.exists());
    for destination in ["far", "near"] {
        eventually("the next drill is green", PATIENCE, || {
            let last = shown(&cluster, destination)[0].clone();
            ensure(last["verdict"] == "passed" && last["bytes_read"] != 0, || last.to_string())
        });
    }
    let listed = cluster.hubctl(&["drills", "list", "--json"]).json();
    assert_eq!((&listed["outlook"]["every_ms"], &listed["outlook"]["copies"]), (&2000.into(), &2.into()));
    assert_eq!(cluster.hubctl(&["drills", "list", "--failed"]).code, 0);
    same(&cluster, &live, &far);
    // Results outlive the hub.
    cluster.stop_hub();
    cluster.start_hub();
    let drills = shown(&cluster, "far");
    assert!(
        drills.as_array().expect("a list").iter().any(|drill| drill["verdict"] == "repaired"),
        "{drills}"
    );
}

/// What comes back from the folder is what the application has, by walhub and by stock Litestream.
fn same(cluster: &Cluster, live: &Image, folder: &Path) {
    let source = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let out = cluster.restore(DATABASE, "out.db", &["--source", &source]);
    live.assert_same(&Image::restored(&out), "after the repair");
    let Some(litestream) = Litestream::find() else { return };
    let out = cluster.path("by-litestream.db");
    litestream.restore_file(&folder.join(DATABASE), &out, &[]).success();
    live.assert_same(&Image::restored(&out), "by Litestream");
}

#[test]
fn a_missing_object_fails_loudly_until_it_is_put_again() {
    let mut cluster = Cluster::new("drills-missing");
    let (near, far) = (cluster.add_folder("near"), cluster.add_folder("far"));
    let drills = "drills:\n  every: 8760h\n  repair: false\n  sql:\n    - {match: 'node/*', check: 'SELECT count(*) > 0 \
                  FROM sqlite_schema = 1'}\n";
    cluster.hub_lines(&format!("{LEVELS}{drills}"));
    let (live, txid) = history(&mut cluster);
    let (code, good) = drilled(&cluster, &["drills", "run", DATABASE, "--every-file"]);
    assert_eq!((code, &good[0]["verdict"], &good[1]["txid"]), (0, &"passed".into(), &txid.into()), "{good}");

    let gone = victim(&far, &near);
    std::fs::remove_file(&gone).expect("an object");
    let (code, run) = drilled(&cluster, &["drills", "run", DATABASE, "--destination", "far"]);
    assert_eq!(code, 1, "{run}");
    let drill = &run[0];
    assert!(drill["verdict"] == "failed" && says(&drill["message"], &name(&gone)), "{drill}");
    assert!(says(&drill["message"], "missing"), "{drill}");
    let failed = cluster.hubctl(&["drills", "list", "--failed"]);
    assert!(failed.code == 1 && failed.stdout.contains(&name(&gone)), "{failed:?}");
    let databases = cluster.hubctl(&["databases", "list", "--json"]).json();
    let copies = databases[0]["copies"].as_array().expect("copies").clone();
    let verdict = |destination: &str| {
        let copy = copies.iter().find(|copy| copy["destination"] == destination).expect("a copy");
        copy["drill"]["verdict"].clone()
    };
    assert_eq!((verdict("near"), verdict("far")), ("passed".into(), "failed".into()));
    assert!(!gone.exists(), "the configuration says: no repair");

    let (code, repair) = drilled(&cluster, &["repair", DATABASE, "--destination", "far"]);
    assert_eq!(code, 0, "{repair}");
    assert!(says(&repair[0]["repairs"][0], "put again from"), "{repair}");
    assert!(gone.exists());
    assert_eq!(cluster.hubctl(&["drills", "run", DATABASE, "--every-file"]).code, 0);
    same(&cluster, &live, &far);

    // Other rules hold at once: a schedule, and every older point.
    let drills = "drills: {every: 2s, sample: 100%, older-points: 16}\n";
    cluster.hub_lines(&format!("{LEVELS}{drills}"));
    cluster.write_hub_config();
    let said = cluster.hubctl(&["reload", "--json"]).json();
    assert_eq!(said["changes"], serde_json::json!(["drills has other settings"]));
    assert_eq!(said["needs_restart"], serde_json::json!([]));
    assert_eq!(cluster.hubctl(&["drills", "list", "--json"]).json()["outlook"]["every_ms"], 2000);
    for destination in ["far", "near"] {
        eventually("older points are tried by schedule", PATIENCE, || {
            let last = shown(&cluster, destination)[0].clone();
            let older = last["older_points"].as_array().is_some_and(|points| !points.is_empty());
            ensure(last["verdict"] == "passed" && older, || last.to_string())
        });
    }

    let unknown = cluster.hubctl(&["drills", "run", "node/other.db"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("knows no database"), "{unknown:?}");
    let nowhere = cluster.hubctl(&["repair", DATABASE, "--destination", "nowhere"]);
    assert!(nowhere.code == 1 && nowhere.stderr.contains("it goes to near, far"), "{nowhere:?}");
    let node = cluster.authority().issue(walhub_tests::certs::Who::Agent("other"));
    let refused = cluster.hubctl_as(&node, &["drills", "run", DATABASE]);
    assert!(refused.code == 1 && refused.stderr.contains("operator"), "{refused:?}");
}

#[test]
fn an_object_of_a_bucket_is_replaced_too() {
    let Some(server) = services::s3() else { return };
    let mut cluster = Cluster::new("drills-s3");
    cluster.add_folder("near");
    let bucket = format!("drills-{}", std::process::id());
    server.make_bucket(&bucket);
    cluster.add(Destination::s3("far", &server, &bucket, "fleet"));
    cluster.hub_lines(LEVELS);
    let (live, _) = history(&mut cluster);
    let keys = server.keys(&bucket, &format!("fleet/{DATABASE}/"));
    let key = &keys[keys.len() / 2];
    server.damage(&bucket, key);
    let (code, run) = drilled(&cluster, &["drills", "run", DATABASE, "--destination", "far"]);
    assert_eq!(code, 0, "{run}");
    let drill = &run[0];
    assert_eq!(drill["verdict"], "repaired", "{drill}");
    let file = key.rsplit('/').next().expect("a name");
    assert!(says(&drill["message"], file) && says(&drill["repairs"][0], file), "{drill}");
    assert_eq!(server.keys(&bucket, &format!("fleet/{DATABASE}/")), keys);
    let run = cluster.hubctl(&["drills", "run", DATABASE, "--every-file", "--json"]).json();
    assert!(run.as_array().expect("drills").iter().all(|drill| drill["verdict"] == "passed"), "{run}");
    if let Some(litestream) = Litestream::find() {
        let out = cluster.path("by-litestream.db");
        litestream.restore_s3(&server, &bucket, &format!("fleet/{DATABASE}"), &out, &[]).success();
        live.assert_same(&Image::restored(&out), "by Litestream");
    }
    cluster.stop_agent("node");
    cluster.stop_hub();
    server.delete_bucket(&bucket);
}

#[test]
fn a_snapshot_stands_in_for_a_damaged_pack() {
    let mut cluster = Cluster::new("drills-packed");
    let far = cluster.path("far");
    cluster.add_folder("near");
    cluster.add(Destination::file("far", &far).with("layout: packed"));
    // What lay before the snapshot is lost with the pack, and a drill says so whenever it tries an older point.
    cluster.hub_lines(&format!("{LEVELS}drills: {{every: 8760h, older-points: 0}}\n"));
    let (live, _) = history(&mut cluster);
    let mut packs: Vec<PathBuf> = std::fs::read_dir(far.join("walhub/packs"))
        .expect("packs")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    packs.sort();
    assert!(packs.len() >= 3, "{packs:?}");
    // In the first half of a pack lie the files, at its end the index of them.
    let bad = &packs[packs.len() / 2];
    let mut bytes = std::fs::read(bad).expect("a pack");
    let at = bytes.len() / 3;
    bytes[at] ^= 0x10;
    std::fs::write(bad, bytes).expect("a pack");
    let (code, run) = drilled(&cluster, &["drills", "run", DATABASE, "--destination", "far"]);
    assert_eq!((code, &run[0]["verdict"]), (0, &"repaired".into()), "{run}");
    assert!(says(&run[0]["message"], "corrupt") && says(&run[0]["repairs"][0], "snapshot"), "{run}");
    let restored = |out: &str| Image::restored(&cluster.restore(DATABASE, out, &["--source", "far"]));
    live.assert_same(&restored("out.db"), "after the repair");
    assert_eq!(drilled(&cluster, &["drills", "run", DATABASE, "--destination", "far"]).0, 0);
    // Also for a hub that reads the packs anew.
    cluster.stop_hub();
    cluster.start_hub();
    let (live, _) = settled(&cluster, &cluster.path("data/app.db"));
    let (code, run) = drilled(&cluster, &["drills", "run", DATABASE, "--destination", "far"]);
    assert_eq!(code, 0, "{run}");
    let restored = Image::restored(&cluster.restore(DATABASE, "again.db", &["--source", "far"]));
    live.assert_same(&restored, "after a restart");
}
