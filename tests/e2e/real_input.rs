//! Real input, all the way: PROJ's own database, and a repository that Fossil, an application that is not ours, commits
//! to in a loop; through agent and hub into a folder and a real S3 server at once, and back by every road there is.

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::process::run;
use walhub_tests::services::{S3, s3};
use walhub_tests::{Cluster, Image, oracle, replica};

const BUCKET: &str = "real-input";

/// A hub with a folder and a bucket, and the database that a test is about.
struct Road {
    cluster: Cluster,
    litestream: Litestream,
    server: S3,
    prefix: String,
    name: &'static str,
    database: PathBuf,
}

impl Road {
    fn new(name: &'static str) -> Option<Road> {
        let (server, litestream) = (s3()?, Litestream::find()?);
        let mut cluster = Cluster::new(name);
        server.make_bucket(BUCKET);
        let prefix = format!("{name}-{}", std::process::id());
        cluster.add_folder("near");
        cluster.add(Destination::s3("bucket", &server, BUCKET, &prefix));
        let database = cluster.path("data").join(name);
        cluster.agent("node", &[(name, &database)]);
        Some(Road { cluster, litestream, server, prefix, name, database })
    }

    fn key(&self) -> String {
        format!("node/{}", self.name)
    }

    fn start(&mut self) {
        self.cluster.start_hub();
        self.cluster.start_agent("node");
    }

    /// Waits for the quiet live image to be everywhere, then brings it back by every road and compares.
    fn everything_gives_back_the_source(&self) {
        let (live, txid) = self.cluster.await_buffered("node", self.name, &self.database);
        self.cluster.await_everywhere("node", self.name, txid);
        let same = |path: &Path, road: &str| {
            live.assert_same(&Image::restored(path), &format!("{} by {road}, TXID {txid}", self.name));
            assert_eq!(oracle::integrity(path), "ok", "{road}");
        };

        let out = self.cluster.path(format!("agent-{txid}.db"));
        let (source, target) = (self.database.display().to_string(), out.display().to_string());
        self.cluster.agent_command("node", &["restore", &source, "-o", &target]).success();
        same(&out, "the agent");
        for source in ["buffer", "near", "bucket"] {
            let out = format!("hubctl-{source}-{txid}.db");
            let out = self.cluster.restore(&self.key(), &out, &["--source", source]);
            same(&out, &format!("hubctl from {source}"));
        }
        same(&self.stock_file(&format!("stock-near-{txid}.db"), &[]), "stock litestream from the folder");
        same(&self.stock_s3(&format!("stock-bucket-{txid}.db"), &[]), "stock litestream from the bucket");

        let folder = replica::audit(&self.cluster.path("near").join(self.key()));
        assert_eq!(folder, Ok((txid, live.checksum())));
        let keys = self.server.keys(BUCKET, &format!("{}/{}/", self.prefix, self.key()));
        assert_eq!(replica::audit_keys(&keys), Ok(txid), "{keys:?}");
    }

    fn stock_file(&self, out: &str, options: &[&str]) -> PathBuf {
        let out = self.cluster.path(out);
        self.litestream.restore_file(&self.cluster.path("near").join(self.key()), &out, options).success();
        out
    }

    fn stock_s3(&self, out: &str, options: &[&str]) -> PathBuf {
        let out = self.cluster.path(out);
        let prefix = format!("{}/{}", self.prefix, self.key());
        self.litestream.restore_s3(&self.server, BUCKET, &prefix, &out, options).success();
        out
    }

    /// A time right after the newest file of both destinations, which a later file follows: what `-timestamp` may ask.
    fn a_restorable_moment(&self, txid: u64) -> String {
        self.cluster.await_everywhere("node", self.name, txid);
        let files = self.cluster.client().files("node", self.name, "").expect("files").files;
        let newest = files.iter().map(|file| file.timestamp_ms).max().expect("files");
        // Stock litestream wants a time strictly later than the file's, and our own takes the newest at or before it.
        jiff::Timestamp::from_millisecond(newest + 1).expect("a time").to_string()
    }

    /// The image of an earlier moment comes back by stock `-timestamp` and by hubctl `--timestamp`, from each place.
    fn the_moment_gives_back(&self, moment: &str, then: &Image) {
        for (road, out) in [
            ("stock litestream from the folder", self.stock_file("then-near.db", &["-timestamp", moment])),
            ("stock litestream from the bucket", self.stock_s3("then-bucket.db", &["-timestamp", moment])),
            ("hubctl", self.cluster.restore(&self.key(), "then.db", &["--timestamp", moment])),
        ] {
            then.assert_same(&Image::restored(&out), &format!("{moment} by {road}"));
        }
        let target = self.cluster.path("then-agent.db").display().to_string();
        let source = self.database.display().to_string();
        let options = ["restore", &source, "-o", &target, "--timestamp", moment];
        self.cluster.agent_command("node", &options).success();
        then.assert_same(&Image::restored(&self.cluster.path("then-agent.db")), "the agent at that moment");
    }
}

#[test]
fn the_database_of_proj_comes_back_from_everywhere() {
    let Some(mut road) = Road::new("proj.db") else { return };
    let Some(original) = needed(Path::new("/usr/share/proj/proj.db"), "Debian package proj-data") else {
        return;
    };
    std::fs::copy(original, &road.database).expect("copy of proj.db");
    let app = Connection::open(&road.database).expect("proj.db");
    let mode: String = app.pragma_update_and_check(None, "journal_mode", "wal", |r| r.get(0)).expect("wal");
    assert_eq!(mode, "wal");
    road.start();
    road.everything_gives_back_the_source();

    let (then, txid) = road.cluster.await_buffered("node", road.name, &road.database);
    let moment = road.a_restorable_moment(txid);
    // What an application of PROJ's data would do: drop a view, rewrite a table, add an index.
    app.execute_batch(
        "BEGIN; DROP VIEW authority_list; DELETE FROM alias_name; COMMIT;
         CREATE INDEX by_name ON geodetic_crs(name);
         UPDATE extent SET description = upper(description);",
    )
    .expect("changes");
    road.everything_gives_back_the_source();
    road.the_moment_gives_back(&moment, &then);
}

#[test]
fn a_repository_that_fossil_commits_to_comes_back_from_everywhere() {
    let Some(mut road) = Road::new("repo.fossil") else { return };
    let Some(fossil) = needed(Path::new("/usr/bin/fossil"), "Debian package fossil") else { return };
    let mut repository = Repository::create(fossil, &road.cluster.path("work"), &road.database);
    road.start();
    repository.commit(10);
    let (then, txid) = road.cluster.await_buffered("node", road.name, &road.database);
    let moment = road.a_restorable_moment(txid);
    for _ in 0..3 {
        repository.commit(15);
        road.everything_gives_back_the_source();
    }
    road.the_moment_gives_back(&moment, &then);

    // The application itself takes what came back for its own.
    let back = road.cluster.restore(&road.key(), "back.fossil", &[]);
    let said = repository.fossil(&["test-integrity", "-R", &back.display().to_string()]);
    assert!(said.contains("0 errors"), "{said}");
    let timeline = repository.fossil(&["timeline", "-n", "0", "-R", &back.display().to_string()]);
    assert_eq!(timeline.matches("edit number").count(), 55, "{timeline}");
    // Fossil opens a fresh connection for each command: the WAL must have stayed under control all the same.
    eventually("the WAL is bounded", walhub_tests::cluster::PATIENCE, || {
        let wal = std::fs::metadata(format!("{}-wal", road.database.display())).map_or(0, |meta| meta.len());
        ensure(wal < 64 << 20, || format!("the WAL has {wal} bytes"))
    });
}

/// The path if it is there; else as a missing service.
fn needed<'a>(path: &'a Path, what: &str) -> Option<&'a Path> {
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var("WALHUB_TEST_REQUIRE_SERVICES").is_ok_and(|value| value == "1");
    assert!(!required, "{} is required ({what})", path.display());
    eprintln!("skipped: there is no {} ({what})", path.display());
    None
}

/// A Fossil repository and a checkout of it.
struct Repository {
    fossil: PathBuf,
    work: PathBuf,
    commits: u32,
}

impl Repository {
    fn create(fossil: &Path, work: &Path, database: &Path) -> Repository {
        std::fs::create_dir_all(work).expect("checkout");
        let repository = Repository { fossil: fossil.to_path_buf(), work: work.to_path_buf(), commits: 0 };
        let path = database.display().to_string();
        repository.fossil(&["init", &path]);
        Connection::open(database)
            .and_then(|app| app.pragma_update(None, "journal_mode", "wal"))
            .expect("WAL mode");
        repository.fossil(&["open", &path]);
        repository
    }

    fn fossil(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.fossil);
        command.args(arguments).current_dir(&self.work);
        // Fossil keeps a database of its own in the home folder.
        command.env("HOME", &self.work).env("FOSSIL_HOME", &self.work).env("USER", "tester");
        run(command).success()
    }

    /// Commits `count` edits, one after the other.
    fn commit(&mut self, count: u32) {
        for _ in 0..count {
            self.commits += 1;
            let number = self.commits;
            let lines: String =
                (0..400).map(|line| format!("line {} of {number}\n", line * number)).collect();
            std::fs::write(self.work.join("changing.txt"), lines).expect("file");
            std::fs::write(self.work.join(format!("new-{number}.txt")), format!("{number}\n")).expect("file");
            self.fossil(&["addremove"]);
            let comment = format!("edit number {number}");
            self.fossil(&["commit", "-m", &comment, "--no-warnings", "--nosign", "--no-prompt"]);
        }
    }
}
