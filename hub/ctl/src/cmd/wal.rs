//! `hubctl wal`: every LTX file of one database.

use crate::cmd::snapshots::ListArgs;
use std::process::ExitCode;

/// List every LTX file of a database, per destination and in the hub's buffer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl wal pos-17/app.db
  hubctl wal pos-17/app.db --source buffer --json
  hubctl wal --from file:///srv/litestream/app.db")]
pub(crate) struct Args {
    #[command(flatten)]
    listing: ListArgs,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        self.listing.run(|_| true).await
    }
}
