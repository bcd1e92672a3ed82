//! `walhub-hub`: a thin shell around the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    walhub_hub::cli::Cli::parse().run()
}
