//! Buffered segments ▸ one file: everything since the cursor, the newest version of each page, the hub's time.
//! Blocking.

use super::error::TurnError;
use crate::buffer::{BufferError, DatabaseId, SegmentRef, WalBuffer};
use bytes::Bytes;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use walhub_common::ltx::{self, Decoder, LtxError, Provenance, Stamp};
use walhub_common::{DestinationName, Level, PageSize, Txid, TxidRange};
use walhub_store::destinations::{Body, PutMeta};

/// LTX bytes read for one file; a larger single segment makes a file alone.
pub(super) const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Segments in one file.
const MAX_SEGMENTS: usize = 4096;
/// Times that a file is begun again when its segments moved.
const TRIES: u32 = 3;
/// Segments merged at once; each costs two pages and a read buffer.
const FAN_IN: usize = 64;
const READ_BUFFER: usize = 16 * 1024;

/// What a file is built of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) database: DatabaseId,
    pub(super) lineage: u64,
    /// Newest transaction at the destination.
    pub(super) after: Option<Txid>,
    /// Page size there, when it is known.
    pub(super) page_size: Option<PageSize>,
    /// How much of what is waiting.
    pub(super) share: Share,
}

/// How much of what is waiting goes into one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Share {
    /// All that fits.
    All,
    /// The last transaction is left for a file of its own.
    ButLast,
    /// The oldest segment alone.
    First,
}

/// A file ready to be put, as often as it takes.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) lineage: u64,
    pub(super) level: Level,
    pub(super) range: TxidRange,
    pub(super) page_size: PageSize,
    pub(super) body: Body,
    pub(super) meta: PutMeta,
    pub(super) bytes: u64,
    /// More was waiting than went into it.
    pub(super) more: bool,
    /// The transaction after it comes in a file of its own, at once.
    pub(super) then_one: bool,
}

impl Drop for Built {
    fn drop(&mut self) {
        if let Body::File(path) = &self.body
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a temporary file");
        }
    }
}

/// Builds the next file of a database; `None` when nothing is waiting.
///
/// Files of two page sizes cannot follow each other in Litestream's layout. An application that changes it makes a whole
/// new image: that ends the file before it, and goes out as a snapshot, which needs nothing that was before.
pub(super) fn build(
    buffer: &dyn WalBuffer,
    lane: &DestinationName,
    wanted: Wanted,
    tmp: &Path,
) -> Result<Option<Built>, TurnError> {
    let mut tries = 0;
    loop {
        match build_once(buffer, lane, wanted, tmp) {
            // Segments that were found may have been merged into another, or copied, before they were opened.
            Err(TurnError::Buffer(BufferError::Trimmed { .. })) if tries < TRIES => tries += 1,
            built => return built,
        }
    }
}

fn build_once(
    buffer: &dyn WalBuffer,
    lane: &DestinationName,
    wanted: Wanted,
    tmp: &Path,
) -> Result<Option<Built>, TurnError> {
    let mut segments = read(buffer, wanted)?;
    segments.truncate(if wanted.share == Share::First { 1 } else { MAX_SEGMENTS });
    let last_alone = wanted.share == Share::ButLast
        && segments.len() > 1
        && segments.last().is_some_and(|segment| segment.meta.range.count() == 1);
    if last_alone {
        segments.pop();
    }
    loop {
        match build_of(buffer, lane, wanted, &segments, tmp) {
            Err(TurnError::Ltx(LtxError::PageSizeChange { first, .. })) => {
                segments.retain(|segment| segment.meta.range.max() <= first.max());
            }
            Ok(Some(mut built)) => {
                built.then_one = last_alone;
                return Ok(Some(built));
            }
            other => return other,
        }
    }
}

/// What follows the cursor. Where that lies inside a segment, because a full buffer has made one of several, it begins
/// with that segment: it changes every page that differs from any state since its beginning.
fn read(buffer: &dyn WalBuffer, wanted: Wanted) -> Result<Vec<SegmentRef>, TurnError> {
    let Wanted { database, after, .. } = wanted;
    let trimmed = match buffer.read(database, after, MAX_FILE_BYTES) {
        Err(BufferError::Trimmed { txid, .. }) => txid,
        read => return Ok(read?),
    };
    match buffer.covering(database, trimmed)? {
        Some(around) if around.meta.range.min() < trimmed => {
            let before = Txid::new(around.meta.range.min().get() - 1);
            Ok(buffer.read(database, before, MAX_FILE_BYTES)?)
        }
        _ => Err(BufferError::Trimmed { database, txid: trimmed }.into()),
    }
}

fn build_of(
    buffer: &dyn WalBuffer,
    lane: &DestinationName,
    wanted: Wanted,
    segments: &[SegmentRef],
    tmp: &Path,
) -> Result<Option<Built>, TurnError> {
    let Wanted { database, lineage, page_size, .. } = wanted;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(None) };
    let whole = match page_size {
        Some(before) => open(buffer, database, first)?.header().page_size != before,
        None => false,
    };
    let begin = if whole { Txid::FIRST } else { first.meta.range.min() };
    let range = TxidRange::new(begin, last.meta.range.max())
        .ok_or_else(|| TurnError::Internal("segments out of order".to_owned()))?;
    let provenance = Provenance { pre: first.meta.pre.filter(|_| !whole), post: last.meta.post };
    let time_ms = last.meta.time_ms;
    let stamp = Stamp { timestamp_ms: time_ms, node_id: lineage, whole };
    let more = !buffer.read(database, Some(range.max()), 1)?.is_empty();
    let read: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let (body, bytes, page_size) = if read <= MAX_FILE_BYTES {
        let mut out = Vec::with_capacity(read as usize);
        let merged = merge(buffer, database, segments, stamp, &mut out, tmp)?;
        let page_size = check(&merged, range, provenance)?;
        let bytes = out.len() as u64;
        (Body::Bytes(Bytes::from(out)), bytes, page_size)
    } else {
        let path = tmp.join(format!("{lane}-{}-{range}.ltx", database.0));
        let temp = Temp(Some(path.clone()));
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        let merged = merge(buffer, database, segments, stamp, &mut out, tmp)?;
        let page_size = check(&merged, range, provenance)?;
        let file = out.into_inner().map_err(|e| TurnError::Temp(e.into_error()))?;
        (Body::File(temp.keep()), file.metadata()?.len(), page_size)
    };
    let meta = PutMeta { time_ms, post: Some(provenance.post) };
    let level = if whole { Level::SNAPSHOT } else { Level::RAW };
    Ok(Some(Built { lineage, level, range, page_size, body, meta, bytes, more, then_one: false }))
}

/// Removes the file unless it was kept.
struct Temp(Option<PathBuf>);

impl Temp {
    fn keep(mut self) -> PathBuf {
        self.0.take().expect("BUG: a temporary file is kept once")
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The merged file must be what the buffer's records say of its parts; its page size.
fn check(merged: &ltx::Merged, range: TxidRange, provenance: Provenance) -> Result<PageSize, TurnError> {
    if merged.header.range == range && merged.header.provenance == Some(provenance) {
        return Ok(merged.header.page_size);
    }
    Err(TurnError::Internal(format!("merged segments give {:?}, the buffer says {range}", merged.header)))
}

fn open(
    buffer: &dyn WalBuffer,
    database: DatabaseId,
    segment: &SegmentRef,
) -> Result<Decoder<Box<dyn Read + Send>>, TurnError> {
    let reader = BufReader::with_capacity(READ_BUFFER, buffer.open(database, segment)?);
    Ok(Decoder::new(Box::new(reader) as Box<dyn Read + Send>)?)
}

fn merge(
    buffer: &dyn WalBuffer,
    database: DatabaseId,
    segments: &[SegmentRef],
    stamp: Stamp,
    out: impl Write,
    tmp: &Path,
) -> Result<ltx::Merged, TurnError> {
    let open = |segment: &SegmentRef| open(buffer, database, segment);
    if segments.len() <= FAN_IN {
        let inputs = segments.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        return Ok(ltx::merge_large(inputs, stamp, out, tmp)?);
    }
    let mut groups: Vec<Vec<u8>> = Vec::new();
    for group in segments.chunks(FAN_IN) {
        let inputs = group.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let stamp = Stamp { whole: stamp.whole && groups.is_empty(), ..stamp };
        let mut merged = Vec::new();
        ltx::merge(inputs, stamp, &mut merged)?;
        groups.push(merged);
    }
    let inputs = groups.iter().map(|group| Decoder::new(&group[..])).collect::<Result<Vec<_>, LtxError>>()?;
    Ok(ltx::merge(inputs, stamp, out)?)
}
