//! The runner as a test: the product passes, a follower that trusts the log file does not.

use std::process::Command;
use walhub_tests::binaries::program;
use walhub_tests::process::{Output, run};
use walhub_tests::report::report;

/// A run; `WALHUB_TORTURE_SEED` chooses another one than usual.
fn torture(arguments: &[&str]) -> Output {
    let seed = std::env::var("WALHUB_TORTURE_SEED").unwrap_or_else(|_| "1".to_owned());
    let mut command = Command::new(program("walhub-torture"));
    command.args(arguments).args(["--short", "--seed", &seed]).env("RUST_BACKTRACE", "0");
    run(command)
}

#[test]
fn a_minute_of_everything_at_once_loses_and_invents_nothing() {
    let output = torture(&["--seconds", "60"]);
    println!("{}", output.stderr);
    let text = output.success();
    let numbers: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("sessions ")).collect();
    report("torture", &numbers.join("\n"));
}

#[test]
fn a_follower_that_trusts_the_log_file_is_found_out() {
    let found = torture(&["--seconds", "60", "--canary"]);
    assert_eq!(found.code, 1, "the torture is blind:\n{}\n{}", found.stdout, found.stderr);
    assert!(found.stdout.contains("differences 1\n"), "{}\n{}", found.stdout, found.stderr);
    assert!(found.stdout.contains("again: tests/torture/run --session "), "{}", found.stdout);
}

#[test]
fn the_same_follower_is_right_as_long_as_nobody_dies() {
    let passed = torture(&["--seconds", "6", "--calm"]);
    println!("{}", passed.stderr);
    let text = passed.success();
    assert!(text.contains("differences 0\n"), "{text}");
}
