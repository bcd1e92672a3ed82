//! `walhub-agent restore PATH`: one of this node's own databases, fetched from the hub page by page and proven. It is a process of its
//! own: the running agent goes on, and a file that is followed is never written to.

use super::databases::scan_config;
use super::progress::Bar;
use super::whole::{self, Failed, Wanted};
use super::{ConfigArgs, Failure, output, restore_all};
use crate::config::{Certificates, Config};
use crate::local::client::Client;
use crate::local::protocol::{MAX_WAIT_MS, Request, Restored as InPlace};
use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use walhub_common::restore::{Proof, Report};
use walhub_common::sql::Check;
use walhub_common::{AgentName, DatabaseName, Txid, clock};
use walhub_proto::delta::{self, DeltaError};
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::{DatabaseRef, RestoreRequest};

/// Restore one of this node's databases from the hub
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("point").args(["timestamp", "txid"]),
    after_help = "\
The restored database appears under its name only when it is complete and its checksum equals the one taken at the
source. Without -o it appears at PATH itself; stop the application and the agent first.

With --delta an existing file, older or damaged, is compared page by page, and what differs is fetched into a copy that \
takes its name when it is proven. Without a file everything is fetched.

With --in-place neither stops. The running agent fetches the pages that differ and writes them as one transaction: other
connections see the old state, then the restored one, and go on. What is there before is a restore point of its own
(\"safety_txid\"), so that it can be undone in the same way. The -wal file grows by the pages that differ.

Exit codes: 0 restored, or nothing to do by --if-db-not-exists or --if-replica-exists; 1 failed; 2 wrong usage; 64 bad
configuration; 130 interrupted. A restore of more than 64 MiB that breaks off leaves what it has beside the file
(.walhub-restore.tmp and .journal); the same command goes on from there.

JSON: {\"database\", \"output\", \"txid\", \"checksum\", \"verdict\": \"verified\"|\"unproven\", \"time\", \"page_size\", \"pages\",
\"bytes\", \"files\", \"received_bytes\", \"seconds\", \"mb_per_second\"}, or {\"database\", \"output\", \"skipped\"} when there was
nothing to do. With --in-place: {\"database\", \"txid\", \"checksum\", \"time_ms\", \"new_txid\", \"safety_txid\", \"fetched_bytes\", \
\"waited_ms\"}. With --all a list of such objects, or {\"database\", \"error\"}, or {\"database\", \"left_out\"} for what \
the configuration does not name any more.

Example:
  walhub-agent restore /srv/app.db -o /tmp/app.db
  walhub-agent restore /srv/app.db --if-db-not-exists --if-replica-exists
  walhub-agent restore --all --if-db-not-exists --if-replica-exists
  walhub-agent restore /srv/app.db --timestamp 2026-11-22T13:28:36Z -o before.db
  walhub-agent restore /srv/app.db --delta
  walhub-agent restore /srv/app.db --timestamp 2026-11-22T13:28:36Z --in-place"
)]
pub(super) struct Args {
    /// The database file as the configuration names it, or its name
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    path: Option<PathBuf>,
    /// Every database of this node that the hub knows, each to where the configuration has it
    #[arg(long, conflicts_with_all = ["output", "txid", "in_place"])]
    all: bool,
    /// The file to write [default: PATH]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The newest state at or before this time [default: the newest state]
    #[arg(long, value_name = "RFC3339", value_parser = clock::parse_ms, allow_hyphen_values = true)]
    timestamp: Option<i64>,
    /// Exactly this transaction (decimal, or 16 hex digits)
    #[arg(long, value_name = "TXID", value_parser = parse_txid)]
    txid: Option<Txid>,
    /// Do nothing, successfully, when the file to write exists
    #[arg(long)]
    pub(super) if_db_not_exists: bool,
    /// Do nothing, successfully, when the hub holds nothing of this database
    #[arg(long)]
    pub(super) if_replica_exists: bool,
    /// Replace an existing file
    #[arg(long, conflicts_with = "if_db_not_exists")]
    force: bool,
    /// Make the restored database out of the existing file: only the pages that differ are fetched
    #[arg(long, conflicts_with_all = ["if_db_not_exists", "in_place"])]
    delta: bool,
    /// Bring the live database back through the running agent, as one transaction: applications go on
    #[arg(long, conflicts_with_all = ["output", "force", "if_db_not_exists", "if_replica_exists"])]
    in_place: bool,
    /// With --in-place: an assertion that must hold of the restored database before anything is changed
    #[arg(long = "check", value_name = "SQL = VALUE", requires = "in_place")]
    checks: Vec<Check>,
    /// Print JSON, see below
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

fn parse_txid(text: &str) -> Result<Txid, String> {
    Txid::parse(text)
        .ok_or_else(|| format!("{text:?} is not a TXID; write a number from 1, or 16 hex digits"))
}

/// What came of one database.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    /// It is there, and proven.
    Restored(Restored),
    /// There was nothing to do.
    Skipped(Skipped),
}

#[derive(Debug, Serialize)]
pub(super) struct Restored {
    database: String,
    output: PathBuf,
    txid: u64,
    checksum: String,
    verdict: &'static str,
    time: String,
    page_size: u32,
    pages: u32,
    bytes: u64,
    files: u64,
    received_bytes: u64,
    seconds: f64,
    mb_per_second: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Skipped {
    database: String,
    output: PathBuf,
    skipped: &'static str,
}

impl Skipped {
    /// By `--if-db-not-exists`.
    pub(super) fn existing(name: &DatabaseName, out: &Path) -> Skipped {
        Skipped { database: name.to_string(), output: out.to_owned(), skipped: "the file exists" }
    }
}

impl Outcome {
    /// For people.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        match self {
            Outcome::Restored(restored) => output::lines(&[line(restored)]).map(drop),
            Outcome::Skipped(skipped) => {
                let out = skipped.output.display();
                eprintln!("walhub-agent: nothing restored to {out}: {}", skipped.skipped);
                Ok(())
            }
        }
    }
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if self.in_place {
            return self.in_place();
        }
        let config = self.config.read(Certificates::Check)?;
        let one = match &self.path {
            None => None,
            Some(path) => {
                let name = name_of(&config, path)?;
                let out = self.output.clone().or_else(|| path_of(&config, &name));
                Some((name, out.unwrap_or_else(|| path.clone())))
            }
        };
        if let Some((name, out)) = one.as_ref().filter(|(_, out)| self.if_db_not_exists && out.exists()) {
            return self.told(&Outcome::Skipped(Skipped::existing(name, out)));
        }
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            let interrupted = async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            match one {
                Some((name, out)) => self.told(&self.restore(&config, &name, &out, interrupted).await?),
                None => restore_all::restore(&self, &config, interrupted).await,
            }
        })
    }

    /// Asks the running agent, which alone may write beside applications.
    fn in_place(&self) -> Result<ExitCode, Failure> {
        let config = self.config.read(Certificates::Ignore)?;
        let name = name_of(&config, self.path.as_deref().unwrap_or_else(|| Path::new("")))?;
        let request = Request::Restore {
            database: name.to_string(),
            txid: self.txid.map(Txid::get),
            timestamp_ms: self.timestamp,
            checks: self.checks.iter().map(Check::to_string).collect(),
            timeout_ms: MAX_WAIT_MS,
        };
        let done = Client::connect(&config.state_dir)?.ask::<InPlace>(&request)?;
        if self.json {
            return Ok(output::json(&done)?);
        }
        let what = match (done.new_txid, done.safety_txid) {
            (Some(new), Some(safety)) => {
                format!("is transaction {new} now; what was there before is transaction {safety}")
            }
            _ => "was there already: nothing was changed".to_owned(),
        };
        Ok(output::lines(&[format!(
            "{}: the state of transaction {} of {} {what}; {} fetched, checksum {} verified, {}",
            done.database,
            done.txid,
            clock::format_ms(done.time_ms),
            output::bytes(done.fetched_bytes),
            done.checksum,
            output::millis(done.waited_ms),
        )])?)
    }

    fn told(&self, outcome: &Outcome) -> Result<ExitCode, Failure> {
        if self.json {
            return Ok(output::json(outcome)?);
        }
        outcome.print()?;
        Ok(ExitCode::SUCCESS)
    }

    /// Restores one database to `out`.
    pub(super) async fn restore(
        &self,
        config: &Config,
        name: &DatabaseName,
        out: &Path,
        interrupted: impl Future<Output = ()>,
    ) -> Result<Outcome, Failure> {
        let begun = Instant::now();
        let failure = format!("cannot restore {name} to {}", out.display());
        let identity = config.identity().map_err(anyhow::Error::msg)?;
        let request = self.request(&identity.agent, name);
        let link = async { identity.hub.connect().await.map_err(|e| anyhow!("{e}")) };
        if self.delta && out.exists() {
            let mut bar = Bar::new(name.as_str(), 0);
            let mut before = 0;
            let restored = async {
                let progress = |come: u64, _| {
                    bar.add(usize::try_from(come - before).unwrap_or(usize::MAX));
                    before = come;
                };
                let restored = delta::restore(link.await?, request, out, false, progress).await;
                restored.map_err(|error| anyhow!(delta_reason(&error)))
            };
            let (report, _) = tokio::select! {
                biased;
                () = interrupted => return Err(Failure::Interrupted),
                restored = restored => restored.context(failure)?,
            };
            return Ok(Outcome::Restored(restored_to(name, report, begun.elapsed())));
        }
        let wanted = Wanted { request: &request, out, force: self.force };
        match whole::restore(wanted, link, interrupted).await {
            Ok(report) => Ok(Outcome::Restored(restored_to(name, report, begun.elapsed()))),
            Err(Failed::Interrupted) => Err(Failure::Interrupted),
            Err(Failed::NoReplica(_)) if self.if_replica_exists => {
                let skipped = "the hub holds nothing of this database";
                let (database, output) = (name.to_string(), out.to_owned());
                Ok(Outcome::Skipped(Skipped { database, output, skipped }))
            }
            Err(Failed::Because(error) | Failed::NoReplica(error)) => Err(error.context(failure).into()),
            Err(Failed::Exists(error)) => Err(anyhow!("{failure}: {error} (--force, or -o FILE)").into()),
            Err(Failed::Image(error)) => Err(anyhow!("{failure}: {error}").into()),
        }
    }

    fn request(&self, agent: &AgentName, name: &DatabaseName) -> RestoreRequest {
        RestoreRequest {
            database: Some(DatabaseRef { agent: agent.to_string(), name: name.to_string() }),
            after_txid: 0,
            source: String::new(),
            target: match (self.txid, self.timestamp) {
                (Some(txid), _) => Some(Target::Txid(txid.get())),
                (None, Some(ms)) => Some(Target::TimestampMs(ms)),
                (None, None) => None,
            },
        }
    }
}

/// The name that the configuration gives to a file; also of a file that does not exist any more.
fn name_of(config: &Config, path: &Path) -> anyhow::Result<DatabaseName> {
    let wanted = std::path::absolute(path).context("cannot tell the current folder")?;
    let scan = scan_config(config);
    if let Some(found) = scan.found.values().find(|found| found.path == wanted) {
        return Ok(found.name.clone());
    }
    if let Some(name) = path.to_str().and_then(|text| DatabaseName::new(text).ok())
        && (scan.found.contains_key(&name) || path_of(config, &name).is_some())
    {
        return Ok(name);
    }
    let mut gone = std::fs::read_dir(config.state_dir.join("databases")).into_iter().flatten().flatten();
    let recorded = gone.find_map(|entry| {
        let name = DatabaseName::new(entry.file_name().into_string().ok()?).ok()?;
        (path_of(config, &name).as_ref() == Some(&wanted)).then_some(name)
    });
    match recorded.or_else(|| crate::discover::name_in(&config.sources, &wanted)) {
        Some(name) => Ok(name),
        None => bail!("{} is not in the configuration; see `walhub-agent databases`", wanted.display()),
    }
}

fn path_of(config: &Config, name: &DatabaseName) -> Option<PathBuf> {
    let listed = scan_config(config).found.get(name).map(|found| found.path.clone());
    listed.or_else(|| crate::state_dir::recorded_path(&config.state_dir, name))
}

fn delta_reason(error: &DeltaError) -> String {
    match error {
        DeltaError::Hub(error) => whole::reason(error),
        other => other.to_string(),
    }
}

fn restored_to(name: &DatabaseName, report: Report, took: Duration) -> Restored {
    let seconds = took.as_secs_f64();
    Restored {
        database: name.to_string(),
        output: report.path,
        txid: report.range.max().get(),
        checksum: report.checksum.to_string(),
        verdict: match report.proof {
            Proof::Source => "verified",
            Proof::FilesOnly => "unproven",
        },
        time: clock::format_ms(report.timestamp_ms),
        page_size: report.page_size.get(),
        pages: report.pages,
        bytes: report.bytes,
        files: report.progress.files,
        received_bytes: report.progress.bytes_in,
        seconds,
        mb_per_second: report.bytes as f64 / 1e6 / seconds.max(1e-6),
    }
}

fn line(r: &Restored) -> String {
    format!(
        "{} restored to {}: TXID {} of {}, {} pages, {}, checksum {} {}, {:.2} s, {:.1} MB/s",
        r.database,
        r.output.display(),
        r.txid,
        r.time,
        r.pages,
        output::bytes(r.bytes),
        r.checksum,
        r.verdict,
        r.seconds,
        r.mb_per_second,
    )
}
