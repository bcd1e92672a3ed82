//! What writers do. Each profile is one hostile habit; page sizes, fsync modes and limits are drawn beside it.

use crate::dice::Dice;
use crate::{faults, say};
use rusqlite::{Connection, ErrorCode};
use std::time::{Duration, Instant};

/// Rows the table is kept at.
const ROWS: u64 = 600;
/// Commits between two counts on stdout.
const COUNT_EVERY: u64 = 50;

struct Writer {
    db: Connection,
    path: String,
    dice: Dice,
    commits: u64,
}

/// Runs `profile` for `ms` milliseconds.
pub(crate) fn run(database: &str, profile: &str, seed: u64, ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    let mut dice = Dice::new(seed);
    // Without powersafe overwrite SQLite pads each commit to a sector: the commit frame comes several times.
    let name = if dice.below(6) == 0 { format!("file:{database}?psow=0") } else { database.to_owned() };
    let Ok(db) = Connection::open(&name) else { return };
    let _ = db.busy_timeout(Duration::from_millis(*dice.pick(&[100, 500, 2000])));
    let mut writer = Writer { db, path: database.to_owned(), dice, commits: 0 };
    writer.settle_in(profile);
    let fault_at = Instant::now() + Duration::from_millis(writer.dice.below(400));
    let mut armed = false;
    while Instant::now() < until {
        let n = writer.dice.below(1000);
        writer.turn(profile, n);
        if !armed && Instant::now() > fault_at {
            armed = writer.arm(profile, n);
        }
    }
    writer.run("ROLLBACK");
    say(&format!("commits {}", writer.commits));
}

impl Writer {
    fn settle_in(&mut self, profile: &str) {
        let sync = *self.dice.pick(&["OFF", "NORMAL", "FULL"]);
        self.run(&format!("PRAGMA synchronous={sync}"));
        self.run(match profile {
            "checkpoint-each" => "PRAGMA wal_autocheckpoint=1",
            "checkpoint-never" => "PRAGMA wal_autocheckpoint=0",
            "spill" | "savepoint" | "rollback" | "die-spilled" => "PRAGMA cache_size=12",
            // The only sync of the log is then that of a commit.
            "die-in-sync" | "fail-in-sync" => "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;",
            "killed" => "PRAGMA synchronous=FULL",
            _ => "PRAGMA wal_autocheckpoint=1000",
        });
        if self.dice.below(4) == 0 {
            self.run("PRAGMA journal_size_limit=0");
        }
    }

    /// True when the fault is in place.
    fn arm(&mut self, profile: &str, n: u64) -> bool {
        match profile {
            "die-in-sync" => faults::die_in_wal_sync(&self.db, Duration::from_micros(n * 10)),
            "die-torn" => faults::die_between_headers(&self.db),
            "fail-in-sync" => faults::fail_in_wal_sync(&self.db),
            "die-spilled" => {
                self.run("BEGIN IMMEDIATE");
                if self.run("UPDATE t SET a = randomblob(900)") {
                    say("fault spilled-kill");
                    faults::die();
                }
                self.run("ROLLBACK");
                false
            }
            _ => true,
        }
    }

    fn turn(&mut self, profile: &str, n: u64) {
        match profile {
            "spill" | "die-spilled" => {
                self.run("BEGIN IMMEDIATE");
                for _ in 0..3 {
                    self.run(&format!("UPDATE t SET a = randomblob(400 + {n}) WHERE id % 4 = {}", n % 4));
                }
                self.run("INSERT INTO t(a) SELECT randomblob(900) FROM t LIMIT 30");
                self.trim();
                self.commit();
            }
            "savepoint" => {
                self.run("BEGIN IMMEDIATE; SAVEPOINT a; UPDATE t SET a = randomblob(800) WHERE id % 3 = 0;");
                self.run("SAVEPOINT b; DELETE FROM t WHERE id % 7 = 0; SAVEPOINT c;");
                self.run("INSERT INTO t(a) SELECT a FROM t LIMIT 20; ROLLBACK TO c; RELEASE c;");
                self.run("ROLLBACK TO b; RELEASE b;");
                self.run(if n.is_multiple_of(2) { "ROLLBACK TO a; RELEASE a;" } else { "RELEASE a" });
                self.commit();
            }
            "rollback" => {
                self.run("BEGIN IMMEDIATE; UPDATE t SET a = randomblob(1500);");
                self.run("INSERT INTO t(a) SELECT a FROM t LIMIT 50; ROLLBACK;");
                self.write("UPDATE t SET a = randomblob(10) WHERE id = (SELECT max(id) FROM t)");
            }
            "storm" => {
                let wait = *self.dice.pick(&[0, 30, 50, 1000]);
                let _ = self.db.busy_timeout(Duration::from_millis(wait));
                let mode = *self.dice.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                self.run(&format!("PRAGMA wal_checkpoint({mode})"));
                self.write("UPDATE t SET a = randomblob(50) WHERE id = (SELECT min(id) FROM t)");
            }
            "openclose" => {
                // The own connection is closed first: the new one may be the last to close.
                let path = self.path.clone();
                if let Ok(memory) = Connection::open_in_memory() {
                    drop(std::mem::replace(&mut self.db, memory));
                }
                if let Ok(again) = Connection::open(path) {
                    let _ = again.busy_timeout(Duration::from_millis(200));
                    self.db = again;
                }
                self.write("INSERT INTO t(a) VALUES (randomblob(200))");
                self.trim();
            }
            "vacuum" => {
                self.write("DELETE FROM t WHERE id % 5 = 0");
                self.write("PRAGMA incremental_vacuum(7)");
                if n < 300 {
                    self.write("VACUUM");
                }
                self.write("CREATE TABLE IF NOT EXISTS u AS SELECT * FROM t");
                self.write("DROP TABLE IF EXISTS u");
                self.write("INSERT INTO t(a) SELECT randomblob(500) FROM t LIMIT 60");
                self.trim();
                pause(10);
            }
            "modes" | "pagesize" => {
                let _ = self.db.busy_timeout(Duration::from_millis(20));
                self.run("PRAGMA journal_mode=DELETE");
                if profile == "pagesize" {
                    let size = *self.dice.pick(&[512, 1024, 4096, 8192, 65536]);
                    self.run(&format!("PRAGMA page_size={size}; VACUUM;"));
                }
                self.write("INSERT INTO t(a) VALUES (randomblob(20))");
                self.run("PRAGMA journal_mode=WAL");
                pause(5);
            }
            "exclusive" => {
                let _ = self.db.busy_timeout(Duration::from_millis(20));
                self.run("PRAGMA locking_mode=EXCLUSIVE");
                self.write("INSERT INTO t(a) VALUES (randomblob(20))");
                self.run("PRAGMA locking_mode=NORMAL");
                self.run("SELECT count(*) FROM t");
                pause(5);
            }
            "reader" => {
                self.run("BEGIN; SELECT count(*) FROM t;");
                pause(self.dice.clone().below(400));
                self.run("SELECT sum(length(a)) FROM t; COMMIT;");
            }
            // small, tight, checkpoint-each, checkpoint-never, killed, die-in-sync, die-torn, fail-in-sync
            _ => {
                self.write(&format!("INSERT INTO t(a) VALUES (randomblob({n}))"));
                match n % 3 {
                    0 => self.write(&format!("UPDATE t SET a = randomblob({n}) WHERE id % 50 = {}", n % 50)),
                    1 => {
                        self.write(&format!("DELETE FROM t WHERE id = (SELECT min(id) + {} FROM t)", n % 50))
                    }
                    _ => {}
                }
                if n < 20 {
                    self.trim();
                }
                if profile == "small" {
                    std::thread::sleep(Duration::from_micros(n));
                }
            }
        }
    }

    fn trim(&mut self) {
        self.write(&format!(
            "DELETE FROM t WHERE id <= (SELECT id FROM t ORDER BY id DESC LIMIT 1 OFFSET {ROWS})"
        ));
    }

    /// A statement that commits by itself outside of a transaction.
    fn write(&mut self, sql: &str) {
        if self.run(sql) && self.db.is_autocommit() {
            self.count();
        }
    }

    fn commit(&mut self) {
        if self.run("COMMIT") {
            self.count();
        } else {
            self.run("ROLLBACK");
        }
    }

    fn count(&mut self) {
        self.commits += 1;
        if self.commits.is_multiple_of(COUNT_EVERY) {
            say(&format!("commits {}", self.commits));
        }
    }

    fn run(&mut self, sql: &str) -> bool {
        let Err(error) = self.db.execute_batch(sql) else { return true };
        let broken = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        if error.sqlite_error_code().is_some_and(|code| broken.contains(&code)) {
            say(&format!("malformed {sql}: {error}"));
            std::process::exit(3);
        }
        false
    }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
