//! The restore of one database: the hub's stream on this task, the applier on a thread, a bounded queue between them.
//!
//! The output appears only after the stream has ended with status OK, every file was verified and the database
//! checksum is the one of the plan. Whatever stops it earlier (a lost connection, a full disk, Ctrl-C), the applier is
//! told by the broken queue and takes its temporary file away before this returns.

use super::outcome::Restored;
use super::progress::Progress;
use super::target::Target;
use crate::connect::Hub;
use crate::fault::{Interrupted, sentence};
use anyhow::{Context, anyhow};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use walhub_common::DatabaseKey;
use walhub_common::restore::feed::{self, FeedClosed, Feeder};
use walhub_common::restore::{Applier, RestoreError};
use walhub_proto::convert;
use walhub_proto::delta::{self, DeltaError};
use walhub_proto::pages::PagesError;
use walhub_proto::v1::restore_response::Message;
use walhub_proto::v1::{self, RestoreResponse};

/// The hub may have to fetch from far away between two messages, but not for longer.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// One database to restore.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) database: DatabaseKey,
    pub(crate) target: Target,
    /// Destination to read from; empty when the hub may choose.
    pub(crate) source: String,
    pub(crate) out: PathBuf,
    pub(crate) force: bool,
    /// Make it out of the file that is there, if there is one.
    pub(crate) delta: bool,
}

impl Job {
    /// As the hub wants it.
    pub(crate) fn request(&self) -> v1::RestoreRequest {
        v1::RestoreRequest {
            database: Some(v1::DatabaseRef {
                agent: self.database.agent.to_string(),
                name: self.database.name.to_string(),
            }),
            target: self.target.wire(),
            after_txid: 0,
            source: self.source.clone(),
        }
    }

    /// Begin of the sentence that says why not.
    pub(crate) fn failure(&self) -> String {
        match self.source.as_str() {
            "" => format!("cannot restore {} to {}", self.database, self.target),
            source => format!("cannot restore {} to {} from {source}", self.database, self.target),
        }
    }
}

/// Why no more bytes came.
enum Stop {
    /// The applier gave up; it knows why.
    Applier,
    /// This is why.
    Because(anyhow::Error),
}

impl From<FeedClosed> for Stop {
    fn from(_: FeedClosed) -> Stop {
        Stop::Applier
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Stop {
        Stop::Because(error)
    }
}

/// Restores one database and proves it.
pub(crate) async fn restore(
    hub: &Hub,
    job: &Job,
    progress: &Progress,
    cancel: &CancellationToken,
) -> anyhow::Result<Restored> {
    let began = Instant::now();
    if job.delta && job.out.exists() {
        return tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Interrupted.into()),
            done = from_copy(hub, job, progress) => done.with_context(|| job.failure()),
        };
    }
    let (out, force) = (job.out.clone(), job.force);
    let applier = tokio::task::spawn_blocking(move || Applier::new(out, force)).await?;
    let applier = applier.map_err(|e| advised(e, job))?;
    let (feeder, feed) = feed::channel();
    let reader = tokio::task::spawn_blocking(move || feed.restore(applier));
    let mut time_ms = 0;
    let pumped = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Stop::Because(Interrupted.into())),
        pumped = pump(hub, job, feeder, progress, &mut time_ms) => pumped,
    };
    // Also after an interruption: the thread has to take its temporary file away.
    match (pumped, reader.await?) {
        (_, Ok(report)) => Ok(Restored::new(job.database.to_string(), report, time_ms, began.elapsed())),
        (Err(Stop::Because(error)), Err(_)) if error.is::<Interrupted>() => Err(error),
        (Err(Stop::Because(error)), Err(_)) => Err(error.context(job.failure())),
        (Ok(()) | Err(Stop::Applier), Err(error)) => Err(advised(error, job)),
    }
}

/// The pages that differ from the file that is there.
async fn from_copy(hub: &Hub, job: &Job, progress: &Progress) -> anyhow::Result<Restored> {
    let began = Instant::now();
    let bar = progress.bar(&job.database, 0);
    let mut before = 0;
    let told = |come: u64, _| {
        bar.add(usize::try_from(come - before).unwrap_or(usize::MAX));
        before = come;
    };
    let done = delta::restore(hub.channel(), job.request(), &job.out, told).await;
    let (report, plan) = done.map_err(|error| match error {
        DeltaError::Hub(PagesError::Status(status)) => anyhow!(sentence(&status)),
        other => other.into(),
    })?;
    Ok(Restored::new(job.database.to_string(), report, plan.timestamp_ms, began.elapsed()))
}

fn advised(error: RestoreError, job: &Job) -> anyhow::Error {
    let flag = matches!(error, RestoreError::Exists(_)).then_some(" (--force)").unwrap_or_default();
    anyhow!("{}: {error}{flag}", job.failure())
}

async fn pump(
    hub: &Hub,
    job: &Job,
    feeder: Feeder,
    progress: &Progress,
    time_ms: &mut i64,
) -> Result<(), Stop> {
    let mut client = hub.restores();
    let stream = tokio::time::timeout(STALL_TIMEOUT, client.restore(job.request())).await;
    let mut stream = match stream {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(anyhow!(sentence(&status)).into()),
        Err(_) => return Err(stalled().into()),
    };
    let Some(Message::Plan(plan)) = next(&mut stream).await? else {
        return Err(odd("it sent no plan").into());
    };
    let (last, expected) = convert::promise_from_wire(&plan).map_err(|e| odd(&e.reason))?;
    *time_ms = plan.timestamp_ms;
    let bar = progress.bar(&job.database, plan.total_bytes);
    let (mut files, mut reached) = (0, 0);
    while let Some(message) = next(&mut stream).await? {
        match message {
            Message::File(file) => {
                let range = file.range.unwrap_or_default();
                (files, reached) = (files + 1, range.max);
                let name = format!("file {:016x}-{:016x}.ltx of {}", range.min, range.max, file.source);
                feeder.file(crate::fault::clean(&name)).await?;
            }
            Message::Data(data) => {
                bar.add(data.len());
                feeder.data(data).await?;
            }
            Message::Plan(_) => return Err(odd("it sent two plans").into()),
        }
    }
    if files != plan.files.len() || reached != last {
        return Err(odd("it sent other files than it had planned").into());
    }
    Ok(feeder.finish(expected).await?)
}

async fn next(stream: &mut Streaming<RestoreResponse>) -> anyhow::Result<Option<Message>> {
    match tokio::time::timeout(STALL_TIMEOUT, stream.message()).await {
        Err(_) => Err(stalled()),
        Ok(Err(status)) => Err(anyhow!(sentence(&status))),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(RestoreResponse { message: Some(message) }))) => Ok(Some(message)),
        Ok(Ok(Some(RestoreResponse { message: None }))) => Err(odd("it sent a message of an unknown kind")),
    }
}

fn stalled() -> anyhow::Error {
    anyhow!("the hub sent nothing for {} s; try again", STALL_TIMEOUT.as_secs())
}

fn odd(what: &str) -> anyhow::Error {
    anyhow!("the hub does not keep to the protocol: {what}; is it of another version?")
}
