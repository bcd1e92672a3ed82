//! `hubctl jobs …`: restores of many databases on their nodes, which the hub carries out whether anybody watches or not.

mod act;
pub(crate) mod follow;
mod list;
pub(crate) mod report;
mod show;
mod watch;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    List(list::Args),
    Show(show::Args),
    Watch(watch::Args),
    /// Give nodes no more orders; those that were given are carried out
    Pause(act::PauseArgs),
    /// Go on after a pause, or after the stop rule: failures so far are forgiven
    Resume(act::ResumeArgs),
    /// Give no more orders, and take back those that have changed nothing yet
    Cancel(act::CancelArgs),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::List(args) => args.run().await,
            Command::Show(args) => args.run().await,
            Command::Watch(args) => args.run().await,
            Command::Pause(args) => args.run().await,
            Command::Resume(args) => args.run().await,
            Command::Cancel(args) => args.run().await,
        }
    }
}
