//! Writes one LTX file front to back: header, ascending pages, index, trailer.

use super::compression::{BLOCK_AT, Compression, Lent};
use super::header::{HEADER_BYTES, Header, Trailer};
use super::index_spool::IndexSpool;
use super::parser::put_varint;
use super::{LtxError, max_block_bytes};
use crate::checksum::FileDigest;
use crate::limits::MAX_INDEX_BYTES;
use crate::{Checksum, Pgno};
use std::io::Write;
use std::path::Path;

/// A file in the making. Memory: a page, and about 8 bytes of index per page written unless the index may be spooled
/// ([`Encoder::spool_index`]).
#[derive(Debug)]
pub struct Encoder<W> {
    out: W,
    header: Header,
    digest: FileDigest,
    offset: u64,
    last: u32,
    compression: Compression,
    scratch: Lent,
    spool: Option<IndexSpool>,
}

impl<W: Write> Encoder<W> {
    /// Writes the header. Pages are compressed fast.
    pub fn new(out: W, header: Header) -> Result<Self, LtxError> {
        Self::with_compression(out, header, Compression::FAST)
    }

    /// Writes the header.
    pub fn with_compression(mut out: W, header: Header, compression: Compression) -> Result<Self, LtxError> {
        let bytes = header.encode();
        // What our own decoder would refuse must not be written.
        Header::decode(&bytes)?;
        out.write_all(&bytes)?;
        let mut digest = FileDigest::default();
        digest.update(&bytes);
        let scratch = Lent::new(header.page_size.bytes());
        Ok(Self {
            out,
            header,
            digest,
            offset: HEADER_BYTES as u64,
            last: 0,
            compression,
            scratch,
            spool: None,
        })
    }

    /// Keeps the index in an unnamed file in `folder` where it becomes large, so that memory does not grow with the file.
    pub fn spool_index(&mut self, folder: &Path) {
        self.spool = Some(IndexSpool::new(folder));
    }

    /// Compresses and writes a page. Pages come in ascending order; a file from TXID 1 takes every page but the lock
    /// page, without holes.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), LtxError> {
        self.check(pgno, page)?;
        let size = self.scratch.get().compress(page, self.compression);
        self.write(pgno, size, page)
    }

    /// Writes a page whose LZ4 block is at hand, so that copying a file does not compress again. The caller vouches
    /// that `block` expands to `page`.
    pub fn page_lz4(&mut self, pgno: Pgno, block: &[u8], page: &[u8]) -> Result<(), LtxError> {
        self.check(pgno, page)?;
        if block.len() > max_block_bytes(self.header.page_size.bytes()) {
            return Err(LtxError::Encode { pgno: Some(pgno), reason: "block larger than LZ4's worst case" });
        }
        self.scratch.get().frame[BLOCK_AT..BLOCK_AT + block.len()].copy_from_slice(block);
        self.write(pgno, block.len(), page)
    }

    fn check(&self, pgno: Pgno, page: &[u8]) -> Result<(), LtxError> {
        let fault = |reason| Err(LtxError::Encode { pgno: Some(pgno), reason });
        let lock = self.header.page_size.lock_page();
        if page.len() != self.header.page_size.bytes() {
            return fault("its length is not the page size");
        }
        if pgno == lock {
            return fault("the lock page is never stored");
        }
        if pgno.get() > self.header.commit {
            return fault("it lies beyond the database's end");
        }
        if pgno.get() <= self.last {
            return fault("pages must ascend");
        }
        if self.header.is_snapshot() && pgno.get() != next_page(self.last, lock) {
            return fault("a file from TXID 1 must hold every page");
        }
        Ok(())
    }

    fn write(&mut self, pgno: Pgno, size: usize, page: &[u8]) -> Result<(), LtxError> {
        let scratch = self.scratch.get();
        let frame = &mut scratch.frame[..BLOCK_AT + size];
        frame[0..4].copy_from_slice(&pgno.get().to_be_bytes());
        frame[4..6].copy_from_slice(&1u16.to_be_bytes());
        frame[6..10].copy_from_slice(&(size as u32).to_be_bytes());
        self.digest.update(&frame[..BLOCK_AT]);
        self.digest.update(page);
        self.out.write_all(frame)?;
        let index = &mut scratch.index;
        put_varint(index, u64::from(pgno.get()));
        put_varint(index, self.offset);
        put_varint(index, frame.len() as u64);
        if let Some(spool) = &mut self.spool {
            spool.relieve(index)?;
        } else if index.len() > MAX_INDEX_BYTES {
            return Err(LtxError::TooLarge { what: "page index", limit: MAX_INDEX_BYTES as u64 });
        }
        self.offset += frame.len() as u64;
        self.last = pgno.get();
        Ok(())
    }

    /// Writes index and trailer. The output is flushed, not synced.
    pub fn finish(mut self) -> Result<(W, Trailer), LtxError> {
        if self.header.is_snapshot() {
            let lock = self.header.page_size.lock_page();
            if next_page(self.last, lock) <= self.header.commit {
                let reason = "a file from TXID 1 must hold every page";
                return Err(LtxError::Encode { pgno: Pgno::new(next_page(self.last, lock)), reason });
            }
        }
        self.digest.update(&[0; 6]);
        self.out.write_all(&[0; 6])?;
        let mut spooled = 0;
        if let Some(spool) = self.spool.take() {
            let (digest, out) = (&mut self.digest, &mut self.out);
            spooled = spool.drain(|bytes| {
                digest.update(bytes);
                out.write_all(bytes)
            })?;
        }
        let index = &mut self.scratch.get().index;
        index.push(0);
        let length = (spooled + index.len() as u64).to_be_bytes();
        index.extend_from_slice(&length);
        index.extend_from_slice(&0u64.to_be_bytes());
        self.digest.update(index);
        let file: Checksum = self.digest.finish();
        index.extend_from_slice(&file.get().to_be_bytes());
        self.out.write_all(index)?;
        self.out.flush()?;
        Ok((self.out, Trailer { post_apply: None, file }))
    }
}

/// The page that must follow `last` in a file without holes.
pub(super) fn next_page(last: u32, lock: Pgno) -> u32 {
    let next = last.saturating_add(1);
    if next == lock.get() { next + 1 } else { next }
}
