//! The command tree: noun, then verb.

use crate::cmd;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Operate a walhub hub: certificates, status, restore.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
Commands that talk to a hub take its address and your operator certificate from flags, or from WALHUB_HUB, WALHUB_CA, \
WALHUB_CERT, WALHUB_KEY (and WALHUB_SERVER_NAME). Data goes to stdout, talk to stderr; --json gives a stable shape.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The certificate authority
    #[command(subcommand)]
    Ca(cmd::ca::Command),
    /// Certificates of hubs, agents and operators
    #[command(subcommand)]
    Cert(cmd::cert::Command),
    Status(cmd::status::Args),
    /// Nodes
    #[command(subcommand)]
    Agents(cmd::agents::Command),
    /// Databases
    #[command(subcommand)]
    Databases(cmd::databases::Command),
    /// Places that keep copies
    #[command(subcommand)]
    Destinations(cmd::destinations::Command),
    Ls(cmd::ls::Args),
    Snapshots(cmd::snapshots::Args),
    Wal(cmd::wal::Args),
    Reload(cmd::reload::Args),
    Restore(Box<cmd::restore::Args>),
    Query(cmd::query::Args),
    /// Restores of many databases on their nodes
    #[command(subcommand)]
    Jobs(cmd::jobs::Command),
    /// Restores that are tried before they are needed
    #[command(subcommand)]
    Drills(cmd::drills::Command),
    Repair(cmd::drills::RepairArgs),
    Retention(cmd::retention::Args),
    Import(cmd::import::Args),
    /// Databases of which nothing is deleted
    #[command(subcommand)]
    Hold(cmd::hold::Command),
    Completions(cmd::completions::Args),
}

impl Cli {
    /// Runs the command that was given.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Ca(command) => command.run(),
            Command::Cert(command) => command.run(),
            Command::Status(args) => args.run().await,
            Command::Agents(command) => command.run().await,
            Command::Databases(command) => command.run().await,
            Command::Destinations(command) => command.run().await,
            Command::Ls(args) => args.run().await,
            Command::Snapshots(args) => args.run().await,
            Command::Wal(args) => args.run().await,
            Command::Reload(args) => args.run().await,
            Command::Restore(args) => args.run().await,
            Command::Query(args) => args.run().await,
            Command::Jobs(command) => command.run().await,
            Command::Drills(command) => command.run().await,
            Command::Repair(args) => args.run().await,
            Command::Retention(args) => args.run().await,
            Command::Import(args) => args.run().await,
            Command::Hold(command) => command.run().await,
            Command::Completions(args) => args.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_is_sound_and_every_leaf_shows_an_example() {
        let mut root = Cli::command();
        root.build();
        root.clone().debug_assert();
        let mut todo: Vec<_> = root.get_subcommands().cloned().collect();
        while let Some(mut command) = todo.pop() {
            let name = command.get_bin_name().unwrap_or_default().to_owned();
            if command.get_name() == "help" {
                continue;
            }
            if command.has_subcommands() {
                todo.extend(command.get_subcommands().cloned());
                continue;
            }
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("Example:\n  {name}")), "{name}: {help}");
            assert!(help.contains("--json") || name == "hubctl completions", "{name}");
        }
    }
}
