//! How hard the pages of an LTX file are compressed. Every level gives valid LZ4 blocks, which every reader of LTX expands.
//!
//! What an encoder needs while it works (hash table, block, index) is kept per thread and lent from one encoder to the
//! next: most files are one page long, and making it anew cost more than compressing the page.

use super::max_block_bytes;
use lz4::block::CompressionMode;
use lz4_flex::block::{CompressTable, compress_into_with_table};
use std::cell::Cell;
use std::fmt;

/// A level: 0 stores, 1 is fast (the default), 2 to 12 are LZ4's high compression, ever slower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compression(u8);

impl Compression {
    /// The fast level.
    pub const FAST: Compression = Compression(1);
    /// The highest level.
    pub const MAX: u8 = 12;

    /// `None` above [`Compression::MAX`].
    pub const fn new(level: u8) -> Option<Compression> {
        if level <= Self::MAX { Some(Compression(level)) } else { None }
    }

    /// The number.
    pub const fn level(self) -> u8 {
        self.0
    }
}

impl Default for Compression {
    fn default() -> Self {
        Compression::FAST
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes before the block in [`Scratch::frame`]: the page's header.
pub(super) const BLOCK_AT: usize = 10;
/// An index longer than this is not kept.
const KEPT_INDEX: usize = 64 * 1024;

/// The memory of one encoder.
pub(super) struct Scratch {
    table: CompressTable,
    /// Page header and block of the page in work.
    pub(super) frame: Vec<u8>,
    pub(super) index: Vec<u8>,
}

thread_local! {
    static KEPT: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// [`Scratch`] that goes back to its thread.
pub(super) struct Lent(Option<Box<Scratch>>);

impl Lent {
    /// For pages of this size.
    pub(super) fn new(page_bytes: usize) -> Lent {
        let mut scratch = KEPT.take().unwrap_or_else(|| {
            Box::new(Scratch { table: CompressTable::small(), frame: Vec::new(), index: Vec::new() })
        });
        let needed = BLOCK_AT + max_block_bytes(page_bytes);
        if scratch.frame.len() < needed {
            scratch.frame.resize(needed, 0);
        }
        scratch.index.clear();
        Lent(Some(scratch))
    }

    pub(super) fn get(&mut self) -> &mut Scratch {
        self.0.as_mut().expect("BUG: lent until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(mut scratch) = self.0.take() {
            if scratch.index.capacity() > KEPT_INDEX {
                scratch.index = Vec::new();
            }
            // A thread that ends has nothing to keep it in.
            let _ = KEPT.try_with(|kept| kept.set(Some(scratch)));
        }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lent")
    }
}

impl Scratch {
    /// Compresses a page into `frame` from [`BLOCK_AT`] on; gives the length of the block.
    pub(super) fn compress(&mut self, page: &[u8], level: Compression) -> usize {
        let block = &mut self.frame[BLOCK_AT..];
        match level.0 {
            0 => store(page, block),
            1 => compress_into_with_table(page, block, &mut self.table)
                .expect("BUG: the block buffer holds LZ4's worst case"),
            high => {
                let mode = CompressionMode::HIGHCOMPRESSION(high.into());
                lz4::block::compress_to_buffer(page, Some(mode), false, block)
                    .expect("BUG: the block buffer holds LZ4's worst case")
            }
        }
    }
}

/// One LZ4 sequence of nothing but literals.
fn store(page: &[u8], block: &mut [u8]) -> usize {
    let long = page.len().checked_sub(15);
    block[0] = (page.len().min(15) as u8) << 4;
    let mut at = 1;
    if let Some(mut rest) = long {
        while rest >= 255 {
            block[at] = 255;
            at += 1;
            rest -= 255;
        }
        block[at] = rest as u8;
        at += 1;
    }
    block[at..at + page.len()].copy_from_slice(page);
    at + page.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;
    use crate::ltx::expand;
    use proptest::prelude::*;

    fn compressed(page: &[u8], level: u8) -> Vec<u8> {
        let mut lent = Lent::new(page.len());
        let size = lent.get().compress(page, Compression::new(level).unwrap());
        lent.get().frame[BLOCK_AT..BLOCK_AT + size].to_vec()
    }

    proptest! {
        #[test]
        fn every_level_expands_to_the_page(
            shift in 9_u32..=16,
            level in 0..=Compression::MAX,
            word in proptest::collection::vec(any::<u8>(), 1..600),
        ) {
            let size = PageSize::new(1 << shift).unwrap();
            let page: Vec<u8> = word.iter().copied().cycle().take(size.bytes()).collect();
            let block = compressed(&page, level);
            prop_assert!(block.len() <= max_block_bytes(page.len()));
            let mut out = Vec::new();
            expand(&block, size, &mut out).unwrap();
            prop_assert_eq!(out, page);
        }
    }

    #[test]
    fn higher_levels_are_smaller_and_level_0_is_not() {
        // Rows of text with counters: what databases hold.
        let text: Vec<u8> =
            (0..2000_u32).flat_map(|n| format!("row {n} of {};", n * 7919 % 1000).into_bytes()).collect();
        let page = &text[..16384];
        let [stored, fast, high] = [0, 1, 9].map(|level| compressed(page, level).len());
        assert!(stored > page.len() && stored < page.len() + 100, "{stored}");
        assert!(high < fast && fast < page.len(), "{high} {fast}");
        assert_eq!(Compression::new(13), None);
    }

    #[test]
    fn memory_is_lent_to_one_encoder_at_a_time() {
        let mut first = Lent::new(4096);
        let mut second = Lent::new(512);
        let (a, b): (*const u8, *const u8) = (first.get().frame.as_ptr(), second.get().frame.as_ptr());
        assert_ne!(a, b);
        drop(first);
        assert_eq!(Lent::new(4096).get().frame.as_ptr(), a);
    }
}
