//! Pages on their way to a restored database, still compressed.

use crate::Pgno;
use bytes::{Bytes, BytesMut};

/// LZ4 blocks of some pages in one piece of memory; there may be other bytes between them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frames {
    /// Which pages, and where their blocks lie.
    pub blocks: Vec<Block>,
    /// The memory.
    pub data: Bytes,
}

/// The block of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The page.
    pub pgno: Pgno,
    /// First byte within the data.
    pub at: u32,
    /// Bytes.
    pub bytes: u32,
}

impl Frames {
    /// The blocks with their bytes. What lies outside of the data is given as no bytes, which no page expands from.
    pub fn iter(&self) -> impl Iterator<Item = (Pgno, &[u8])> {
        self.blocks.iter().map(|block| {
            let (at, bytes) = (block.at as usize, block.bytes as usize);
            (block.pgno, at.checked_add(bytes).and_then(|end| self.data.get(at..end)).unwrap_or_default())
        })
    }
}

/// Collects blocks one behind the other.
#[derive(Debug, Default)]
pub struct FramesBuilder {
    blocks: Vec<Block>,
    data: BytesMut,
}

impl FramesBuilder {
    /// Adds the block of a page; no more than 4 GiB altogether.
    pub fn push(&mut self, pgno: Pgno, block: &[u8]) {
        self.blocks.push(Block { pgno, at: self.data.len() as u32, bytes: block.len() as u32 });
        self.data.extend_from_slice(block);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Pages so far.
    pub fn pages(&self) -> usize {
        self.blocks.len()
    }

    /// True without a page.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// What was collected; the builder is empty afterwards.
    pub fn take(&mut self) -> Frames {
        Frames { blocks: std::mem::take(&mut self.blocks), data: self.data.split().freeze() }
    }
}
