//! `hubctl completions`: what a shell needs to complete our commands.

use crate::cli::Cli;
use clap::CommandFactory;
use std::io::Write;
use std::process::ExitCode;

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hubctl completions bash > ~/.local/share/bash-completion/completions/hubctl")]
pub(crate) struct Args {
    /// For which shell
    shell: clap_complete::Shell,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "hubctl", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
