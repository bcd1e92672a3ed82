//! Watches a job to its end, across restarts of the hub: what ends is told at once, what is under way on the terminal.

use super::report::{Picture, at_it, is_end};
use crate::connect::ConnectArgs;
use crate::fault::sentence;
use crate::output;
use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Status};
use walhub_common::backoff::Backoff;
use walhub_proto::v1;
use walhub_proto::v1::JobState;

const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Databases under way that the terminal shows.
const SHOWN: usize = 8;

/// Ctrl-C and SIGTERM, caught from now on.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Catches them.
    pub(crate) fn catch() -> anyhow::Result<Interrupts> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Interrupts { interrupt, terminate })
    }

    /// Waits for one.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// How to watch.
pub(crate) struct Follow<'a> {
    pub(crate) connect: &'a ConnectArgs,
    /// Talk goes to stderr, and the report is JSON.
    pub(crate) json: bool,
}

/// Why a stream of news ended before the job.
enum Break {
    /// The way to the hub: tried again.
    Lost(String),
    /// What trying again does not change.
    Final(anyhow::Error),
}

impl From<Status> for Break {
    fn from(status: Status) -> Break {
        let text = sentence(&status);
        match status.code() {
            Code::NotFound | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
                Break::Final(anyhow!(text))
            }
            _ => Break::Lost(text),
        }
    }
}

/// True when asking again may help, of an answer to one request.
pub(crate) fn may_pass(status: &Status) -> bool {
    matches!(Break::from(status.clone()), Break::Lost(_))
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

impl Follow<'_> {
    /// Until the job ends, or nothing happens any more before an operator decides. The newest job when `id` is empty.
    pub(crate) async fn to_the_end(
        &self,
        id: String,
        mut interrupts: Interrupts,
    ) -> anyhow::Result<ExitCode> {
        let mut picture = Picture::default();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{msg}").expect("BUG: bad template"));
        let watched = tokio::select! {
            watched = self.watch(id, &mut picture, &bar) => watched,
            () = interrupts.wait() => {
                bar.finish_and_clear();
                let job = &picture.job.id;
                eprintln!("hubctl: the job goes on without us; come back with `hubctl jobs watch {job}`, or end it with \
                           `hubctl jobs cancel {job}`");
                return Ok(ExitCode::from(130));
            }
        };
        bar.finish_and_clear();
        watched?;
        let report = picture.report();
        if self.json {
            output::json(&report)?;
        } else {
            let left =
                report.left_out.iter().map(|left| format!("{} left out: {}", left.database, left.error));
            output::lines(&left.chain([report.summary.line()]).collect::<Vec<_>>())?;
        }
        if picture.job.state() == JobState::Stopped {
            let job = &report.summary.job;
            eprintln!(
                "hubctl: no more nodes are told; `hubctl jobs resume {job}` goes on, `hubctl jobs cancel {job}` ends it"
            );
        }
        Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn watch(&self, mut id: String, picture: &mut Picture, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut told = false;
        loop {
            let before = picture.job.id.clone();
            match self.stream(&id, picture, bar, &mut told).await {
                Ok(()) => return Ok(()),
                Err(Break::Final(error)) => return Err(error),
                // Before the first news there may be a fault of ours: it is told as one.
                Err(Break::Lost(text)) if before.is_empty() && picture.job.id.is_empty() => {
                    return Err(anyhow!(text));
                }
                Err(Break::Lost(text)) => {
                    if !std::mem::replace(&mut told, true) {
                        bar.suspend(|| eprintln!("hubctl: {text}; the job goes on, trying again"));
                    }
                }
            }
            id.clone_from(&picture.job.id);
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// One stream of news; `Ok` when there will be no more.
    async fn stream(
        &self,
        id: &str,
        picture: &mut Picture,
        bar: &ProgressBar,
        told: &mut bool,
    ) -> Result<(), Break> {
        let hub = match self.connect.connect().await {
            Ok(hub) => hub,
            Err(error) if picture.job.id.is_empty() => return Err(Break::Final(error)),
            Err(error) => return Err(Break::Lost(format!("{error:#}"))),
        };
        let request = v1::WatchJobRequest { id: id.to_owned(), once: false };
        let mut updates = hub.jobs().watch_job(request).await?.into_inner();
        while let Some(update) = updates.message().await? {
            *told = false;
            let wave = picture.job.wave;
            let ended = picture.take(update);
            bar.suspend(|| {
                if picture.job.wave > wave {
                    eprintln!("hubctl: wave {} of {}", picture.job.wave, picture.job.waves);
                }
                ended.iter().try_for_each(|line| match (line.state, self.json) {
                    ("done", false) => output::lines(&[line.text()]).map(|_| ()),
                    _ => {
                        eprintln!("hubctl: {}", line.text());
                        Ok(())
                    }
                })
            })
            .map_err(Break::Final)?;
            bar.set_message(live(picture));
            let state = picture.job.state();
            if is_end(state) || (state == JobState::Stopped && picture.job.running == 0) {
                return Ok(());
            }
        }
        Err(Break::Lost("the hub closed the stream".to_owned()))
    }
}

/// What the terminal shows while it waits.
fn live(picture: &Picture) -> String {
    let job = &picture.job;
    let waves = if job.waves > 1 { format!("wave {} of {}: ", job.wave, job.waves) } else { String::new() };
    let away = if job.away > 0 { format!(", {} away", job.away) } else { String::new() };
    let mut text = format!(
        "{waves}{} of {} restored, {} failed, {} at it{away}",
        job.done, job.total, job.failed, job.running
    );
    for (database, update) in picture.running().take(SHOWN) {
        text.push_str(&format!("\n  {database}: {}", at_it(&update)));
    }
    text
}
