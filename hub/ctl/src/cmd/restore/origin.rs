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
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::restore::frames::Frames;
use walhub_common::restore::{Point, fill};
use walhub_common::{DatabaseKey, PageSet, clock};
use walhub_proto::pages as wire;
use walhub_proto::restore::Whole;
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
    Hub(Box<Whole>),
    Direct(Vec<DynSource>, DatabaseKey, Box<Prepared>, CancellationToken),
}

/// Pages on their way.
pub(super) enum Pages {
    Hub(Box<Whole>),
    Direct(BoxStream<'static, Result<Frames, PagesError>>),
}

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
                let whole = Whole::open(hub.channel(), job.request(), job.verify).await.map_err(fault)?;
                let (point, plan) = (whole.point, &whole.plan);
                let (files, total_bytes) = (plan.files.len() as u64, plan.total_bytes);
                Ok(Found { point, files, total_bytes, way: Way::Hub(Box::new(whole)) })
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
            Way::Hub(whole) => Pages::Hub(Box::new(whole.without(present))),
            Way::Direct(sources, key, prepared, cancel) => {
                let told = Told(Arc::new(|text: &str| eprintln!("hubctl: {text}")));
                let ask = Ask { verify, told, ..Ask::new(present.clone()) };
                Pages::Direct(restore::pages(&sources, &key, &prepared, ask, &cancel))
            }
        }
    }
}

impl fill::Pages for Pages {
    type Error = anyhow::Error;

    async fn next(&mut self) -> anyhow::Result<Option<Frames>> {
        match self {
            Pages::Direct(frames) => Ok(frames.next().await.transpose()?),
            Pages::Hub(whole) => whole.next().await.map_err(fault),
        }
    }
}
