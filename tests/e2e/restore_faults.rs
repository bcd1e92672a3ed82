//! What can go wrong while `hubctl restore` runs against a hub or a bucket: each fault has its own words and the exit code
//! that the help names, nothing half-written has the name of the output, and what was killed goes on where it was.

use crate::snapshot::fill;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::{Output, Process, run};
use walhub_tests::services::{self, S3};
use walhub_tests::wire::{Then, Wire};
use walhub_tests::{Cluster, Image};

const KEY: &str = "node/app.db";
const BUCKET: &str = "restore-faults";
const MEGABYTE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// A hub with a folder and a bucket that hold the same database; both the bucket and the hub behind a wire.
struct Stage {
    cluster: Cluster,
    to_bucket: Wire,
    to_hub: Wire,
    server: S3,
    prefix: String,
    /// The states at two transactions.
    states: [(Image, u64); 2],
}

impl Stage {
    /// `None` where the run has no S3 server.
    fn new(name: &str, megabytes: u32) -> Option<Stage> {
        let server = services::s3()?;
        server.make_bucket(BUCKET);
        let to_bucket = Wire::to(server.endpoint.trim_start_matches("http://"));
        let server = S3 { endpoint: format!("http://{}", to_bucket.address()), ..server };
        let mut cluster = Cluster::new(name);
        let to_hub = Wire::to(&cluster.address());
        let prefix = format!("{name}-{}", std::process::id());
        let near = cluster.path("near");
        cluster.add(Destination::file("near", &near));
        cluster.add(Destination::s3("far", &server, BUCKET, &prefix));
        // Files stay as they are.
        cluster.hub_lines("levels: []\n");
        let database = cluster.path("data/app.db");
        fill(&database, megabytes);
        cluster.agent("node", &[("app.db", &database)]);
        cluster.start_hub();
        cluster.start_agent("node");
        let first = cluster.await_buffered("node", "app.db", &database);
        let app = Connection::open(&database).expect("open");
        app.busy_timeout(PATIENCE).expect("busy timeout");
        app.execute("UPDATE big SET x = randomblob(3900) WHERE id % 100 = 7", []).expect("update");
        drop(app);
        let second = cluster.await_buffered("node", "app.db", &database);
        cluster.await_everywhere("node", "app.db", second.1);
        cluster.stop_agent("node");
        fs::create_dir(cluster.path("out")).expect("folder");
        Some(Stage { cluster, to_bucket, to_hub, server, prefix, states: [first, second] })
    }

    fn out(&self) -> PathBuf {
        self.cluster.path("out/app.db")
    }

    fn near(&self) -> String {
        format!("file://{}", self.cluster.path("near").display())
    }

    fn far(&self) -> String {
        format!(
            "s3://{BUCKET}/{}?endpoint={}&region={}",
            self.prefix, self.server.endpoint, self.server.region
        )
    }

    /// `hubctl restore` of the database with these words; the hub is asked over its wire, the bucket over its own.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cluster.hubctl_command(&["restore", KEY]);
        command.env("WALHUB_HUB", self.to_hub.address());
        if words.contains(&"--from") {
            for name in ["WALHUB_HUB", "WALHUB_CA", "WALHUB_CERT", "WALHUB_KEY"] {
                command.env_remove(name);
            }
            command.env("AWS_ACCESS_KEY_ID", &self.server.access_key);
            command.env("AWS_SECRET_ACCESS_KEY", &self.server.secret_key);
        }
        command.args(words).arg("-o").arg(self.out());
        command
    }

    fn restore(&self, words: &[&str]) -> Output {
        run(self.command(words))
    }

    /// It fails with exit code 1 and these words, and leaves nothing.
    #[track_caller]
    fn refused(&self, words: &[&str], parts: &[&str]) {
        self.stopped(&self.restore(words), parts);
        assert_eq!(self.left(), [""; 0], "{words:?}");
    }

    #[track_caller]
    fn stopped(&self, said: &Output, parts: &[&str]) {
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.stderr.contains(&format!("cannot restore {KEY} to its newest state")), "{said:?}");
        for part in parts {
            assert!(said.stderr.contains(part), "no {part:?}: {said:?}");
        }
    }

    /// It gives this state and leaves nothing beside it; what it said.
    #[track_caller]
    fn restored(&self, words: &[&str], state: usize) -> Output {
        let said = self.restore(words);
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        self.states[state].0.assert_same(&Image::restored(&self.out()), &format!("{words:?}"));
        fs::remove_file(self.out()).expect("remove the restored file");
        assert_eq!(self.left(), [""; 0], "{words:?}");
        said
    }

    /// What lies in the output's folder.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cluster.path("out")).expect("folder").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Kills a restore with -9 when some of it is written down, while its source is silent.
    fn kill(&self, words: &[&str], wire: &Wire, bytes: u64) {
        wire.end_after(bytes, Then::Silence);
        let log = self.cluster.path("logs/killed.log");
        let mut running = Process::spawn("hubctl", self.command(words), &log);
        eventually("the restore notes what it has written", PATIENCE, || {
            running.assert_running();
            ensure(self.journal().exists(), || format!("{:?}", self.left()))
        });
        running.kill9();
        wire.mend();
        assert!(!self.out().exists(), "a killed restore left a database");
    }

    fn journal(&self) -> PathBuf {
        self.cluster.path("out/app.db.walhub-restore.journal")
    }
}

/// The largest file of transactions of a folder.
fn largest(folder: &Path) -> PathBuf {
    let levels = fs::read_dir(folder.join(KEY).join("ltx")).expect("levels").flatten();
    let files = levels.flat_map(|level| fs::read_dir(level.path()).expect("files").flatten());
    let largest = files.max_by_key(|file| file.metadata().expect("size").len());
    largest.expect("a file").path()
}

fn name_of(path: &Path) -> &str {
    path.file_stem().and_then(|name| name.to_str()).expect("a name")
}

#[test]
fn a_source_that_dies_half_way_is_named_and_another_stands_in() {
    let Some(stage) = Stage::new("restore-dies", 24) else { return };
    let (near, far) = (stage.near(), stage.far());
    let bytes = 12 * MEGABYTE;

    stage.to_bucket.end_after(bytes, Then::Break);
    stage.refused(&["--source", "far"], &["destination far: cannot open node/app.db level"]);
    stage.to_bucket.mend();
    stage.restored(&["--source", "far"], 1);

    // The hub itself.
    stage.to_hub.end_after(bytes, Then::Break);
    stage.refused(&[], &["the connection to the hub was lost; try again"]);
    stage.to_hub.mend();
    stage.restored(&[], 1);

    // Without the hub.
    stage.to_bucket.end_after(bytes, Then::Break);
    stage.refused(&["--from", &far], &["destination s3: cannot open node/app.db level", "no other source"]);
    stage.to_bucket.mend();
    stage.to_bucket.end_after(bytes, Then::Break);
    let said = stage.restored(&["--from", &far, "--from", &near], 1);
    let gone = "destination s3: cannot open node/app.db level";
    assert!(said.stderr.contains(gone) && said.stderr.contains("are read elsewhere"), "{said:?}");
    stage.to_bucket.mend();
    stage.restored(&["--from", &far], 1);
}

#[test]
fn a_damaged_or_missing_object_is_named_through_the_hub() {
    let Some(stage) = Stage::new("restore-damaged", 8) else { return };
    let near = stage.cluster.path("near");
    let object = largest(&near);
    let whole = fs::read(&object).expect("the object");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(&object, &damaged).expect("damage it");
    stage.refused(&["--source", "near"], &["destination near", name_of(&object), "corrupt"]);
    stage.restored(&[], 1);
    // Cut short.
    fs::write(&object, &whole[..middle]).expect("cut it");
    stage.refused(&["--source", "near"], &["destination near", name_of(&object), "corrupt"]);
    stage.restored(&["--from", &stage.near(), "--from", &stage.far()], 1);
    fs::remove_file(&object).expect("remove it");
    stage.refused(&["--source", "near"], &["the history has a hole"]);
    stage.restored(&[], 1);
    fs::write(&object, &whole).expect("put it back");
    stage.restored(&["--source", "near"], 1);
}

#[test]
fn an_output_that_cannot_be_written_is_left_as_it_was() {
    let Some(stage) = Stage::new("restore-output", 8) else { return };
    let out = stage.out();
    let near = stage.near();
    for origin in [&[][..], &["--from", &near]] {
        let forced = [origin, &["--force"]].concat();
        let mine = || assert_eq!(fs::read(&out).expect("the output"), b"mine", "{origin:?}");
        fs::write(&out, "mine").expect("the output");
        stage.stopped(&stage.restore(origin), &["already exists", "--force"]);
        mine();
        // In use.
        let held = fs::File::open(&out).expect("the output");
        let mut holder = Command::new("sleep").arg("600").stdin(held).spawn().expect("sleep");
        let said = stage.restore(&forced);
        let named = format!("is open in process {} (sleep)", holder.id());
        holder.kill().and_then(|()| holder.wait()).expect("end it");
        stage.stopped(&said, &[&named]);
        mine();
        // The disk is full: a file may have a megabyte.
        let mut command = Command::new("bash");
        command.arg("-c").arg("trap '' XFSZ; ulimit -f 1000; exec \"$@\"").arg("bash");
        let real = stage.command(&forced);
        command.arg(real.get_program()).args(real.get_args());
        for (name, value) in real.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        stage.stopped(&run(command), &["app.db.walhub-restore.tmp: File too large"]);
        mine();
        assert_eq!(stage.left(), ["app.db"]);
        fs::remove_file(&out).expect("remove it");
        stage.restored(origin, 1);
    }
}

#[test]
fn a_killed_restore_goes_on_where_it_was() {
    let seed: u64 = std::env::var("WALHUB_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(17);
    let mut random = StdRng::seed_from_u64(seed);
    let megabytes = 96;
    let Some(stage) = Stage::new("restore-killed", megabytes) else { return };
    let far = stage.far();
    let pages = stage.states[1].0.pages() as u64;
    for (words, wire) in [(&[][..], &stage.to_hub), (&["--from", &far], &stage.to_bucket)] {
        // 32 MiB come at least before the first note, and from the bucket eight pieces of 4 MiB are on their way.
        let bytes = random.random_range(76..90) * MEGABYTE;
        stage.kill(words, wire, bytes);
        // Twice in a row: what is left is fetched into the same file.
        stage.kill(words, wire, random.random_range(0..MEGABYTE));
        let said = stage.restored(&[words, &["--json"]].concat(), 1);
        let there = said.stderr.split_once("goes on with ").and_then(|(_, rest)| rest.split_once(" of "));
        let there: u64 = there.and_then(|(count, _)| count.parse().ok()).expect("it says what was there");
        assert!((1..pages).contains(&there), "{said:?}");
        let received = said.json()["received_bytes"].as_u64().expect("bytes");
        assert!(received < u64::from(megabytes) * MEGABYTE * 3 / 4, "{received} bytes came again");
        // What was left of one point is nothing for another.
        stage.kill(words, wire, bytes);
        let said = stage.restored(&[words, &["--txid", &stage.states[0].1.to_string()]].concat(), 0);
        assert!(!said.stderr.contains("goes on with"), "{said:?}");
    }
    // Broken off by its source, it keeps what is worth it, and says so.
    stage.to_hub.end_after(90 * MEGABYTE, Then::Break);
    let said = stage.restore(&[]);
    stage.stopped(&said, &["what came is kept beside the output", "the connection to the hub was lost"]);
    assert_eq!(stage.left(), ["app.db.walhub-restore.journal", "app.db.walhub-restore.tmp"]);
    stage.to_hub.mend();
    let said = stage.restored(&[], 1);
    assert!(said.stderr.contains("goes on with"), "{said:?}");
}
