//! `hubctl hold release`

use crate::connect::{self, ConnectArgs};
use crate::output;
use serde::Serialize;
use std::process::ExitCode;
use walhub_common::DatabaseKey;
use walhub_proto::v1;

/// End a hold: retention goes on as the destinations say
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Look at what would go then beforehand: a dry run shows it as soon as the hold has ended, and deletions come with the next
`retention-check-interval`.

Example:
  hubctl hold release pos-17/app.db")]
pub(crate) struct Args {
    /// The database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Print JSON: {"database", "held": false}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Released {
    database: String,
    held: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let request = v1::ReleaseHoldRequest { database: super::reference(&self.database) };
        connect::answer(hub.retention().release_hold(request)).await?;
        let database = self.database.to_string();
        match self.json {
            true => output::json(&Released { database, held: false }),
            false => output::lines(&[format!("{database} is no longer on hold")]),
        }
    }
}
