//! An application that is hard to follow: the torture runner's writer, built on several versions of SQLite.
//!
//! ```text
//! walhub-torture-writer DB PROFILE SEED MS     runs one profile for a while
//! walhub-torture-writer DB shell               does what stdin says, line by line (see `shell`)
//! ```
//! The first line on stdout is `sqlite VERSION`. A profile then prints `commits N` (so far), `fault NAME` before it lets
//! itself be killed at one exact instant, and `malformed MESSAGE` if SQLite ever finds the database malformed.
//!
//! Invariants: the same seed makes the same choices, whatever the engine; busy, locked and failed statements are part of
//! the game and never end it.

#[path = "../dice.rs"]
mod dice;
mod faults;
mod profiles;
mod shell;

use std::io::Write;

/// One line to the runner, at once: this process may be killed the next instant.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Without a runner that listens there is nobody to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    say(&format!("sqlite {}", rusqlite::version()));
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [database, "shell"] => shell::serve(database),
        [database, profile, seed, ms] => {
            let number = |text: &str| text.parse::<u64>().expect("a number");
            profiles::run(database, profile, number(seed), number(ms));
        }
        _ => {
            eprintln!("usage: walhub-torture-writer DB (PROFILE SEED MS | shell)");
            std::process::exit(2);
        }
    }
}
