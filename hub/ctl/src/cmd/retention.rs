//! `hubctl retention`: what destinations keep and delete, file by file with the reason.

use crate::connect::{ConnectArgs, Hub};
use crate::fault::{clean, sentence};
use crate::model::{Retention, RetentionFile};
use crate::output::{self, Table};
use anyhow::anyhow;
use std::process::ExitCode;
use walhub_common::{DatabaseKey, DestinationName};
use walhub_proto::v1;

/// Show, or do, what the retention of destinations asks for
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("mode").required(true).args(["dry_run", "run"]),
    after_help = "\
The hub does this by itself every `retention-check-interval`. A destination that did not answer, or files that could not \
be deleted (being read, locked), make the exit code 1; they are tried again.

Example:
  hubctl retention --dry-run
  hubctl retention pos-17/app.db --dry-run --all
  hubctl retention --run --destination offsite --json"
)]
pub(crate) struct Args {
    /// Only this database
    #[arg(value_name = "AGENT/NAME")]
    database: Option<DatabaseKey>,
    /// Only this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<DestinationName>,
    /// Delete nothing, show what would go and why
    #[arg(long)]
    dry_run: bool,
    /// Delete what may go
    #[arg(long)]
    run: bool,
    /// Show files that stay as well, and why
    #[arg(long)]
    all: bool,
    /// Print JSON: {"deleted", "files": [{"database", "destination", "level", "min_txid", "max_txid", "size", "time",
    /// "delete", "reason"}], "errors": []}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let retention = self.ask(&hub).await?;
        for error in &retention.errors {
            eprintln!("hubctl: {}", clean(error));
        }
        let (going, deleted) = (retention.files.iter().filter(|file| file.delete).count(), retention.deleted);
        eprintln!("hubctl: {going} files are no longer kept, {deleted} were deleted");
        let complete = retention.errors.is_empty();
        match self.json {
            true => output::json(&retention)?,
            false => output::lines(&table(&retention.files).lines())?,
        };
        Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn ask(&self, hub: &Hub) -> anyhow::Result<Retention> {
        let database = self
            .database
            .as_ref()
            .map(|key| v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() });
        let destination = self.destination.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = v1::RetainRequest { database, destination, run: self.run };
        let failed = |status: tonic::Status| anyhow!(sentence(&status));
        let mut reports = hub.retention().retain(request).await.map_err(failed)?.into_inner();
        let mut found = Retention::default();
        while let Some(report) = reports.message().await.map_err(failed)? {
            found.add(report, self.all);
        }
        Ok(found)
    }
}

fn table(files: &[RetentionFile]) -> Table {
    let headings =
        ["", "DATABASE", "DESTINATION", ">LEVEL", ">FIRST TXID", ">LAST TXID", ">SIZE", "TIME", "WHY"];
    let mut table = Table::new(&headings);
    for file in files {
        table.row([
            if file.delete { "delete" } else { "keep" }.to_owned(),
            file.database.clone(),
            file.destination.clone(),
            file.level.to_string(),
            file.min_txid.to_string(),
            file.max_txid.to_string(),
            output::bytes(file.size),
            file.time.clone().unwrap_or_default(),
            file.reason.clone(),
        ]);
    }
    table
}
