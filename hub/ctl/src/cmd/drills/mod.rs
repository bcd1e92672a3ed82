//! `hubctl drills …`: restores that are tried before they are needed; and `hubctl repair`.

mod list;
mod report;
mod run;
mod show;

pub(crate) use run::RepairArgs;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(list::Args),
    Show(show::Args),
    Run(run::Args),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::List(args) => args.run().await,
            Command::Show(args) => args.run().await,
            Command::Run(args) => args.run().await,
        }
    }
}
