//! The page index at the end of a file: where each page lies, without reading the pages.
//!
//! ```text
//! … pages | 6 zero bytes | index | index size 8 B | trailer 16 B
//! ```
//! What is read here comes from places that may lie: every entry is checked for order and bounds before it is given out,
//! and the head of every page must say what the index said. Whether the page is the right one, only its checksum tells.
//!
//! Memory: the index as it lies in the file, at most 14 bytes for a page and mostly 6 to 8; entries are read from it one by
//! one.

use super::header::{HEADER_BYTES, TRAILER_BYTES};
use super::{LtxError, max_block_bytes, squeeze};
use crate::limits::MAX_INDEX_BYTES;
use crate::{PageSize, Pgno};
use bytes::Bytes;
use std::borrow::Cow;
use std::io::Read;

/// Bytes behind the index.
pub const TAIL_BYTES: usize = 8 + TRAILER_BYTES;
/// What every file has beside pages and index.
const OTHER_BYTES: u64 = (HEADER_BYTES + 6 + TAIL_BYTES) as u64;
/// Bytes before the block of a page.
const HEAD_BYTES: usize = 10;
/// What an LZ4 frame adds to a page that does not compress, at most.
const FRAME_EXTRA: usize = 64;

/// Where a page lies in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The page.
    pub pgno: Pgno,
    /// First byte of its head.
    pub offset: u64,
    /// Bytes, its head included.
    pub bytes: u32,
}

/// The index of one file.
#[derive(Clone, Debug)]
pub struct PageIndex {
    bytes: Bytes,
    /// First byte behind the pages.
    end: u64,
    max_bytes: u64,
}

/// Length of the index of a file of `file_bytes`, from its last bytes (at least [`TAIL_BYTES`] of them).
pub fn index_bytes(tail: &[u8], file_bytes: u64) -> Result<u64, LtxError> {
    let tail: &[u8; TAIL_BYTES] = tail.last_chunk().ok_or(LtxError::Truncated)?;
    let size = u64::from_be_bytes(*tail.first_chunk().expect("BUG: 8 bytes"));
    let room = file_bytes.checked_sub(OTHER_BYTES).ok_or(LtxError::Truncated)?;
    if size > MAX_INDEX_BYTES as u64 {
        return Err(LtxError::TooLarge { what: "index bytes", limit: MAX_INDEX_BYTES as u64 });
    }
    if size == 0 || size > room { Err(LtxError::Index) } else { Ok(size) }
}

impl PageIndex {
    /// The index of a file of `file_bytes` and these pages: what [`index_bytes`] says lies before the last
    /// [`TAIL_BYTES`].
    pub fn new(bytes: Bytes, file_bytes: u64, page_size: PageSize) -> PageIndex {
        let end = file_bytes.saturating_sub(bytes.len() as u64 + TAIL_BYTES as u64 + 6);
        let max_bytes = max_block_bytes(page_size.bytes()).max(page_size.bytes() + FRAME_EXTRA) + HEAD_BYTES;
        PageIndex { bytes, end, max_bytes: max_bytes as u64 }
    }

    /// The entries, by page and by offset; after the first error there are none.
    pub fn entries(&self) -> Entries {
        let offset = HEADER_BYTES as u64;
        Entries { index: self.clone(), at: 0, last: 0, offset, over: false }
    }
}

/// See [`PageIndex::entries`].
#[derive(Debug)]
pub struct Entries {
    index: PageIndex,
    at: usize,
    last: u32,
    offset: u64,
    over: bool,
}

impl Entries {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.index.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).filter(|_| shift < 63 || byte < 2)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// `None` at fault, `Some(None)` at the end.
    fn read(&mut self) -> Option<Option<IndexEntry>> {
        let number = self.varint()?;
        let Some(pgno) = u32::try_from(number).ok().map(Pgno::new)? else {
            return (self.at == self.index.bytes.len() && self.offset == self.index.end).then_some(None);
        };
        let (offset, bytes) = (self.varint()?, self.varint()?);
        let end = offset.checked_add(bytes)?;
        let sound = pgno.get() > self.last
            && offset == self.offset
            && bytes > 6
            && bytes <= self.index.max_bytes
            && end <= self.index.end;
        (self.last, self.offset) = (pgno.get(), end);
        sound.then_some(Some(IndexEntry { pgno, offset, bytes: bytes as u32 }))
    }
}

impl Iterator for Entries {
    type Item = Result<IndexEntry, LtxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let read = self.read();
        self.over = !matches!(read, Some(Some(_)));
        match read {
            Some(entry) => entry.map(Ok),
            None => Some(Err(LtxError::Index)),
        }
    }
}

/// The LZ4 block of a page, from the bytes that its index entry points to. Pages of the old form are compressed anew.
pub fn block_of<'a>(bytes: &'a [u8], pgno: Pgno, page_size: PageSize) -> Result<Cow<'a, [u8]>, LtxError> {
    let fault = |reason| LtxError::Page { pgno: pgno.get(), reason };
    let (head, rest) = bytes.split_first_chunk::<6>().ok_or_else(|| fault("shorter than its head"))?;
    if head[..4] != pgno.get().to_be_bytes() {
        return Err(fault("the index points to another page"));
    }
    match u16::from_be_bytes([head[4], head[5]]) {
        1 => {
            let (size, block) =
                rest.split_first_chunk::<4>().ok_or_else(|| fault("shorter than its head"))?;
            if u32::from_be_bytes(*size) as usize != block.len() || block.is_empty() {
                return Err(fault("its length is not the one in the index"));
            }
            Ok(Cow::Borrowed(block))
        }
        0 => {
            let mut page = vec![0; page_size.bytes()];
            let mut frame = lz4_flex::frame::FrameDecoder::new(rest);
            frame.read_exact(&mut page).map_err(|_| fault("damaged LZ4 frame"))?;
            match frame.read(&mut [0; 1]) {
                Ok(0) => Ok(Cow::Owned(squeeze(&page))),
                _ => Err(fault("damaged LZ4 frame")),
            }
        }
        _ => Err(fault("unknown flags")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TxidRange;
    use crate::ltx::{Encoder, Header, expand};
    use proptest::prelude::*;

    const SIZE: PageSize = PageSize::new(512).unwrap();

    fn file(pages: &[(u32, u8)]) -> Vec<u8> {
        let header = Header {
            page_size: SIZE,
            commit: 1000,
            range: TxidRange::from_raw(2, 3).unwrap(),
            timestamp_ms: 0,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: None,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (pgno, fill) in pages {
            let page: Vec<u8> = (0..512_u32).map(|i| (i * u32::from(*fill) / 7) as u8).collect();
            encoder.page(Pgno::new(*pgno).unwrap(), &page).unwrap();
        }
        encoder.finish().unwrap().0
    }

    fn index(file: &[u8]) -> Result<PageIndex, LtxError> {
        let bytes = index_bytes(file, file.len() as u64)? as usize;
        let end = file.len() - TAIL_BYTES;
        let index = Bytes::copy_from_slice(&file[end - bytes..end]);
        Ok(PageIndex::new(index, file.len() as u64, SIZE))
    }

    fn pages(file: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, LtxError> {
        let mut pages = Vec::new();
        for entry in index(file)?.entries() {
            let entry = entry?;
            let bytes = &file[entry.offset as usize..][..entry.bytes as usize];
            let mut page = Vec::new();
            expand(&block_of(bytes, entry.pgno, SIZE)?, SIZE, &mut page)?;
            pages.push((entry.pgno.get(), page));
        }
        Ok(pages)
    }

    proptest! {
        #[test]
        fn the_index_leads_to_every_page(
            pages_in in proptest::collection::btree_map(1_u32..1000, any::<u8>(), 0..40),
            flip in any::<proptest::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let pages_in: Vec<(u32, u8)> = pages_in.into_iter().collect();
            let whole = file(&pages_in);
            let found = pages(&whole).unwrap();
            prop_assert_eq!(found.len(), pages_in.len());
            for ((pgno, page), (expected, fill)) in found.iter().zip(&pages_in) {
                prop_assert_eq!(pgno, expected);
                prop_assert_eq!(page[511], (511 * u32::from(*fill) / 7) as u8);
            }
            // Whatever bit is wrong: an error or pages, never a panic, and never a place outside of the file.
            let mut damaged = whole.clone();
            damaged[flip.index(whole.len())] ^= 1 << bit;
            let _ = pages(&damaged);
            let _ = pages(&whole[..flip.index(whole.len())]);
        }
    }

    #[test]
    fn an_index_that_does_not_fit_its_file_is_refused() {
        let whole = file(&[(1, 1), (2, 2), (9, 3)]);
        let bytes = index_bytes(&whole, whole.len() as u64).unwrap() as usize;
        let at = whole.len() - TAIL_BYTES - bytes;
        let cut =
            PageIndex::new(Bytes::copy_from_slice(&whole[at..at + bytes - 2]), whole.len() as u64, SIZE);
        assert!(cut.entries().any(|entry| entry.is_err()));
        let longer =
            PageIndex::new(Bytes::copy_from_slice(&whole[at..at + bytes]), whole.len() as u64 + 1, SIZE);
        assert!(longer.entries().any(|entry| entry.is_err()));
        assert!(matches!(index_bytes(&whole, 100), Err(LtxError::Truncated)));
        assert!(matches!(index_bytes(&whole[..10], 1000), Err(LtxError::Truncated)));
        assert!(block_of(&whole[100..], Pgno::new(2).unwrap(), SIZE).is_err());
    }
}
