//! `hubctl import`: a history that Litestream wrote becomes a database of the hub.

use crate::connect::ConnectArgs;
use crate::fault::sentence;
use crate::output;
use anyhow::anyhow;
use serde::Serialize;
use std::process::ExitCode;
use walhub_common::DatabaseKey;
use walhub_proto::v1;

/// Take over what Litestream 0.5 wrote
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The hub reads the folder or bucket itself: the path is one of its machine, and credentials come from its environment \
(AWS_ACCESS_KEY_ID and its like, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, or what the machine has). Every \
file goes to the destinations that serve the database, under the same transactions. An agent that follows the database \
then sends only what differs. A history with a hole is refused; an import that broke off may be repeated.

Example:
  hubctl import file:///srv/litestream/app.db node-1/app.db
  hubctl import 's3://backups/app.db?region=eu-central-1' node-1/app.db --json
  hubctl import gs://backups/app.db node-1/app.db
  hubctl import abs://account@backups/app.db node-1/app.db")]
pub(crate) struct Args {
    /// file:///PATH, s3://BUCKET/PREFIX?endpoint=URL&region=NAME, gs://BUCKET/PREFIX or abs://ACCOUNT@CONTAINER/PREFIX
    #[arg(value_name = "URL")]
    url: String,
    /// The database it becomes, which the hub must not know
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Print JSON: {"database", "txid", "checksum", "files", "bytes"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Serialize)]
struct Imported {
    database: String,
    txid: u64,
    checksum: String,
    files: u64,
    bytes: u64,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let (agent, name) = (self.database.agent.to_string(), self.database.name.to_string());
        let request = v1::ImportRequest { url: self.url, database: Some(v1::DatabaseRef { agent, name }) };
        let failed = |status: tonic::Status| anyhow!(sentence(&status));
        let mut messages = hub.imports().import(request).await.map_err(failed)?.into_inner();
        while let Some(progress) = messages.message().await.map_err(failed)? {
            let v1::ImportProgress { files, total_files, bytes, position } = progress;
            let Some(position) = position else {
                if files.is_multiple_of(100) {
                    eprintln!("hubctl: {files} of {total_files} files, {}", output::bytes(bytes));
                }
                continue;
            };
            let database = self.database.to_string();
            let checksum = format!("{:016x}", position.checksum);
            if self.json {
                return output::json(&Imported { database, txid: position.txid, checksum, files, bytes });
            }
            let text =
                format!("{database} stands at transaction {}, {files} files were taken", position.txid);
            return output::lines(&[text]);
        }
        Err(anyhow!("the hub broke off; try again"))
    }
}
