//! `walhub-agent sync`: waits until everything that is committed now is safe.

use super::local::{Which, duration};
use super::{Failure, output};
use crate::database::Level;
use crate::local::protocol::{Request, Synced};
use clap::ValueEnum;
use std::process::ExitCode;
use std::time::Duration;

/// Wait until everything committed before this call is safe off this node
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 when it is safe, 75 when it was not in time (nothing is lost then), 1 when it cannot be.

JSON: {\"database\", \"txid\", \"level\", \"waited_ms\"}; with --all a list of {\"database\", \"ok\", \"result\", \"error\": {\"code\", \
\"message\", \"what_to_do\"}}

Example:
  walhub-agent sync app --wait durable --timeout 1m --config agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// How safe
    #[arg(long, value_enum, default_value_t = Wait::Buffered)]
    wait: Wait,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wait {
    /// On the hub's disk
    Buffered,
    /// In as many destinations as the policy wants
    Durable,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let wait = match self.wait {
            Wait::Buffered => Level::Buffered,
            Wait::Durable => Level::Durable,
        };
        self.which.ask(
            self.timeout,
            |database, timeout_ms| Request::Sync { database, wait, timeout_ms },
            |done: &Synced| {
                let level = match done.level {
                    Level::Buffered => "buffered",
                    Level::Durable => "durable",
                };
                let waited = output::millis(done.waited_ms);
                format!("{}: {level} up to transaction {} after {waited}", done.database, done.txid)
            },
        )
    }
}
