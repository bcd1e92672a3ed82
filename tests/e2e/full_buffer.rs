//! Destinations are away for so long that the hub's buffer is full: it never passes its bound, nothing acknowledged is
//! lost, the agent gets on, and afterwards every destination holds everything.

use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_proto::v1;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::litestream::Litestream;
use walhub_tests::outage::Outage;
use walhub_tests::report::report;
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image, replica};

const MAX_BYTES: u64 = 32 << 20;
const FOLDERS: [&str; 2] = ["near", "far"];
/// One that grows and rewrites itself, and one that hardly does anything.
const DATABASES: [&str; 2] = ["busy.db", "calm.db"];

struct Story {
    cluster: Cluster,
    paths: Vec<PathBuf>,
    writers: Vec<Writer>,
    most: u64,
}

impl Story {
    /// Both destinations follow.
    fn begin(name: &str, when_full: &str) -> Story {
        let mut cluster = Cluster::new(name);
        for folder in FOLDERS {
            cluster.add_folder(folder);
        }
        cluster.hub_lines(&format!("buffer: {{max-bytes: {MAX_BYTES}, when-full: {when_full}}}\n"));
        let paths: Vec<PathBuf> = DATABASES.iter().map(|name| cluster.path("data").join(name)).collect();
        let named: Vec<(&str, &Path)> =
            DATABASES.into_iter().zip(paths.iter().map(PathBuf::as_path)).collect();
        cluster.agent("node", &named);
        let loads: [&[&str]; 2] =
            [&["--rate", "100", "--sync", "normal", "--churn"], &["--rate", "3", "--sync", "normal"]];
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
        Story { cluster, paths, writers, most: 0 }
    }

    fn status(&mut self) -> Result<v1::StatusResponse, String> {
        let status = self.cluster.client().status().map_err(|status| status.message().to_owned())?;
        let hub = status.hub.clone().unwrap_or_default();
        self.most = self.most.max(hub.buffer_bytes);
        assert!(hub.buffer_bytes <= MAX_BYTES, "{} of {MAX_BYTES} bytes", hub.buffer_bytes);
        Ok(status)
    }

    fn database(&mut self, name: &str) -> Result<v1::DatabaseStatus, String> {
        let databases = self.status()?.databases;
        let is_it = |d: &v1::DatabaseStatus| d.database.as_ref().is_some_and(|key| key.name == name);
        databases.into_iter().find(is_it).ok_or_else(|| format!("no {name}"))
    }

    /// Waits until this many bytes have been buffered; both databases get on all the time.
    fn await_buffered_bytes(&mut self, bytes: u64) {
        loop {
            let before: Vec<u64> = DATABASES.iter().map(|name| self.position(name)).collect();
            eventually("both databases get on", PATIENCE, || {
                let now: Vec<u64> = DATABASES.iter().map(|name| self.position(name)).collect();
                ensure(now.iter().zip(&before).all(|(now, before)| now > before), || format!("{now:?}"))
            });
            let done = self.status().expect("status").hub.unwrap_or_default().segment_bytes;
            if done >= bytes {
                return;
            }
        }
    }

    fn position(&mut self, name: &str) -> u64 {
        let position = self.database(name).expect("status").buffered;
        position.unwrap_or_default().txid
    }

    /// The writers end; everything that was committed is everywhere, and restores.
    fn end(&mut self) {
        for writer in self.writers.drain(..) {
            writer.stop();
        }
        let litestream = Litestream::find();
        for (name, path) in DATABASES.iter().zip(&self.paths) {
            let (live, txid) = self.cluster.await_buffered("node", name, path);
            self.cluster.await_everywhere("node", name, txid);
            let key = format!("node/{name}");
            for source in FOLDERS {
                let out = self.cluster.restore(&key, &format!("{source}-{name}"), &["--source", source]);
                live.assert_same(&Image::restored(&out), &format!("{key} from {source}"));
                let folder = self.cluster.path(source).join(&key);
                assert_eq!(reach(&folder), txid, "{key} in {source}");
                if let Some(litestream) = &litestream {
                    let out = self.cluster.path(format!("stock-{source}-{name}"));
                    litestream.restore_file(&folder, &out, &[]).success();
                    live.assert_same(
                        &Image::restored(&out),
                        &format!("{key} from {source}, by stock litestream"),
                    );
                }
            }
        }
        assert!(self.most <= MAX_BYTES);
    }
}

/// The last transaction of files without a hole. They may overlap: a destination that stood inside of what a full
/// buffer has joined gets it whole.
fn reach(folder: &Path) -> u64 {
    let mut next = 1;
    for file in replica::files_of_every_level(folder).expect("whole files") {
        assert!(file.range.min().get() <= next, "a hole before {:?}", file.range);
        next = next.max(file.range.max().get() + 1);
    }
    next - 1
}

#[test]
fn nobody_takes_anything_and_restore_points_go_but_no_data() {
    let mut story = Story::begin("full-squash", "squash");
    let outages: Vec<Outage> = FOLDERS.iter().map(|folder| Outage::of(&story.cluster.path(folder))).collect();
    story.await_buffered_bytes(4 * MAX_BYTES);
    let busy = story.database("busy.db").expect("status");
    let (first, last) = (busy.given_up_first, busy.given_up_last);
    assert!(busy.given_up_points > 10, "{busy:?}");
    assert!(first > 0 && first < last && last < busy.buffered.unwrap_or_default().txid, "{first} {last}");
    let calm = story.database("calm.db").expect("status");
    // It pays only when the large one can give up no more.
    assert!(calm.given_up_points * 4 < busy.given_up_points, "the small one pays too: {calm:?} {busy:?}");
    drop(outages);
    story.end();

    let told = story.cluster.hubctl(&["databases", "list"]).success();
    assert!(told.contains("restore points of"), "{told}");
    let log = std::fs::read_to_string(story.cluster.path("logs/hub.log")).expect("hub's log");
    assert!(log.contains("restore points were given up, no data"), "the log must name them");
    let out = story.cluster.path("gone.db").display().to_string();
    // The last one: a put that was on its way when the outage began may well have brought the first ones there.
    let gone = ["restore", "node/busy.db", "--txid", &last.to_string(), "-o", &out];
    let refused = story.cluster.hubctl(&gone);
    assert_ne!(refused.code, 0, "{refused:?}");
    let text = format!(
        "{} restore points of transactions {first} to {last} given up; at most {} of {} MiB in use",
        busy.given_up_points,
        story.most >> 20,
        MAX_BYTES >> 20
    );
    report("both destinations away, when-full: squash", &text);
}

#[test]
fn what_one_destination_holds_another_gets_from_there() {
    let mut story = Story::begin("full-sibling", "squash");
    let outage = Outage::of(&story.cluster.path("far"));
    story.await_buffered_bytes(4 * MAX_BYTES);
    for name in DATABASES {
        let database = story.database(name).expect("status");
        assert_eq!(database.given_up_points, 0, "near has them all: {database:?}");
        let far = database.copies.iter().find(|copy| copy.destination == "far").expect("far");
        let oldest = story.cluster.client().files("node", name, "buffer").expect("files").files;
        let oldest = oldest.iter().filter_map(|file| file.range.as_ref()).map(|range| range.min).min();
        if name == "busy.db" {
            assert!(oldest > Some(far.txid + 1), "the buffer still holds {oldest:?}, far is at {}", far.txid);
        }
    }
    drop(outage);
    story.end();
}

#[test]
fn agents_are_held_back_and_nothing_is_given_up() {
    let mut story = Story::begin("full-block", "block");
    let outage = Outage::of(&story.cluster.path("far"));
    eventually("the buffer is full", 2 * PATIENCE, || {
        let refusal = story.database("busy.db")?.last_refusal;
        ensure(refusal.contains("the buffer is full"), || format!("refusal: {refusal:?}"))
    });
    std::thread::sleep(Duration::from_secs(3));
    let far = story.database("busy.db").expect("status");
    assert_eq!(far.given_up_points, 0);
    drop(outage);
    story.end();
}
