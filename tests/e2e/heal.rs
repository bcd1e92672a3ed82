//! Healing: whatever happened while nobody looked, hub and file agree again after one transaction with the pages that
//! differ, and not one page more. Bytes are counted by the agent, pages by comparing images.

use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Code;
use walhub_proto::v1;
use walhub_tests::certs::Who;
use walhub_tests::client::Client;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::report::report;
use walhub_tests::{Cluster, Image};

const KEY: &str = "node/app.db";
/// What an LTX file has beside its pages: header, index, trailer; and what a page that does not compress costs more.
const FILE_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 64;

/// A hub with two folders, an agent, and an application's database.
struct Scene {
    cluster: Cluster,
    path: PathBuf,
    /// Destinations are flushed to when the hub starts, at the first transaction after that, and then in an hour.
    seldom: bool,
}

/// Where both sides agreed before it happened.
struct Before {
    image: Image,
    txid: u64,
    bytes_sent: u64,
}

impl Scene {
    /// Hub and agent run, and every destination holds the first image.
    fn new(name: &str) -> Scene {
        Scene::with_flushes(name, 100)
    }

    fn with_flushes(name: &str, flush_ms: u64) -> Scene {
        let mut cluster = Cluster::new(name);
        for folder in ["near", "far"] {
            let place = cluster.path(folder);
            cluster.add(Destination::file(folder, &place).every_ms(flush_ms));
        }
        let path = cluster.path("data/app.db");
        let app = open(&path);
        app.execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
             INSERT INTO t(body) SELECT randomblob(1500) FROM n;",
        )
        .unwrap();
        drop(app);
        cluster.agent("node", &[("app.db", &path)]);
        cluster.start_hub();
        cluster.start_agent("node");
        let scene = Scene { cluster, path, seldom: flush_ms > 100 };
        let before = scene.agreed();
        scene.cluster.await_everywhere("node", "app.db", before.txid);
        scene
    }

    /// One transaction for each row.
    fn update(&self, rows: &[u32]) {
        let app = open(&self.path);
        for row in rows {
            app.execute("UPDATE t SET body = randomblob(1500) WHERE id = ?1", [row]).unwrap();
        }
    }

    fn sql(&self, sql: &str) {
        open(&self.path).execute_batch(sql).unwrap();
    }

    fn status(&self) -> Result<Value, String> {
        let status = self.cluster.agent_command("node", &["status", "--json"]).json();
        let database = status["databases"][0].clone();
        ensure(database["state"] == "following", || format!("{database}"))?;
        Ok(database)
    }

    /// Waits until hub and file agree.
    #[track_caller]
    fn agreed(&self) -> Before {
        let (image, txid) = self.cluster.await_buffered("node", "app.db", &self.path);
        let bytes_sent = eventually("the agent follows", PATIENCE, || {
            let status = self.status()?;
            ensure(status["buffered_txid"] == txid, || format!("{status}"))?;
            Ok(status["bytes_sent"].as_u64().expect("a number"))
        });
        Before { image, txid, bytes_sent }
    }

    /// Waits until hub and file agree again, and judges what that took: `segments` transactions since `before` in one
    /// segment, of the pages that differ. `restarted`: the agent counts from 0 again.
    #[track_caller]
    fn healed(&mut self, what: &str, before: &Before, transactions: u64, restarted: bool) -> Image {
        let after = self.agreed();
        assert_eq!(after.txid, before.txid + transactions, "{what}: transactions");
        let status = self.status().unwrap();
        let pages = status["heal"]["pages_changed"].as_u64().unwrap_or_else(|| panic!("{what}: {status}"));
        let bytes = status["heal"]["bytes_sent"].as_u64().expect("a number");
        let differing = before.image.differing(&after.image);
        let gone = before.image.pages().saturating_sub(after.image.pages());
        let differing = (differing.len() - gone.min(differing.len())) as u64;
        assert_eq!(pages, differing, "{what}: pages sent");
        let page_size = (after.image.len() / after.image.pages()) as u64;
        let bound = pages * (page_size + PAGE_BYTES) + FILE_BYTES;
        assert!(bytes <= bound, "{what}: {bytes} bytes for {pages} pages");
        let sent = after.bytes_sent - if restarted { 0 } else { before.bytes_sent };
        assert_eq!(sent, bytes, "{what}: nothing else was sent");
        let total = after.image.pages();
        report(
            &format!("heal: {what}"),
            &format!("{pages} of {total} pages differ, {bytes} bytes sent, bound {bound}\n"),
        );
        self.judge(what, &after);
        after.image
    }

    /// Every copy is the live image.
    #[track_caller]
    fn judge(&mut self, what: &str, after: &Before) {
        if self.seldom {
            self.cluster.stop_hub();
            self.cluster.start_hub();
        }
        self.cluster.await_everywhere("node", "app.db", after.txid);
        let out = what.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let any = self.cluster.restore(KEY, &format!("any-{out}"), &[]);
        after.image.assert_same(&Image::restored(&any), what);
        for source in ["near", "far"] {
            let copy = self.cluster.restore(KEY, &format!("{source}-{out}"), &["--source", source]);
            after.image.assert_same(&Image::restored(&copy), &format!("{what}, from {source}"));
        }
        if let Some(litestream) = Litestream::find() {
            let stock = self.cluster.path(format!("stock-{out}"));
            litestream.restore_file(&self.cluster.path("near").join(KEY), &stock, &[]).success();
            after.image.assert_same(&Image::restored(&stock), &format!("{what}, by stock litestream"));
        }
    }

    /// Everything is flushed; what comes now is not.
    fn flushed(&self) -> Before {
        self.update(&[600]);
        let agreed = self.agreed();
        self.cluster.await_everywhere("node", "app.db", agreed.txid);
        agreed
    }

    /// Another file takes the place of the database, while the agent follows it.
    fn replace(&self, with: &Path) {
        let beside = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        for suffix in ["-wal", "-shm"] {
            let _ = fs::rename(beside(suffix), self.cluster.path(format!("old{suffix}")));
        }
        fs::rename(with, &self.path).unwrap();
    }
}

fn open(path: &Path) -> Connection {
    let app = Connection::open(path).unwrap();
    app.busy_timeout(PATIENCE).unwrap();
    app.pragma_update(None, "journal_mode", "wal").unwrap();
    app.pragma_update(None, "synchronous", "normal").unwrap();
    app
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

#[test]
fn an_agent_that_was_away_while_the_log_was_recycled_sends_what_differs() {
    let mut scene = Scene::new("heal-away");
    scene.update(&[5]);
    let before = scene.agreed();
    scene.cluster.stop_agent("node");
    scene.update(&[7, 8, 300]);
    scene.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    scene.update(&[7]);
    scene.cluster.start_agent("node");
    scene.healed("agent away, log recycled", &before, 1, true);
    // The same after a journal mode that the agent cannot follow.
    let before = scene.agreed();
    scene.cluster.stop_agent("node");
    scene.sql("PRAGMA journal_mode=DELETE; UPDATE t SET body = x'00' WHERE id IN (20, 590); PRAGMA journal_mode=WAL;");
    scene.cluster.start_agent("node");
    scene.healed("journal mode away and back", &before, 1, true);
}

#[test]
fn a_file_that_was_replaced_is_compared_page_by_page() {
    let mut scene = Scene::new("heal-replaced");
    let old = scene.cluster.path("old.db");
    fs::write(&old, &*walhub_tests::oracle::observer(&scene.path).serialize("main").unwrap()).unwrap();
    scene.update(&[1, 2, 3, 400]);
    let before = scene.agreed();
    scene.replace(&old);
    scene.healed("an old copy brought back", &before, 1, false);
    // And vacuumed into another file that takes its place.
    scene.update(&[50]);
    scene.sql("DELETE FROM t WHERE id > 500");
    let before = scene.agreed();
    let new = scene.cluster.path("new.db");
    scene.sql(&format!("VACUUM INTO '{}'", new.display()));
    drop(open(&new));
    scene.replace(&new);
    scene.healed("VACUUM INTO and rename", &before, 1, false);
    scene.cluster.agent_process("node").assert_running();
}

#[test]
fn another_page_size_is_one_new_image_that_every_copy_restores() {
    another_page_size(Scene::new("heal-page-size"));
}

#[test]
fn another_page_size_in_the_middle_of_a_flush_is_a_file_of_its_own() {
    another_page_size(Scene::with_flushes("heal-page-size-flush", 3_600_000));
}

fn another_page_size(mut scene: Scene) {
    scene.update(&[5]);
    let before = scene.agreed();
    scene.cluster.stop_agent("node");
    scene.sql("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL;");
    scene.cluster.start_agent("node");
    let after = scene.agreed();
    assert_eq!(after.txid, before.txid + 1);
    let heal = scene.status().unwrap()["heal"].clone();
    assert_eq!(heal["pages_changed"], after.image.pages(), "every page differs");
    if !scene.seldom {
        scene.judge("another page size", &after);
    }
    // The history goes on, and goes back.
    scene.update(&[6, 7]);
    let after = scene.agreed();
    assert_eq!(after.txid, before.txid + 3);
    scene.judge("after another page size", &after);
    for source in ["buffer", "near"] {
        let asked = ["--txid", &before.txid.to_string(), "--source", source];
        let past = scene.cluster.restore(KEY, &format!("past-{source}"), &asked);
        before.image.assert_same(&Image::restored(&past), "the state before the page size changed");
    }
}

#[test]
fn an_agent_that_lost_its_state_asks_for_checksums_and_sends_what_differs() {
    let mut scene = Scene::new("heal-state");
    scene.update(&[5, 6]);
    let before = scene.agreed();
    scene.cluster.stop_agent("node");
    fs::remove_dir_all(scene.cluster.path("node-state")).unwrap();
    scene.update(&[9, 10, 500]);
    scene.cluster.start_agent("node");
    scene.healed("state folder lost", &before, 1, true);
    // Checksums are given to whom the database belongs, and to operators.
    let stranger = scene.cluster.authority().issue(Who::Agent("stranger"));
    let own = scene.cluster.authority().issue(Who::Agent("node"));
    let (txid, checksum) = scene.cluster.buffered("node", "app.db").unwrap();
    for (files, code) in [(stranger, Some(Code::PermissionDenied)), (own, None)] {
        let client = Client::new(&scene.cluster.address(), &files);
        let request = v1::PageChecksumsRequest {
            database: Some(v1::DatabaseRef { agent: "node".into(), name: "app.db".into() }),
            after_txid: 0,
            until: Some(v1::Position { txid, checksum }),
            staged: false,
        };
        let mut service = client.restore();
        let answer = client.block_on(async { service.page_checksums(request).await });
        assert_eq!(answer.err().map(|status| status.code()), code);
    }
}

/// Segments in the hub's buffer that begin after `txid`.
fn buffered_after(scene: &Scene, txid: u64) -> Vec<(u64, u64)> {
    let files = scene.cluster.client().files("node", "app.db", "buffer").expect("files").files;
    let ranges = files.iter().filter_map(|file| file.range).map(|range| (range.min, range.max));
    ranges.filter(|(min, _)| *min > txid).collect()
}

#[test]
fn a_hub_that_lost_its_disk_goes_on_where_its_copies_end() {
    let mut scene = Scene::with_flushes("heal-hub-lost", 3_600_000);
    let before = scene.agreed();
    let lineage = scene.cluster.database("node", "app.db").unwrap().lineage;
    scene.update(&[1, 2, 3, 2, 1]);
    let agreed = scene.agreed();
    assert_eq!(agreed.txid, before.txid + 5);
    scene.cluster.kill_hub();
    fs::remove_dir_all(scene.cluster.path("hub-data")).unwrap();
    scene.cluster.start_hub();
    let before = Before { bytes_sent: agreed.bytes_sent, ..before };
    scene.healed("hub lost its disk", &before, 5, false);
    assert_eq!(scene.cluster.database("node", "app.db").unwrap().lineage, lineage, "one history");
    assert_eq!(buffered_after(&scene, before.txid), [(before.txid + 1, before.txid + 5)], "in one segment");
    // Both disks at once: what the copies hold is all there is, and the file.
    let before = scene.agreed();
    scene.cluster.stop_agent("node");
    scene.cluster.kill_hub();
    fs::remove_dir_all(scene.cluster.path("hub-data")).unwrap();
    fs::remove_dir_all(scene.cluster.path("node-state")).unwrap();
    scene.update(&[77]);
    scene.cluster.start_hub();
    scene.cluster.start_agent("node");
    scene.healed("hub and agent lost their disks", &before, 1, true);
    assert_eq!(scene.cluster.database("node", "app.db").unwrap().lineage, lineage, "still one history");
}

#[test]
fn a_hub_that_came_back_with_an_old_disk_gets_one_delta() {
    let mut scene = Scene::with_flushes("heal-hub-old", 3_600_000);
    let image = scene.cluster.path("image");
    let before = scene.agreed();
    // As a snapshot of a volume would have it.
    copy_folder(&scene.cluster.path("hub-data"), &image);
    let bring_back = |scene: &mut Scene| {
        scene.cluster.kill_hub();
        fs::remove_dir_all(scene.cluster.path("hub-data")).unwrap();
        copy_folder(&image, &scene.cluster.path("hub-data"));
        scene.cluster.start_hub();
    };
    scene.update(&[3, 4, 3]);
    let agreed = scene.agreed();
    bring_back(&mut scene);
    let before = Before { bytes_sent: agreed.bytes_sent, ..before };
    scene.healed("hub behind", &before, 3, false);
    assert_eq!(buffered_after(&scene, before.txid), [(before.txid + 1, before.txid + 3)]);
    // And again, when its copies hold more than the old disk, and less than the agent.
    let before = scene.flushed();
    scene.update(&[500, 501, 502, 503]);
    let agreed = scene.agreed();
    bring_back(&mut scene);
    let before = Before { bytes_sent: agreed.bytes_sent, ..before };
    scene.healed("hub behind its own copies", &before, 4, false);
    assert_eq!(buffered_after(&scene, before.txid), [(before.txid + 1, before.txid + 4)]);
}
