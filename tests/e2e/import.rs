//! What stock Litestream wrote becomes a database of ours: every restore point as Litestream has it, and an agent that
//! goes on from there.

use std::path::Path;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::{Litestream, Replica};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, services};

/// Ends of the files of level 0.
fn ends(replica: &Path) -> Vec<u64> {
    let Ok(files) = std::fs::read_dir(replica.join("ltx/0")) else { return Vec::new() };
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut ends: Vec<u64> = files
        .filter_map(name)
        .filter_map(|name| walhub_common::ltx::name::parse(&name).map(|range| range.max().get()))
        .collect();
    ends.sort_unstable();
    ends
}

#[test]
fn a_folder_of_litestream_becomes_a_history_that_an_agent_continues() {
    let Some(litestream) = Litestream::find() else { return };
    let mut cluster = Cluster::new("import");
    cluster.add_folder("near");
    cluster.add_folder("far");
    let (database, replica) = (cluster.path("data/app.db"), cluster.path("stock"));
    let mut writer = Writer::spawn(&database, &["--rate", "50", "--churn"]);
    writer.await_acked(5);
    let mut stock = litestream.replicate(&database, &replica, &cluster.path("logs/litestream.log"));
    eventually("litestream has some restore points", walhub_tests::cluster::PATIENCE, || {
        stock.assert_running();
        ensure(ends(&replica).len() >= 5, || format!("{:?}", ends(&replica)))
    });
    writer.stop();
    let live = Image::live(&database);
    eventually("litestream has the newest state", walhub_tests::cluster::PATIENCE, || {
        let out = cluster.path("stock.db");
        let _ = std::fs::remove_file(&out);
        let said = litestream.restore_file(&replica, &out, &[]);
        ensure(said.code == 0 && Image::restored(&out).checksum() == live.checksum(), || format!("{said:?}"))
    });
    stock.terminate(std::time::Duration::from_secs(20));

    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    let url = format!("file://{}", replica.display());
    let node = cluster.authority().issue(walhub_tests::certs::Who::Agent("node"));
    assert_eq!(cluster.hubctl_as(&node, &["import", &url, "node/app.db"]).code, 1, "not for agents");
    let said = cluster.hubctl(&["import", &url, "node/app.db", "--json"]).json();
    let newest = *ends(&replica).last().expect("files");
    assert_eq!(said["txid"], newest, "{said}");
    assert_eq!(said["checksum"], format!("{:016x}", live.checksum().get()));
    for txid in ends(&replica) {
        let theirs = cluster.path(format!("theirs-{txid}.db"));
        litestream.restore_file(&replica, &theirs, &["-txid", &format!("{txid:016x}")]).success();
        for source in ["near", "far"] {
            let options = ["--source", source, "--txid", &txid.to_string()];
            let ours = cluster.restore("node/app.db", &format!("ours-{source}-{txid}.db"), &options);
            Image::restored(&theirs).assert_same(&Image::restored(&ours), &format!("{txid} at {source}"));
        }
    }
    let again = cluster.hubctl(&["import", &url, "node/app.db"]);
    assert!(again.code == 1 && again.stderr.contains("has a history"), "{again:?}");

    cluster.start_agent("node");
    Writer::spawn(&database, &["--commits", "30"]).wait();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    assert!(txid > newest, "{txid} after {newest}");
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "after.db", &["--source", "far"]);
    live.assert_same(&Image::restored(&out), "after the import");
    let out = cluster.path("far-by-stock.db");
    litestream.restore_file(&cluster.path("far/node/app.db"), &out, &[]).success();
    live.assert_same(&Image::restored(&out), "by stock Litestream");
}

#[test]
fn a_history_with_a_hole_or_of_another_is_refused_and_nothing_is_registered() {
    let Some(litestream) = Litestream::find() else { return };
    let mut cluster = Cluster::new("import-refused");
    cluster.add_folder("near");
    let (database, replica) = (cluster.path("data/app.db"), cluster.path("stock"));
    let mut writer = Writer::spawn(&database, &["--rate", "50"]);
    writer.await_acked(5);
    let mut stock = litestream.replicate(&database, &replica, &cluster.path("logs/litestream.log"));
    eventually("litestream has some restore points", walhub_tests::cluster::PATIENCE, || {
        stock.assert_running();
        ensure(ends(&replica).len() >= 5, || format!("{:?}", ends(&replica)))
    });
    writer.stop();
    stock.terminate(std::time::Duration::from_secs(20));
    let middle = replica.join("ltx/0").join(format!("{:016x}-{:016x}.ltx", 3, 3));
    let bytes = std::fs::read(&middle).expect("the third file");
    std::fs::remove_file(&middle).expect("a hole");
    for level in 1..=9 {
        let _ = std::fs::remove_dir_all(replica.join(format!("ltx/{level}")));
    }
    cluster.start_hub();
    let url = format!("file://{}", replica.display());
    let torn = cluster.hubctl(&["import", &url, "node/app.db"]);
    assert!(torn.code == 1 && torn.stderr.contains("hole"), "{torn:?}");
    let mut damaged = bytes.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(&middle, damaged).expect("a damaged file");
    let broken = cluster.hubctl(&["import", &url, "node/app.db"]);
    assert!(broken.code == 1 && broken.stderr.contains("damaged"), "{broken:?}");
    std::fs::write(&middle, bytes).expect("as it was");
    let stranger = cluster.path("near/node/app.db/ltx/0").join(format!("{:016x}-{:016x}.ltx", 1, 7));
    std::fs::create_dir_all(stranger.parent().expect("folder")).expect("folder");
    std::fs::write(&stranger, b"of somebody else").expect("a stranger's file");
    let taken = cluster.hubctl(&["import", &url, "node/app.db"]);
    assert!(taken.code == 1 && taken.stderr.contains("another history"), "{taken:?}");
    assert!(cluster.database("node", "app.db").is_err(), "nothing was registered");
    std::fs::remove_file(&stranger).expect("gone");
    cluster.hubctl(&["import", &url, "node/app.db"]).success();
}

#[test]
fn buckets_of_every_kind_become_histories_with_the_credentials_of_the_environment() {
    let (Some(litestream), Some(s3)) = (Litestream::find(), services::s3()) else { return };
    let (Some(azure), Some(gcs)) = (services::azure(), services::gcs()) else { return };
    s3.make_bucket("import");
    let mut cluster = Cluster::new("import-buckets");
    cluster.add_folder("near");
    let prefix = format!("import-{}/app.db", std::process::id());
    let (azure_at, gcs_at) = (azure.endpoint.as_str(), gcs.endpoint.as_str());
    let buckets = [
        (
            Replica::S3 { server: &s3, bucket: "import", prefix: &prefix },
            format!("s3://import/{prefix}?endpoint={}&region={}", s3.endpoint, s3.region),
        ),
        (
            Replica::Azure(&azure, &prefix),
            format!("abs://{}@walhub/{prefix}?endpoint={azure_at}", azure.account),
        ),
        (Replica::Gcs(&gcs, &prefix), format!("gs://walhub/{prefix}?endpoint={gcs_at}")),
    ];
    let mut written = Vec::new();
    for (nth, (replica, url)) in buckets.iter().enumerate() {
        let database = cluster.path(format!("data/{nth}.db"));
        let mut writer = Writer::spawn(&database, &["--rate", "50", "--churn"]);
        writer.await_acked(5);
        let log = cluster.path(format!("logs/litestream-{nth}.log"));
        let mut stock = litestream.replicate_to(&database, replica, &log);
        let out = cluster.path(format!("theirs-{nth}.db"));
        eventually(
            "litestream has a restore point behind the first",
            walhub_tests::cluster::PATIENCE,
            || {
                stock.assert_running();
                let _ = std::fs::remove_file(&out);
                let said = litestream.restore_at(replica, &out, &["-txid", "0000000000000003"]);
                ensure(said.code == 0, || format!("{said:?}"))
            },
        );
        writer.stop();
        let live = Image::live(&database);
        eventually("litestream has the newest state", walhub_tests::cluster::PATIENCE, || {
            let newest = cluster.path(format!("newest-{nth}.db"));
            let _ = std::fs::remove_file(&newest);
            let said = litestream.restore_at(replica, &newest, &[]);
            ensure(said.code == 0 && Image::restored(&newest).checksum() == live.checksum(), || {
                format!("{said:?}")
            })
        });
        stock.terminate(std::time::Duration::from_secs(20));
        written.push((url, live, Image::restored(&out)));
    }

    // Without credentials, and with wrong ones, nothing is taken and the reason is named.
    let key = [("AWS_ACCESS_KEY_ID", s3.access_key.as_str()), ("AWS_SECRET_ACCESS_KEY", "another")];
    cluster.hub_environment(&key);
    cluster.start_hub();
    let refused = cluster.hubctl(&["import", written[0].0, "node/0.db"]);
    assert!(refused.code == 1 && refused.stderr.contains("access denied"), "{refused:?}");
    cluster.stop_hub();
    cluster.hub_environment(&[
        ("AWS_ACCESS_KEY_ID", &s3.access_key),
        ("AWS_SECRET_ACCESS_KEY", &s3.secret_key),
        ("AZURE_STORAGE_ACCOUNT_KEY", &azure.key),
        ("GOOGLE_SERVICE_ACCOUNT", &gcs.credentials),
    ]);
    cluster.start_hub();
    for (nth, (url, live, third)) in written.iter().enumerate() {
        let name = format!("node/{nth}.db");
        let said = cluster.hubctl(&["import", url, &name, "--json"]).json();
        assert_eq!(said["checksum"], format!("{:016x}", live.checksum().get()), "{url}: {said}");
        let out = cluster.restore(&name, &format!("latest-{nth}.db"), &["--source", "near"]);
        live.assert_same(&Image::restored(&out), url);
        let out = cluster.restore(&name, &format!("third-{nth}.db"), &["--source", "near", "--txid", "3"]);
        third.assert_same(&Image::restored(&out), &format!("{url}, transaction 3"));
        let folder = cluster.path("near").join(&name);
        let out = cluster.path(format!("stock-{nth}.db"));
        litestream.restore_at(&Replica::File(&folder), &out, &[]).success();
        live.assert_same(&Image::restored(&out), &format!("{url}, by stock Litestream"));
    }
    cluster.stop_hub();
}
