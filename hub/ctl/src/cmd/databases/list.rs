//! `hubctl databases list`: positions, copies and policy of every database.

use crate::connect::ConnectArgs;
use crate::model::{CopyState, Database, GivenUp, Status};
use crate::output::{self, Table};
use std::process::ExitCode;

/// List databases with their positions and copies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl databases list --agent pos-17
  hubctl databases list --json | jq -r '.[] | select(.policy_missing).database'")]
pub(crate) struct Args {
    /// Only those of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<walhub_common::AgentName>,
    /// Print a JSON list
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let agent = self.agent.as_ref().map_or("", |name| name.as_str());
        let databases = Status::from(hub.status(agent, "").await?).databases;
        if self.json { output::json(&databases) } else { output::lines(&table(&databases).lines()) }
    }
}

/// Databases for people.
pub(crate) fn table(databases: &[Database]) -> Table {
    let mut table = Table::new(&["DATABASE", ">TXID", "BUFFERED AT", ">DURABLE", "COPIES", "STATE"]);
    for database in databases {
        table.row([
            database.database.clone(),
            database.buffered_txid.to_string(),
            database.buffered_at.clone().unwrap_or_default(),
            database.durable_txid.to_string(),
            database.copies.iter().map(copy).collect::<Vec<_>>().join(", "),
            state(database),
        ]);
    }
    table
}

fn copy(copy: &CopyState) -> String {
    let lag = (copy.lag_ms > 0).then(|| format!("-{}", output::millis(copy.lag_ms)));
    let proven = copy.drill.as_ref().filter(|drill| matches!(drill.verdict.as_str(), "passed" | "repaired"));
    let proven = proven.map(|drill| format!("drilled {} ago", output::millis(drill.age_ms)));
    let more: Vec<String> = lag.into_iter().chain(proven).collect();
    match more.is_empty() {
        true => format!("{} {}", copy.destination, copy.txid),
        false => format!("{} {} ({})", copy.destination, copy.txid, more.join(", ")),
    }
}

fn state(database: &Database) -> String {
    let mut state = copies(database);
    for copy in &database.copies {
        if let Some(drill) = copy.drill.as_ref().filter(|drill| drill.verdict == "failed") {
            let why = drill.message.as_deref().unwrap_or("see `hubctl drills show`");
            state = format!("{state}; drill at {} failed: {why}", copy.destination);
        }
    }
    match &database.given_up {
        Some(GivenUp { restore_points, first_txid, last_txid }) => {
            format!("{state}; {restore_points} restore points of {first_txid}-{last_txid} given up")
        }
        None => state,
    }
}

fn copies(database: &Database) -> String {
    match (&database.last_refusal, &database.policy_missing, database.open) {
        (Some(refusal), _, _) => format!("refused: {refusal}"),
        (None, Some(missing), _) => format!("policy lacks {missing}"),
        (None, None, true) => "ok".into(),
        (None, None, false) => "ok, agent away".into(),
    }
}
