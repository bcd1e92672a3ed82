//! One destination fails in every way there is while another works beside it: the other does not notice, nor do the agents,
//! the status names the cause, and afterwards everything is there.
//!
//! The order of the faults is drawn (`WALHUB_TEST_SEED` repeats one).

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::run;
use walhub_tests::proxy::{Mode, Proxy};
use walhub_tests::services;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

/// How long each fault lasts at least.
const WINDOW: Duration = Duration::from_millis(2500);
/// Lags below this are noise of a busy machine.
const FLOOR_MS: u64 = 1500;
const VICTIM: &str = "victim";
const NEIGHBOUR: &str = "neighbour";

/// A fault: its name, how it begins and ends, and a word of which the status must name one.
struct Fault<'a> {
    name: &'static str,
    begin: Box<dyn Fn() + 'a>,
    end: Box<dyn Fn() + 'a>,
    words: &'static [&'static str],
}

/// The faults that a front can make of a server of that kind.
fn of_servers<'a>(proxy: &'a Proxy, kind: &str) -> Vec<Fault<'a>> {
    let missing = if kind == "abs" { "ContainerNotFound" } else { "NoSuchBucket" };
    // The stand-in for Google's store looks at no credentials.
    let credentials = if kind == "gcs" { Mode::Answer(401, "Unauthorized") } else { Mode::Tampered };
    let modes: Vec<(&'static str, Mode, &'static [&'static str])> = vec![
        ("down", Mode::Down, &["unavailable", "the connection broke"]),
        ("503 storm", Mode::Answer(503, "SlowDown"), &["slow down"]),
        ("10 s latency", Mode::Latency(Duration::from_secs(10)), &["no answer within 1 s"]),
        ("timeout after success", Mode::LostAnswers, &["no answer within 1 s"]),
        ("truncated body", Mode::HalfAnswers, &["the connection broke"]),
        ("wrong credentials", credentials, &["access denied"]),
        ("clock skew", Mode::Answer(403, "RequestTimeTooSkewed"), &["RequestTimeTooSkewed"]),
        ("bucket deleted", Mode::Answer(404, missing), &["create the bucket"]),
        ("disk full", Mode::Answer(507, "InsufficientStorage"), &["it is full"]),
        ("read-only", Mode::RefuseWrites(403, "AccessDenied"), &["access denied"]),
    ];
    let fault = |(name, mode, words): (&'static str, Mode, &'static [&'static str])| Fault {
        name,
        begin: Box::new(move || proxy.set(mode.clone())),
        end: Box::new(|| proxy.set(Mode::Pass)),
        words,
    };
    modes.into_iter().map(fault).collect()
}

/// Lag of the neighbour over a while: its 99th percentile, ms. The status is asked as a person would.
fn p99(cluster: &Cluster, length: Duration) -> u64 {
    let (began, mut lags) = (Instant::now(), Vec::new());
    while began.elapsed() < length {
        let copies = cluster.database("node", "app.db").expect("status").copies;
        let neighbour = copies.iter().find(|copy| copy.destination == NEIGHBOUR).expect("the neighbour");
        lags.push(neighbour.lag_ms);
        std::thread::sleep(Duration::from_millis(20));
    }
    lags.sort_unstable();
    lags[lags.len() * 99 / 100]
}

fn complaint(cluster: &Cluster) -> Result<String, String> {
    let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
    let victim = status.destinations.into_iter().find(|destination| destination.name == VICTIM);
    Ok(victim.map(|victim| victim.last_error).unwrap_or_default())
}

fn seed() -> u64 {
    let given = std::env::var("WALHUB_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| rand::rng().random_range(0..1_000_000))
}

/// Runs the faults one after the other.
fn endure(name: &str, victim: Destination, mut faults: Vec<Fault<'_>>) {
    let seed = seed();
    eprintln!("{name}: WALHUB_TEST_SEED={seed}");
    faults.shuffle(&mut StdRng::seed_from_u64(seed));
    let mut cluster = Cluster::new(name);
    cluster.add_folder(NEIGHBOUR);
    cluster.add(victim);
    let database = cluster.path("data/app.db");
    cluster.agent("node", &[("app.db", &database)]);
    let mut writer = Writer::spawn(&database, &["--rate", "40"]);
    writer.await_acked(20);
    cluster.start_hub();
    cluster.start_agent("node");
    let (txid, _) = eventually("the first transactions are buffered", PATIENCE, || {
        let buffered = cluster.buffered("node", "app.db")?;
        ensure(buffered.0 > 5, || format!("{buffered:?}"))?;
        Ok(buffered)
    });
    cluster.await_everywhere("node", "app.db", txid);
    let before = p99(&cluster, WINDOW);
    let bound = (before * 12 / 10).max(FLOOR_MS);
    for fault in &faults {
        let (acked, (buffered, _)) = (writer.acked(), cluster.buffered("node", "app.db").expect("status"));
        (fault.begin)();
        let during = p99(&cluster, WINDOW);
        assert!(during <= bound, "{}: the neighbour lags {during} ms, before {before} ms", fault.name);
        eventually(&format!("{}: the status names the cause", fault.name), PATIENCE, || {
            let text = complaint(&cluster)?;
            ensure(fault.words.iter().any(|word| text.contains(word)), || format!("it says {text:?}"))
        });
        // The agents go on: what the application commits is buffered.
        writer.await_acked(acked + 20);
        eventually(&format!("{}: agents are not held up", fault.name), PATIENCE, || {
            let (now, _) = cluster.buffered("node", "app.db")?;
            ensure(now > buffered, || format!("still at {now}"))
        });
        (fault.end)();
        let (txid, _) = cluster.buffered("node", "app.db").expect("status");
        eventually(&format!("{}: it catches up", fault.name), PATIENCE, || {
            let copies = cluster.database("node", "app.db")?.copies;
            let held = copies.iter().find(|copy| copy.destination == VICTIM).map_or(0, |copy| copy.txid);
            ensure(held >= txid, || {
                format!("it holds {held} of {txid}: {}", complaint(&cluster).unwrap_or_default())
            })
        });
        eprintln!("{name}: {}: lag of the neighbour {during} ms (before {before} ms)", fault.name);
    }
    writer.stop();
    let (live, txid) = cluster.await_buffered("node", "app.db", &database);
    cluster.await_everywhere("node", "app.db", txid);
    let out = cluster.restore("node/app.db", "out.db", &["--source", VICTIM]);
    live.assert_same(&Image::restored(&out), "what came through all of it");
    let checked = cluster.hubctl(&["destinations", "check", VICTIM, "--json"]).json();
    assert_eq!(checked[0]["passed"], true, "{checked}");
    cluster.stop_agent("node");
    cluster.stop_hub();
}

fn authority(endpoint: &str) -> (&str, &str) {
    let rest = endpoint.strip_prefix("http://").expect("a plain endpoint");
    rest.split_once('/').unwrap_or((rest, ""))
}

/// A front of its own for a server, and what the server is called behind it.
fn front(endpoint: &str) -> (Proxy, String) {
    let (server, path) = authority(endpoint);
    let proxy = Proxy::start(server);
    let endpoint = format!("http://{}/{path}", proxy.address());
    (proxy, endpoint.trim_end_matches('/').to_owned())
}

fn prefix() -> String {
    format!("matrix-{:016x}", rand::random::<u64>())
}

#[test]
fn an_s3_destination_that_fails_troubles_nobody() {
    let Some(mut server) = services::s3() else { return };
    server.make_bucket("walhub-matrix");
    let (proxy, endpoint) = front(&server.endpoint);
    server.endpoint = endpoint;
    let victim = Destination::s3(VICTIM, &server, "walhub-matrix", &prefix()).with("request-timeout: 1s");
    endure("fault-matrix-s3", victim, of_servers(&proxy, "s3"));
}

#[test]
fn a_gcs_destination_that_fails_troubles_nobody() {
    let Some(mut server) = services::gcs() else { return };
    let (proxy, endpoint) = front(&server.endpoint);
    server.endpoint = endpoint;
    let victim = Destination::gcs(VICTIM, &server, &prefix()).with("request-timeout: 1s");
    endure("fault-matrix-gcs", victim, of_servers(&proxy, "gcs"));
}

#[test]
fn an_azure_destination_that_fails_troubles_nobody() {
    let Some(mut server) = services::azure() else { return };
    let (proxy, endpoint) = front(&server.endpoint);
    server.endpoint = endpoint;
    let victim = Destination::azure(VICTIM, &server, &prefix()).with("request-timeout: 1s");
    endure("fault-matrix-abs", victim, of_servers(&proxy, "abs"));
}

/// A small disk of its own, where that may be made (root).
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path) -> Option<Disk> {
        std::fs::create_dir_all(path).expect("a mount point");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(path);
        (run(command).code == 0).then(|| Disk(path.to_owned()))
    }

    fn remount(&self, options: &str) {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{options}")]).arg(&self.0);
        run(command).success();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("--lazy").arg(&self.0);
        run(command);
    }
}

#[test]
fn a_folder_that_fails_troubles_nobody() {
    let scratch = tempfile::tempdir().expect("a folder");
    let mount = scratch.path().join("disk");
    let disk = Disk::mount(&mount);
    std::fs::create_dir_all(&mount).expect("a folder");
    let (root, aside, ballast) = (mount.join("copies"), mount.join("aside"), mount.join("ballast"));
    let mut faults = vec![Fault {
        name: "folder gone",
        begin: Box::new(|| std::fs::rename(&root, &aside).expect("moves away")),
        end: Box::new(|| std::fs::rename(&aside, &root).expect("moves back")),
        words: &["is its disk mounted"],
    }];
    if let Some(disk) = &disk {
        faults.push(Fault {
            name: "disk full",
            begin: Box::new(|| {
                // Until nothing more goes in.
                let mut file = std::fs::File::create(&ballast).expect("creates");
                while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
            }),
            end: Box::new(|| std::fs::remove_file(&ballast).expect("removes")),
            words: &["it is full"],
        });
        faults.push(Fault {
            name: "read-only",
            begin: Box::new(|| disk.remount("ro")),
            end: Box::new(|| disk.remount("rw")),
            words: &["it is read-only"],
        });
    } else {
        eprintln!("skipped: disk full and read-only, for only root may mount");
    }
    endure("fault-matrix-file", Destination::file(VICTIM, &root), faults);
}
