//! `hubctl jobs pause`, `resume` and `cancel`: one word each to the hub.

use super::report::Summary;
use crate::connect::{self, ConnectArgs};
use crate::output;
use std::process::ExitCode;
use walhub_proto::v1;

#[derive(Debug, clap::Args)]
struct Which {
    /// The job [default: the newest]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Print the job as JSON, as an element of `hubctl jobs list --json`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Which {
    fn say(json: bool, job: v1::Job) -> anyhow::Result<ExitCode> {
        let summary = Summary::from(job);
        if json { output::json(&summary) } else { output::lines(&[summary.line()]) }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl jobs pause
  hubctl jobs pause 20261123-0230-7f3a")]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A job that its stop rule has stopped goes on with the databases that are left; those that have failed stay as they are, and
it stops again when more than --max-failures further ones fail.

Example:
  hubctl jobs resume 20261123-0230-7f3a")]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Databases that are restored already stay restored: each has a restore point of what was there before, which `hubctl jobs
show` names. A node that is changing its database finishes.

Example:
  hubctl jobs cancel 20261123-0230-7f3a")]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    which: Which,
}

impl PauseArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Which { job, json, connect } = self.which;
        let reference = v1::JobReference { id: job.unwrap_or_default() };
        Which::say(json, connect::answer(connect.connect().await?.jobs().pause_job(reference)).await?)
    }
}

impl ResumeArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Which { job, json, connect } = self.which;
        let reference = v1::JobReference { id: job.unwrap_or_default() };
        Which::say(json, connect::answer(connect.connect().await?.jobs().resume_job(reference)).await?)
    }
}

impl CancelArgs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Which { job, json, connect } = self.which;
        let reference = v1::JobReference { id: job.unwrap_or_default() };
        Which::say(json, connect::answer(connect.connect().await?.jobs().cancel_job(reference)).await?)
    }
}
