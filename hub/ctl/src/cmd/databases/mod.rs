//! `hubctl databases …`

mod list;

pub(crate) use list::table;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(list::Args),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::List(args) => args.run().await,
        }
    }
}
