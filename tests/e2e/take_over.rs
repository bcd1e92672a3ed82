//! Somebody leaves us: stock Litestream goes on in a folder that the hub wrote, and nothing written afterwards is lost.

use std::path::Path;
use std::time::Duration;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, ledger, litestream::Litestream, replica};

/// First and last transaction of each file of level 0 of a replica's folder, by name: a file may go while it is looked at.
fn files(replica: &Path) -> Vec<(u64, u64)> {
    let names = std::fs::read_dir(replica.join("ltx/0")).into_iter().flatten().flatten();
    let range =
        |entry: std::fs::DirEntry| walhub_common::ltx::name::parse(&entry.file_name().to_string_lossy());
    names.filter_map(range).map(|range| (range.min().get(), range.max().get())).collect()
}

/// Newest transaction in level 0 of a replica's folder.
fn newest(replica: &Path) -> u64 {
    files(replica).into_iter().map(|(_, max)| max).max().unwrap_or(0)
}

#[test]
fn stock_litestream_goes_on_in_a_folder_of_ours() {
    let Some(litestream) = Litestream::find() else { return };
    let mut cluster = Cluster::new("take-over");
    cluster.add_folder("near");
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    let mut writer = Writer::spawn(&database, &["--rate", "300", "--churn"]);
    cluster.hub_lines("levels: [2s, 10s]\n");
    cluster.start_hub();
    cluster.start_agent("node");
    writer.await_acked(400);
    let mut before = writer.stop();
    // Of a steady stream the agent sends several transactions as one segment, which is one file at first.
    let replica = cluster.path("near/node/app.db");
    let mut several = 0;
    for _ in 0..5 {
        let mut writer = Writer::spawn(&database, &["--rate", "300"]);
        writer.await_acked(before + 100);
        before = writer.stop();
        let (_, txid) = cluster.await_buffered("node", "app.db", &database);
        cluster.await_everywhere("node", "app.db", txid);
        let tail = files(&replica).into_iter().filter(|(_, max)| *max == txid);
        several += u32::from(tail.max().is_some_and(|(min, max)| min < max));
        eventually("the last transaction lies alone", walhub_tests::cluster::PATIENCE, || {
            let tail: Vec<_> = files(&replica).into_iter().filter(|(_, max)| *max >= txid).collect();
            ensure(tail == [(txid, txid)], || format!("{tail:?}, not {txid}"))
        });
    }
    let (_, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.stop_agent("node");
    cluster.stop_hub();
    assert!(several > 0, "no stream ended with a file of several transactions");
    assert_eq!(replica::audit(&replica).map(|(txid, _)| txid), Ok(txid));

    let mut stock = litestream.replicate(&database, &replica, &cluster.path("logs/litestream.log"));
    let mut writer = Writer::spawn(&database, &["--rate", "100"]);
    writer.await_acked(before + 200);
    let after = writer.stop();
    eventually("litestream has it all", Duration::from_secs(60), || {
        stock.assert_running();
        ensure(newest(&replica) > txid, || format!("the replica is at {}", newest(&replica)))?;
        let out = cluster.path("after.db");
        let _ = std::fs::remove_file(&out);
        let said = litestream.restore_file(&replica, &out, &[]);
        ensure(said.code == 0, || format!("{said:?}"))?;
        let last = ledger::audit(&out).map_err(|error| error.to_string())?.last();
        ensure(last == after, || format!("{last} of {after} transfers"))
    });
    stock.terminate(Duration::from_secs(20));
    let said = std::fs::read_to_string(cluster.path("logs/litestream.log")).expect("its log");
    assert!(!said.contains("level=ERROR"), "{said}");

    // And back again, with a hub and an agent that remember nothing.
    std::fs::remove_dir_all(cluster.path("hub-data")).expect("the hub's disk");
    std::fs::remove_dir_all(cluster.path("node-state")).expect("the agent's state");
    cluster.add_folder("back");
    cluster.start_hub();
    let url = format!("file://{}", replica.display());
    let taken = cluster.hubctl(&["import", &url, "node/app.db", "--json"]).json();
    let taken = taken["txid"].as_u64().expect("a transaction");
    assert!(taken > txid, "{taken} after {txid}");
    for source in ["near", "back"] {
        let out = cluster.restore("node/app.db", &format!("{source}.db"), &["--source", source]);
        assert_eq!(ledger::audit(&out).expect("ledger").last(), after, "{source}");
    }
    cluster.start_agent("node");
    Writer::spawn(&database, &["--commits", "30"]).wait();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    assert!(txid > taken, "{txid} after {taken}");
    cluster.await_everywhere("node", "app.db", txid);
    for source in ["near", "back"] {
        let out = cluster.restore("node/app.db", &format!("again-{source}.db"), &["--source", source]);
        live.assert_same(&Image::restored(&out), source);
    }
}
