//! `walhub-agent restore PATH`: one of this node's own databases, streamed from the hub and proven. It is a process of its
//! own: the running agent goes on, and a file that is followed is never written to.

use super::databases::scan_config;
use super::progress::Bar;
use super::{ConfigArgs, Failure, output, restore_all};
use crate::config::{Certificates, Config};
use crate::local::client::Client;
use crate::local::protocol::{MAX_WAIT_MS, Request, Restored as InPlace};
use crate::ship::connect::status_reason;
use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Code, Status, Streaming};
use walhub_common::limits::MAX_MESSAGE_BYTES;
use walhub_common::restore::feed::{self, FeedClosed, Feeder};
use walhub_common::restore::{Applier, Proof, Report, RestoreError};
use walhub_common::sql::Check;
use walhub_common::{AgentName, DatabaseName, Txid, clock};
use walhub_proto::convert;
use walhub_proto::delta::{self, DeltaError};
use walhub_proto::pages::PagesError;
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::restore_response::Message;
use walhub_proto::v1::restore_service_client::RestoreServiceClient;
use walhub_proto::v1::{DatabaseRef, RestoreRequest, RestoreResponse};

/// The hub may have to fetch from far away between two messages, but not for longer.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

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
configuration; 130 interrupted.

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

/// Why no more bytes came.
enum Stop {
    /// The applier gave up; it knows why.
    Applier,
    /// The hub has nothing of this database.
    NoReplica(anyhow::Error),
    /// This is why.
    Because(anyhow::Error),
}

impl From<FeedClosed> for Stop {
    fn from(FeedClosed: FeedClosed) -> Stop {
        Stop::Applier
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Stop {
        Stop::Because(error)
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
        if self.delta && out.exists() {
            let request = self.request(&identity.agent, name);
            let mut bar = Bar::new(name.as_str(), 0);
            let mut before = 0;
            let restored = async {
                let channel = identity.hub.connect().await.map_err(|e| anyhow!("{e}"))?;
                let progress = |come: u64, _| {
                    bar.add(usize::try_from(come - before).unwrap_or(usize::MAX));
                    before = come;
                };
                delta::restore(channel, request, out, false, progress)
                    .await
                    .map_err(|e| anyhow!("{}", reason(&e)))
            };
            let (report, plan) = tokio::select! {
                biased;
                () = interrupted => return Err(Failure::Interrupted),
                restored = restored => restored.context(failure)?,
            };
            return Ok(Outcome::Restored(restored_to(name, report, plan.timestamp_ms, begun.elapsed())));
        }
        let (target, force) = (out.to_owned(), self.force);
        let applier = tokio::task::spawn_blocking(move || Applier::new(target, force)).await?;
        let applier = applier.map_err(|e| advised(e, &failure))?;
        let (feeder, files) = feed::channel();
        let reader = tokio::task::spawn_blocking(move || files.restore(applier));
        let request = self.request(&identity.agent, name);
        let mut time_ms = 0;
        let pumped = tokio::select! {
            biased;
            () = interrupted => None,
            pumped = async {
                let channel = identity.hub.connect().await.map_err(|e| anyhow!("{e}"))?;
                let client = RestoreServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                pump(client, request, feeder, &mut time_ms).await
            } => Some(pumped),
        };
        // Also after an interruption: the thread has to take its temporary file away.
        let report = match (pumped, reader.await?) {
            (_, Ok(report)) => report,
            (None, Err(_)) => return Err(Failure::Interrupted),
            (Some(Err(Stop::NoReplica(_))), Err(_)) if self.if_replica_exists => {
                let skipped = "the hub holds nothing of this database";
                let (database, output) = (name.to_string(), out.to_owned());
                return Ok(Outcome::Skipped(Skipped { database, output, skipped }));
            }
            (Some(Err(Stop::Because(error) | Stop::NoReplica(error))), Err(_)) => {
                return Err(error.context(failure).into());
            }
            (Some(Ok(()) | Err(Stop::Applier)), Err(error)) => return Err(advised(error, &failure).into()),
        };
        Ok(Outcome::Restored(restored_to(name, report, time_ms, begun.elapsed())))
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

async fn pump(
    mut client: RestoreServiceClient<tonic::transport::Channel>,
    request: RestoreRequest,
    feeder: Feeder,
    time_ms: &mut i64,
) -> Result<(), Stop> {
    let name = request.database.as_ref().map(|d| d.name.clone()).unwrap_or_default();
    let asked = tokio::time::timeout(STALL_TIMEOUT, client.restore(request)).await;
    let mut stream = asked.map_err(|_| stalled())?.map_err(refused)?.into_inner();
    let Some(Message::Plan(plan)) = next(&mut stream).await? else {
        return Err(odd("it sent no plan").into());
    };
    let (last, expected) = convert::promise_from_wire(&plan).map_err(|e| odd(&e.reason))?;
    *time_ms = plan.timestamp_ms;
    let mut bar = Bar::new(&name, plan.total_bytes);
    let mut reached = 0;
    while let Some(message) = next(&mut stream).await? {
        match message {
            Message::File(file) => {
                let range = file.range.unwrap_or_default();
                reached = range.max;
                let text = format!("file {:016x}-{:016x}.ltx of {}", range.min, range.max, file.source);
                feeder.file(output::clean(&text)).await?;
            }
            Message::Data(data) => {
                bar.add(data.len());
                feeder.data(data).await?;
            }
            Message::Plan(_) => return Err(odd("it sent two plans").into()),
        }
    }
    if reached != last {
        return Err(odd("it sent other files than it had planned").into());
    }
    Ok(feeder.finish(expected).await?)
}

async fn next(stream: &mut Streaming<RestoreResponse>) -> Result<Option<Message>, Stop> {
    match tokio::time::timeout(STALL_TIMEOUT, stream.message()).await {
        Err(_) => Err(stalled().into()),
        Ok(Err(status)) => Err(refused(status)),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(RestoreResponse { message: Some(message) }))) => Ok(Some(message)),
        Ok(Ok(Some(RestoreResponse { message: None }))) => {
            Err(odd("it sent a message of an unknown kind").into())
        }
    }
}

fn refused(status: Status) -> Stop {
    let error = anyhow!(status_reason(&status));
    if status.code() == Code::NotFound { Stop::NoReplica(error) } else { Stop::Because(error) }
}

fn reason(error: &DeltaError) -> String {
    match error {
        DeltaError::Hub(PagesError::Status(status)) => status_reason(status),
        other => other.to_string(),
    }
}

fn stalled() -> anyhow::Error {
    anyhow!("the hub sent nothing for {} s; try again", STALL_TIMEOUT.as_secs())
}

fn odd(what: &str) -> anyhow::Error {
    anyhow!("the hub does not keep to the protocol: {what}; is it of another version?")
}

fn advised(error: RestoreError, failure: &str) -> anyhow::Error {
    let flag = if matches!(error, RestoreError::Exists(_)) { " (--force, or -o FILE)" } else { "" };
    anyhow!("{failure}: {error}{flag}")
}

fn restored_to(name: &DatabaseName, report: Report, time_ms: i64, took: Duration) -> Restored {
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
        time: clock::format_ms(time_ms),
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
