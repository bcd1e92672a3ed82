//! `hubctl drills show`: what was found of one database, drill by drill.

use super::report;
use crate::connect::ConnectArgs;
use crate::output;
use std::process::ExitCode;
use walhub_common::{DatabaseKey, DestinationName};

/// Show all recorded drills of a database, newest first for each destination
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON: a list of drills as in `hubctl drills list --json`.

Example:
  hubctl drills show pos-17/app.db
  hubctl drills show pos-17/app.db --destination offsite --json | jq '.[0].verdict'")]
pub(crate) struct Args {
    /// Which database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Only those at this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<DestinationName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let (_, drills) = report::fetch(&hub, Some(&self.database), self.destination.as_ref(), true).await?;
        if self.json { output::json(&drills) } else { output::lines(&report::table(&drills).lines()) }
    }
}
