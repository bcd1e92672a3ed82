//! kill -9 of the agent, of the hub, of both, at random moments under load; and an S3 server that goes away and comes
//! back. Afterwards every promise is kept and every history is whole.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::ledger::mix;
use walhub_tests::litestream::Litestream;
use walhub_tests::promises::{Promises, Watch};
use walhub_tests::report::{report, rounds};
use walhub_tests::services::OwnS3;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, ledger, replica};

const DATABASES: [&str; 3] = ["one.db", "two.db", "three.db"];

#[derive(Clone, Copy, Debug)]
enum Victim {
    Agent,
    Hub,
    Both,
}

#[test]
fn killing_the_agent_breaks_no_promise() {
    kill_in_rounds(Victim::Agent, Layout::Litestream);
}

#[test]
fn killing_the_hub_breaks_no_promise() {
    kill_in_rounds(Victim::Hub, Layout::Litestream);
}

#[test]
fn killing_the_hub_in_the_middle_of_packs_breaks_no_promise() {
    kill_in_rounds(Victim::Hub, Layout::Packed);
}

#[test]
fn killing_both_breaks_no_promise() {
    kill_in_rounds(Victim::Both, Layout::Litestream);
}

/// How both destinations keep their files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    Litestream,
    Packed,
}

fn kill_in_rounds(victim: Victim, layout: Layout) {
    let name = format!("crash-{victim:?}-{layout:?}").to_lowercase();
    let mut cluster = Cluster::new(&name);
    for folder in ["near", "far"] {
        let destination = Destination::file(folder, &cluster.path(folder));
        cluster.add(if layout == Layout::Packed { destination.with("layout: packed") } else { destination });
    }
    let paths: Vec<PathBuf> = DATABASES.iter().map(|name| cluster.path("data").join(name)).collect();
    let named: Vec<_> = DATABASES.into_iter().zip(paths.iter().map(PathBuf::as_path)).collect();
    cluster.agent("node", &named);
    let loads: [&[&str]; 3] = [
        &["--rate", "300", "--sync", "full"],
        &["--rate", "150", "--sync", "normal", "--churn", "--autocheckpoint", "100"],
        &["--rate", "50", "--sync", "normal", "--note", "20000"],
    ];
    let mut writers: Vec<Writer> =
        paths.iter().zip(loads).map(|(path, load)| Writer::spawn(path, load)).collect();
    for writer in &mut writers {
        writer.await_acked(1);
    }
    cluster.start_hub();
    cluster.start_agent("node");
    let watch = Watch::start(cluster.client().clone());

    let rounds = rounds();
    for round in 1..=rounds {
        // Every third kill comes while everything still starts and reconnects, the others once it is at work again.
        if !round.is_multiple_of(3) {
            await_progress(&cluster);
        }
        std::thread::sleep(Duration::from_millis(mix(round) % 700));
        let (agent, hub) = match victim {
            Victim::Agent => (true, false),
            Victim::Hub => (false, true),
            Victim::Both => (true, true),
        };
        if agent {
            cluster.kill_agent("node");
        }
        if hub {
            cluster.kill_hub();
        }
        std::thread::sleep(Duration::from_millis(mix(round ^ 7) % 300));
        if hub {
            cluster.spawn_hub();
        }
        if agent {
            cluster.start_agent("node");
        }
    }
    let acked: Vec<u64> = writers.into_iter().map(Writer::stop).collect();
    for ((name, path), acked) in named.iter().zip(&acked) {
        cluster.await_buffered("node", name, path);
        let audit = ledger::audit_connection(&walhub_tests::oracle::observer(path)).expect("live ledger");
        assert_eq!(audit.last(), *acked, "the application itself lost a commit");
    }
    let promises = watch.stop();
    let mut lines = String::new();
    for (name, path) in &named {
        let txid = judge(&cluster, name, path, &promises, layout);
        lines += &format!("{name}: {txid} TXIDs, {} promises kept\n", promises[*name].len());
    }
    let enough = rounds as usize / 2;
    let kept: Vec<usize> = promises.values().map(std::collections::BTreeMap::len).collect();
    assert!(kept.iter().all(|&kept| kept > enough), "too few promises to judge by: {kept:?}");
    report(&format!("kill -9, {victim:?}, {layout:?}, {rounds} rounds under load"), &lines);
}

/// Waits until each database has new transactions at the hub.
#[track_caller]
fn await_progress(cluster: &Cluster) {
    for name in DATABASES {
        let mut before = None;
        eventually(&format!("{name} goes on"), walhub_tests::cluster::PATIENCE, || {
            let (txid, _) = cluster.buffered("node", name)?;
            let first = *before.get_or_insert(txid);
            ensure(txid > first, || format!("the hub stays at {txid}"))
        });
    }
}

/// Every promise can be restored, no destination has a hole or a transaction twice, and everything equals the source.
fn judge(cluster: &Cluster, name: &str, path: &std::path::Path, promises: &Promises, layout: Layout) -> u64 {
    let key = format!("node/{name}");
    let (live, txid) = cluster.await_buffered("node", name, path);
    cluster.await_everywhere("node", name, txid);
    for source in ["buffer", "near", "far"] {
        let out = cluster.restore(&key, &format!("{source}-{name}"), &["--source", source]);
        live.assert_same(&Image::restored(&out), &format!("{key} from {source}"));
    }
    let folders: &[&str] = if layout == Layout::Packed { &[] } else { &["near", "far"] };
    for folder in folders {
        let audited = replica::audit(&cluster.path(folder).join(&key));
        assert_eq!(audited, Ok((txid, live.checksum())), "{key} in {folder}");
    }
    let kept = &promises[name];
    for (&promised, &checksum) in kept {
        let (reached, found) = planned(cluster, name, promised);
        assert_eq!((reached, found), (promised, checksum), "{key}: the promise of TXID {promised}");
    }
    // A plan says what it would do; a few are done.
    for (&promised, &checksum) in kept.iter().step_by((kept.len() / 5).max(1)) {
        let out = cluster.restore(&key, &format!("{promised}-{name}"), &["--txid", &promised.to_string()]);
        assert_eq!(Image::restored(&out).checksum().get(), checksum, "{key} at TXID {promised}");
    }
    txid
}

fn planned(cluster: &Cluster, name: &str, txid: u64) -> (u64, u64) {
    use walhub_proto::v1;
    let request = v1::RestoreRequest {
        database: Some(v1::DatabaseRef { agent: "node".to_owned(), name: name.to_owned() }),
        target: Some(v1::restore_request::Target::Txid(txid)),
        after_txid: 0,
        source: String::new(),
    };
    let mut service = cluster.client().restore();
    let plan = cluster.client().block_on(async { service.plan_restore(request).await });
    let plan =
        plan.unwrap_or_else(|status| panic!("no plan for TXID {txid} of {name}: {}", status.message()));
    let position = plan.into_inner().position.expect("a plan names its position");
    (position.txid, position.checksum)
}

/// Lags of both destinations in ms, as often as it is asked.
#[derive(Default)]
struct Lags {
    file: Vec<u64>,
    s3: Vec<u64>,
}

impl Lags {
    fn sample(&mut self, cluster: &Cluster, during: Duration) {
        let started = Instant::now();
        while started.elapsed() < during {
            let copies = cluster.database("node", "app.db").expect("status").copies;
            for copy in copies {
                if copy.destination == "near" { &mut self.file } else { &mut self.s3 }.push(copy.lag_ms);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.file.sort_unstable();
        self.s3.sort_unstable();
    }

    fn line(&self, when: &str) -> String {
        let of = |lags: &[u64]| format!("{:>6} {:>6}", lags[lags.len() / 2], lags[lags.len() - 1]);
        format!("{when:<16} file {}   s3 {}\n", of(&self.file), of(&self.s3))
    }
}

#[test]
fn an_s3_server_that_goes_away_slows_nobody_and_catches_up_by_itself() {
    let mut cluster = Cluster::new("s3-away");
    let Some(s3) = OwnS3::start(&cluster.path("s3")) else { return };
    let Some(litestream) = Litestream::find() else { return };
    s3.server.make_bucket("backup");
    cluster.add_folder("near");
    cluster.add(Destination::s3("bucket", &s3.server, "backup", "hub"));
    let database = cluster.path("data/app.db");
    let mut writer = Writer::spawn(&database, &["--rate", "200", "--sync", "normal"]);
    writer.await_acked(1);
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    eventually("both destinations follow", walhub_tests::cluster::PATIENCE, || {
        let copies = cluster.database("node", "app.db")?.copies;
        ensure(copies.len() == 2 && copies.iter().all(|copy| copy.txid > 0), || format!("{copies:?}"))
    });

    let (mut before, mut away, mut after) = (Lags::default(), Lags::default(), Lags::default());
    before.sample(&cluster, Duration::from_secs(3));
    s3.kill9();
    away.sample(&cluster, Duration::from_secs(8));
    let status = cluster.client().status().expect("status");
    let bucket = status.destinations.iter().find(|d| d.name == "bucket").expect("bucket");
    assert!(!bucket.healthy && !bucket.last_error.is_empty(), "an outage must show: {bucket:?}");
    // The hub restarts without its bucket, and goes on without it.
    cluster.kill_hub();
    cluster.start_hub();
    s3.restart();
    let back = Instant::now();
    eventually("the bucket catches up", walhub_tests::cluster::PATIENCE, || {
        let copies = cluster.database("node", "app.db")?.copies;
        let lag =
            copies.iter().find(|copy| copy.destination == "bucket").map_or(u64::MAX, |copy| copy.lag_ms);
        ensure(lag < 2000, || format!("the bucket is {lag} ms behind"))
    });
    let caught_up = back.elapsed();
    after.sample(&cluster, Duration::from_secs(3));
    writer.stop();

    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "s3.db", &["--source", "bucket"]);
    live.assert_same(&Image::restored(&out), "the bucket");
    let stock = cluster.path("stock.db");
    litestream.restore_s3(&s3.server, "backup", "hub/node/app.db", &stock, &[]).success();
    live.assert_same(&Image::restored(&stock), "the bucket, by stock litestream");

    let numbers = format!(
        "lag in ms             p50    max             p50    max\n{}{}{}caught up {:.1} s after the server was back\n",
        before.line("before"),
        away.line("S3 killed"),
        after.line("S3 back"),
        caught_up.as_secs_f64()
    );
    report("S3 server killed for 8 s at 200 commits/s", &numbers);
    let worst = away.file[away.file.len() - 1];
    assert!(worst < 2000, "the file destination fell {worst} ms behind while S3 was away\n{numbers}");
    let s3_worst = away.s3[away.s3.len() - 1];
    assert!(s3_worst > 4000, "S3 was away for 8 s and shows a lag of {s3_worst} ms\n{numbers}");
}
