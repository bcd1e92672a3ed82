//! A fleet whose databases were good at one time and are bad now: what a restore of many databases is for.

use crate::Cluster;
use crate::cluster::PATIENCE;
use crate::eventually::{ensure, eventually};
use crate::oracle::Image;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;
use walhub_common::{Checksum, clock};

/// Bytes of a row's noise.
const ROW: u32 = 3000;

/// One node with one database, `app.db`.
#[derive(Debug)]
pub struct Victim {
    /// Name of the agent.
    pub agent: String,
    /// Its file.
    pub path: PathBuf,
    good: Vec<Checksum>,
    bad: Vec<Checksum>,
}

/// The fleet.
#[derive(Debug)]
pub struct Disaster {
    /// Its nodes, by name.
    pub victims: Vec<Victim>,
    /// A time at which all were good, Unix milliseconds.
    pub good_ms: i64,
}

/// How the fleet is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Rows of each database, of about 3 KB.
    pub rows: u32,
    /// Of a hundred rows, so many are overwritten by the disaster.
    pub hit_percent: u32,
    /// A node whose good state says of itself that it is not well: `SELECT ok FROM health` gives 0 there and 1 elsewhere.
    pub unwell: Option<usize>,
}

impl Disaster {
    /// Makes databases, starts their agents, waits until the good state is at the hub, then lets the disaster happen and
    /// waits until that is at the hub as well.
    #[track_caller]
    pub fn strike(cluster: &mut Cluster, shape: Shape) -> Disaster {
        let width = shape.nodes.to_string().len().max(2);
        let mut victims = Vec::new();
        for n in 0..shape.nodes {
            let agent = format!("n{n:0width$}");
            let path = cluster.path(format!("data/{agent}.db"));
            fill(&path, shape.rows, shape.unwell != Some(n));
            cluster.agent(&agent, &[("app.db", &path)]);
            cluster.start_agent(&agent);
            victims.push(Victim { agent, path, good: Vec::new(), bad: Vec::new() });
        }
        for victim in &mut victims {
            victim.good = at_hub(cluster, victim);
        }
        // The hub stamps what it gets by the same clock.
        let good_ms = clock::now_ms();
        eventually("the clock to move on", PATIENCE, || {
            ensure(clock::now_ms() > good_ms + 5, || "it stands still".to_owned())
        });
        for victim in &mut victims {
            ruin(&victim.path, shape.hit_percent);
        }
        for victim in &mut victims {
            victim.bad = at_hub(cluster, victim);
        }
        Disaster { victims, good_ms }
    }

    /// The time as hubctl takes it.
    pub fn timestamp(&self) -> String {
        clock::format_ms(self.good_ms)
    }
}

impl Victim {
    /// Panics unless the live database is what it was when all was good. SQLite's counters in page 1 are younger.
    #[track_caller]
    pub fn assert_good(&self) {
        let live = Image::live(&self.path).page_checksums();
        assert_eq!(live.len(), self.good.len(), "{}: pages", self.agent);
        let differing = (1..live.len()).filter(|at| live[*at] != self.good[*at]).count();
        assert_eq!(differing, 0, "{}: pages of {} differ from the good state", self.agent, live.len());
        let sound: String = Connection::open(&self.path)
            .and_then(|c| c.query_row("PRAGMA quick_check", [], |r| r.get(0)))
            .expect("check");
        assert_eq!(sound, "ok", "{}", self.agent);
    }

    /// Panics unless the live database is exactly as the disaster left it.
    #[track_caller]
    pub fn assert_bad(&self) {
        assert!(Image::live(&self.path).page_checksums() == self.bad, "{} was touched", self.agent);
    }

    /// Panics unless a restored file is exactly what the disaster left.
    #[track_caller]
    pub fn assert_is_bad_state(&self, restored: &Path) {
        assert!(
            Image::restored(restored).page_checksums() == self.bad,
            "{}: not the state before",
            self.agent
        );
    }
}

#[track_caller]
fn at_hub(cluster: &Cluster, victim: &Victim) -> Vec<Checksum> {
    let image = Image::live(&victim.path);
    let expected = image.checksum().get();
    eventually(&format!("{} is at the hub", victim.agent), Duration::from_secs(300), || {
        let (_, checksum) = cluster.buffered(&victim.agent, "app.db")?;
        ensure(checksum == expected, || {
            format!("the hub has {checksum:016x}, the live image is {expected:016x}")
        })
    });
    image.page_checksums()
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("open a database");
    connection.busy_timeout(PATIENCE).expect("busy timeout");
    connection.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    connection
}

fn fill(path: &Path, rows: u32, well: bool) {
    let connection = open(path);
    connection
        .execute_batch(&format!(
            "BEGIN;
             CREATE TABLE t(id INTEGER PRIMARY KEY, note TEXT, data BLOB);
             CREATE TABLE health(ok INTEGER);
             INSERT INTO health VALUES ({});
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, 'good', randomblob({ROW}) FROM n;
             COMMIT",
            i32::from(well)
        ))
        .expect("fill");
}

/// Rows overwritten, rows deleted, a table that should not be there.
fn ruin(path: &Path, percent: u32) {
    open(path)
        .execute_batch(&format!(
            "BEGIN;
             UPDATE t SET note = 'bad', data = randomblob({ROW}) WHERE id % 100 < {percent};
             DELETE FROM t WHERE id % 50 = 49;
             CREATE TABLE junk(x);
             INSERT INTO junk SELECT randomblob(500) FROM t LIMIT 20;
             COMMIT"
        ))
        .expect("ruin");
}
