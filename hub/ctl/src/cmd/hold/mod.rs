//! `hubctl hold …`: databases of which nothing is deleted.

mod add;
mod list;
mod release;

use std::process::ExitCode;
use walhub_common::DatabaseKey;
use walhub_proto::v1;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Add(add::Args),
    Release(release::Args),
    List(list::Args),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Add(args) => args.run().await,
            Command::Release(args) => args.run().await,
            Command::List(args) => args.run().await,
        }
    }
}

fn reference(key: &DatabaseKey) -> Option<v1::DatabaseRef> {
    Some(v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() })
}
