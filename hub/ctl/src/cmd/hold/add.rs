//! `hubctl hold add`

use crate::connect::{self, ConnectArgs};
use crate::output;
use serde::Serialize;
use std::process::ExitCode;
use walhub_common::DatabaseKey;
use walhub_proto::v1;

/// From now on delete nothing of a database, at any destination
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Durable when it returns. Copies go on being made; only deletions stop.

Example:
  hubctl hold add pos-17/app.db --reason 'case 2026/117'")]
pub(crate) struct Args {
    /// The database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Why, for those who see it in the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Print JSON: {"database", "held": true}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Held {
    database: String,
    held: bool,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let request = v1::AddHoldRequest { database: super::reference(&self.database), reason: self.reason };
        connect::answer(hub.retention().add_hold(request)).await?;
        let database = self.database.to_string();
        match self.json {
            true => output::json(&Held { database, held: true }),
            false => output::lines(&[format!("{database} is on hold: nothing of it is deleted")]),
        }
    }
}
