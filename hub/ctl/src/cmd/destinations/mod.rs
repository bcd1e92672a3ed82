//! `hubctl destinations …`

mod check;
mod list;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(list::Args),
    Check(check::Args),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::List(args) => args.run().await,
            Command::Check(args) => args.run().await,
        }
    }
}
