//! `hubctl jobs watch`: come back to a job and stay until it ends.

use super::follow::{self, Follow};
use crate::connect::ConnectArgs;
use std::process::ExitCode;

/// Watch a job until it ends
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Survives a restart of the hub. Ctrl-C ends the watching alone; the job goes on. The report and the exit code are those of
`hubctl restore --in-place`.

Example:
  hubctl jobs watch
  hubctl jobs watch 20261123-0230-7f3a --json")]
pub(crate) struct Args {
    /// The job [default: the newest]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// Print the report as JSON when it has ended
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let interrupts = follow::Interrupts::catch()?;
        let follow = Follow { connect: &self.connect, json: self.json };
        follow.to_the_end(self.job.unwrap_or_default(), interrupts).await
    }
}
