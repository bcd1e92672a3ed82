//! `hubctl agents list`: nodes and whether they are connected.

use crate::connect::ConnectArgs;
use crate::model::{Agent, Status};
use crate::output::{self, Table};
use std::process::ExitCode;

/// List agents
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl agents list
  hubctl agents list --json | jq -r '.[] | select(.connected | not).name'")]
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
        let agents = Status::from(hub.status("", "").await?).agents;
        if self.json { output::json(&agents) } else { output::lines(&table(&agents).lines()) }
    }
}

/// Agents for people.
pub(crate) fn table(agents: &[Agent]) -> Table {
    let mut table = Table::new(&["AGENT", "STATE", ">DATABASES", "LAST SEEN", "FROM", "VERSION", "LABELS"]);
    for agent in agents {
        table.row([
            agent.name.clone(),
            if agent.connected { "connected" } else { "away" }.to_owned(),
            agent.databases.to_string(),
            agent.last_seen.clone().unwrap_or_default(),
            agent.peer.clone().unwrap_or_default(),
            agent.version.clone().unwrap_or_default(),
            super::words(&agent.labels),
        ]);
    }
    table
}
