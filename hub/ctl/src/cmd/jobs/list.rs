//! `hubctl jobs list`: what the hub does and did on nodes.

use super::report::Summary;
use crate::connect::{self, ConnectArgs};
use crate::output::{self, Table};
use std::process::ExitCode;
use walhub_proto::v1;

/// List jobs, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON: [{\"job\", \"state\": \"running\"|\"paused\"|\"stopped\"|\"cancelling\"|\"done\"|\"failed\"|\"cancelled\", \"reason\", \"asked\", \
\"operator\", \"started\", \"ended\", \"wave\", \"waves\", \"databases\", \"restored\", \"failed\", \"running\", \"away\"}]

Example:
  hubctl jobs list
  hubctl jobs list --json | jq -r '.[] | select(.state == \"stopped\").job'")]
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
        let answer = connect::answer(hub.jobs().list_jobs(v1::ListJobsRequest {})).await?;
        let jobs: Vec<Summary> = answer.jobs.into_iter().map(Summary::from).collect();
        if self.json {
            return output::json(&jobs);
        }
        let headings =
            ["JOB", "STATE", "WAVE", ">RESTORED", ">FAILED", ">OF", "TO", "STARTED", "BY", "REASON"];
        let mut table = Table::new(&headings);
        for job in jobs {
            table.row([
                job.job,
                job.state.to_owned(),
                format!("{}/{}", job.wave, job.waves),
                job.restored.to_string(),
                job.failed.to_string(),
                job.databases.to_string(),
                job.asked,
                job.started.unwrap_or_default(),
                job.operator,
                job.reason.unwrap_or_default(),
            ]);
        }
        output::lines(&table.lines())
    }
}
