//! A client's restore into an older or damaged copy of a database: the page checksums of the point, then the pages that
//! the copy lacks.
//!
//! Cancellation: dropping the future leaves the copy as it was; a temporary file beside it is taken away.

use crate::pages::{Pages, PagesError, SPANS, Table, plan};
use crate::v1::restore_request::Target;
use crate::v1::{RestorePlan, RestoreRequest};
use std::path::Path;
use tonic::transport::Channel;
use walhub_common::restore::{Delta, Report, RestoreError};

/// Why the copy is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The hub, or the connection.
    #[error(transparent)]
    Hub(#[from] PagesError),
    /// The copy, or the proof.
    #[error(transparent)]
    File(#[from] RestoreError),
    /// Other software wrote that history.
    #[error(
        "no checksum was taken at that point, so there is nothing to compare with: restore the whole database"
    )]
    NoChecksum,
    /// A fault of this program.
    #[error("a bug ended the restore: {0}")]
    Bug(#[from] tokio::task::JoinError),
}

/// Brings the copy at `path` to the point; `only_read` as for [`Delta::create`]. `progress` hears of bytes that came, and of
/// bytes to come in all (estimated).
pub async fn restore(
    channel: Channel,
    point: RestoreRequest,
    path: &Path,
    only_read: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Report, RestorePlan), DeltaError> {
    let (plan, position) = plan(channel.clone(), point.clone()).await?;
    let position = position.ok_or(DeltaError::NoChecksum)?;
    let database = point.database.clone().unwrap_or_default();
    let mut table = Table::open(channel.clone(), database, position).await?;
    let (path, page_size, commit) = (path.to_owned(), table.page_size, table.commit);
    let mut delta =
        tokio::task::spawn_blocking(move || Delta::create(&path, page_size, commit, only_read)).await??;
    while let Some(sums) = table.next().await? {
        delta = tokio::task::spawn_blocking(move || delta.compare(&sums).map(|()| delta)).await??;
    }
    let (checksums, missing) = (delta.bytes_in(), delta.pages_missing());
    // Exactly the position that the checksums belong to.
    let point = RestoreRequest { target: Some(Target::Txid(position.txid.get())), ..point };
    for runs in delta.missing().chunks(SPANS) {
        let (_, mut pages) = Pages::open(channel.clone(), point.clone(), runs, false).await?;
        while let Some(frames) = pages.next().await? {
            delta = tokio::task::spawn_blocking(move || delta.take(&frames).map(|()| delta)).await??;
            let come = (missing - delta.pages_missing()).max(1);
            progress(delta.bytes_in(), checksums + (delta.bytes_in() - checksums) * missing / come);
        }
    }
    let timestamp_ms = plan.timestamp_ms;
    let report = tokio::task::spawn_blocking(move || delta.finish(position, timestamp_ms)).await??;
    Ok((report, plan))
}
