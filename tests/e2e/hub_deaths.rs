//! kill -9 of the hub in the middle of whatever it does with a small buffer: squashing, copying forward, giving files back,
//! catching destinations up, and with what it has put: compacting, making snapshots, deleting what is old. Each restore point that a destination lists restores, nothing acknowledged is lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_proto::v1;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::ledger::mix;
use walhub_tests::outage::Outage;
use walhub_tests::promises::Watch;
use walhub_tests::report::{report, rounds};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

const DATABASES: [&str; 3] = ["one.db", "two.db", "three.db"];
/// The packed one takes all databases in one object per flush.
const DESTINATIONS: [&str; 3] = ["near", "far", "packed"];
/// Restores that are really done, of each database at each destination.
const RESTORES: usize = 8;

#[test]
fn every_restore_point_that_is_listed_restores() {
    let mut cluster = Cluster::new("hub-deaths");
    for name in ["near", "far"] {
        cluster.add(tended(Destination::file(name, &cluster.path(name))));
    }
    let packed = Destination::file("packed", &cluster.path("packed")).every_ms(300);
    cluster.add(tended(packed.with("layout: packed")));
    cluster.hub_lines("buffer: {max-bytes: 32MiB, when-full: squash}\nlevels: [2s, 10s]\n");
    let paths: Vec<PathBuf> = DATABASES.iter().map(|name| cluster.path("data").join(name)).collect();
    let named: Vec<(&str, &Path)> = DATABASES.into_iter().zip(paths.iter().map(PathBuf::as_path)).collect();
    cluster.agent("node", &named);
    let loads: [&[&str]; 3] = [
        &["--rate", "60", "--sync", "normal", "--churn"],
        &["--rate", "40", "--sync", "normal", "--churn"],
        &["--rate", "5", "--sync", "normal"],
    ];
    let mut writers: Vec<Writer> =
        paths.iter().zip(loads).map(|(path, load)| Writer::spawn(path, load)).collect();
    for writer in &mut writers {
        writer.await_acked(1);
    }
    cluster.start_hub();
    cluster.start_agent("node");
    for name in DATABASES {
        cluster.await_everywhere("node", name, 1);
    }
    let watch = Watch::start(cluster.client().clone());

    let rounds = rounds();
    let mut squashed = 0;
    let mut outages: Vec<Outage> = Vec::new();
    for round in 1..=rounds {
        // In turns: all is well, one destination is away, all are.
        match round % 10 {
            1 => outages.clear(),
            // A hub that starts looks at the folder itself.
            4 => outages.push(Outage::of(&cluster.path("far/node"))),
            6 => {
                outages.extend(["near/node", "packed/walhub"].map(|folder| Outage::of(&cluster.path(folder))))
            }
            _ => {}
        }
        await_progress(&cluster);
        std::thread::sleep(Duration::from_millis(mix(round) % 1500));
        squashed += given_up(&cluster);
        cluster.kill_hub();
        cluster.spawn_hub();
    }
    outages.clear();
    for writer in writers {
        writer.stop();
    }
    let (mut points, mut levels) = (0, BTreeSet::new());
    let mut lives = Vec::new();
    for (name, path) in &named {
        let (live, txid) = cluster.await_buffered("node", name, path);
        cluster.await_everywhere("node", name, txid);
        // Nothing goes between listing and restoring.
        cluster.hubctl(&["hold", "add", &format!("node/{name}")]).success();
        lives.push((*name, live, txid));
    }
    let promises = watch.stop();
    for (name, live, txid) in &lives {
        let newest = promises[*name].keys().next_back().copied().unwrap_or(0);
        assert!(newest <= *txid, "{name}: {newest} was promised, {txid} is there");
        for source in DESTINATIONS {
            points += judge(&cluster, name, source, live, *txid, &mut levels);
        }
    }
    assert!(levels.is_superset(&BTreeSet::from([0, 1, 2, 9])), "levels {levels:?}");
    let text =
        format!("{points} listed restore points planned, {squashed} were given up while all were away");
    report(&format!("kill -9 of a hub with a full buffer, {rounds} rounds"), &text);
}

/// Old files go all the time.
fn tended(destination: Destination) -> Destination {
    destination
        .with("snapshot-interval: 60s")
        .with("retention: 40s")
        .with("l0-retention: 1s")
        .with("retention-check-interval: 1s")
}

fn await_progress(cluster: &Cluster) {
    for name in DATABASES {
        let mut before = None;
        eventually(&format!("{name} goes on"), PATIENCE, || {
            let (txid, _) = cluster.buffered("node", name)?;
            let first = *before.get_or_insert(txid);
            ensure(txid > first, || format!("the hub stays at {txid}"))
        });
    }
}

fn given_up(cluster: &Cluster) -> u64 {
    DATABASES.iter().filter_map(|name| cluster.database("node", name).ok()).map(|d| d.given_up_points).sum()
}

/// Each restore point of a database at a destination has a plan there, some are restored, the newest is the live image.
fn judge(
    cluster: &Cluster,
    name: &str,
    source: &str,
    live: &Image,
    newest: u64,
    levels: &mut BTreeSet<u32>,
) -> usize {
    let key = format!("node/{name}");
    let files = cluster.client().files("node", name, source).expect("files").files;
    levels.extend(files.iter().map(|file| file.level));
    let mut ranges: Vec<(u64, u64, u32)> =
        files.iter().filter_map(|file| file.range.as_ref().map(|r| (r.max, r.min, file.level))).collect();
    ranges.sort_unstable();
    // A compacted file begins where others may hold a restore point, and this one, brought up to date in one step, does not.
    let mut points = BTreeSet::from([0]);
    for (max, min, level) in ranges {
        if points.range(min - 1..max).next().is_some() {
            points.insert(max);
        } else {
            assert!(level > 0 || points.contains(&max), "{key} at {source}: nothing leads to {min}-{max}");
        }
    }
    points.remove(&0);
    let points: Vec<u64> = points.into_iter().collect();
    assert_eq!(points.last(), Some(&newest), "{key} at {source}");
    for txid in &points {
        let request = v1::RestoreRequest {
            database: Some(v1::DatabaseRef { agent: "node".to_owned(), name: name.to_owned() }),
            target: Some(v1::restore_request::Target::Txid(*txid)),
            after_txid: 0,
            source: source.to_owned(),
        };
        let mut service = cluster.client().restore();
        let plan = cluster.client().block_on(async { service.plan_restore(request).await });
        let plan =
            plan.unwrap_or_else(|status| panic!("{key} at {source}: TXID {txid}: {}", status.message()));
        assert_eq!(
            plan.into_inner().position.map(|position| position.txid),
            Some(*txid),
            "{key} at {source}"
        );
    }
    for txid in points.iter().rev().step_by((points.len() / RESTORES).max(1)) {
        // The restore itself proves the checksum that was taken at the source.
        let out = cluster.restore(
            &key,
            &format!("{source}-{txid}-{name}"),
            &["--source", source, "--txid", &txid.to_string()],
        );
        let image = Image::restored(&out);
        if *txid == newest {
            live.assert_same(&image, &format!("{key} from {source}"));
        }
        std::fs::remove_file(out).expect("remove a restored file");
    }
    points.len()
}
