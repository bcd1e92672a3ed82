//! `hubctl restore --from URL`: no hub, nothing but a folder or a bucket and the credentials for it.

use super::fleet::{self, Planned};
use super::origin::Origin;
use super::progress::Progress;
use super::{Args, one, plan_lines, unless};
use crate::fault::Usage;
use crate::output;
use crate::place::Places;
use anyhow::bail;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Where to read without a hub.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Without a hub")]
pub(super) struct DirectArgs {
    /// Read this folder or bucket itself: file:///PATH, s3://BUCKET/PREFIX, gs://…, abs://…; may be given several times
    #[arg(long, value_name = "URL", conflicts_with_all = ["source", "selector", "in_place", "replace"])]
    from: Vec<String>,
}

impl DirectArgs {
    pub(super) fn is_asked(&self) -> bool {
        !self.from.is_empty()
    }
}

/// Restores (or, with `--dry-run`, plans) what the arguments name.
pub(super) async fn restore(
    args: &Args,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let places = unless(cancel, Places::open(&args.direct.from, cancel)).await?;
    let origin = Origin::Places(&places);
    if args.choice.is_many() {
        let mut databases = unless(cancel, places.databases(cancel)).await?;
        databases.retain(|key| args.choice.agent.as_ref().is_none_or(|agent| key.agent == *agent));
        if databases.is_empty() {
            bail!("there is no database at {}", places.location());
        }
        let planned = |key| Planned { job: args.job(key), nothing: false };
        let jobs = databases.into_iter().map(planned).collect();
        return match args.dry_run {
            true => unless(cancel, fleet::plan_all(args, origin, jobs)).await,
            false => fleet::run(args, origin, jobs, progress, cancel).await,
        };
    }
    let job = match (&args.database, &args.output) {
        (Some(database), _) => args.job(database.clone()),
        (None, Some(out)) => args.only(out.clone()),
        (None, None) if args.dry_run => args.only(std::path::PathBuf::new()),
        (None, None) => return Err(Usage("say where to write: -o FILE".into()).into()),
    };
    if args.dry_run {
        let plan = unless(cancel, origin.plan(&job, cancel)).await?;
        return if args.json { output::json(&plan) } else { output::lines(&plan_lines(&plan)) };
    }
    let restored = one::restore_from(origin, &job, progress, cancel).await?;
    if args.json { output::json(&restored) } else { output::lines(&[restored.line()]) }
}
