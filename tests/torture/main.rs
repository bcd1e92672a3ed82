//! The torture runner: random writers on several engines, deadly faults, the real agent and hub, and a judge.
//!
//! ```text
//! walhub-torture [--seconds N | --minutes N] [--seed N] [--short] [--canary | --calm]
//! walhub-torture --session SEED [--short] [--canary | --calm]
//! ```
//! Plays sessions until the time is over: a new database each, three rounds of four writers, a judgement after each
//! round. `--seed` names the first session's seed (1), the next ones count on. `--short` makes rounds of about a second
//! instead of three to eight. The first failure ends the run with exit code 1 and the command that replays its session:
//! the same choices, though not the same race of processes.
//!
//! `--canary` tortures a follower that trusts the log file, with writers that die inside COMMIT: it must fail, or this
//! runner is blind. `--calm` is the same follower without faults: it must pass.
//!
//! # Judged
//! - At every TXID: the checksum over all pages of a replica built from captured transactions alone is the promised one.
//! - At quiet points: that replica is, byte for byte, what a separate process reads from the live database in one read
//!   transaction; both pass `integrity_check` and have the same rows.
//! - Always: no writer ever finds the live database malformed.
//!
//! A run that met no phantom (a commit frame that never was a commit) has not tested the point and fails; so does one in
//! which a kind of fault never happened, if it was long enough.

mod agent;
mod dice;
mod judge;
mod observer;
mod plan;
mod replica;
mod session;
mod tail;
mod tally;
mod writers;

use plan::{ENGINES, Game, Length, Plan};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::Tally;

/// From here on every kind of fault must have happened; the rare ones from there on.
const LONG_ENOUGH: Duration = Duration::from_secs(40);
const LONG: Duration = Duration::from_secs(600);

struct Arguments {
    seconds: u64,
    seed: u64,
    /// This one alone.
    session: Option<u64>,
    length: Length,
    game: Game,
}

fn usage(why: &str) -> ! {
    eprintln!(
        "{why}\nusage: walhub-torture [--seconds N | --minutes N] [--seed N | --session SEED] [--short] [--canary | --calm]"
    );
    std::process::exit(2);
}

fn arguments(given: &[String]) -> Arguments {
    let mut parsed =
        Arguments { seconds: 60, seed: 1, session: None, length: Length::Long, game: Game::Full };
    let mut given = given.iter();
    while let Some(option) = given.next() {
        let mut number = || match given.next().map(|text| text.parse::<u64>()) {
            Some(Ok(number)) => number,
            _ => usage(&format!("{option} needs a number")),
        };
        match option.as_str() {
            "--seconds" => parsed.seconds = number(),
            "--minutes" => parsed.seconds = 60 * number(),
            "--seed" => parsed.seed = number(),
            "--session" => parsed.session = Some(number()),
            "--short" => parsed.length = Length::Short,
            "--canary" => parsed.game = Game::DeadlyWriters,
            "--calm" => parsed.game = Game::NoFaults,
            other => usage(&format!("unknown option {other}")),
        }
    }
    parsed
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["judge", database, out] => judge::main(Path::new(database), Path::new(out)),
        ["tail", database, folder] => tail::main(Path::new(database), Path::new(folder)),
        _ => return run(&arguments(&given)),
    }
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments) -> ExitCode {
    for engine in ENGINES {
        println!("{engine:?} is SQLite {}", writers::version(engine));
    }
    let tally = Arc::new(Tally::default());
    let begun = Instant::now();
    let until = begun + Duration::from_secs(arguments.seconds);
    let mut failed = None;
    for seed in arguments.session.unwrap_or(arguments.seed).. {
        let plan = Plan::new(seed, arguments.length, arguments.game);
        let until = if arguments.session.is_some() { begun + Duration::from_secs(3600) } else { until };
        // A panic inside keeps the session's folder and shows every log.
        let played = catch_unwind(AssertUnwindSafe(|| session::play(&plan, arguments.game, until, &tally)));
        if played.is_err() {
            failed = Some(seed);
            break;
        }
        if arguments.session.is_some() || Instant::now() >= until {
            break;
        }
    }
    println!("{tally}\nafter {} s, seeds from {}", begun.elapsed().as_secs(), arguments.seed);
    if let Some(seed) = failed {
        let short = if arguments.length == Length::Short { " --short" } else { "" };
        let game = match arguments.game {
            Game::Full => "",
            Game::DeadlyWriters => " --canary",
            Game::NoFaults => " --calm",
        };
        println!("FAILED in session {seed}; again: tests/torture/run --session {seed}{short}{game}");
        return ExitCode::FAILURE;
    }
    match untested(&tally, arguments, begun.elapsed()) {
        Some(missing) => {
            println!("FAILED: {missing}: this run has not tested its point");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// What never happened although it should have.
fn untested(tally: &Tally, arguments: &Arguments, lasted: Duration) -> Option<&'static str> {
    if arguments.session.is_some() || arguments.game == Game::NoFaults || lasted < LONG_ENOUGH {
        return None;
    }
    let all = [
        (&tally.phantoms, "no phantom"),
        (&tally.commit_kills, "no writer died inside a commit"),
        (&tally.sync_errors, "no sync failed"),
        (&tally.torn_headers, "no torn header"),
        (&tally.spilled_kills, "no writer died with spilled pages"),
        (&tally.plain_kills, "no writer was killed"),
        (&tally.agent_kills, "no agent was killed"),
        (&tally.agent_freezes, "no agent was frozen"),
        (&tally.pauses, "no pause"),
        (&tally.writes_refused, "no write met a full disk"),
        (&tally.shrinks, "no truncation"),
    ];
    let wanted = match arguments.game {
        Game::Full if lasted >= LONG => &all[..],
        Game::Full => &all[..9],
        Game::DeadlyWriters | Game::NoFaults => &all[..3],
    };
    wanted.iter().find(|(counter, _)| Tally::get(counter) == 0).map(|(_, missing)| *missing)
}
