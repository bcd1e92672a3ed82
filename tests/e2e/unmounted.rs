//! The disk of a destination is not mounted, or another one is: what lies in its place is not taken for it, and left as it is.

use std::fs;
use std::path::Path;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

/// What lies there, at any depth.
fn paths(folder: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            found.push(entry.path().display().to_string());
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The hub says why it does not use `far`, and goes on with `near`.
fn refused(cluster: &Cluster, writer: &mut Writer, why: &str) {
    writer.await_acked(writer.acked() + 20);
    let (txid, _) = cluster.buffered("node", "app.db").expect("status");
    eventually("the status says what is wrong", PATIENCE, || {
        let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
        let far = status.destinations.iter().find(|found| found.name == "far").ok_or("no far")?;
        let said = far.last_error.contains("is its disk mounted?") && far.last_error.contains(why);
        ensure(said && !far.healthy, || format!("{far:?}"))?;
        let database = cluster.database("node", "app.db")?;
        let near = database.copies.iter().find(|copy| copy.destination == "near").ok_or("no copy")?;
        ensure(near.txid >= txid, || format!("near is at {} of {txid}", near.txid))
    });
}

#[test]
fn what_lies_in_the_place_of_a_disk_is_not_taken_for_it() {
    let mut cluster = Cluster::new("unmounted");
    cluster.add_folder("near");
    let far = cluster.add_folder("far");
    cluster.hub_lines("mirror-interval: 100ms\n");
    let database = cluster.path("data/app.db");
    let mut writer = Writer::spawn(&database, &["--rate", "50", "--sync", "normal"]);
    writer.await_acked(1);
    cluster.start_hub();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_agent("node");
    cluster.await_everywhere("node", "app.db", 1);
    // A disk of another hub: the same layout, another id.
    let other = cluster.path("other");
    fs::create_dir_all(other.join("walhub")).expect("a folder");
    fs::create_dir_all(other.join("node/app.db/ltx/0")).expect("a folder");
    fs::write(other.join("walhub/folder.id"), "0123456789abcdef0123456789abcdef\n").expect("a marker");
    let aside = cluster.path("far-aside");
    for (restart, empty) in [(false, true), (true, true), (false, false), (true, false)] {
        if restart {
            cluster.stop_hub();
        }
        fs::rename(&far, &aside).expect("unmounted");
        match empty {
            true => fs::create_dir(&far).expect("a mount point"),
            false => fs::rename(&other, &far).expect("another disk"),
        }
        let before = paths(&far);
        if restart {
            cluster.start_hub();
        }
        refused(&cluster, &mut writer, if empty { "is missing" } else { "has another id" });
        assert_eq!(paths(&far), before, "nothing is written there");
        match empty {
            true => fs::remove_dir(&far).expect("it is empty"),
            false => fs::rename(&far, &other).expect("unmounted"),
        }
        fs::rename(&aside, &far).expect("mounted");
        let (txid, _) = cluster.buffered("node", "app.db").expect("status");
        cluster.await_everywhere("node", "app.db", txid);
    }
    // Moved to another path, it is the same folder: nothing is put again.
    cluster.stop_hub();
    let moved = cluster.path("moved");
    fs::rename(&far, &moved).expect("moved");
    let id = fs::read_to_string(moved.join("walhub/folder.id")).expect("a marker");
    cluster.destinations()[1] = walhub_tests::config::Destination::file("far", &moved);
    cluster.start_hub();
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    assert_eq!(fs::read_to_string(moved.join("walhub/folder.id")).expect("a marker"), id);
    let out = cluster.restore("node/app.db", "out.db", &["--source", "far"]);
    live.assert_same(&Image::restored(&out), "from the disk that came back");
    cluster.stop_agent("node");
    cluster.stop_hub();
}
