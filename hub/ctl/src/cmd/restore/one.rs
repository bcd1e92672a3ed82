//! The restore of one database: pages from a hub or from the places that keep copies on this task, the sink on threads of
//! its own, a bounded queue between them.
//!
//! The output appears only after every page came and the database checksum is the one of the plan. What stops it earlier
//! leaves nothing under that name; a restore that was broken off by its source after many megabytes leaves what it has
//! beside it, and the same command goes on from there. When the image is not the source's, everything is read once more,
//! each file whole and checked, and damaged files are named and done without.

use super::checks::Checks;
use super::origin::Origin;
use super::outcome::Restored;
use super::progress::Progress;
use super::target::Target;
use crate::connect::Hub;
use crate::fault::{Interrupted, sentence};
use anyhow::{Context, anyhow};
use std::path::PathBuf;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::restore::{PageSink, RestoreError, Unfilled, fill, sink};
use walhub_common::sql;
use walhub_proto::delta::{self, DeltaError};
use walhub_proto::pages::PagesError;
use walhub_proto::v1;

/// One database to restore.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// `None`: the only one of its place.
    pub(crate) database: Option<DatabaseKey>,
    pub(crate) target: Target,
    /// Destination to read from; empty when the hub may choose.
    pub(crate) source: String,
    pub(crate) out: PathBuf,
    pub(crate) force: bool,
    /// Make it out of the file that is there, if there is one.
    pub(crate) delta: bool,
    /// The file that is there is ours, and others may read it meanwhile.
    pub(crate) only_read: bool,
    /// What must hold before the file gets its name.
    pub(crate) checks: Checks,
    /// Read every file whole, and check it first.
    pub(crate) verify: bool,
}

impl Job {
    /// A restore of everything, into a file that is not there.
    pub(crate) fn new(database: Option<DatabaseKey>, target: Target, out: PathBuf) -> Job {
        let (source, checks) = (String::new(), Checks::default());
        let (force, delta, only_read, verify) = (false, false, false, false);
        Job { database, target, source, out, force, delta, only_read, checks, verify }
    }

    /// As the hub wants it.
    pub(crate) fn request(&self) -> v1::RestoreRequest {
        let reference =
            |key: &DatabaseKey| v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() };
        v1::RestoreRequest {
            database: self.database.as_ref().map(reference),
            target: self.target.wire(),
            after_txid: 0,
            source: self.source.clone(),
        }
    }

    /// What the database is called.
    pub(crate) fn name(&self) -> String {
        self.database.as_ref().map_or_else(|| "the database".to_owned(), ToString::to_string)
    }

    /// Begin of the sentence that says why not.
    pub(crate) fn failure(&self) -> String {
        let (name, target) = (self.name(), &self.target);
        match self.source.as_str() {
            "" => format!("cannot restore {name} to {target}"),
            source => format!("cannot restore {name} to {target} from {source}"),
        }
    }
}

/// Restores one database from the hub and proves it.
pub(crate) async fn restore(
    hub: &Hub,
    job: &Job,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<Restored> {
    restore_from(Origin::Hub(hub), job, progress, cancel).await
}

/// Why there is no database.
enum Failed {
    /// All pages came, and they are not the source's.
    Image(RestoreError),
    Otherwise(anyhow::Error),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Failed {
        Failed::Otherwise(error)
    }
}

/// Restores one database and proves it.
pub(super) async fn restore_from(
    origin: Origin<'_>,
    job: &Job,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<Restored> {
    if let (Origin::Hub(hub), true) = (origin, job.delta && job.out.exists()) {
        return tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Interrupted.into()),
            done = from_copy(hub, job, progress) => done.with_context(|| job.failure()),
        };
    }
    match attempt(origin, job, progress, cancel).await {
        Ok(restored) => Ok(restored),
        Err(Failed::Otherwise(error)) => Err(error),
        Err(Failed::Image(error)) => {
            eprintln!("hubctl: {}: {error}; now every file is read whole and checked", job.failure());
            let job = Job { verify: true, ..job.clone() };
            match attempt(origin, &job, progress, cancel).await {
                Ok(restored) => Ok(restored),
                Err(Failed::Otherwise(error)) => Err(error),
                Err(Failed::Image(error)) => Err(advised(error, &job)),
            }
        }
    }
}

async fn attempt(
    origin: Origin<'_>,
    job: &Job,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Restored, Failed> {
    let began = Instant::now();
    let (out, force) = (job.out.clone(), job.force);
    blocking(move || sink::check_output(&out, force)).await?.map_err(|error| advised(error, job))?;
    let found = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Interrupted.into()),
        found = origin.find(job, cancel) => found.map_err(|error| error.context(job.failure())),
    }?;
    let (point, files, total_bytes) = (found.point, found.files, found.total_bytes);
    let out = job.out.clone();
    let sink = blocking(move || PageSink::create(&out, force, point)).await?;
    let sink = sink.map_err(|error| advised(error, job))?;
    if sink.resumed() > 0 {
        let (there, all) = (sink.resumed(), point.commit);
        eprintln!("hubctl: {}: goes on with {there} of {all} pages that an earlier restore left", job.name());
    }
    let mut pages = found.pages(&sink.present(), job.verify);
    let bar = progress.bar(&job.name(), total_bytes);
    let came = |bytes| bar.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    let interrupted = async {
        cancel.cancelled().await;
        anyhow::Error::from(Interrupted)
    };
    let (error, kept) = match fill(sink, &mut pages, came, interrupted).await {
        Ok(sink) => {
            let checks = job.checks.clone();
            let finish = move |announce| sink.finish(files, |path| checks.hold(path, announce));
            let (report, cancelled) =
                sql::until(finish, cancel.cancelled()).await.map_err(anyhow::Error::from)?;
            let done = |report| Restored::new(job.name(), report, point.timestamp_ms, began.elapsed());
            return report.map(done).map_err(|error| match error {
                RestoreError::Check(_) if cancelled.is_some() => Failed::Otherwise(Interrupted.into()),
                RestoreError::Mismatch { .. } | RestoreError::Block(_) if !job.verify => Failed::Image(error),
                error => Failed::Otherwise(advised(error, job)),
            });
        }
        Err(Unfilled::Broken { error, kept }) => (error, kept),
        Err(Unfilled::Sink(error)) => return Err(advised(error, job).into()),
    };
    if kept {
        eprintln!(
            "hubctl: {}: what came is kept beside the output; the same command goes on from there",
            job.name()
        );
    }
    Err(if error.is::<Interrupted>() { error } else { error.context(job.failure()) }.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// The pages that differ from the file that is there.
async fn from_copy(hub: &Hub, job: &Job, progress: &Progress) -> anyhow::Result<Restored> {
    let began = Instant::now();
    let bar = progress.bar(&job.name(), 0);
    let mut before = 0;
    let told = |come: u64, _| {
        bar.add(usize::try_from(come - before).unwrap_or(usize::MAX));
        before = come;
    };
    let done = delta::restore(hub.channel(), job.request(), &job.out, job.only_read, told).await;
    let (report, plan) = done.map_err(|error| match error {
        DeltaError::Hub(PagesError::Status(status)) => anyhow!(sentence(&status)),
        other => other.into(),
    })?;
    Ok(Restored::new(job.name(), report, plan.timestamp_ms, began.elapsed()))
}

fn advised(error: RestoreError, job: &Job) -> anyhow::Error {
    let flag = matches!(error, RestoreError::Exists(_)).then_some(" (--force)").unwrap_or_default();
    anyhow!("{}: {error}{flag}", job.failure())
}
