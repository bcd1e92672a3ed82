//! A whole database from the hub into a file: pages into a sink, proven by the checksum of the source.
//!
//! The file appears only when every page came and the database checksum is the plan's. When it is another, everything is read once
//! more, each file whole and checked by the hub. What breaks off after many megabytes leaves what came beside the file, and the same
//! command goes on from there; else nothing is left.

use super::progress::Bar;
use crate::ship::connect::status_reason;
use anyhow::anyhow;
use std::path::Path;
use std::pin::Pin;
use tonic::Code;
use tonic::transport::Channel;
use walhub_common::restore::{PageSink, Report, RestoreError, Unfilled, fill, sink};
use walhub_proto::pages::PagesError;
use walhub_proto::restore::Whole;
use walhub_proto::v1::RestoreRequest;

/// Why there is no file.
pub(super) enum Failed {
    /// By Ctrl-C.
    Interrupted,
    /// The hub has nothing of this database.
    NoReplica(anyhow::Error),
    /// The output exists.
    Exists(RestoreError),
    /// This is why.
    Because(anyhow::Error),
    /// All pages came, and they are not the source's.
    Image(RestoreError),
}

impl From<PagesError> for Failed {
    fn from(error: PagesError) -> Failed {
        match &error {
            PagesError::Status(status) if status.code() == Code::NotFound => {
                Failed::NoReplica(anyhow!(status_reason(status)))
            }
            error => Failed::Because(anyhow!(reason(error))),
        }
    }
}

impl From<RestoreError> for Failed {
    fn from(error: RestoreError) -> Failed {
        match error {
            RestoreError::Exists(_) => Failed::Exists(error),
            RestoreError::Mismatch { .. } | RestoreError::Block(_) => Failed::Image(error),
            error => Failed::Because(error.into()),
        }
    }
}

impl From<tokio::task::JoinError> for Failed {
    fn from(error: tokio::task::JoinError) -> Failed {
        Failed::Because(error.into())
    }
}

/// In words for people.
pub(super) fn reason(error: &PagesError) -> String {
    match error {
        PagesError::Status(status) => status_reason(status),
        other => other.to_string(),
    }
}

/// What is wanted, and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) request: &'a RestoreRequest,
    pub(super) out: &'a Path,
    /// Replace what is there.
    pub(super) force: bool,
}

/// Restores it.
pub(super) async fn restore(
    wanted: Wanted<'_>,
    link: impl Future<Output = anyhow::Result<Channel>>,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, Failed> {
    let mut interrupted = std::pin::pin!(interrupted);
    // Before anybody is asked.
    let (out, force) = (wanted.out.to_owned(), wanted.force);
    blocking(move || sink::check_output(&out, force)).await??;
    let channel = tokio::select! {
        biased;
        () = &mut interrupted => return Err(Failed::Interrupted),
        channel = link => channel.map_err(Failed::Because)?,
    };
    match attempt(wanted, channel.clone(), false, interrupted.as_mut()).await {
        Err(Failed::Image(error)) => {
            let out = wanted.out.display();
            eprintln!("walhub-agent: {out}: {error}; now every file is read whole and checked");
            attempt(wanted, channel, true, interrupted).await
        }
        done => done,
    }
}

async fn attempt<I: Future<Output = ()>>(
    wanted: Wanted<'_>,
    channel: Channel,
    verify: bool,
    mut interrupted: Pin<&mut I>,
) -> Result<Report, Failed> {
    let Wanted { request, out, force } = wanted;
    let name = request.database.as_ref().map(|database| database.name.clone()).unwrap_or_default();
    let whole = tokio::select! {
        biased;
        () = interrupted.as_mut() => return Err(Failed::Interrupted),
        whole = Whole::open(channel, request.clone(), verify) => whole?,
    };
    let (point, files, total_bytes) = (whole.point, whole.plan.files.len() as u64, whole.plan.total_bytes);
    let path = out.to_owned();
    let sink = blocking(move || PageSink::create(&path, force, point)).await??;
    if sink.resumed() > 0 {
        let (there, all) = (sink.resumed(), point.commit);
        eprintln!("walhub-agent: {name}: goes on with {there} of {all} pages that an earlier restore left");
    }
    let mut pages = whole.without(&sink.present());
    let mut bar = Bar::new(&name, total_bytes);
    let came = |bytes| bar.add(usize::try_from(bytes).unwrap_or(usize::MAX));
    let over = async {
        interrupted.await;
        Failed::Interrupted
    };
    match fill(sink, &mut pages, came, over).await {
        Ok(sink) => Ok(blocking(move || sink.finish(files, |_| Ok(()))).await??),
        Err(Unfilled::Sink(error)) => Err(error.into()),
        Err(Unfilled::Broken { error, kept }) => {
            if kept {
                eprintln!(
                    "walhub-agent: {name}: what came is kept beside {}; the same command goes on from there",
                    out.display()
                );
            }
            Err(error)
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(work).await
}
