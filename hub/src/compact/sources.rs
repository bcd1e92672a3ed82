//! Where the bytes of a new file come from: the buffer, or files that a destination holds.

use super::state::Known;
use super::whereabouts::Whereabouts;
use crate::buffer::{BufferError, DatabaseId, SegmentRef, WalBuffer};
use crate::copies::{Board, Place};
use crate::fanout::coverage;
use crate::restore::BufferSource;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::HEADER_BYTES;
use walhub_common::{DatabaseKey, Level, Txid, TxidRange};
use walhub_store::compact::Input;
use walhub_store::compact::windows::Piece;
use walhub_store::destinations::{DestinationError, Listed};
use walhub_store::restore::{self, DestinationSource, DynSource, Inventory, Plan, PlannedFile, Reach, times};

/// Segments listed at once.
const PAGE: usize = 4096;
/// Most segments looked at for one window: a window with more of them becomes several files.
const MAX_SEGMENTS: usize = 65_536;

/// Buffered segments behind `after`, in order, up to the first one at or beyond `until_ms`.
pub(super) fn segments(
    buffer: &dyn WalBuffer,
    database: DatabaseId,
    after: Option<Txid>,
    until_ms: Option<i64>,
) -> Result<Vec<SegmentRef>, BufferError> {
    let (mut found, mut after) = (Vec::new(), after);
    loop {
        let page = buffer.list(database, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.meta.range.max());
        let over = until_ms.is_some_and(|until| last.meta.time_ms >= until);
        found.extend(page);
        if over || found.len() >= MAX_SEGMENTS {
            return Ok(found);
        }
    }
}

/// One input of a file in the making.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) piece: Piece,
    pub(super) bytes: u64,
    pub(super) from: From,
}

/// Where an input lies.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// In the buffer.
    Buffer(SegmentRef),
    /// At the destinations that hold it.
    Files(Level, Known),
}

impl Part {
    pub(super) fn segment(segment: SegmentRef) -> Part {
        let piece = Piece { range: segment.meta.range, time_ms: segment.meta.time_ms };
        Part { piece, bytes: segment.bytes, from: From::Buffer(segment) }
    }

    pub(super) fn file(level: Level, known: Known) -> Part {
        Part { piece: known.piece, bytes: known.bytes, from: From::Files(level, known) }
    }
}

/// An input that reads a segment.
pub(super) fn from_buffer(buffer: &Arc<dyn WalBuffer>, id: DatabaseId, segment: SegmentRef) -> Input {
    let buffer = buffer.clone();
    Box::new(move || buffer.open(id, &segment).map_err(io::Error::other))
}

/// The buffer's segments of exactly `range`, when it holds them all.
pub(super) fn buffered(
    buffer: &dyn WalBuffer,
    database: DatabaseId,
    range: TxidRange,
) -> Result<Option<Vec<SegmentRef>>, BufferError> {
    let mut found = segments(buffer, database, Txid::new(range.min().get() - 1), None)?;
    found.retain(|segment| segment.meta.range.max() <= range.max());
    let whole = found.first().is_some_and(|first| first.meta.range.min() == range.min())
        && found.last().is_some_and(|last| last.meta.range.max() == range.max())
        && found.windows(2).all(|pair| pair[1].meta.range.follows(Some(pair[0].meta.range.max())));
    Ok(whole.then_some(found))
}

/// Healthy destinations of a database, folders first.
pub(super) fn places(board: &Board, database: DatabaseId, key: &DatabaseKey) -> Vec<Arc<Place>> {
    let mut places = board.row(database, key).terms.places.clone();
    places.retain(|place| board.health(place.lane).healthy);
    places.sort_by_key(|place| place.destination.kind() != "file");
    places
}

/// A healthy destination that holds this file; folders first.
pub(super) fn holder<'a>(places: &'a [Arc<Place>], known: &Known) -> Option<&'a Arc<Place>> {
    places.iter().find(|place| known.whereabouts.is_at(place.lane))
}

/// An input that reads a file from a destination.
pub(super) fn from_destination(
    place: &Place,
    key: &DatabaseKey,
    level: Level,
    known: &Known,
    cancel: &CancellationToken,
) -> Input {
    let source: DynSource = Arc::new(DestinationSource(place.destination.clone()));
    let file = PlannedFile {
        source: source.name().clone(),
        level,
        range: known.piece.range,
        size: known.bytes,
        time_ms: known.piece.time_ms,
    };
    streamed(vec![source], key, file, cancel)
}

/// Files of level 0 that lead on from `after` without a hole, at least up to `until` if any destination has them: from the one
/// that reaches furthest, folders first.
pub(super) async fn level_0(
    places: &[Arc<Place>],
    key: &DatabaseKey,
    after: Option<Txid>,
    until: Txid,
    cancel: &CancellationToken,
) -> Result<Vec<Known>, DestinationError> {
    let (mut best, mut failed): (Vec<Known>, _) = (Vec::new(), None);
    let reach = |files: &[Known]| files.last().map(|known| known.piece.range.max());
    for place in places {
        let listed = match place.destination.list(key, Level::RAW, cancel).await {
            Ok(listed) => listed,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let known = |file: &Listed| Known {
            piece: Piece { range: file.range, time_ms: file.time_ms },
            bytes: file.size,
            exact: false,
            whereabouts: Whereabouts::held_by(BTreeSet::from([place.lane])),
        };
        let chain = coverage::chain(&listed, after).into_iter().take_while(|file| file.range.min() <= until);
        let found: Vec<Known> = chain.take(MAX_SEGMENTS).map(known).collect();
        if reach(&found) > reach(&best) {
            best = found;
        }
        if reach(&best) >= Some(until) {
            break;
        }
    }
    match failed {
        Some(error) if best.is_empty() => Err(error),
        _ => Ok(best),
    }
}

/// Where the history of a database begins at destinations: the newest transaction of a file that holds every page.
pub(super) async fn beginning(
    places: &[Arc<Place>],
    key: &DatabaseKey,
    cancel: &CancellationToken,
) -> Result<Option<Txid>, DestinationError> {
    let mut newest = None;
    for place in places {
        let files = place.destination.list_all(key, cancel).await?;
        let whole = files.iter().filter(|file| file.range.min() == Txid::FIRST);
        newest = newest.max(whole.map(|file| file.range.max()).max());
    }
    Ok(newest)
}

/// Time of the newest transaction of a file, as its header says.
pub(super) async fn time_of(
    place: &Place,
    key: &DatabaseKey,
    level: Level,
    file: &Known,
    cancel: &CancellationToken,
) -> Result<i64, DestinationError> {
    let key = walhub_store::destinations::FileKey { database: key.clone(), level, range: file.piece.range };
    let start = place.destination.read_start(&key, HEADER_BYTES, cancel).await?;
    Ok(walhub_common::ltx::Header::decode(&start).map_or(file.piece.time_ms, |header| header.timestamp_ms))
}

/// What a whole database is made of.
pub(super) struct Whole {
    pub(super) inputs: Vec<Input>,
    pub(super) reached: Txid,
    pub(super) time_ms: i64,
    pub(super) bytes: u64,
}

/// A whole database at the newest point up to `newest` that `place` and the buffer lead to, by files that end at `oldest`
/// or later.
pub(super) async fn whole(
    buffer: &Arc<dyn WalBuffer>,
    place: &Arc<Place>,
    key: &DatabaseKey,
    newest: Txid,
    oldest: Txid,
    cancel: &CancellationToken,
) -> Result<Option<Whole>, DestinationError> {
    let sources: Vec<DynSource> = vec![
        Arc::new(BufferSource::new(buffer.clone())),
        Arc::new(DestinationSource(place.destination.clone())),
    ];
    let Inventory { mut listings, unanswered } = Inventory::list(&sources, key, cancel).await;
    if let Some(error) = unanswered.into_iter().next() {
        return Err(error);
    }
    for listing in &mut listings {
        listing.files.retain(|file| (oldest..=newest).contains(&file.range.max()));
    }
    let reach = Reach::new(&listings, None);
    let Some(plan) = reach.newest().and_then(|newest| reach.chain_to(newest)) else { return Ok(None) };
    let Some(last) = plan.files.last() else { return Ok(None) };
    let time_ms = times::read_time(&sources, key, last, cancel).await?;
    let (reached, bytes) = (plan.reached, plan.total_bytes());
    let inputs = plan.files.into_iter().map(|file| streamed(sources.clone(), key, file, cancel)).collect();
    Ok(Some(Whole { inputs, reached, time_ms, bytes }))
}

/// One file, read as the merge asks for it; a read that breaks goes on where it broke.
pub(crate) fn streamed(
    sources: Vec<DynSource>,
    key: &DatabaseKey,
    file: PlannedFile,
    cancel: &CancellationToken,
) -> Input {
    let (handle, key, cancel) = (Handle::current(), key.clone(), cancel.clone());
    Box::new(move || {
        let plan = Plan { reached: file.range.max(), files: vec![file] };
        let stream = restore::fetch(&sources, &key, &plan, &cancel);
        Ok(Box::new(Streamed { handle, stream, piece: Bytes::new() }) as Box<dyn Read + Send>)
    })
}

/// A stream of pieces as a blocking reader.
struct Streamed {
    handle: Handle,
    stream: BoxStream<'static, Result<restore::Piece, DestinationError>>,
    piece: Bytes,
}

impl Read for Streamed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.handle.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(restore::Piece::Data(piece))) => self.piece = piece,
                Some(Ok(restore::Piece::Start(_))) => {}
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
        let taken = buf.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buf[..taken]);
        Ok(taken)
    }
}
