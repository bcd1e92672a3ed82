//! One session: a new database, three rounds of writers and faults, and a judgement after each.

use crate::agent::{Agent, Subject};
use crate::judge;
use crate::observer::Observer;
use crate::plan::{Game, Plan, Round};
use crate::replica::Replica;
use crate::tail::Tail;
use crate::tally::Tally;
use crate::writers::Slot;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

/// Plays a plan; panics with what was found. The session's folder is kept then.
pub(crate) fn play(plan: &Plan, game: Game, until: Instant, tally: &Arc<Tally>) {
    println!("{plan}");
    let scratch = Scratch::new("session");
    let database = scratch.join("app.db");
    create(&database, plan);
    let mut subject: Box<dyn Subject> = match game {
        Game::Full => Box::new(Agent::new(plan, scratch.path(), &database)),
        Game::DeadlyWriters | Game::NoFaults => Box::new(Tail::new(scratch.path(), &database)),
    };
    subject.start();
    let mut replica = Replica::new();
    for round in &plan.rounds {
        println!("  {round}");
        let played = play_round(round, &database, subject.as_mut(), tally).and_then(|()| {
            judge_quiet(&database, &scratch.join("judge"), subject.as_mut(), &mut replica, tally)
        });
        if let Err(found) = played {
            tally.add(&tally.differences, u64::from(found.starts_with("difference")));
            panic!("{found}");
        }
        tally.add(&tally.compares, 1);
        if Instant::now() >= until {
            break;
        }
    }
    subject.stop();
    tally.add(&tally.pages, replica.pages);
    tally.add(&tally.sessions, 1);
}

/// A database with a table and an index that can be wrong.
fn create(database: &Path, plan: &Plan) {
    let Plan { page_size, auto_vacuum, .. } = plan;
    let app = Connection::open(database).expect("create the database");
    let sql = format!(
        "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode=WAL;
         CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB);
         CREATE INDEX t_by_start ON t(substr(a, 1, 12), length(a));
         INSERT INTO t(a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             SELECT randomblob(abs(random()) % 600) FROM n;"
    );
    app.execute_batch(&sql).expect("fill the database");
}

fn play_round(
    round: &Round,
    database: &Path,
    subject: &mut dyn Subject,
    tally: &Arc<Tally>,
) -> Result<(), String> {
    let end = Instant::now() + Duration::from_millis(round.ms);
    let observer = Observer::start(database, tally);
    let slots: Vec<Slot> =
        round.writers.iter().map(|plan| Slot::start(plan, database, round.ms, tally)).collect();
    for (pause, fault) in &round.faults {
        std::thread::sleep(Duration::from_millis(*pause));
        if Instant::now() >= end {
            break;
        }
        subject.suffer(*fault, tally);
    }
    let ended: Vec<Result<(), String>> = slots.into_iter().map(Slot::finish).collect();
    drop(observer);
    ended.into_iter().collect()
}

/// An error begins with `difference` when captured and live differ.
fn judge_quiet(
    database: &Path,
    scratch: &Path,
    subject: &mut dyn Subject,
    replica: &mut Replica,
    tally: &Tally,
) -> Result<(), String> {
    std::fs::create_dir_all(scratch).expect("folder");
    let live = judge::live(database, scratch)?;
    if live.integrity != "ok" {
        return Err(format!("the live database is malformed: {}", live.integrity));
    }
    subject.catch_up(&live.image, replica, tally)?;
    let pages = replica.differing(&live.image);
    if !pages.is_empty() {
        return Err(format!("difference: same checksum, but pages differ: {pages:?}"));
    }
    let (integrity, rows) = judge::copy(&replica.image, scratch);
    if integrity != "ok" || rows != live.rows {
        return Err(format!("difference: the copy has {rows}, live are {}; {integrity}", live.rows));
    }
    Ok(())
}
