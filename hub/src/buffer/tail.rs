//! Which chunk may come next: the one place that knows the order rules of a database's segments. Pure.

use super::{BufferError, Chunk, Registered, SegmentMeta};
use walhub_common::{Pos, Txid, TxidRange, limits};

/// A segment of which some chunks have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpenSegment {
    /// Its facts.
    pub(super) meta: SegmentMeta,
    /// The chunk number that must come next.
    pub(super) next: u32,
    /// LTX bytes that have come.
    pub(super) bytes: u64,
}

/// The end of one database's segments, as accepted so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Tail {
    /// After the last complete segment.
    pub(super) position: Option<Pos>,
    /// The unfinished segment.
    pub(super) open: Option<OpenSegment>,
}

/// True when a segment with these facts continues the history that ends at `position`.
pub(super) fn follows(position: Option<Pos>, meta: &SegmentMeta) -> bool {
    meta.range.follows(position.map(|p| p.txid)) && meta.pre == position.map(|p| p.checksum)
}

/// The position after a segment.
pub(super) fn position_after(meta: &SegmentMeta) -> Pos {
    Pos { txid: meta.range.max(), checksum: meta.post }
}

/// The transaction that a reader who has everything up to `after` wants next, or `None` when it has all up to
/// `position`.
pub(super) fn wanted(after: Option<Txid>, position: Option<Pos>) -> Option<Txid> {
    let end = position?.txid;
    match after {
        Some(after) if after >= end => None,
        after => Some(Txid::following(after)),
    }
}

/// Refuses to move a database to `position` when it stands there or further, or while anything of it is under way.
pub(super) fn check_adoption(tail: &Tail, registered: &Registered, position: Pos) -> Result<(), BufferError> {
    let idle = *tail == Tail::at(registered.position);
    if idle && registered.position.is_none_or(|held| held.txid < position.txid) {
        return Ok(());
    }
    Err(BufferError::OutOfOrder {
        database: registered.id,
        range: TxidRange::single(position.txid),
        position: tail.position,
    })
}

impl Tail {
    /// A database whose last complete segment ended at `position`.
    pub(super) fn at(position: Option<Pos>) -> Tail {
        Tail { position, open: None }
    }

    /// Checks a chunk; changes nothing.
    pub(super) fn check(&self, chunk: &Chunk) -> Result<(), BufferError> {
        if chunk.data.len() > limits::MAX_CHUNK_BYTES {
            return Err(BufferError::TooLarge(chunk.data.len()));
        }
        let fits = match (chunk.number, &self.open) {
            (0, _) => follows(self.position, &chunk.meta),
            (number, Some(open)) => open.next == number && open.meta == chunk.meta,
            (_, None) => false,
        };
        if fits {
            return Ok(());
        }
        Err(BufferError::OutOfOrder {
            database: chunk.database,
            range: chunk.meta.range,
            position: self.position,
        })
    }

    /// Bytes of a checked chunk's segment that have come before it.
    pub(super) fn bytes_before(&self, chunk: &Chunk) -> u64 {
        self.open.filter(|_| chunk.number > 0).map_or(0, |open| open.bytes)
    }

    /// Takes a checked chunk. True when it completes its segment.
    pub(super) fn take(&mut self, chunk: &Chunk) -> bool {
        if chunk.last {
            *self = Tail::at(Some(position_after(&chunk.meta)));
        } else {
            let bytes = self.bytes_before(chunk) + chunk.data.len() as u64;
            self.open = Some(OpenSegment { meta: chunk.meta, next: chunk.number + 1, bytes });
        }
        chunk.last
    }
}
