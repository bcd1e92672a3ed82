//! The hub's disk is gone: it is rebuilt from what any of its destinations keeps, and nobody sends again what lies there.

use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_tests::binaries::program;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::process::{Output, Process, run};
use walhub_tests::report::report;
use walhub_tests::services;
use walhub_tests::{Cluster, Image};

const NODES: [&str; 3] = ["busy", "away", "held"];
const BUCKET: &str = "hub-lost";

fn open(path: &Path) -> Connection {
    let app = Connection::open(path).unwrap();
    app.busy_timeout(PATIENCE).unwrap();
    app.pragma_update(None, "journal_mode", "wal").unwrap();
    app.pragma_update(None, "synchronous", "normal").unwrap();
    app
}

fn database(cluster: &Cluster, node: &str) -> PathBuf {
    cluster.path(format!("data/{node}.db"))
}

/// One transaction for each row.
fn update(cluster: &Cluster, node: &str, rows: &[u32]) {
    let app = open(&database(cluster, node));
    for row in rows {
        app.execute("UPDATE t SET body = randomblob(1500) WHERE id = ?1", [row]).unwrap();
    }
}

/// A hub with a folder `near`.
fn near(name: &str) -> Cluster {
    let mut cluster = Cluster::new(name);
    cluster.add_folder("near");
    cluster
}

/// The hub runs, and three agents with a database of a megabyte each; everything is everywhere.
fn begin(mut cluster: Cluster) -> Cluster {
    cluster.hub_lines("mirror-interval: 100ms\n");
    cluster.start_hub();
    for node in NODES {
        let path = database(&cluster, node);
        open(&path)
            .execute_batch(
                "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
                 INSERT INTO t(body) SELECT randomblob(1500) FROM n;",
            )
            .unwrap();
        cluster.agent(node, &[("app.db", &path)]);
        cluster.start_agent(node);
    }
    for node in NODES {
        settled(&cluster, node);
    }
    cluster
}

/// Everything of a quiet database is everywhere: its image and TXID.
fn settled(cluster: &Cluster, node: &str) -> (Image, u64) {
    let (image, txid) = cluster.await_buffered(node, "app.db", &database(cluster, node));
    cluster.await_everywhere(node, "app.db", txid);
    (image, txid)
}

fn bytes_sent(cluster: &Cluster, node: &str) -> u64 {
    let status = cluster.agent_command(node, &["status", "--json"]).json();
    status["databases"][0]["bytes_sent"].as_u64().unwrap_or_else(|| panic!("{status}"))
}

/// `walhub-hub rebuild`; `data` is the data folder of its configuration.
fn rebuild(cluster: &Cluster, data: &str, arguments: &[&str]) -> Output {
    let config = cluster.write_hub_config();
    let text = fs::read_to_string(&config).unwrap();
    let place = cluster.path("hub-data").display().to_string();
    let config = cluster.path("rebuild.yml");
    fs::write(&config, text.replace(&place, &cluster.path(data).display().to_string())).unwrap();
    let mut command = Command::new(program("walhub-hub"));
    command.arg("rebuild").args(arguments).arg("--config").arg(&config);
    run(command)
}

fn dry_run(cluster: &Cluster, from: &str) -> Result<Value, String> {
    let output = rebuild(cluster, "nowhere", &["--from", from, "--dry-run", "--json"]);
    ensure(output.code == 0, || output.stderr.clone())?;
    Ok(output.json())
}

/// Waits until all destinations have the same mirror, and it is as asked. While one is written they differ for a moment, and
/// the older one is refused.
fn mirrored(cluster: &Cluster, places: &[&str], what: &str, good: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{what} is mirrored"), PATIENCE, || {
        let found = places.iter().map(|place| dry_run(cluster, place)).collect::<Result<Vec<_>, _>>()?;
        let same = found.iter().all(|one| one["mirror"] == found[0]["mirror"]);
        ensure(same && good(&found[0]), || format!("{found:?}"))?;
        Ok(found[0].clone())
    })
}

fn epoch(found: &Value, node: &str) -> u64 {
    let agents = found["agents"].as_array().expect("agents");
    let agent = agents.iter().find(|agent| agent["agent"] == node);
    agent.and_then(|agent| agent["epoch"].as_u64()).unwrap_or(0)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else if from.is_file() {
            fs::copy(&from, &to).unwrap();
        }
    }
}

fn rows(path: &Path) -> Vec<(i64, Vec<u8>)> {
    let app = open(path);
    let mut all = app.prepare("SELECT id, body FROM t ORDER BY id").unwrap();
    let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn job(cluster: &Cluster) -> Value {
    cluster.hubctl(&["jobs", "show", "--json"]).json()
}

/// Begins to bring the database of a node that is away back in place, and leaves it to the hub.
fn order(cluster: &Cluster, txid: u64) -> String {
    let point = txid.to_string();
    let command =
        cluster.hubctl_command(&["restore", "away/app.db", "--txid", &point, "--in-place", "--yes"]);
    let mut asking = Process::spawn("hubctl", command, &cluster.path("logs/restore.log"));
    let id = eventually("the job", PATIENCE, || {
        let asked = cluster.hubctl(&["jobs", "show", "--json"]);
        ensure(asked.code == 0, || format!("{asked:?}"))?;
        let job = asked.json();
        ensure(job["state"] == "running", || job.to_string())?;
        Ok(job["job"].as_str().ok_or_else(|| job.to_string())?.to_owned())
    });
    asking.kill9();
    id
}

/// A hub of two destinations is lost.
struct Loss<'a> {
    places: [&'a str; 2],
    /// The place among them that it comes back from, by name or address.
    from: &'a str,
    /// How often it was lost before.
    round: u32,
    /// Stock Litestream reads this folder.
    folder: Option<&'a str>,
}

/// What a hub is lost with, and comes back with.
fn lose_and_rebuild(cluster: &mut Cluster, loss: &Loss<'_>) {
    let Loss { places, from, round, folder } = *loss;
    let lineages = NODES.map(|node| cluster.database(node, "app.db").unwrap().lineage);
    let before = NODES.map(|node| settled(cluster, node));
    let away_image = before[1].0.clone();
    cluster.stop_agent("away");
    let order = order(cluster, before[1].1);
    // Who is started again counts from 0.
    let sent_before = [bytes_sent(cluster, "busy"), 0, bytes_sent(cluster, "held")];
    let id = cluster.client().status().unwrap().hub.unwrap().id;
    // With the positions of now: from here on nothing changes, and so nothing is written.
    mirrored(cluster, &places, "the hub as it is", |found| {
        let databases = found["databases"].as_array().expect("databases");
        let as_it_is = |one: &Value| one["verdict"] == "complete" && one["mirrored_txid"] == one["txid"];
        databases.len() == 3
            && databases.iter().all(as_it_is)
            && found["lost_hub"] == id.as_str()
            && found["holds"][0]["reason"] == "case 7"
            && found["jobs"][0]["job"] == order.as_str()
    });

    cluster.kill_hub();
    fs::remove_dir_all(cluster.path("hub-data")).unwrap();
    // Life goes on meanwhile, on nodes that run and on one that does not.
    for node in NODES {
        update(cluster, node, &[10 + round, 11 + round, 500 + round]);
    }
    let told = rebuild(cluster, "hub-data", &["--from", from]);
    assert_eq!(told.code, 0, "{told:?}");
    for text in ["case 7", "walhub-hub run", &format!("hubctl jobs resume {order}")] {
        assert!(told.stdout.contains(text), "no {text:?} in {}", told.stdout);
    }
    cluster.start_hub();

    // What is known before any agent speaks again.
    let status = cluster.database("away", "app.db").unwrap();
    assert_eq!((status.buffered.unwrap().txid, status.lineage), (before[1].1, lineages[1]), "of who is away");
    let out = cluster.restore("away/app.db", &format!("away-{round}.db"), &[]);
    away_image.assert_same(&Image::restored(&out), "the database of a node that is away");
    let holds = cluster.hubctl(&["hold", "list", "--json"]).json();
    assert_eq!((&holds[0]["database"], &holds[0]["reason"]), (&"held/app.db".into(), &"case 7".into()));

    // The job that was under way waits for a word, also when its node comes.
    cluster.start_agent("away");
    let (image, _) = settled(cluster, "away");
    assert!(image != away_image, "a job went on by itself");
    let found = job(cluster);
    assert_eq!((&found["job"], &found["state"]), (&order.as_str().into(), &"paused".into()), "{found}");
    assert!(found["reason"].as_str().is_some_and(|reason| reason.contains("its hub was lost")), "{found}");
    let (word, end) = if round == 0 { ("cancel", "cancelled") } else { ("resume", "done") };
    cluster.hubctl(&["jobs", word, &order]).success();
    eventually("the job's end", PATIENCE, || {
        let job = job(cluster);
        ensure(job["state"] == end, || job.to_string())
    });
    let (after, _) = settled(cluster, "away");
    match round {
        0 => image.assert_same(&after, "after the job was cancelled"),
        // Brought back in place, the head of the file goes on counting.
        _ => assert!(rows(&database(cluster, "away")) == rows(&out), "after the job was done"),
    }
    let mut put = String::new();
    for (index, node) in NODES.into_iter().enumerate() {
        let (image, txid) = settled(cluster, node);
        let (old, old_txid) = &before[index];
        assert!(txid > *old_txid, "{node}: transactions go on");
        assert_eq!(cluster.database(node, "app.db").unwrap().lineage, lineages[index], "{node}: one history");
        let sent = bytes_sent(cluster, node) - sent_before[index];
        let limit = image.len() as u64 / 4;
        assert!(sent <= limit, "{node} sent {sent} bytes, more than {limit}");
        for source in places {
            let name = format!("{node}-{round}-{source}");
            let restored = cluster.restore(&format!("{node}/app.db"), &name, &["--source", source]);
            image.assert_same(&Image::restored(&restored), &format!("{node} from {source}"));
            let asked = ["--source", source, "--txid", &old_txid.to_string()];
            let restored = cluster.restore(&format!("{node}/app.db"), &format!("{name}-old"), &asked);
            old.assert_same(&Image::restored(&restored), &format!("{node} from {source}, before"));
        }
        put.push_str(&format!("{node}: {sent} bytes sent, image {}\n", image.len()));
    }
    // Nothing is put again: not one image of three went anywhere.
    let destinations = cluster.client().status().unwrap().destinations;
    for destination in destinations {
        let limit = before[0].0.len() as u64 / 2;
        assert!(
            destination.put_bytes <= limit,
            "{} bytes put to {}",
            destination.put_bytes,
            destination.name
        );
        put.push_str(&format!("{}: {} bytes put\n", destination.name, destination.put_bytes));
    }
    report(&format!("hub lost, rebuilt from {from}"), &put);
    let held = cluster.hubctl(&["retention", "held/app.db", "--dry-run", "--all", "--json"]).json();
    assert_eq!(held["files"][0]["reason"], "on hold", "{held}");
    if let Some((litestream, folder)) = Litestream::find().zip(folder) {
        let stock = cluster.path(format!("stock-{round}.db"));
        litestream.restore_file(&cluster.path(folder).join("busy/app.db"), &stock, &[]).success();
        Image::live(&database(cluster, "busy")).assert_same(&Image::restored(&stock), "by stock litestream");
    }
}

#[test]
fn a_hub_is_rebuilt_from_each_destination_and_nothing_is_sent_twice() {
    let Some(server) = services::s3() else { return };
    server.make_bucket(BUCKET);
    let prefix = format!("run-{}", std::process::id());
    let mut cluster = near("hub-lost");
    cluster.add(Destination::s3("far", &server, BUCKET, &prefix));
    let mut cluster = begin(cluster);
    cluster.hubctl(&["hold", "add", "held/app.db", "--reason", "case 7"]).success();
    // A node whose older image comes back later.
    cluster.stop_agent("busy");
    copy_folder(&cluster.path("busy-state"), &cluster.path("busy-image"));
    let places = ["near", "far"];
    let found = mirrored(&cluster, &places, "the agent", |found| epoch(found, "busy") > 0);
    let known = epoch(&found, "busy");
    cluster.start_agent("busy");
    settled(&cluster, "busy");
    mirrored(&cluster, &places, "the epoch", |found| epoch(found, "busy") > known);

    for (round, from) in (0..).zip(places) {
        lose_and_rebuild(&mut cluster, &Loss { places, from, round, folder: Some("near") });
    }

    // Deletions of all that may go leave the mirrors alone.
    cluster.hubctl(&["retention", "--run", "--all"]).success();
    mirrored(&cluster, &places, "the hub", |_| true);
    // The older image is kept out by hubs that never saw it.
    cluster.stop_agent("busy");
    fs::rename(cluster.path("busy-state"), cluster.path("busy-now")).unwrap();
    fs::rename(cluster.path("busy-image"), cluster.path("busy-state")).unwrap();
    cluster.start_agent("busy");
    eventually("the older image is refused", PATIENCE, || {
        let log = cluster.agent_process("busy").log();
        ensure(log.contains("the hub refused this node: an older image of node busy"), || log)
    });
    cluster.kill_agent("busy");
    cluster.stop_hub();
}

#[test]
fn a_hub_is_rebuilt_from_the_stores_of_google_and_azure() {
    let (Some(google), Some(azure)) = (services::gcs(), services::azure()) else { return };
    google.make_bucket(BUCKET);
    azure.make_container(BUCKET);
    let prefix = format!("run-{}", std::process::id());
    let places = ["google", "azure"];
    let mut cluster = Cluster::new("hub-lost-clouds");
    cluster.add(Destination::gcs(places[0], &google, BUCKET, &prefix));
    cluster.add(Destination::azure(places[1], &azure, BUCKET, &prefix));
    let mut cluster = begin(cluster);
    cluster.hubctl(&["hold", "add", "held/app.db", "--reason", "case 7"]).success();
    cluster.hubctl(&["agents", "label", "away", "site=berlin"]).success();
    let from = [
        format!("gcs://{BUCKET}/{prefix}?endpoint={}", google.endpoint),
        format!("abs://{}@{BUCKET}/{prefix}?endpoint={}", azure.account, azure.endpoint),
    ];
    for (round, from) in (0..).zip(&from) {
        lose_and_rebuild(&mut cluster, &Loss { places, from, round, folder: None });
        let labels = cluster.hubctl(&["agents", "list", "--json"]).success();
        assert!(labels.contains("berlin"), "{labels}");
    }
    cluster.stop_hub();
    google.delete_bucket(BUCKET);
    azure.delete_container(BUCKET);
}

#[test]
fn what_cannot_be_decided_is_asked_and_what_is_damaged_is_passed_over() {
    let mut cluster = begin(near("hub-lost-hard"));
    let near = cluster.path("near");
    mirrored(&cluster, &["near"], "the hub", |found| {
        found["databases"].as_array().is_some_and(|databases| databases.len() == 3)
    });
    // One more, so that there is one before the newest.
    cluster.hubctl(&["hold", "add", "busy/app.db"]).success();
    mirrored(&cluster, &["near"], "the hold", |found| found["holds"][0]["database"] == "busy/app.db");
    // A folder with a hub in it is not touched.
    let refused = rebuild(&cluster, "hub-data", &["--from", "near"]);
    assert!(refused.code == 1 && refused.stderr.contains("is not empty"), "{refused:?}");
    // The configuration comes back without secrets.
    let url = format!("file://{}", near.display());
    let printed = rebuild(&cluster, "nowhere", &["--from", &url, "--print-config"]).success();
    assert!(printed.contains("mirror-interval: 100ms") && printed.contains("name: near"), "{printed}");
    cluster.kill_hub();

    let hubs = |near: &Path| -> Vec<PathBuf> {
        fs::read_dir(near.join("walhub/hub")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let [hub] = &hubs(&near)[..] else { panic!("one hub") };
    let mut mirrors: Vec<PathBuf> = fs::read_dir(hub).unwrap().map(|entry| entry.unwrap().path()).collect();
    mirrors.sort();
    assert!(mirrors.len() > 1, "{mirrors:?}");
    let newest = mirrors.last().unwrap();
    let mut bytes = fs::read(newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(newest, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(newest, &bytes).unwrap();
    let told = rebuild(&cluster, "nowhere", &["--from", "near", "--dry-run"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stdout.contains("WARNING") && told.stdout.contains("is damaged"), "{}", told.stdout);
    bytes[middle] ^= 1;
    fs::write(newest, &bytes).unwrap();

    // Somebody starts a hub with an empty folder instead: now there are two.
    fs::rename(cluster.path("hub-data"), cluster.path("lost-data")).unwrap();
    let lost = hub.file_name().unwrap().to_str().unwrap().to_owned();
    cluster.start_hub();
    for node in NODES {
        settled(&cluster, node);
    }
    eventually("the second hub is mirrored, and says that it is one", PATIENCE, || {
        let log = cluster.hub().log();
        ensure(log.contains("other hubs are mirrored there") && log.contains(&lost), || log)
    });
    cluster.kill_hub();
    fs::remove_dir_all(cluster.path("hub-data")).unwrap();
    let asked = rebuild(&cluster, "hub-data", &["--from", "near"]);
    assert!(asked.code == 1 && asked.stderr.contains("--hub") && asked.stderr.contains(&lost), "{asked:?}");
    assert!(!cluster.path("hub-data").exists());
    let told = rebuild(&cluster, "hub-data", &["--from", "near", "--hub", &lost, "--json"]).json();
    assert_eq!(told["lost_hub"], lost.as_str());
    // A half-written folder is no hub.
    fs::write(cluster.path("hub-data/rebuild.unfinished"), b"").unwrap();
    cluster.spawn_hub();
    assert!(!cluster.hub().wait(PATIENCE).success());
    let log = cluster.hub().log();
    assert!(log.contains("half rebuilt"), "{log}");
    cluster.kill_hub();
    rebuild(&cluster, "hub-data", &["--from", "near", "--hub", &lost]).success();
    cluster.start_hub();
    for node in NODES {
        settled(&cluster, node);
    }
    cluster.stop_hub();
}
