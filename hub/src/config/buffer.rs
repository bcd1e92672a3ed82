//! `buffer:`, how large it may be and what happens when it is full.

use crate::buffer::WhenFull;
use std::ops::RangeInclusive;
use walhub_common::config::{Section, value};

/// Bytes of buffer when the file does not say.
pub const DEFAULT_BUFFER_BYTES: u64 = 10 << 30;

/// Sixteen log files of at least a chunk each.
const BUFFER_BYTES: RangeInclusive<u64> = (32 << 20)..=(1 << 50);

/// The checked section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferConfig {
    /// Bound of the buffer, bytes.
    pub max_bytes: u64,
    /// What to do at the bound.
    pub when_full: WhenFull,
}

pub(super) fn parse(mut section: Section<'_>) -> BufferConfig {
    let max_bytes = section.or("max-bytes", DEFAULT_BUFFER_BYTES, value::bytes_in(BUFFER_BYTES));
    let words = [("block", WhenFull::Block), ("squash", WhenFull::Squash)];
    let when_full = section.or("when-full", WhenFull::default(), value::one_of(&words));
    section.finish();
    BufferConfig { max_bytes, when_full }
}
