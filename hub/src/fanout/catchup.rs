//! Past the buffer: a destination that needs transactions which the buffer has given back gets another destination's
//! files, byte for byte.

use super::Venue;
use super::build::{Built, MAX_FILE_BYTES};
use super::coverage;
use super::error::TurnError;
use crate::buffer::BufferError;
use crate::copies::Place;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use walhub_common::ltx::{Verified, Verifier};
use walhub_common::{DatabaseKey, Txid};
use walhub_store::destinations::{Body, DynDestination, FileKey, Listed, PutMeta};

/// A file of another destination.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// That destination.
    pub(super) from: Arc<Place>,
    /// Which file.
    pub(super) file: Listed,
}

/// Files that lead on from `cursor`, from the first healthy destination that has any; never empty.
pub(super) async fn plan(
    venue: &Venue,
    database: &DatabaseKey,
    cursor: Option<Txid>,
    reason: BufferError,
) -> Result<VecDeque<Step>, TurnError> {
    let mut failed = None;
    for sibling in venue.board.roster().places() {
        // A destination in trouble must not hold up this one.
        if sibling.lane == venue.place.lane || !venue.board.health(sibling.lane).healthy {
            continue;
        }
        match sibling.destination.list_all(database, &venue.abort).await {
            Ok(files) => {
                let chain = coverage::chain(&files, cursor);
                if !chain.is_empty() {
                    let (from, to) = (sibling.name(), venue.place.name());
                    tracing::info!(%database, %from, %to, files = chain.len(), %reason, "catching up from another destination");
                    return Ok(chain
                        .into_iter()
                        .map(|file| Step { from: sibling.clone(), file: file.clone() })
                        .collect());
                }
            }
            Err(error) => failed = Some(Box::new(error)),
        }
    }
    match reason {
        BufferError::Trimmed { txid, .. } => Err(TurnError::Missing { txid, sibling: failed }),
        other => Err(TurnError::Buffer(other)),
    }
}

/// A verified file, to be put under its own name.
pub(super) async fn fetch(venue: &Venue, database: &DatabaseKey, step: &Step) -> Result<Built, TurnError> {
    let (to, from) = (&venue.place.destination, &step.from.destination);
    let key = FileKey { database: database.clone(), level: step.file.level, range: step.file.range };
    let name = format!("{}-{}-{}-copy-{}.ltx", to.name(), database.agent, database.name, step.file.range);
    let temp = TempFile(venue.tmp.join(name));
    let verified = download(venue, from, &key, &temp).await?;
    let header = verified.header;
    if header.range != step.file.range {
        return Err(TurnError::Sibling(format!("{key} at {} covers {}", from.name(), header.range)));
    }
    let body = match verified.bytes {
        0..=MAX_FILE_BYTES => Body::Bytes(tokio::fs::read(&temp.0).await?.into()),
        _ => Body::File(temp.keep()),
    };
    Ok(Built {
        lineage: header.node_id,
        level: step.file.level,
        range: header.range,
        page_size: header.page_size,
        body,
        meta: PutMeta {
            time_ms: header.timestamp_ms,
            post: header.provenance.map(|provenance| provenance.post),
        },
        bytes: verified.bytes,
        more: true,
        then_one: false,
    })
}

async fn download(
    venue: &Venue,
    from: &DynDestination,
    key: &FileKey,
    temp: &TempFile,
) -> Result<Verified, TurnError> {
    let missing = |error| TurnError::Missing { txid: key.range.min(), sibling: Some(Box::new(error)) };
    let damaged = |error| TurnError::Sibling(format!("{key} at {}: {error}", from.name()));
    let mut verifier = Verifier::new(u64::MAX);
    let mut file = File::create(&temp.0).await?;
    let mut pieces = from.open(key, 0, &venue.abort).await.map_err(missing)?;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(missing)?;
        verifier.push(&piece).map_err(damaged)?;
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    verifier.finish().map_err(damaged)
}

/// Removed with its value, unless it was kept.
struct TempFile(PathBuf);

impl TempFile {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary file");
        }
    }
}
