//! `walhub-agent run`: config ▸ build ▸ spawn ▸ signal ▸ shutdown with a deadline.

use super::{ConfigArgs, Failure};
use crate::app::{App, BLOCKING_THREADS};
use crate::config::Certificates;
use crate::watchdog;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use walhub_common::telemetry;

/// How long the databases may take to be let go.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Follow the configured databases until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walhub-agent run --config /etc/walhub/agent.yml")]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Check)?;
        telemetry::init(config.log_format, &config.log_level);
        raise_file_limit();
        watchdog::start(watchdog::Limits::USUAL)?;
        // What may take long is done on the blocking threads. The rest are wake-ups, and handing those from thread to thread
        // costs more than doing them.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build()?;
        let in_time = runtime.block_on(async {
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            let running = App::build(config)?.spawn();
            let signal = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            tracing::info!(signal, "stopping");
            anyhow::Ok(running.shutdown(SHUTDOWN_DEADLINE).await)
        })?;
        // A blocking call that hangs must not keep the process; the kernel drops its locks.
        runtime.shutdown_background();
        if !in_time {
            tracing::warn!(
                "stopped before every database was let go; the next start compares them with the hub"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Three descriptors per database: the system's usual 1,024 are too few for a server of many.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
