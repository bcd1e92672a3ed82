//! LTX, format version 3: immutable files of pages for a run of transactions, exactly the bytes that Litestream 0.5
//! writes and reads.
//!
//! ```text
//! header 100 B | page frames … | 6 zero bytes | page index | index size 8 B | trailer 16 B
//! frame  = page number u32, flags u16 (bit 0: a size follows), size u32, raw LZ4 block of one page
//! index  = (page number, offset, length) as LEB128 varints per page, then one 0 byte
//! ```
//! All integers are big-endian. The file checksum is CRC-64/GO-ISO over header, frame headers, *uncompressed* pages,
//! index and the post-apply field.
//!
//! Invariants of what we write: NoChecksum flag, LTX's own database checksums zero (stock restore refuses them in a
//! chain's last file), pages ascending and never the lock page, a file from TXID 1 holds every page. Our own database
//! checksums travel in the header's reserved bytes ([`Provenance`]), which other readers ignore.
//!
//! Both page forms are read (LZ4 blocks, and the LZ4 frames of Litestream before 0.5.16); blocks are written.
//!
//! Non-goals: no knowledge of buckets or levels beyond names, no database file I/O.

mod compression;
mod decoder;
mod encoder;
mod error;
mod header;
mod index_spool;
mod merge;
pub mod name;
pub mod page_index;
mod parser;
mod verifier;

pub use compression::Compression;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use error::LtxError;
pub use header::{HEADER_BYTES, Header, Provenance, TRAILER_BYTES, Trailer};
pub use merge::{Merged, Stamp, merge, merge_large};
pub use verifier::{Verified, Verifier};

/// Largest LZ4 block of one page of `page_bytes` that is written or read: what the compressor may need at worst.
pub(crate) const fn max_block_bytes(page_bytes: usize) -> usize {
    lz4_flex::block::get_maximum_output_size(page_bytes)
}

/// Expands the LZ4 block of one page, as [`Decoder::block`] gave it, into `page`.
pub fn expand(block: &[u8], page_size: crate::PageSize, page: &mut Vec<u8>) -> Result<(), LtxError> {
    page.resize(page_size.bytes(), 0);
    match lz4_flex::block::decompress_into(block, page) {
        Ok(written) if written == page.len() => Ok(()),
        _ => Err(LtxError::Page { pgno: 0, reason: "damaged LZ4 block" }),
    }
}

/// The LZ4 block of one page, compressed fast: for pages that came in the old frame form.
pub fn squeeze(page: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress(page)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
