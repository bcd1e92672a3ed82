//! K-way merge of contiguous or overlapping LTX files into one: the newest version of each page wins.

use super::{Decoder, Encoder, Header, LtxError, Provenance};
use crate::{Checksum, Pgno, Txid, TxidRange};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::path::Path;

/// What a merge made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Merged {
    /// Header of the result.
    pub header: Header,
    /// Pages in it.
    pub pages: u32,
    /// Database checksum of its pages, when it holds all of them (a file from TXID 1).
    pub image_checksum: Option<Checksum>,
}

/// What the hub adds to a file.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stamp {
    /// Time of the newest transaction, Unix ms.
    pub timestamp_ms: i64,
    /// See [`Header::node_id`].
    pub node_id: u64,
    /// The first input holds every page, so the result stands for everything before it as well: a file from TXID 1.
    pub whole: bool,
}

/// One input and the page it stands at.
struct Input<R> {
    file: Decoder<R>,
    page: Vec<u8>,
}

/// Merges `inputs`, given in TXID order, into one file with this stamp. Every input is read to its end and
/// verified before this returns; on an error what was written to `out` is worthless. LZ4 blocks are copied, not
/// compressed again. Memory: two pages per input and the index of the result.
///
/// Level 0 of a bucket wants a WAL offset of at least 32 (stock `replicate` takes over only then): the result says 32/0.
pub fn merge<R: Read, W: Write>(inputs: Vec<Decoder<R>>, stamp: Stamp, out: W) -> Result<Merged, LtxError> {
    merge_pages(inputs, stamp, out, None)
}

/// As [`merge`], for results of any size: the index lies in an unnamed file in `folder` where it becomes large. Memory:
/// two pages per input and [`crate::limits::MAX_KEPT_INDEX_BYTES`].
pub fn merge_large<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    stamp: Stamp,
    out: W,
    folder: &Path,
) -> Result<Merged, LtxError> {
    merge_pages(inputs, stamp, out, Some(folder))
}

fn merge_pages<R: Read, W: Write>(
    inputs: Vec<Decoder<R>>,
    stamp: Stamp,
    out: W,
    folder: Option<&Path>,
) -> Result<Merged, LtxError> {
    let header = plan(&inputs, stamp)?;
    let mut encoder = Encoder::new(out, header)?;
    if let Some(folder) = folder {
        encoder.spool_index(folder);
    }
    let mut image = header.is_snapshot().then_some(Checksum::EMPTY);
    let mut inputs: Vec<Input<R>> = inputs.into_iter().map(|file| Input { file, page: Vec::new() }).collect();
    // Smallest page first; of equal pages the newest input first.
    let mut heads: BinaryHeap<(Reverse<Pgno>, usize)> = BinaryHeap::with_capacity(inputs.len());
    for (at, input) in inputs.iter_mut().enumerate() {
        if let Some(pgno) = input.file.next_page(&mut input.page)? {
            heads.push((Reverse(pgno), at));
        }
    }
    let mut pages = 0;
    let mut last = None;
    while let Some((Reverse(pgno), at)) = heads.pop() {
        let input = &mut inputs[at];
        if last != Some(pgno) && pgno.get() <= header.commit {
            match input.file.block() {
                Some(block) => encoder.page_lz4(pgno, block, &input.page)?,
                None => encoder.page(pgno, &input.page)?,
            }
            if let Some(image) = &mut image {
                *image = image.toggle(Checksum::of_page(pgno, &input.page));
            }
            last = Some(pgno);
            pages += 1;
        }
        if let Some(next) = input.file.next_page(&mut input.page)? {
            heads.push((Reverse(next), at));
        }
    }
    for input in &mut inputs {
        input.file.finish()?;
    }
    encoder.finish()?;
    Ok(Merged { header, pages, image_checksum: image })
}

/// Checks that the inputs form one run of one database; the header of the result.
fn plan<R: Read>(inputs: &[Decoder<R>], stamp: Stamp) -> Result<Header, LtxError> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(LtxError::Encode { pgno: None, reason: "nothing to merge" });
    };
    let (first, last) = (first.header(), last.header());
    for pair in inputs.windows(2) {
        let (older, newer) = (pair[0].header(), pair[1].header());
        let fault = |reason| Err(LtxError::Merge { reason, first: older.range, second: newer.range });
        if older.page_size != newer.page_size {
            return Err(LtxError::PageSizeChange { first: older.range, second: newer.range });
        }
        if newer.range.min() > older.range.max().next() {
            return fault("transactions are missing between them");
        }
        if newer.range.max() <= older.range.max() {
            return fault("the second is not newer");
        }
    }
    let begin = if stamp.whole { Txid::FIRST } else { first.range.min() };
    let range = TxidRange::new(begin, last.range.max()).ok_or(LtxError::Merge {
        reason: "out of order",
        first: first.range,
        second: last.range,
    })?;
    let provenance = match (first.provenance, last.provenance) {
        // What holds every page needs nobody's word for what was before.
        (_, Some(last)) if begin == Txid::FIRST => Some(Provenance { pre: None, post: last.post }),
        (Some(first), Some(last)) => {
            Some(Provenance { pre: first.pre.filter(|_| !stamp.whole), post: last.post })
        }
        _ => None,
    };
    Ok(Header {
        page_size: last.page_size,
        commit: last.commit,
        range,
        timestamp_ms: stamp.timestamp_ms,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: stamp.node_id,
        provenance,
    })
}
