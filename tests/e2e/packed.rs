//! Destinations with `layout: packed`: few requests, and every promise as with files of their own.

use std::fs;
use std::time::{Duration, Instant};
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::fleet::Fleet;
use walhub_tests::report::report;
use walhub_tests::services::OwnS3;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

const DATABASES: [&str; 3] = ["one.db", "two.db", "three.db"];

/// A hub with two packed folders and an agent with three databases of `commits` transactions.
fn cluster(name: &str, commits: &str) -> Cluster {
    let mut cluster = Cluster::new(name);
    for folder in ["near", "far"] {
        let place = cluster.path(folder);
        cluster.add(Destination::file(folder, &place).with("layout: packed"));
    }
    let paths = DATABASES.map(|name| cluster.path("data").join(name));
    let named: Vec<_> = DATABASES.into_iter().zip(paths.iter().map(std::path::PathBuf::as_path)).collect();
    cluster.agent("node", &named);
    for path in &paths {
        Writer::spawn(path, &["--commits", commits, "--note", "500"]).wait();
    }
    cluster.start_hub();
    cluster.start_agent("node");
    cluster
}

/// Every database is everywhere, and comes back from each place by each way.
fn all_restore(cluster: &Cluster, when: &str) {
    for name in DATABASES {
        let (live, txid) = cluster.await_buffered("node", name, &cluster.path("data").join(name));
        cluster.await_everywhere("node", name, txid);
        for source in ["near", "far"] {
            let out = format!("{when}-{source}-{name}");
            let out = cluster.restore(&format!("node/{name}"), &out, &["--source", source]);
            live.assert_same(&Image::restored(&out), &format!("{name} from {source} {when}"));
        }
    }
}

#[test]
fn what_lies_in_packs_restores_also_for_a_hub_that_lost_its_disk() {
    let mut cluster = cluster("packed", "50");
    all_restore(&cluster, "first");
    let packs = |cluster: &Cluster| fs::read_dir(cluster.path("near/walhub/packs")).expect("packs").count();
    assert!(packs(&cluster) > 0 && !cluster.path("near/node").exists(), "everything lies in packs");
    let lineage = |cluster: &Cluster| cluster.database("node", "one.db").expect("status").lineage;
    let before = lineage(&cluster);
    for name in DATABASES {
        Writer::spawn(&cluster.path("data").join(name), &["--commits", "20"]).wait();
    }
    all_restore(&cluster, "second");
    cluster.kill_hub();
    fs::remove_dir_all(cluster.path("hub-data")).expect("the hub's disk");
    for name in DATABASES {
        Writer::spawn(&cluster.path("data").join(name), &["--commits", "5"]).wait();
    }
    let kept = packs(&cluster);
    cluster.start_hub();
    all_restore(&cluster, "third");
    assert_eq!(lineage(&cluster), before, "one history");
    assert!(packs(&cluster) - kept <= 6, "what the packs hold is not put again");
    // The node asks for its own database, which now comes from packs and from the buffer.
    let out = cluster.path("by-agent.db");
    let name = &DATABASES[0];
    let live = Image::live(&cluster.path("data").join(name));
    let arguments = ["restore", name, "-o", &out.display().to_string()];
    cluster.agent_command("node", &arguments).success();
    live.assert_same(&Image::restored(&out), "by the agent");
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn packs_are_not_left_behind_by_a_change_of_layout() {
    let mut cluster = cluster("packed-back", "20");
    all_restore(&cluster, "first");
    let packed = cluster.destinations()[0].clone();
    cluster.destinations()[0].keys.clear();
    cluster.write_hub_config();
    let refused = cluster.hubctl(&["reload"]);
    assert!(refused.code == 1 && refused.stderr.contains("set layout: packed again"), "{refused:?}");
    all_restore(&cluster, "refused");
    cluster.stop_hub();
    cluster.start_hub();
    let near = |cluster: &Cluster| {
        let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
        status.destinations.into_iter().find(|found| found.name == "near").ok_or_else(|| "no near".to_owned())
    };
    eventually("the destination says why it is not used", PATIENCE, || {
        let near = near(&cluster)?;
        ensure(!near.healthy && near.last_error.contains("set layout: packed again"), || format!("{near:?}"))
    });
    assert!(!cluster.path("near/node").exists(), "nothing is put beside the packs");
    cluster.stop_hub();
    cluster.destinations()[0] = packed;
    cluster.start_hub();
    all_restore(&cluster, "again");
    // Without packs the place is like any other, and is filled anew.
    cluster.stop_hub();
    fs::remove_dir_all(cluster.path("near/walhub/packs")).expect("packs");
    cluster.destinations()[0].keys.clear();
    cluster.start_hub();
    for name in DATABASES {
        Writer::spawn(&cluster.path("data").join(name), &["--commits", "3"]).wait();
    }
    all_restore(&cluster, "without");
    assert!(cluster.path("near/node").exists());
    cluster.stop_agent("node");
    cluster.stop_hub();
}

#[test]
fn a_hundred_databases_cost_the_requests_of_one() {
    const SECONDS: u32 = 10;
    let mut cluster = Cluster::new("packed-requests");
    let Some(s3) = OwnS3::start(&cluster.path("s3")) else { return };
    s3.server.make_bucket("packed");
    cluster.add(Destination::s3("bucket", &s3.server, "packed", "hub").every_ms(1000).with("layout: packed"));
    // The hub's own mirror, which is no part of what databases cost, comes later than the test ends.
    cluster.hub_lines("mirror-interval: 1h\n");
    cluster.start_hub();
    let mut fleet = Fleet::join(&cluster.address(), cluster.authority(), 5, 20);
    everything_copied(&cluster, 1);
    let (before, began) = (s3.requests("packed"), Instant::now());
    fleet.commit_for(SECONDS);
    everything_copied(&cluster, 1 + u64::from(SECONDS));
    let (used, seconds) = (s3.requests("packed").since(before), began.elapsed().as_secs());
    report("100 databases, a commit each second, packed", &format!("{used:?} in {seconds} s"));
    // One per interval, and the last.
    assert!(used.put <= seconds + 3, "{used:?} in {seconds} s");
    assert_eq!((used.list, used.get, used.delete), (0, 0, 0), "{used:?}");
    let before = s3.requests("packed");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(s3.requests("packed").since(before).all(), 0, "an idle fleet costs nothing");
    let keys = s3.server.keys("packed", "hub/");
    assert!(keys.iter().all(|key| key.starts_with("hub/walhub/packs/")), "{keys:?}");
}

/// Waits until each database is at the destination up to `txid`.
fn everything_copied(cluster: &Cluster, txid: u64) {
    eventually("everything is copied", Duration::from_secs(60), || {
        let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
        let behind = status.databases.iter().filter(|d| d.copies.iter().any(|copy| copy.txid < txid));
        let behind = behind.count();
        ensure(behind == 0 && !status.databases.is_empty(), || format!("{behind} databases are behind"))
    });
}
