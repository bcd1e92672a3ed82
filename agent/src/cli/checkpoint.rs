//! `walhub-agent checkpoint`: the checkpoint that the application cannot do itself while it is followed.

use super::local::{Which, duration};
use super::{Failure, output};
use crate::local::protocol::{Checkpointed, Request};
use std::process::ExitCode;
use std::time::Duration;

/// Bring the WAL of a followed database into its file now
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writers of the application wait for the copying, usually some milliseconds. A reader that is in the WAL is not waited for: then \
\"complete\" is false. To keep the WAL empty for longer, or to checkpoint from the application, use `walhub-agent pause`.

The exit code is 0 when the checkpoint was done as far as readers allowed, 75 when it was not in time, 1 when it could not be.

JSON: {\"database\", \"complete\", \"truncated\", \"held_us\", \"wal_bytes\"}; with --all a list of {\"database\", \"ok\", \"result\", \
\"error\": {\"code\", \"message\", \"what_to_do\"}}

Example:
  walhub-agent checkpoint app --shrink --config agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Also cut the -wal file to nothing
    #[arg(long)]
    shrink: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let shrink = self.shrink;
        self.which.ask(
            self.timeout,
            |database, timeout_ms| Request::Checkpoint { database, shrink, timeout_ms },
            |done: &Checkpointed| {
                let wal = output::bytes(done.wal_bytes);
                let held = format!("writers were kept out for {:.1} ms", done.held_us as f64 / 1000.0);
                match (done.complete, done.truncated) {
                    (_, true) => format!("{}: everything is in the file, the -wal is empty; {held}", done.database),
                    (true, false) if shrink => format!(
                        "{}: everything is in the file; a reader keeps the -wal ({wal}) from being cut; {held}",
                        done.database
                    ),
                    (true, false) => format!("{}: everything is in the file; {held}", done.database),
                    (false, false) => format!(
                        "{}: not everything could be copied, a reader still needs the -wal ({wal}); {held}",
                        done.database
                    ),
                }
            },
        )
    }
}
