//! `hubctl restore`: one database, the databases of one agent, or the whole fleet, streamed from the hub and proven.

mod checks;
mod direct;
mod fleet;
pub(crate) mod one;
pub(crate) mod onto;
mod origin;
pub(crate) mod outcome;
pub(crate) mod progress;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use crate::cmd::choice::Choice;
use crate::connect::{ConnectArgs, Hub};
use crate::fault::{Interrupted, Usage};
use crate::model::Plan;
use crate::output;
use direct::DirectArgs;
use one::Job;
use onto::OntoArgs;
use origin::Origin;
use progress::Progress;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::task::TaskGroup;

/// Restore databases and prove that they are what they were at their source
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The restored database appears under its name only when it is complete and its checksum equals the one taken at the \
source. Several databases are restored side by side; one that fails does not stop the others, and the exit code is 1.

With --delta an existing file, older or damaged, is compared page by page, and what differs is fetched into a copy that \
takes its name when it is proven; \"received_bytes\" counts the checksums as well. Without a file everything is fetched.

JSON of one database: {\"database\", \"output\", \"txid\", \"checksum\", \"verdict\", \"time\", \"page_size\", \"pages\", \
\"bytes\", \"files\", \"received_bytes\", \"seconds\", \"mb_per_second\"}. The verdict is \"verified\", or \"unproven\" when \
the files are whole but no walhub wrote them, so that nobody took a checksum at the source.
With --in-place the databases come back on their nodes instead, live, by a job of the hub, wave by wave, all at one point \
in time. Each node proves the result before it changes anything, and leaves a restore point of what was there. Nodes that \
are away get their order when they come back. Ctrl-C leaves the job to the hub; `hubctl jobs watch` comes back to it. Exit \
code 0: every database is at its point.

With --replace they come back by the same kind of job, for databases whose application is stopped: a fresh file is made beside, \
proven, and takes the place of what is there: also of nothing, of a damaged file, or of one with another page size, where \
--in-place refuses. A file that a process other than the agent has open is left alone, and the process named. What was there is \
a restore point (\"safety_txid\"); if it cannot be (damaged, not followed), the file is kept beside as FILE.<order>.walhub-kept \
(\"kept_file\"), for you to delete. The history goes on: the restored state is its next transaction.

With --from no hub is asked, and no certificate needed: folders and buckets are read as they are, also those that \
Litestream wrote. Several addresses stand in for each other. Without AGENT/NAME the address is one database's own, as \
Litestream writes it. Credentials come from the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, \
AZURE_STORAGE_ACCOUNT_KEY, …), from a profile, or from the machine's role.

Exit codes: 0 restored, 1 failed (the message says what), 2 wrong usage, 130 interrupted. Whatever happens, nothing \
half-written has the name of the output. A restore of more than 64 MiB that breaks off leaves what it has beside it \
(.walhub-restore.tmp and .journal); the same command goes on from there.

--dry-run: estimates by list prices (S3: 0.4 US dollars for a million reads, 0.09 for a GB that leaves its region). With \
--in-place they are bounds, for each database and for all, and are told before the question whether to go on as well: \
how many pages of a live database differ is known when its node has compared them.

JSON of several: {\"restored\", \"failed\", \"databases\": [one such object, or {\"database\", \"error\"}]}
JSON with --in-place or --replace: {\"job\", \"state\", \"reason\", \"asked\", \"operator\", \"started\", \"ended\", \"seconds\", \"wave\", \
\"waves\", \"databases\", \"restored\", \"failed\", \"running\", \"away\", \"kept\", \"list\": [{\"database\", \"wave\", \"state\", \
\"asked_txid\", \"asked_time\", \"reached_txid\", \"checksum\", \"verdict\", \"new_txid\", \"safety_txid\", \"kept_file\", \"bytes\", \"seconds\", \
\"hub_seconds\", \"error\", \"at_most\"}], \"at_most\": {\"bytes\", \"requests\", \"cost_usd\", \"seconds\"}, \"left_out\": [{\"database\", \"error\"}]}

Example:
  hubctl restore pos-17/app.db -o app.db
  hubctl restore pos-17/app.db --timestamp 2026-11-22T13:28:36Z -o before.db
  hubctl restore pos-17/app.db --delta -o app.db
  hubctl restore --agent pos-17 --to restored/
  hubctl restore --all --to restored/ --source offsite --parallelism 8
  hubctl restore pos-17/app.db --txid 1200 --dry-run
  hubctl restore --selector site=berlin --timestamp 2026-11-22T13:28:36Z --in-place --waves 1%,10%,100%
  hubctl restore pos-17/app.db --in-place --check 'SELECT count(*) FROM orders = 1205' --yes
  hubctl restore --agent pos-17 --replace --yes
  hubctl restore --from 's3://backups/fleet?region=eu-central-1' pos-17/app.db -o app.db
  hubctl restore --from file:///srv/litestream/app.db -o app.db --check 'SELECT count(*) FROM orders = 1205'")]
pub(crate) struct Args {
    /// The database
    #[arg(value_name = "AGENT/NAME", conflicts_with = "many")]
    database: Option<DatabaseKey>,
    #[command(flatten)]
    choice: Choice,
    /// The file to write
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["many", "to"])]
    output: Option<PathBuf>,
    /// Write DIR/<agent>/<name>
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Read from this destination only, or from the hub's "buffer"
    #[arg(long, value_name = "DESTINATION")]
    source: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Make the restored database out of the existing file: only the pages that differ are fetched
    #[arg(long, conflicts_with_all = ["source", "from", "check", "integrity_check"])]
    delta: bool,
    /// Only say what would be read
    #[arg(long)]
    dry_run: bool,
    /// Databases restored at the same time [default: 4; on the nodes: as the hub likes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallelism: Option<u16>,
    /// Print JSON, see below
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    onto: OntoArgs,
    /// SQLite's own integrity check must find nothing, or no file
    #[arg(long, conflicts_with_all = ["in_place", "replace"])]
    integrity_check: bool,
    #[command(flatten)]
    direct: DirectArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.onto.misplaced() {
            let words = "--waves, --max-failures, --bandwidth, --total-bandwidth, --yes and --detach go with --in-place or --replace";
            return Err(Usage(words.into()).into());
        }
        let named = self.database.is_some() || self.choice.is_many();
        if !named && !self.direct.is_asked() {
            let words = "a database is required: AGENT/NAME, --agent, --selector, --all, or --from URL";
            return Err(Usage(words.into()).into());
        }
        if self.onto.is_asked() {
            let hub = self.connect.connect().await?;
            return onto::restore(&self, &hub).await;
        }
        if !self.dry_run && self.output.is_none() && self.to.is_none() {
            let words = if self.database.is_some() {
                "-o FILE, --to DIR, --in-place or --replace"
            } else {
                "--to DIR, --in-place or --replace"
            };
            return Err(Usage(format!("say where to write: {words}")).into());
        }
        let group = TaskGroup::new("restore");
        let cancel = group.token().clone();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        group.spawn({
            let cancel = cancel.clone();
            async move {
                tokio::select! {
                    _ = interrupt.recv() => cancel.cancel(),
                    _ = terminate.recv() => cancel.cancel(),
                    () = cancel.cancelled() => {}
                }
            }
        });
        let progress = Progress::new();
        if self.direct.is_asked() {
            let done = direct::restore(&self, &progress, &cancel).await;
            group.shutdown(Duration::from_secs(5)).await;
            return done;
        }
        let hub = unless(&cancel, self.connect.connect()).await?;
        let done = match &self.database {
            Some(database) if self.dry_run => unless(&cancel, self.plan_one(&hub, database.clone())).await,
            Some(database) => {
                let restored = one::restore(&hub, &self.job(database.clone()), &progress, &cancel).await;
                restored.and_then(|restored| match self.json {
                    true => output::json(&restored),
                    false => output::lines(&[restored.line()]),
                })
            }
            None => fleet::restore(&self, &hub, &progress, &cancel).await,
        };
        group.shutdown(Duration::from_secs(5)).await;
        done
    }

    /// Databases restored here at one time.
    fn side_by_side(&self) -> usize {
        usize::from(self.parallelism.unwrap_or(4)).min(64)
    }

    fn job(&self, database: DatabaseKey) -> Job {
        let out = match (&self.output, &self.to) {
            (Some(file), _) => file.clone(),
            (None, to) => {
                let dir = to.as_deref().unwrap_or_else(|| Path::new("."));
                dir.join(database.agent.as_str()).join(database.name.as_str())
            }
        };
        let source = self.source.clone().unwrap_or_default();
        Job { source, delta: self.delta, ..self.any(Some(database), out) }
    }

    /// The only database of its place.
    fn only(&self, out: PathBuf) -> Job {
        self.any(None, out)
    }

    fn any(&self, database: Option<DatabaseKey>, out: PathBuf) -> Job {
        let checks = self.onto.checks(self.integrity_check);
        Job { force: self.force, checks, ..Job::new(database, self.choice.target(), out) }
    }

    async fn plan_one(&self, hub: &Hub, database: DatabaseKey) -> anyhow::Result<ExitCode> {
        let plan = plan(hub, &self.job(database)).await?;
        if self.json { output::json(&plan) } else { output::lines(&plan_lines(&plan)) }
    }
}

/// For waits that have nothing to clean up: ends at once when we are interrupted.
pub(crate) async fn unless<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Interrupted.into()),
        done = work => done,
    }
}

/// What a restore would do.
async fn plan(hub: &Hub, job: &Job) -> anyhow::Result<Plan> {
    Origin::Hub(hub).plan(job, &CancellationToken::new()).await
}

fn plan_lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: TXID {} of {}, {} pages of {} bytes, from {} files ({})",
        plan.database,
        plan.txid,
        plan.time.as_deref().unwrap_or("an unknown time"),
        plan.pages,
        plan.page_size,
        plan.files.len(),
        output::bytes(plan.total_bytes),
    )];
    lines.push(format!(
        "about {} requests, {:.4} US dollars, {:.1} s",
        plan.requests, plan.cost_usd, plan.estimated_seconds
    ));
    lines.extend(crate::cmd::snapshots::table(&plan.files).lines());
    lines
}
