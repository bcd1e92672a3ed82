//! `hubctl destinations list`: where copies go, and how far each destination is.

use crate::cmd::status;
use crate::connect::ConnectArgs;
use crate::model::Status;
use crate::output;
use std::process::ExitCode;

/// List destinations
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl destinations list
  hubctl destinations list --json | jq -r '.[] | select(.healthy | not).last_error'")]
pub(crate) struct Args {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let destinations = Status::from(hub.status("", "").await?).destinations;
        if self.json {
            output::json(&destinations)
        } else {
            output::lines(&status::destinations(&destinations).lines())
        }
    }
}
