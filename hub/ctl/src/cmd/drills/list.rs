//! `hubctl drills list`: the last drill of every copy.

use super::report::{self, Drill, Outlook};
use crate::connect::ConnectArgs;
use crate::output;
use serde::Serialize;
use std::process::ExitCode;
use walhub_common::DestinationName;

/// List the last drill of every database at each of its destinations
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON: {\"outlook\": {\"every_ms\", \"sample_percent\", \"copies\", \"running\", \"running_since\"}, \"drills\": [{\"database\", \
\"destination\", \"verdict\": \"passed\"|\"repaired\"|\"failed\"|\"undone\"|\"repairing\", \"began\", \"elapsed_ms\", \"txid\", \
\"restore_point\", \"older_points\": [{\"txid\", \"restore_point\"}], \"database_bytes\", \"bytes_read\", \"requests\", \"message\", \"repairs\": []}]}

Example:
  hubctl drills list --failed
  hubctl drills list --json | jq -r '.drills[] | select(.verdict == \"failed\") | .database'")]
pub(crate) struct Args {
    /// Only those at this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<DestinationName>,
    /// Only those that did not pass; the exit code is 1 when there are some
    #[arg(long)]
    failed: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Listed {
    outlook: Outlook,
    drills: Vec<Drill>,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let (outlook, mut drills) = report::fetch(&hub, None, self.destination.as_ref(), false).await?;
        if self.failed {
            drills.retain(|drill| !drill.is_good());
        }
        let some_failed = self.failed && !drills.is_empty();
        if self.json {
            output::json(&Listed { outlook, drills })?;
        } else {
            eprintln!("hubctl: {}", outlook.line());
            output::lines(&report::table(&drills).lines())?;
        }
        Ok(if some_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
