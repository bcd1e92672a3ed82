//! `walhub-agent pause` and `walhub-agent resume`: the application gets its checkpoints back for a while.

use super::Failure;
use super::local::{Which, duration, millis};
use crate::local::protocol::{Paused, Request, Resumed};
use std::process::ExitCode;
use std::time::Duration;
use walhub_common::clock;

/// How long beginning or ending a pause may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stop capturing for a while, so that the application can checkpoint by itself
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything committed before is read first. During the pause nothing is captured; what changed is found and sent afterwards. The \
pause ends by itself, and with a restart of the agent. It protects no copy from writers: copy with VACUUM INTO or .backup.

JSON: {\"database\", \"until_ms\"}; with --all a list of {\"database\", \"ok\", \"result\", \"error\": {\"code\", \"message\", \
\"what_to_do\"}}

Example:
  walhub-agent pause app --for 5m --config agent.yml")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    which: Which,
    /// It ends by itself after this time
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "10m")]
    length: Duration,
}

impl PauseArgs {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let for_ms = millis(self.length);
        self.which.ask(
            PATIENCE,
            |database, timeout_ms| Request::Pause { database, for_ms, timeout_ms },
            |done: &Paused| format!("{}: paused until {}", done.database, clock::format_ms(done.until_ms)),
        )
    }
}

/// End a pause before its time
#[derive(Debug, clap::Args)]
#[command(after_help = "\
JSON: {\"database\", \"was_paused\"}; with --all a list of {\"database\", \"ok\", \"result\", \"error\": {\"code\", \"message\", \
\"what_to_do\"}}

Example:
  walhub-agent resume app --config agent.yml")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    which: Which,
}

impl ResumeArgs {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.which.ask(
            PATIENCE,
            |database, timeout_ms| Request::Resume { database, timeout_ms },
            |done: &Resumed| match done.was_paused {
                true => format!("{}: followed again", done.database),
                false => format!("{}: was not paused", done.database),
            },
        )
    }
}
