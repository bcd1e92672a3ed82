//! The command line: one file per command. Data goes to stdout, talk to stderr.
//!
//! Exit codes: 0 done (or nothing to do), 1 failed, 2 wrong usage, 64 bad configuration, 75 not in time, 130 interrupted.

mod check_config;
mod checkpoint;
mod databases;
mod local;
mod output;
mod pause;
mod progress;
mod restore;
mod restore_all;
mod run;
mod status;
mod sync;
mod whole;

use crate::config::{Certificates, Config};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use walhub_common::config::Faults;

/// Exit code of a bad configuration.
const BAD_CONFIG: u8 = 64;
/// Exit code of a wait that was over too soon; trying again may help.
const NOT_IN_TIME: u8 = 75;

/// Follow SQLite databases and stream their committed transactions to a walhub hub
#[derive(Debug, Parser)]
#[command(
    name = "walhub-agent",
    version,
    after_help = "Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 64 bad configuration, \
                  75 not in time, 130 interrupted."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    CheckConfig(check_config::Args),
    Databases(databases::Args),
    Status(status::Args),
    Sync(sync::Args),
    Checkpoint(checkpoint::Args),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Restore(restore::Args),
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "WALHUB_AGENT_CONFIG",
        default_value = "/etc/walhub/agent.yml",
        global = true
    )]
    config: PathBuf,
}

impl ConfigArgs {
    fn read(&self, certificates: Certificates) -> Result<Config, Failure> {
        Config::read(&self.config, certificates).map_err(Failure::Config)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// Every fault of the configuration.
    Config(Faults),
    /// One sentence.
    Failed(anyhow::Error),
    /// Ctrl-C.
    Interrupted,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(error.into())
    }
}

impl Cli {
    /// Runs the command that was given.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Run(args) => args.run(),
            Command::CheckConfig(args) => args.run(),
            Command::Databases(args) => args.run(),
            Command::Status(args) => args.run(),
            Command::Sync(args) => args.run(),
            Command::Checkpoint(args) => args.run(),
            Command::Pause(args) => args.run(),
            Command::Resume(args) => args.run(),
            Command::Restore(args) => args.run(),
        };
        match done {
            Ok(code) => code,
            Err(Failure::Config(faults)) => {
                eprintln!("{faults}");
                ExitCode::from(BAD_CONFIG)
            }
            Err(Failure::Failed(error)) => {
                if error
                    .downcast_ref()
                    .is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe)
                {
                    return ExitCode::SUCCESS; // the reader of our output (`| head`) has seen enough
                }
                eprintln!("walhub-agent: {}", output::clean(&format!("{error:#}")));
                ExitCode::FAILURE
            }
            Err(Failure::Interrupted) => {
                eprintln!("walhub-agent: interrupted; nothing half-written is left behind");
                ExitCode::from(130)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_sound_and_every_command_shows_an_example() {
        let mut root = Cli::command();
        root.build();
        root.clone().debug_assert();
        for command in root.get_subcommands().filter(|c| c.get_name() != "help") {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains(&format!("Example:\n  {name}")), "{name}: {help}");
        }
    }
}
