//! `hubctl restore --in-place` and `--replace`: databases brought back on their nodes, by a job of the hub.

use super::Args;
use super::checks::Checks;
use crate::cmd::jobs::follow::{self, Follow, Interrupts};
use crate::cmd::jobs::report::{self, AtMost, Line, Picture};
use crate::connect::Hub;
use crate::fault::{Usage, clean, sentence};
use crate::output::{self, Table};
use anyhow::{anyhow, bail};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tonic::Status;
use walhub_common::config::value;
use walhub_common::sql::Check;
use walhub_proto::v1;

/// The points of a large fleet take a while to be looked up.
const PLAN_TIMEOUT: Duration = Duration::from_secs(600);
/// A hub that goes away while a job is started is asked again for so long.
const START_PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);

/// How a job goes about it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "On the nodes")]
pub(crate) struct OntoArgs {
    /// Bring databases back on their nodes, live: applications see the old state, then the new one
    #[arg(long, conflicts_with_all = ["output", "to", "source", "force"])]
    in_place: bool,
    /// Bring databases back on their nodes, applications stopped: a fresh file takes the place of a missing or damaged one too
    #[arg(long, conflicts_with_all = ["output", "to", "source", "force", "in_place"])]
    replace: bool,
    /// Nodes up to the end of each wave: counts or percentages, such as 1%,10%,100% [default: one wave]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    waves: Vec<String>,
    /// Stop when more databases than this have failed
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_failures: u32,
    /// Bytes per second to one node, such as 1MiB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Bytes per second to all nodes together
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    total_bandwidth: Option<u64>,
    /// What must hold of the restored database, here or on its node, before it takes its place; may be given several times
    #[arg(long, value_name = "SQL = VALUE")]
    check: Vec<Check>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Start the job and leave it to the hub
    #[arg(long)]
    detach: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    let bytes = value::bytes(text)?;
    if bytes == 0 { Err("nothing at all would take for ever".into()) } else { Ok(bytes) }
}

#[derive(Debug, Serialize)]
struct Planned {
    waves: u32,
    at_most: Option<AtMost>,
    list: Vec<Line>,
    left_out: Vec<LeftOut>,
}

impl Planned {
    /// What it takes, for people.
    fn cost(&self, mode: v1::OrderMode) -> Vec<String> {
        let Some(at_most) = &self.at_most else { return Vec::new() };
        let how = match mode {
            v1::OrderMode::Replace => "every database is fetched whole, beside the file that is there",
            _ => IN_PLACE,
        };
        vec![at_most.text(), how.to_owned()]
    }
}

/// Why the bytes in place are a bound.
const IN_PLACE: &str = "in place every file is read once for the checksums of its pages, and at most once more for the pages \
                        that differ; only those go to the nodes, and how many they are is known when each has compared";

#[derive(Debug, Serialize)]
struct LeftOut {
    database: String,
    error: String,
}

impl OntoArgs {
    pub(super) fn is_asked(&self) -> bool {
        self.in_place || self.replace
    }

    /// What must hold of a copy that is restored here.
    pub(super) fn checks(&self, integrity_check: bool) -> Checks {
        Checks::new(&self.check, integrity_check)
    }

    fn mode(&self) -> v1::OrderMode {
        if self.replace { v1::OrderMode::Replace } else { v1::OrderMode::InPlace }
    }

    /// Words that mean nothing here without --in-place or --replace.
    pub(super) fn misplaced(&self) -> bool {
        let any = !self.waves.is_empty() || self.max_failures > 0;
        let any = any || self.bandwidth.is_some() || self.total_bandwidth.is_some();
        !self.is_asked() && (any || self.yes || self.detach)
    }
}

/// Plans, asks, starts, watches.
pub(super) async fn restore(args: &Args, hub: &Hub) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::catch()?;
    let request = request(args);
    let planned = tokio::select! {
        planned = plan(hub, request.clone()) => planned?,
        () = interrupts.wait() => return Err(crate::fault::Interrupted.into()),
    };
    if args.dry_run {
        return show(&planned, args);
    }
    for left in &planned.left_out {
        eprintln!("hubctl: {} is left out: {}", left.database, left.error);
    }
    if planned.list.is_empty() {
        bail!("none of the databases can be brought to that point");
    }
    if !args.onto.yes && !confirm(&planned, args.onto.mode(), &mut interrupts).await? {
        bail!("nothing was done");
    }
    let job = start(hub, args, request).await?;
    eprintln!("hubctl: job {} restores {} databases in {} waves", clean(&job.id), job.total, job.waves);
    if args.onto.detach {
        let mut picture = Picture::default();
        picture.take(v1::JobUpdate { job: Some(job), targets: Vec::new() });
        let report = picture.report();
        return if args.json {
            output::json(&report.summary)
        } else {
            output::lines(&[report.summary.line()])
        };
    }
    let follow = Follow { connect: &args.connect, json: args.json };
    follow.to_the_end(job.id, interrupts).await
}

fn request(args: &Args) -> v1::JobRequest {
    v1::JobRequest {
        request_id: format!("{:032x}", rand::random::<u128>()),
        selectors: args.choice.selectors(args.database.as_ref()),
        point: args.choice.target().point(),
        mode: args.onto.mode().into(),
        waves: args.onto.waves.clone(),
        max_failures: args.onto.max_failures,
        parallelism: args.parallelism.map_or(0, u32::from),
        node_bytes_per_second: args.onto.bandwidth.unwrap_or(0),
        total_bytes_per_second: args.onto.total_bandwidth.unwrap_or(0),
        checks: args.onto.check.iter().map(Check::to_string).collect(),
    }
}

/// Databases that selectors name, as the hub knows them.
pub(crate) async fn matching(
    selectors: Vec<v1::Selector>,
    hub: &Hub,
) -> anyhow::Result<Vec<v1::DatabaseRef>> {
    // Latest: whether the point exists is found out by each restore.
    let request = v1::JobRequest {
        request_id: String::new(),
        selectors,
        mode: v1::OrderMode::InPlace.into(),
        ..v1::JobRequest::default()
    };
    let plan = ask(hub, request).await?;
    let left = plan.unplanned.into_iter().filter_map(|left| left.database);
    let mut all: Vec<_> = plan.targets.into_iter().filter_map(|t| t.database).chain(left).collect();
    all.sort_by(|a, b| (&a.agent, &a.name).cmp(&(&b.agent, &b.name)));
    Ok(all)
}

async fn ask(hub: &Hub, request: v1::JobRequest) -> anyhow::Result<v1::JobPlan> {
    match tokio::time::timeout(PLAN_TIMEOUT, hub.jobs().plan_job(request)).await {
        Ok(Ok(plan)) => Ok(plan.into_inner()),
        Ok(Err(status)) => Err(anyhow!(sentence(&status))),
        Err(_) => Err(anyhow!("the hub did not answer within {} s", PLAN_TIMEOUT.as_secs())),
    }
}

async fn plan(hub: &Hub, request: v1::JobRequest) -> anyhow::Result<Planned> {
    let plan = ask(hub, request).await?;
    let left = plan.unplanned.into_iter().map(|left| {
        let database = left.database.unwrap_or_default();
        LeftOut {
            database: clean(&format!("{}/{}", database.agent, database.name)),
            error: clean(&left.reason),
        }
    });
    let list = plan.targets.iter().map(Line::from).collect();
    let at_most = report::planned(plan.at_most);
    Ok(Planned { waves: plan.waves, at_most, list, left_out: left.collect() })
}

fn show(planned: &Planned, args: &Args) -> anyhow::Result<ExitCode> {
    let code = if planned.left_out.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        output::json(planned)?;
        return Ok(code);
    }
    let headings =
        [">WAVE", "DATABASE", ">TXID", "TIME", ">READ AT MOST", ">REQUESTS", ">US DOLLARS", ">SECONDS"];
    let mut table = Table::new(&headings);
    for line in &planned.list {
        let time = line.asked_time.clone().unwrap_or_default();
        let cost = line.at_most.as_ref();
        let number = |of: &dyn Fn(&AtMost) -> String| cost.map(of).unwrap_or_default();
        table.row([
            line.wave.to_string(),
            line.database.clone(),
            line.asked_txid.to_string(),
            time,
            number(&|cost| output::bytes(cost.bytes)),
            number(&|cost| cost.requests.to_string()),
            number(&|cost| format!("{:.4}", cost.cost_usd)),
            number(&|cost| format!("{:.1}", cost.seconds)),
        ]);
    }
    let mut lines = table.lines();
    lines.extend(planned.left_out.iter().map(|left| format!("{} left out: {}", left.database, left.error)));
    lines.push(format!("{} databases in {} waves", planned.list.len(), planned.waves));
    lines.extend(planned.cost(args.onto.mode()));
    output::lines(&lines)?;
    Ok(code)
}

/// Asks whoever sits there.
async fn confirm(
    planned: &Planned,
    mode: v1::OrderMode,
    interrupts: &mut Interrupts,
) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Usage("databases of nodes are changed: add --yes".into()).into());
    }
    for line in planned.cost(mode) {
        eprintln!("hubctl: {line}");
    }
    let first = planned.list.first().map(|line| line.database.as_str()).unwrap_or_default();
    eprint!(
        "hubctl: bring {} databases ({first}, …) back on their nodes, in {} waves? [y/N] ",
        planned.list.len(),
        planned.waves
    );
    std::io::stderr().flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    tokio::select! {
        answer = answer => Ok(matches!(answer??.trim(), "y" | "Y" | "yes")),
        () = interrupts.wait() => Ok(false),
    }
}

/// Starts the job; a hub that goes away meanwhile is asked again, and starts it once.
async fn start(hub: &Hub, args: &Args, request: v1::JobRequest) -> anyhow::Result<v1::Job> {
    let (began, mut hub) = (Instant::now(), hub.clone());
    loop {
        let answer = tokio::time::timeout(PLAN_TIMEOUT, hub.jobs().start_job(request.clone())).await;
        let status = match answer {
            Ok(Ok(job)) => return Ok(job.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer"),
        };
        if !follow::may_pass(&status) || began.elapsed() > START_PATIENCE {
            return Err(anyhow!(sentence(&status)));
        }
        tokio::time::sleep(RETRY).await;
        if let Ok(again) = args.connect.connect().await {
            hub = again;
        }
    }
}
