//! `hubctl agents …`

mod label;
mod list;

pub(crate) use list::table;

use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(list::Args),
    Label(label::Args),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::List(args) => args.run().await,
            Command::Label(args) => args.run().await,
        }
    }
}

/// `ring=1 site=berlin`.
fn words(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}
