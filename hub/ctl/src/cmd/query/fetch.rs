//! Brings the cached copy of a database to a point: nothing moves when it is there, the pages that differ otherwise.

use super::cache::{Cache, Slot};
use crate::cmd::restore::one::{self, Job};
use crate::cmd::restore::progress::Progress;
use crate::connect::Hub;
use crate::fault::sentence;
use anyhow::{Context, anyhow};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::sql::Reader;
use walhub_common::{Checksum, DatabaseKey, PageSize, clock};
use walhub_proto::pages::{self, PagesError};

/// Which state a copy has.
#[derive(Debug)]
pub(super) struct State {
    /// The transaction.
    pub(super) txid: u64,
    /// Its time, by the hub's clock.
    pub(super) time: String,
    /// Of the copy.
    pub(super) checksum: String,
    /// `verified`, or `unproven` when nobody took a checksum at the source.
    pub(super) verdict: &'static str,
    /// Of the database.
    pub(super) bytes: u64,
    /// That moved for it, checksums included.
    pub(super) received_bytes: u64,
}

/// What fetching needs beside the job.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub(super) hub: &'a Hub,
    /// Address of the hub, as it was given.
    pub(super) address: &'a str,
    pub(super) cache: &'a Arc<Cache>,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a CancellationToken,
}

/// Gives the copy of `job`'s database, open, at the point of `job`. Its output is ignored.
pub(super) async fn fetch(
    means: &Means<'_>,
    database: &DatabaseKey,
    mut job: Job,
) -> anyhow::Result<(State, Reader)> {
    let planned = pages::plan(means.hub.channel(), job.request()).await;
    let (plan, position) = planned.map_err(|error| match error {
        PagesError::Status(status) => anyhow!("{}: {}", job.failure(), sentence(&status)),
        other => anyhow!("{}: {other}", job.failure()),
    })?;
    let page_size = PageSize::new(plan.page_size).ok_or_else(|| {
        anyhow!("the hub does not keep to the protocol: a page of {} bytes", plan.page_size)
    })?;
    let bytes = u64::from(plan.commit) * u64::from(plan.page_size);
    let slot = Arc::new(means.cache.slot(means.address, database).await?);
    let expected = position.map(|position| position.checksum);
    let there = prepare(means, &slot, page_size, plan.commit, expected).await;
    let state = match (there.with_context(|| job.failure())?, position) {
        (true, Some(position)) => State {
            txid: position.txid.get(),
            time: clock::format_ms(plan.timestamp_ms),
            checksum: position.checksum.to_string(),
            verdict: "verified",
            bytes,
            received_bytes: 0,
        },
        _ => {
            job.out = slot.copy();
            (job.force, job.delta) = (true, position.is_some());
            let restored = one::restore(means.hub, &job, means.progress, means.cancel).await?;
            State {
                txid: restored.txid,
                time: restored.time,
                checksum: restored.checksum,
                verdict: restored.verdict,
                bytes: restored.bytes,
                received_bytes: restored.received_bytes,
            }
        }
    };
    // The place is free for others when the file is open.
    let checksum = state.checksum.clone();
    let opened = tokio::task::spawn_blocking(move || {
        slot.mark(&checksum)?;
        anyhow::Ok(Reader::open(&slot.copy())?)
    });
    let copy = opened.await?.with_context(|| format!("cannot read the copy of {database}"))?;
    Ok((state, copy))
}

/// True when the copy is the state; else there is room for it, and a copy to begin with if the state has a checksum.
async fn prepare(
    means: &Means<'_>,
    slot: &Arc<Slot>,
    page_size: PageSize,
    pages: u32,
    expected: Option<Checksum>,
) -> anyhow::Result<bool> {
    let (cache, slot) = (Arc::clone(means.cache), Arc::clone(slot));
    let prepared = tokio::task::spawn_blocking(move || {
        if expected.is_some_and(|checksum| slot.holds(page_size, pages, checksum)) {
            return Ok(true);
        }
        cache.make_room(&slot, u64::from(pages) * u64::from(page_size.get()))?;
        match expected {
            Some(_) => slot.begin()?,
            None => slot.clear()?,
        }
        Ok(false)
    });
    prepared.await?
}
