//! The command line of the hub. Exit codes: 0 ok, 1 failed, 2 usage, 64 bad configuration.

use crate::api::MAX_CONNECTIONS;
use crate::app::{self, App, write_ready_file};
use crate::config::Config;
use crate::mirror::HubId;
use crate::rebuild;
use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walhub_common::folder_lock::FolderLock;
use walhub_common::telemetry::{self, LogFormat};

const EXIT_CONFIG: u8 = 64;
/// Files of the buffer, of destinations and of restores.
const OTHER_FILES: u64 = 4096;

/// Takes transactions from agents, keeps them safe on its own disk, and copies them to several destinations.
#[derive(Debug, Parser)]
#[command(name = "walhub-hub", version, after_help = "Example: walhub-hub run --config /etc/walhub/hub.yml")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub until SIGTERM or SIGINT; SIGHUP makes it read its configuration again.
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE", env = "WALHUB_HUB_CONFIG")]
        config: PathBuf,
        /// Write the address it listens on into this file once it serves; for scripts that wait for it.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Make a hub whose disk is gone anew, from what its destinations keep of it.
    Rebuild(RebuildArgs),
    /// Check a configuration file and print every fault at once.
    CheckConfig {
        /// Configuration file.
        #[arg(long, value_name = "FILE", env = "WALHUB_HUB_CONFIG")]
        config: PathBuf,
    },
}

/// See [`crate::rebuild`].
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The data folder of the configuration must be empty. Agents bring back what no destination has.

Example:
  walhub-hub rebuild --from s3://my-bucket/fleet?region=eu-central-1 --print-config > hub.yml
  walhub-hub rebuild --from s3-primary --config hub.yml --dry-run
  walhub-hub rebuild --from s3-primary --config hub.yml")]
struct RebuildArgs {
    /// A destination of the lost hub: its name in the configuration, or its address (file:///PATH, s3://BUCKET/PREFIX,
    /// gs://BUCKET/PREFIX, abs://ACCOUNT@CONTAINER/PREFIX)
    #[arg(long, value_name = "URL|NAME")]
    from: String,
    /// Configuration file of the new hub
    #[arg(long, value_name = "FILE", env = "WALHUB_HUB_CONFIG", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Which hub, when several are mirrored there
    #[arg(long, value_name = "ID", value_parser = hub_id)]
    hub: Option<HubId>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "print_config")]
    json: bool,
    /// Only print the lost hub's configuration; secrets are variables in it
    #[arg(long, conflicts_with = "dry_run")]
    print_config: bool,
}

fn hub_id(text: &str) -> Result<HubId, String> {
    HubId::new(text).ok_or_else(|| "not an id of 32 hex digits".to_owned())
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::CheckConfig { config } => match load(&config) {
                Ok(_) => {
                    println!("{}: ok", config.display());
                    ExitCode::SUCCESS
                }
                Err(code) => code,
            },
            Command::Rebuild(arguments) => rebuild_and_tell(arguments),
            Command::Run { config, ready_file } => match load(&config) {
                Ok(config) => run(config, ready_file.as_deref()),
                Err(code) => code,
            },
        }
    }
}

fn load(path: &Path) -> Result<Config, ExitCode> {
    Config::read(path).map_err(|faults| {
        eprintln!("{faults}");
        ExitCode::from(EXIT_CONFIG)
    })
}

/// One descriptor per connection, and some for files: the system's usual 1,024 are too few for a fleet.
fn raise_file_limit() {
    let wanted = MAX_CONNECTIONS as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < possible) {
        let raised = Rlimit { current: Some(possible), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    if possible < wanted {
        tracing::info!(
            limit = possible,
            "open files are limited; a fleet larger than that needs LimitNOFILE raised"
        );
    }
}

fn run(config: Config, ready_file: Option<&Path>) -> ExitCode {
    telemetry::init(config.log_format, &config.log_level);
    raise_file_limit();
    match locked(config, ready_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("walhub-hub: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The data folder is ours until everything that may write into it has ended.
fn locked(config: Config, ready_file: Option<&Path>) -> anyhow::Result<()> {
    let lock = app::lock(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let ended = runtime.block_on(Box::pin(serve(config, lock.clone(), ready_file)));
    // Waits for work on files that nobody awaits any more.
    drop(runtime);
    drop(lock);
    ended
}

/// Nothing is written by halves: who interrupts it repeats it.
fn rebuild_and_tell(arguments: RebuildArgs) -> ExitCode {
    let config = match arguments.config.as_deref().map(load).transpose() {
        Ok(config) => config,
        Err(code) => return code,
    };
    telemetry::init(LogFormat::Text, "error");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(Box::pin(rebuild_by(arguments, config))));
    match ended {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("walhub-hub: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn rebuild_by(arguments: RebuildArgs, config: Option<Config>) -> anyhow::Result<String> {
    let RebuildArgs { from, hub, dry_run, json, print_config, .. } = arguments;
    let cancel = CancellationToken::new();
    let config = match config {
        Some(config) if !print_config => config,
        config => return Ok(rebuild::skeleton(config.as_ref(), &from, hub.as_ref(), &cancel).await?),
    };
    let report = rebuild::rebuild(&config, &rebuild::Order { from, hub, dry_run }, &cancel).await?;
    Ok(match json {
        true => serde_json::to_string_pretty(&report.json())? + "\n",
        false => report.lines(&config.path.display().to_string()).join("\n") + "\n",
    })
}

async fn serve(config: Config, lock: Arc<FolderLock>, ready_file: Option<&Path>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let app = App::build(config, lock).await?;
    // The port accepts from now on; what connects before the first turn of the server waits in its queue.
    eprintln!("walhub-hub: listening on {}", app.address());
    if let Some(path) = ready_file {
        write_ready_file(path, app.address()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (hung_up, hangups) = mpsc::channel(1);
    let forward = async {
        while hangup.recv().await.is_some() {
            // One that waits already will see the newest file.
            let _ = hung_up.try_send(());
        }
        std::future::pending().await
    };
    tokio::select! {
        served = app.serve(asked_to_stop(&mut terminate, &mut interrupt), hangups) => Ok(served?),
        never = forward => never,
    }
}

async fn asked_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
