//! `hubctl snapshots` and what it shares with `hubctl wal`: LTX files of one database, per destination and in the
//! hub's buffer.

use crate::connect::ConnectArgs;
use crate::model::{File, Files};
use crate::output::{self, Table};
use crate::place::Places;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_proto::v1;
use walhub_store::restore::{Inventory, Listing};

/// List what a restore of a database can start from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A snapshot is a file that holds a whole database: it begins with the first transaction.

Example:
  hubctl snapshots pos-17/app.db
  hubctl snapshots pos-17/app.db --source offsite --json
  hubctl snapshots pos-17/app.db --from s3://backups/fleet")]
pub(crate) struct Args {
    #[command(flatten)]
    listing: ListArgs,
}

/// Which files to list.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// The database
    #[arg(value_name = "AGENT/NAME", required_unless_present = "from")]
    database: Option<DatabaseKey>,
    /// Without a hub: read this folder or bucket; without AGENT/NAME it is one database's own, as Litestream writes it
    #[arg(long, value_name = "URL", conflicts_with = "source")]
    from: Vec<String>,
    /// Only from this destination, or from the hub's "buffer"
    #[arg(long, value_name = "DESTINATION")]
    source: Option<String>,
    /// Print JSON: {"database", "files": [{"source", "level", "min_txid", "max_txid", "size", "time"}], "errors": []}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        self.listing.run(|file| file.min_txid == 1).await
    }
}

impl ListArgs {
    /// Prints the files that `keep` chooses. A destination that could not be listed makes the exit code 1.
    pub(crate) async fn run(self, keep: fn(&File) -> bool) -> anyhow::Result<ExitCode> {
        let mut files = match &self.database {
            Some(database) if self.from.is_empty() => self.of_hub(database).await?,
            database => self.of_places(database.as_ref()).await?,
        };
        files.files.retain(keep);
        for error in &files.errors {
            eprintln!("hubctl: cannot list {}", crate::fault::clean(error));
        }
        let complete = files.errors.is_empty();
        match self.json {
            true => output::json(&files)?,
            false => output::lines(&table(&files.files).lines())?,
        };
        Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl ListArgs {
    async fn of_hub(&self, key: &DatabaseKey) -> anyhow::Result<Files> {
        let hub = self.connect.connect().await?;
        let database = v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() };
        let answer = hub.list_files(database, self.source.clone().unwrap_or_default()).await?;
        let files = answer.files.into_iter().map(File::from).collect();
        Ok(Files { database: key.to_string(), files, errors: answer.errors })
    }

    async fn of_places(&self, database: Option<&DatabaseKey>) -> anyhow::Result<Files> {
        let cancel = CancellationToken::new();
        let places = Places::open(&self.from, &cancel).await?;
        let (sources, key) = places.sources(database);
        let inventory = Inventory::list(&sources, &key, &cancel).await;
        let of = |listing: &Listing| {
            let source = listing.source.to_string();
            listing.files.iter().map(|file| File::of_listing(&source, file)).collect::<Vec<_>>()
        };
        let files = inventory.listings.iter().flat_map(of).collect();
        let errors = inventory.unanswered.iter().map(ToString::to_string).collect();
        let database = database.map_or_else(|| places.location(), ToString::to_string);
        Ok(Files { database, files, errors })
    }
}

/// Files for people.
pub(crate) fn table(files: &[File]) -> Table {
    let mut table = Table::new(&["SOURCE", ">LEVEL", ">FIRST TXID", ">LAST TXID", ">SIZE", "TIME"]);
    for file in files {
        table.row([
            file.source.clone(),
            file.level.to_string(),
            file.min_txid.to_string(),
            file.max_txid.to_string(),
            if file.size == 0 { String::new() } else { output::bytes(file.size) },
            file.time.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_with_what_is_known_of_them() {
        let file = |source: &str, min, max, size, ms| {
            let range = Some(v1::TxidRange { min, max });
            File::from(v1::FileInfo { source: source.into(), level: 0, range, size, timestamp_ms: ms })
        };
        let files = [file("disk", 1, 9, 4096, 1_795_354_117_090), file("buffer", 10, 10, 0, 0)];
        assert_eq!(
            table(&files).lines(),
            [
                "SOURCE  LEVEL  FIRST TXID  LAST TXID     SIZE  TIME",
                "disk        0           1          9  4.0 KiB  2026-11-22T13:28:37.09Z",
                "buffer      0          10         10        -  -",
            ]
        );
    }
}
