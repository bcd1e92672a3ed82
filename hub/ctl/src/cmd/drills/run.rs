//! `hubctl drills run` and `hubctl repair`: a drill now.

use super::report::{self, Drill};
use crate::connect::{ConnectArgs, Hub};
use crate::fault::sentence;
use crate::output;
use anyhow::anyhow;
use std::process::ExitCode;
use walhub_common::{DatabaseKey, DestinationName};
use walhub_proto::v1::{self, DrillRepair};

/// Restore a database from its destinations now, one after the other, and prove what came
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The hub restores into its own scratch space, compares with the checksum taken at the source, and runs the checks of its \
configuration (`drills:`). Damaged objects are named, and made anew from other copies unless --no-repair or the \
configuration say otherwise. The exit code is 1 unless every copy passed. Ctrl-C gives up.

JSON: a list of drills as in `hubctl drills list --json`.

Example:
  hubctl drills run pos-17/app.db
  hubctl drills run pos-17/app.db --destination offsite --every-file --no-repair --json")]
pub(crate) struct Args {
    /// Which database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Only from this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<DestinationName>,
    /// Read every file of the database that lies there, not only those that a restore takes
    #[arg(long)]
    every_file: bool,
    /// Name damaged objects and leave them as they are
    #[arg(long)]
    no_repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Read every file of a database at a destination, and make damaged or missing ones anew from other copies
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A good copy is made of what the hub's buffer, the other destinations and other files of the same one hold, and proven, before \
anything is changed. Then the database is restored from there. The exit code is 1 unless it passed.

JSON: a list of drills as in `hubctl drills list --json`.

Example:
  hubctl repair pos-17/app.db --destination offsite
  hubctl repair pos-17/app.db --destination offsite --json | jq -r '.[0].repairs[]'")]
pub(crate) struct RepairArgs {
    /// Which database
    #[arg(value_name = "AGENT/NAME")]
    database: DatabaseKey,
    /// Where
    #[arg(long, value_name = "NAME")]
    destination: DestinationName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let repair = if self.no_repair { DrillRepair::No } else { DrillRepair::Unspecified };
        let request = v1::RunDrillRequest {
            database: Some(report::reference(&self.database)),
            destination: self.destination.as_ref().map(ToString::to_string).unwrap_or_default(),
            repair: repair.into(),
            every_file: self.every_file,
        };
        told(&hub, request, self.json).await
    }
}

impl RepairArgs {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let hub = self.connect.connect().await?;
        let request = v1::RunDrillRequest {
            database: Some(report::reference(&self.database)),
            destination: self.destination.to_string(),
            repair: DrillRepair::Yes.into(),
            every_file: true,
        };
        told(&hub, request, self.json).await
    }
}

async fn told(hub: &Hub, request: v1::RunDrillRequest, json: bool) -> anyhow::Result<ExitCode> {
    let failed = |status: tonic::Status| anyhow!(sentence(&status));
    let mut results = hub.drills().run_drill(request).await.map_err(failed)?.into_inner();
    let mut drills = Vec::new();
    while let Some(drill) = results.message().await.map_err(failed)? {
        drills.push(Drill::from(drill));
    }
    let good = drills.iter().all(Drill::is_good);
    match json {
        true => output::json(&drills)?,
        false => output::lines(&report::table(&drills).lines())?,
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
