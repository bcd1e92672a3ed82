//! `hubctl snapshots` and what it shares with `hubctl wal`: LTX files of one database, per destination and in the
//! hub's buffer.

use crate::connect::ConnectArgs;
use crate::model::{File, Files};
use crate::output::{self, Table};
use std::process::ExitCode;
use walhub_common::DatabaseKey;
use walhub_proto::v1;

/// List what a restore of a database can start from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A snapshot is a file that holds a whole database: it begins with the first transaction.

Example:
  hubctl snapshots pos-17/app.db
  hubctl snapshots pos-17/app.db --source offsite --json")]
pub(crate) struct Args {
    #[command(flatten)]
    listing: ListArgs,
}

/// Which files to list.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// The database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
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
        let hub = self.connect.connect().await?;
        let (agent, name) = (self.database.agent.to_string(), self.database.name.to_string());
        let database = v1::DatabaseRef { agent, name };
        let answer = hub.list_files(database, self.source.clone().unwrap_or_default()).await?;
        let files: Vec<File> = answer.files.into_iter().map(File::from).filter(keep).collect();
        let files = Files { database: self.database.to_string(), files, errors: answer.errors };
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
