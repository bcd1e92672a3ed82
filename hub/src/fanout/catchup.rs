//! Past the buffer: a destination that needs transactions which the buffer has given back gets another destination's
//! files, byte for byte, if they are of its history: their names do not tell, and they cannot be taken back.

use super::Venue;
use super::build::{Built, MAX_FILE_BYTES};
use super::coverage;
use super::error::TurnError;
use super::turn::Progress;
use crate::buffer::BufferError;
use crate::copies::Place;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use walhub_common::DatabaseKey;
use walhub_common::ltx::{HEADER_BYTES, Header, Verified, Verifier};
use walhub_store::destinations::{Body, DynDestination, FileKey, Listed, PutMeta};

/// A file of another destination.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// That destination.
    pub(super) from: Arc<Place>,
    /// Which file.
    pub(super) file: Listed,
}

impl Step {
    fn key(&self, database: &DatabaseKey) -> FileKey {
        FileKey { database: database.clone(), level: self.file.level, range: self.file.range }
    }
}

/// Files that lead on from the cursor, from the first healthy destination that has any of this history; never empty.
/// Those that serve the database come first; one that did so once may be the only one that has them.
pub(super) async fn plan(
    venue: &Venue,
    progress: &Progress,
    reason: BufferError,
) -> Result<VecDeque<Step>, TurnError> {
    let (database, mut failed) = (&progress.key, None);
    let roster = venue.board.roster();
    let terms = roster.terms(database);
    let others = roster.places().iter().filter(|place| !terms.serves(place.lane));
    for sibling in terms.places.iter().chain(others) {
        // A destination in trouble must not hold up this one.
        if sibling.lane == venue.place.lane || !venue.board.health(sibling.lane).healthy {
            continue;
        }
        let (from, to) = (sibling.name(), venue.place.name());
        match steps(venue, progress, sibling).await {
            Ok(steps) if steps.is_empty() => {}
            Ok(steps) => {
                tracing::info!(%database, %from, %to, files = steps.len(), %reason, "catching up from another destination");
                return Ok(steps);
            }
            Err(TurnError::Destination(error)) => failed = Some(Box::new(error)),
            Err(error) => {
                tracing::warn!(%database, %from, %to, %error, "another destination is no help in catching up");
            }
        }
    }
    match reason {
        BufferError::Trimmed { txid, .. } => Err(TurnError::Missing { txid, sibling: failed }),
        other => Err(TurnError::Buffer(other)),
    }
}

/// Files of `sibling` that lead on, of which the first is known to be of this history.
async fn steps(
    venue: &Venue,
    progress: &Progress,
    sibling: &Arc<Place>,
) -> Result<VecDeque<Step>, TurnError> {
    let files = sibling.destination.list_all(&progress.key, &venue.abort).await;
    let files = files.map_err(TurnError::Destination)?;
    let chain = coverage::chain(&files, progress.cursor).into_iter();
    let steps: VecDeque<Step> =
        chain.map(|file| Step { from: sibling.clone(), file: file.clone() }).collect();
    if let Some(first) = steps.front() {
        let key = first.key(&progress.key);
        let start = sibling.destination.read_start(&key, HEADER_BYTES, &venue.abort).await;
        let header = Header::decode(&start.map_err(TurnError::Destination)?);
        let header = header.map_err(|error| unfit(first, &key, &error))?;
        same_history(venue, progress, &header).map_err(|reason| unfit(first, &key, &reason))?;
    }
    Ok(steps)
}

fn unfit(step: &Step, key: &FileKey, reason: &dyn Display) -> TurnError {
    TurnError::Sibling(format!("{key} at {}: {reason}", step.from.name()))
}

/// Refuses what another history left under the same key; why. What the checksum before it says counts where that after
/// the last file here is known.
fn same_history(venue: &Venue, progress: &Progress, header: &Header) -> Result<(), String> {
    let lineage = venue.buffer.find(&progress.key).map_or(0, |held| held.lineage);
    if header.node_id != lineage {
        return Err(format!("it is of lineage {:016x}, the hub's is {lineage:016x}", header.node_id));
    }
    let begins = header.provenance.and_then(|known| known.pre);
    match (begins.filter(|_| header.range.follows(progress.cursor)), progress.post) {
        (Some(begins), Some(post)) if begins != post => {
            Err(format!("it follows checksum {begins}, here is {post}"))
        }
        _ => Ok(()),
    }
}

/// A verified file, to be put under its own name.
pub(super) async fn fetch(venue: &Venue, progress: &Progress, step: &Step) -> Result<Built, TurnError> {
    let (to, from) = (&venue.place.destination, &step.from.destination);
    let (database, key) = (&progress.key, step.key(&progress.key));
    let name = format!("{}-{}-{}-copy-{}.ltx", to.name(), database.agent, database.name, step.file.range);
    let temp = TempFile(venue.tmp.join(name));
    let verified = download(venue, from, &key, &temp).await?;
    let header = verified.header;
    if header.range != step.file.range {
        return Err(unfit(step, &key, &format!("it covers {}", header.range)));
    }
    same_history(venue, progress, &header).map_err(|reason| unfit(step, &key, &reason))?;
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
