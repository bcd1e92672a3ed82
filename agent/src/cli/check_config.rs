//! `walhub-agent check-config`.

use super::{ConfigArgs, Failure, output};
use crate::config::Certificates;
use std::process::ExitCode;

/// Check a configuration file and print every fault at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walhub-agent check-config --config agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Check)?;
        let identity = config.identity().map_err(anyhow::Error::msg)?;
        let line = format!("{}: good; this node is {}", self.config.config.display(), identity.agent);
        Ok(output::lines(&[line])?)
    }
}
