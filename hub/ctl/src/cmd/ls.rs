//! `hubctl ls`: the databases that lie in a folder or bucket, without a hub.

use crate::output::{self, Table};
use crate::place::Places;
use serde::Serialize;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, clock};
use walhub_store::restore::{Inventory, Reach};

/// List the databases in a folder or bucket, without a hub
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The newest restorable transaction is the one that a chain of files leads to; its time is that of its upload where only a \
listing was read. Exit code 1: a database has files that nothing leads to.

Example:
  hubctl ls --from file:///srv/walhub
  hubctl ls --from 's3://backups/fleet?region=eu-central-1' --json")]
pub(crate) struct Args {
    /// Where they lie: file:///PATH, s3://BUCKET/PREFIX, gs://…, abs://…; may be given several times
    #[arg(long, value_name = "URL", required = true)]
    from: Vec<String>,
    /// Print JSON: [{"database", "files", "bytes", "restore_points", "newest_txid", "time", "complete"}]
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Entry {
    database: String,
    files: usize,
    bytes: u64,
    restore_points: usize,
    newest_txid: Option<u64>,
    time: Option<String>,
    /// False when files lie behind a hole.
    complete: bool,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let cancel = CancellationToken::new();
        let places = Places::open(&self.from, &cancel).await?;
        let mut entries = Vec::new();
        for database in places.databases(&cancel).await? {
            entries.push(look(&places, &database, &cancel).await?);
        }
        if self.json {
            output::json(&entries)?;
        } else {
            output::lines(&table(&entries).lines())?;
        }
        let complete = entries.iter().all(|entry| entry.complete);
        Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn look(places: &Places, database: &DatabaseKey, cancel: &CancellationToken) -> anyhow::Result<Entry> {
    let (sources, key) = places.sources(Some(database));
    let Inventory { listings, unanswered } = Inventory::list(&sources, &key, cancel).await;
    if let Some(error) = unanswered.into_iter().next() {
        return Err(error.into());
    }
    let reach = Reach::new(&listings, None);
    let newest = reach.newest();
    let files = listings.iter().flat_map(|listing| &listing.files);
    let time = newest.and_then(|txid| reach.files_ending_at(txid).first().map(|file| file.time_ms));
    Ok(Entry {
        database: database.to_string(),
        files: files.clone().count(),
        bytes: files.map(|file| file.size).sum(),
        restore_points: reach.points().len(),
        newest_txid: newest.map(|txid| txid.get()),
        time: time.map(clock::format_ms),
        complete: reach.hole().is_none(),
    })
}

fn table(entries: &[Entry]) -> Table {
    let mut table =
        Table::new(&["DATABASE", ">FILES", ">SIZE", ">POINTS", ">NEWEST TXID", "TIME", "COMPLETE"]);
    for entry in entries {
        table.row([
            entry.database.clone(),
            entry.files.to_string(),
            output::bytes(entry.bytes),
            entry.restore_points.to_string(),
            entry.newest_txid.map(|txid| txid.to_string()).unwrap_or_default(),
            entry.time.clone().unwrap_or_default(),
            if entry.complete { "yes" } else { "no, a file is missing" }.to_owned(),
        ]);
    }
    table
}
