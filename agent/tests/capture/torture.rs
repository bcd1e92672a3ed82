//! Everything at once, from a seed: writers of many kinds, writers that die at the worst instants, agents that are killed
//! and frozen. At quiet points the replica must be the live database.

use crate::agents::{Agent, hub_log};
use crate::child::{App, Process, live_image};
use crate::hub::{Place, Replica};
use crate::raw;
use rusqlite::Connection;
use std::process::Command;
use std::time::{Duration, Instant};

const PROFILES: &[&str] = &[
    "small",
    "small",
    "tight",
    "checkpoint1",
    "spill",
    "savepoint",
    "rollback",
    "storm",
    "openclose",
    "vacuum",
    "modes",
    "exclusive",
    "reader",
    "die-in-sync",
    "die-torn",
    "fail-in-sync",
];

/// A small generator: every run of one seed does the same.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// The writer's process: runs one profile for a while. Errors (busy, locked, failed syncs) are part of the game.
pub(crate) fn write(db: &Connection, settings: &str) {
    let setting = |name: &str| {
        let found = settings.split(' ').find_map(|s| s.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in {settings}"))
    };
    let mut dice = Dice(setting("seed").parse().unwrap());
    let until = Instant::now() + Duration::from_millis(setting("ms").parse().unwrap());
    let profile = setting("profile");
    let run = |sql: &str| db.execute_batch(sql).is_ok();
    run(&format!("PRAGMA synchronous={}", dice.pick(&["OFF", "NORMAL", "FULL"])));
    run(match profile {
        "checkpoint1" => "PRAGMA wal_autocheckpoint=1",
        "spill" | "savepoint" | "rollback" => "PRAGMA cache_size=12",
        "die-in-sync" | "fail-in-sync" => "PRAGMA synchronous=FULL",
        _ => "PRAGMA wal_autocheckpoint=1000",
    });
    if dice.below(4) == 0 {
        run("PRAGMA journal_size_limit=0");
    }
    let faults_at = Instant::now() + Duration::from_millis(dice.below(300));
    let mut armed = false;
    while Instant::now() < until {
        let n = dice.below(1000);
        match profile {
            "spill" => {
                run("BEGIN IMMEDIATE");
                for _ in 0..3 {
                    run(&format!("UPDATE t SET a = randomblob(400 + {n}) WHERE id % 4 = {}", n % 4));
                }
                run("INSERT INTO t(a) SELECT randomblob(900) FROM t LIMIT 30");
                run("COMMIT");
                run("ROLLBACK");
            }
            "savepoint" => {
                run("BEGIN IMMEDIATE; SAVEPOINT a; UPDATE t SET a = randomblob(800) WHERE id % 3 = 0;");
                run("SAVEPOINT b; DELETE FROM t WHERE id % 7 = 0; ROLLBACK TO b; RELEASE b;");
                run(if n.is_multiple_of(2) { "ROLLBACK TO a; RELEASE a;" } else { "RELEASE a" });
                run("COMMIT");
                run("ROLLBACK");
            }
            "rollback" => {
                run(
                    "BEGIN IMMEDIATE; UPDATE t SET a = randomblob(1500); INSERT INTO t(a) SELECT a FROM t LIMIT 50; ROLLBACK;",
                );
                run("UPDATE t SET a = randomblob(10) WHERE id = (SELECT max(id) FROM t)");
            }
            "storm" => {
                let _ = db.busy_timeout(Duration::from_millis(*dice.pick(&[0, 30, 50, 1000])));
                let mode = dice.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                run(&format!("PRAGMA wal_checkpoint({mode})"));
                run("UPDATE t SET a = randomblob(50) WHERE id = 1");
            }
            "openclose" => {
                let path = db.path().unwrap();
                if let Ok(again) = Connection::open(path) {
                    let _ = again.execute_batch("INSERT INTO t(a) VALUES (randomblob(200))");
                }
            }
            "vacuum" => {
                run("DELETE FROM t WHERE id % 5 = 0");
                run("PRAGMA incremental_vacuum(7)");
                if n < 300 {
                    run("VACUUM");
                }
                run("CREATE TABLE IF NOT EXISTS u AS SELECT * FROM t; DROP TABLE u;");
                std::thread::sleep(Duration::from_millis(10));
            }
            "modes" => {
                let _ = db.busy_timeout(Duration::from_millis(20));
                run("PRAGMA journal_mode=DELETE");
                run("INSERT INTO t(a) VALUES (randomblob(20))");
                run("PRAGMA journal_mode=WAL");
                std::thread::sleep(Duration::from_millis(5));
            }
            "exclusive" => {
                let _ = db.busy_timeout(Duration::from_millis(20));
                run("PRAGMA locking_mode=EXCLUSIVE");
                run("INSERT INTO t(a) VALUES (randomblob(20))");
                run("PRAGMA locking_mode=NORMAL");
                run("SELECT count(*) FROM t");
                std::thread::sleep(Duration::from_millis(5));
            }
            "reader" => {
                run("BEGIN; SELECT count(*) FROM t;");
                std::thread::sleep(Duration::from_millis(dice.below(200)));
                run("COMMIT");
            }
            _ => {
                run(&format!("INSERT INTO t(a) VALUES (randomblob({n}))"));
                run(&format!("DELETE FROM t WHERE id = (SELECT min(id) + {} FROM t)", n % 50));
                if profile == "small" {
                    std::thread::sleep(Duration::from_micros(n));
                }
            }
        }
        if !armed && Instant::now() > faults_at {
            armed = true;
            match profile {
                "die-in-sync" => raw::die_in_wal_sync(db),
                "die-torn" => raw::die_between_headers(db),
                "fail-in-sync" => raw::fail_in_wal_sync(db),
                _ => {}
            }
        }
    }
    run("ROLLBACK");
}

#[derive(Debug, Default)]
struct Tally {
    sessions: u32,
    compares: u32,
    agent_kills: u32,
    agent_freezes: u32,
    writer_deaths: u32,
    transactions: u64,
}

#[test]
fn torture() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("WALHUB_TORTURE_SECONDS").unwrap_or(10);
    let first = number("WALHUB_TORTURE_SEED").unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tally = Tally::default();
    for seed in first.. {
        session(seed, until, &mut tally);
        if Instant::now() >= until {
            break;
        }
    }
    println!("{tally:?}");
    assert!(tally.compares > 0 && tally.transactions > 100, "{tally:?}");
}

/// One database with three rounds of writers.
fn session(seed: u64, until: Instant, tally: &mut Tally) {
    let mut dice = Dice(seed);
    let place = Place::with_frames(*dice.pick(&[50, 300, 1000]));
    let page_size = dice.pick(&[512, 1024, 4096, 8192, 65536]);
    println!("session {seed}: page size {page_size}, checkpoint after {} frames", place.frames);
    let mut app = App::create(
        &place.db(),
        &format!("PRAGMA page_size={page_size}; PRAGMA auto_vacuum={}", dice.below(3)),
    );
    app.insert_many(20);
    app.0.ask("close");
    let mut agent = Agent::start(&place);
    let mut replica = Replica::default();
    for _ in 0..3 {
        agent = round(&place, &mut dice, agent, tally);
        // Quiet: bring the journal mode back if a writer died between two of them.
        let mut app = App::open(&place.db());
        app.sql("PRAGMA journal_mode=WAL");
        agent.sync();
        hub_log(&place).apply_to(&mut replica);
        replica.assert_is_live(&place.db());
        assert_eq!(app.query("PRAGMA integrity_check"), "ok", "the live database, seed {seed}");
        restored_is_sound(&replica, &mut app);
        tally.compares += 1;
        if Instant::now() >= until {
            break;
        }
    }
    tally.transactions += replica.position.unwrap().txid.get();
    tally.sessions += 1;
}

fn round(place: &Place, dice: &mut Dice, mut agent: Agent, tally: &mut Tally) -> Agent {
    let ms = 600 + dice.below(900);
    let profiles: Vec<_> = (0..4).map(|_| *dice.pick(PROFILES)).collect();
    println!("  {profiles:?} for {ms} ms");
    let mut writers: Vec<_> = profiles.iter().map(|profile| writer(place, dice, profile, ms)).collect();
    let end = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20 + dice.below(250)));
        match dice.below(8) {
            0 => {
                agent.0.kill();
                tally.agent_kills += 1;
                std::thread::sleep(Duration::from_millis(*dice.pick(&[0, 50, 300])));
                agent = Agent::start(place);
            }
            1 => {
                signal(&agent.0, "STOP");
                tally.agent_freezes += 1;
                std::thread::sleep(Duration::from_millis(50 + dice.below(300)));
                signal(&agent.0, "CONT");
            }
            2 => {
                let victim = usize::try_from(dice.below(4)).unwrap();
                let profile = profiles[victim];
                std::mem::replace(&mut writers[victim], writer(place, dice, profile, ms / 2)).kill();
                tally.writer_deaths += 1;
            }
            _ => {}
        }
    }
    for mut writer in writers {
        match writer.reply() {
            Some(reply) => drop(reply.unwrap()),
            None => tally.writer_deaths += 1,
        }
    }
    agent
}

fn writer(place: &Place, dice: &mut Dice, profile: &str, ms: u64) -> Process {
    let mut app = App::open(&place.db());
    app.0.tell(&format!("torture seed={} ms={ms} profile={profile}", dice.next()));
    app.0
}

fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The replica as a file: SQLite must find it sound, with as many rows as the live database.
fn restored_is_sound(replica: &Replica, live: &mut App) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restored.db");
    std::fs::write(&path, &replica.image).unwrap();
    let mut restored = App::open(&path);
    assert_eq!(restored.query("PRAGMA integrity_check"), "ok", "the restored database");
    let rows = "SELECT count(*) FROM t";
    assert_eq!(restored.query(rows), live.query(rows));
    assert_eq!(live_image(&path).len(), replica.image.len());
}
