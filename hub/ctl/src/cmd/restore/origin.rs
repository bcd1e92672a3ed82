//! Where the pages of a restore come from: a hub, or folders and buckets that are read directly.

use super::one::Job;
use super::target::Target;
use crate::connect::Hub;
use crate::fault::sentence;
use crate::model;
use crate::place::Places;
use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::restore::Point;
use walhub_common::restore::frames::Frames;
use walhub_common::{DatabaseKey, PageSet, clock};
use walhub_proto::pages::{self as wire, SPANS, point_of};
use walhub_proto::v1::{self, restore_request};
use walhub_store::restore::{self, Ask, DynSource, PagesError, Prepared, Told, estimate};

/// See the module doc.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    Hub(&'a Hub),
    Places(&'a Places),
}

/// A point that was looked up: what it is, and how its pages are asked for.
pub(super) struct Found {
    pub(super) point: Point,
    /// Files that lead there.
    pub(super) files: u64,
    pub(super) total_bytes: u64,
    way: Way,
}

enum Way {
    Hub(Box<FromHub>),
    Direct(Vec<DynSource>, DatabaseKey, Box<Prepared>, CancellationToken),
}

/// Pages on their way.
pub(super) struct Pages(State);

enum State {
    Hub(Box<FromHub>),
    Direct(BoxStream<'static, Result<Frames, PagesError>>),
}

/// One answer of the hub after the other.
struct FromHub {
    hub: Hub,
    request: v1::RestoreRequest,
    verify: bool,
    now: Option<wire::Pages>,
    rest: VecDeque<Runs>,
}

type Runs = Vec<RangeInclusive<u32>>;

fn fault(error: wire::PagesError) -> anyhow::Error {
    match error {
        wire::PagesError::Status(status) => anyhow!(sentence(&status)),
        other => anyhow!(other.to_string()),
    }
}

impl Origin<'_> {
    /// Looks the point of a job up.
    pub(super) async fn find(&self, job: &Job, cancel: &CancellationToken) -> anyhow::Result<Found> {
        match self {
            Origin::Hub(hub) => {
                let mut request = job.request();
                // The pages begin to come with the plan: mostly all of them are wanted.
                let opened = wire::Pages::open(hub.channel(), request.clone(), &[], job.verify).await;
                let (plan, stream) = opened.map_err(fault)?;
                let point = point_of(&plan).map_err(fault)?;
                request.target = Some(restore_request::Target::Txid(point.txid.get()));
                let (hub, now, rest) = (Hub::clone(hub), Some(stream), VecDeque::new());
                let way = Way::Hub(Box::new(FromHub { hub, request, verify: job.verify, now, rest }));
                Ok(Found { point, files: plan.files.len() as u64, total_bytes: plan.total_bytes, way })
            }
            Origin::Places(places) => {
                let (sources, key, prepared) = prepare(places, job, cancel).await?;
                let header = prepared.header.context("there is nothing to restore")?;
                let point = Point {
                    txid: prepared.plan.reached,
                    checksum: header.provenance.map(|provenance| provenance.post),
                    page_size: header.page_size,
                    commit: header.commit,
                    timestamp_ms: header.timestamp_ms,
                };
                let (files, total_bytes) = (prepared.plan.files.len() as u64, prepared.plan.total_bytes());
                let way = Way::Direct(sources, key, Box::new(prepared), cancel.clone());
                Ok(Found { point, files, total_bytes, way })
            }
        }
    }

    /// What a restore would do.
    pub(super) async fn plan(&self, job: &Job, cancel: &CancellationToken) -> anyhow::Result<model::Plan> {
        let places = match self {
            Origin::Hub(hub) => {
                let plan = hub.plan_restore(job.request()).await.with_context(|| job.failure())?;
                return Ok(model::Plan::new(job.name(), plan));
            }
            Origin::Places(places) => places,
        };
        let (sources, _, prepared) = prepare(places, job, cancel).await.with_context(|| job.failure())?;
        let kind = |name: &restore::SourceName| {
            sources.iter().find(|source| source.name() == name).map_or("file", |source| source.kind())
        };
        let (plan, header) = (&prepared.plan, prepared.header);
        let estimate = estimate(plan, kind);
        Ok(model::Plan {
            database: job.name(),
            txid: plan.reached.get(),
            checksum: header.and_then(|header| header.provenance).map(|found| found.post.to_string()),
            time: header.map(|header| clock::format_ms(header.timestamp_ms)),
            page_size: header.map_or(0, |header| header.page_size.get()),
            pages: header.map_or(0, |header| header.commit),
            total_bytes: plan.total_bytes(),
            requests: estimate.requests,
            cost_usd: estimate.cost_micros as f64 / 1e6,
            estimated_seconds: estimate.time_ms as f64 / 1e3,
            files: plan.files.iter().map(model::File::of_plan).collect(),
        })
    }
}

async fn prepare(
    places: &Places,
    job: &Job,
    cancel: &CancellationToken,
) -> anyhow::Result<(Vec<DynSource>, DatabaseKey, Prepared)> {
    let (sources, key) = places.sources(job.database.as_ref());
    let target = match job.target {
        Target::Latest => restore::Target::Latest,
        Target::Txid(txid) => restore::Target::Txid(txid),
        Target::Time(ms) => restore::Target::TimestampMs(ms),
    };
    let prepared = restore::prepare(&sources, &key, None, target, cancel).await?;
    for error in &prepared.unanswered {
        eprintln!("hubctl: a source does not answer, and may hold a newer state: {error}");
    }
    Ok((sources, key, prepared))
}

impl Found {
    /// The pages that are not `present` yet.
    pub(super) fn pages(self, present: &PageSet, verify: bool) -> Pages {
        match self.way {
            Way::Hub(mut hub) => {
                if !present.is_empty() {
                    let gaps: Vec<_> = present.gaps().collect();
                    hub.rest = gaps.chunks(SPANS).map(<[_]>::to_vec).collect();
                    hub.now = None;
                }
                Pages(State::Hub(hub))
            }
            Way::Direct(sources, key, prepared, cancel) => {
                let told = Told(Arc::new(|text: &str| eprintln!("hubctl: {text}")));
                let ask = Ask { verify, told, ..Ask::new(present.clone()) };
                Pages(State::Direct(restore::pages(&sources, &key, &prepared, ask, &cancel)))
            }
        }
    }
}

impl Pages {
    /// The next ones; `None` when all came.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Frames>> {
        match &mut self.0 {
            State::Direct(frames) => Ok(frames.next().await.transpose()?),
            State::Hub(hub) => hub.next().await,
        }
    }
}

impl FromHub {
    async fn next(&mut self) -> anyhow::Result<Option<Frames>> {
        loop {
            if let Some(stream) = &mut self.now {
                match stream.next().await.map_err(fault)? {
                    Some(frames) => return Ok(Some(frames)),
                    None => self.now = None,
                }
            }
            let Some(runs) = self.rest.pop_front() else { return Ok(None) };
            let channel = self.hub.channel();
            let opened = wire::Pages::open(channel, self.request.clone(), &runs, self.verify).await;
            self.now = Some(opened.map_err(fault)?.1);
        }
    }
}
