//! A node for one test: databases, an application that writes, and the agent in this process.

use crate::certs::{Certificates, issue};
use crate::hub::FakeHub;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use walhub_agent::app::{App, Running};
use walhub_agent::config::{Certificates as Look, Config};
use walhub_agent::database::{DatabaseStatus, State};
use walhub_common::telemetry::LogFormat;
use walhub_common::{Checksum, PageSize, Pgno};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) certificates: Certificates,
    pub(crate) hub: FakeHub,
    lines: String,
}

impl Node {
    /// A node whose agent.yml ends with `lines`; `{dir}` in them stands for its folder.
    pub(crate) fn new(seed: u64, lines: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let certificates = issue(dir.path());
        let hub = FakeHub::new(&certificates, seed);
        let lines = lines.replace("{dir}", dir.path().to_str().unwrap());
        Node { dir, certificates, hub, lines }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> Config {
        let tls = &self.certificates.agent;
        let text = format!(
            "hub: {}\nstate-dir: {}\ntls: {{ca: {}, cert: {}, key: {}}}\n{}\n",
            self.hub.address(),
            self.path("state").display(),
            tls.ca.display(),
            tls.cert.display(),
            tls.key.display(),
            self.lines,
        );
        Config::parse(Path::new("agent.yml"), &text, Look::Check).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts the agent.
    pub(crate) fn start(&self) -> Running {
        // RUST_LOG=walhub_agent=debug shows what it does.
        walhub_common::telemetry::init(LogFormat::Text, "off");
        App::build(self.config()).unwrap().spawn()
    }

    /// A database in WAL mode with one table.
    pub(crate) fn database(&self, name: &str) -> Application {
        Application::open(&self.path(name))
    }

    /// Waits until the hub holds exactly what the file does.
    pub(crate) async fn settled(&self, agent: &Running, name: &str, live: &Application) {
        eventually(&format!("{name} is at the hub"), || {
            let status = try_status(agent, name)?;
            if status.state != State::Following || status.captured_txid != status.buffered_txid {
                return Err(format!("{status:?}"));
            }
            let (at_hub, here) = (self.content_at_hub(name), live.content());
            if at_hub != here {
                return Err(format!("{} rows at the hub, {} here; {status:?}", at_hub.len(), here.len()));
            }
            Ok(())
        })
        .await;
    }

    /// The rows of a restore from the hub.
    pub(crate) fn content_at_hub(&self, name: &str) -> Vec<(i64, Vec<u8>)> {
        if self.hub.history(name).segments.is_empty() {
            return Vec::new();
        }
        let out = self.path(&format!("restored-{name}"));
        self.hub.restore(name, &out);
        let db = Connection::open(&out).unwrap();
        db.pragma_update(None, "journal_mode", "delete").unwrap();
        let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        let rows = content(&db);
        drop(db);
        std::fs::remove_file(out).unwrap();
        rows
    }

    /// After the agent and every writer are gone: the pages of the file are the pages at the hub.
    pub(crate) fn assert_equal_pages(&self, name: &str) {
        // The last connection to close brings the WAL into the file.
        let db = Connection::open(self.path(name)).unwrap();
        db.pragma_update(None, "wal_checkpoint", "truncate").unwrap();
        drop(db);
        let bytes = std::fs::read(self.path(name)).unwrap();
        let size = match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65536,
            size => u32::from(size),
        };
        let pages = bytes.chunks(PageSize::new(size).unwrap().bytes()).enumerate();
        let sum = pages.fold(Checksum::EMPTY, |sum, (at, page)| {
            sum.toggle(Checksum::of_page(Pgno::new(at as u32 + 1).unwrap(), page))
        });
        assert_eq!(Some(sum), self.hub.history(name).position().map(|p| p.checksum), "{name}");
    }
}

/// What the agent says of one database.
pub(crate) fn status(agent: &Running, name: &str) -> DatabaseStatus {
    try_status(agent, name).unwrap()
}

/// Right after the start the folder has not been walked yet.
fn try_status(agent: &Running, name: &str) -> Result<DatabaseStatus, String> {
    let databases = agent.status().databases;
    databases.into_iter().find(|d| d.name == name).ok_or_else(|| format!("{name} is not followed"))
}

/// Waits for a state.
pub(crate) async fn reaches(agent: &Running, name: &str, state: State) -> DatabaseStatus {
    eventually(&format!("{name} is {state:?}"), || {
        let status = try_status(agent, name)?;
        if status.state == state { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    status(agent, name)
}

/// Asks until it holds; panics with the last reason.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        let Err(reason) = holds() else { return };
        assert!(begun.elapsed() < PATIENCE, "never: {what}: {reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An application with one connection.
pub(crate) struct Application {
    pub(crate) db: Connection,
}

impl Application {
    pub(crate) fn open(path: &Path) -> Application {
        let db = Connection::open(path).unwrap();
        db.busy_timeout(Duration::from_secs(20)).unwrap();
        db.pragma_update(None, "journal_mode", "wal").unwrap();
        db.pragma_update(None, "synchronous", "normal").unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB)").unwrap();
        Application { db }
    }

    /// One transaction.
    pub(crate) fn insert(&self, rows: u32, bytes: u32) {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t(body) SELECT randomblob({bytes}) FROM n"
        );
        self.db.execute_batch(&sql).unwrap();
    }

    pub(crate) fn content(&self) -> Vec<(i64, Vec<u8>)> {
        content(&self.db)
    }

    /// Random transactions of many kinds.
    pub(crate) fn churn(&self, rng: &mut StdRng) {
        match rng.random_range(0..12) {
            0 => self.insert(200, 400),
            1 => self.db.execute_batch("DELETE FROM t WHERE id % 3 = 0").unwrap(),
            2 => self.db.execute_batch("UPDATE t SET body = randomblob(300) WHERE id % 5 = 0").unwrap(),
            3 => self.db.execute_batch("BEGIN; DELETE FROM t; ROLLBACK").unwrap(),
            4 if rng.random_bool(0.1) => self.db.execute_batch("VACUUM").unwrap(),
            5 => {
                // Busy while an agent holds the checkpoint lock, a real checkpoint while none does.
                let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            }
            _ => self.insert(rng.random_range(1..4), 50),
        }
    }
}

fn content(db: &Connection) -> Vec<(i64, Vec<u8>)> {
    let mut rows = db.prepare("SELECT id, body FROM t ORDER BY id").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A random generator for one purpose of a seed.
pub(crate) fn rng(seed: u64, purpose: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(purpose))
}
