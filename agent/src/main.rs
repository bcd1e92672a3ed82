//! `walhub-agent`: a thin shell around the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    walhub_agent::cli::Cli::parse().run()
}
