//! `hubctl`: certificates, status and restores of a walhub hub. A gRPC client like any other; it never imports the hub.
//!
//! - Data goes to stdout (a table, or JSON with `--json`), talk goes to stderr.
//! - Exit codes: 0 done, 1 failed (or done in part), 2 wrong usage, 130 interrupted.
//! - The shapes of `--json` are the structs of [`model`] and of each command; fields are added, never renamed.

mod authority;
mod cli;
mod cmd;
mod connect;
#[cfg(test)]
mod fake_hub;
mod fault;
mod model;
mod output;
mod place;

use clap::Parser;
use std::process::ExitCode;
use walhub_common::telemetry::{self, LogFormat};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    telemetry::init(LogFormat::Text, "warn");
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => return fault::report(&anyhow::Error::new(e).context("cannot start threads")),
    };
    match runtime.block_on(cli.run()) {
        Ok(code) => code,
        Err(error) => fault::report(&error),
    }
}
