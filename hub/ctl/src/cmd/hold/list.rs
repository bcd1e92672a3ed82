//! `hubctl hold list`

use crate::connect::{self, ConnectArgs};
use crate::output::{self, Table};
use serde::Serialize;
use std::process::ExitCode;
use walhub_common::clock;
use walhub_proto::v1;

/// List databases on hold
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl hold list --json")]
pub(crate) struct Args {
    /// Print a JSON list: [{"database", "since", "reason"}]
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Hold {
    database: String,
    since: String,
    reason: String,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let answer = connect::answer(hub.retention().list_holds(v1::ListHoldsRequest {})).await?;
        let hold = |hold: v1::Hold| Hold {
            database: hold.database.map(|key| format!("{}/{}", key.agent, key.name)).unwrap_or_default(),
            since: clock::format_ms(hold.since_ms),
            reason: hold.reason,
        };
        let holds: Vec<Hold> = answer.holds.into_iter().map(hold).collect();
        if self.json {
            return output::json(&holds);
        }
        let mut table = Table::new(&["DATABASE", "SINCE", "REASON"]);
        for Hold { database, since, reason } in holds {
            table.row([database, since, reason]);
        }
        output::lines(&table.lines())
    }
}
