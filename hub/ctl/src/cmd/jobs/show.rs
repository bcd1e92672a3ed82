//! `hubctl jobs show`: one job as it is now, with all its databases.

use super::report::Picture;
use crate::connect::ConnectArgs;
use crate::fault::sentence;
use crate::output;
use anyhow::anyhow;
use std::process::ExitCode;
use walhub_proto::v1;

/// Show a job and where each of its databases stands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON: as the report of `hubctl restore --in-place --json`.

Example:
  hubctl jobs show
  hubctl jobs show 20261123-0230-7f3a --json | jq -r '.list[] | select(.state == \"failed\") | .database'")]
pub(crate) struct Args {
    /// The job [default: the newest]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let request = v1::WatchJobRequest { id: self.job.unwrap_or_default(), once: true };
        let failed = |status: tonic::Status| anyhow!(sentence(&status));
        let mut updates = hub.jobs().watch_job(request).await.map_err(failed)?.into_inner();
        let mut picture = Picture::default();
        while let Some(update) = updates.message().await.map_err(failed)? {
            picture.take(update);
        }
        if self.json { output::json(&picture.report()) } else { output::lines(&picture.report().lines()) }
    }
}
