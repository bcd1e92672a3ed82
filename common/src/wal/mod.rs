//! The bytes of a SQLite write-ahead log: file header, frames, running checksum, transactions.
//!
//! Everything here is sans-I/O: the caller reads bytes from wherever it likes and pushes them in; values come out.
//!
//! Invariants
//! - A frame is handed out only after its salts and the running checksum up to and including it were verified.
//! - Nothing here allocates by a number found in the bytes; nothing here panics on any bytes.
//!
//! Non-goals: a frame that verifies is *not* thereby committed. The commit is the update of the wal-index header, which
//! is not part of the file; whoever uses this module for a live database must stop at the published frame number.

mod checksum;
mod frame;
mod header;
mod reader;
mod txn;

pub use checksum::Checksummer;
pub use frame::{Break, Frame, FrameHeader, FrameVerifier};
pub use header::{HeaderError, WalHeader};
pub use reader::{Stop, WalReader};
pub use txn::{Grouper, Transaction};

use crate::PageSize;
use std::fmt;

/// Bytes of the file header.
pub const WAL_HEADER_BYTES: usize = 32;
/// Bytes of a frame header; the page follows it.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The two salts of one generation of a log. They change whenever the log restarts from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salts(pub [u32; 2]);

impl fmt::Display for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.0[0], self.0[1])
    }
}

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salts({self})")
    }
}

/// The number of a frame within its generation, from 1, as in SQLite's `mxFrame`. 0 is the place before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameNo(pub u32);

impl FrameNo {
    /// The place before the first frame.
    pub const START: FrameNo = FrameNo(0);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The frame after this one; stays at the last possible number.
    #[must_use]
    pub const fn next(self) -> FrameNo {
        FrameNo(self.0.saturating_add(1))
    }

    /// Where this frame's header starts in the file; for [`FrameNo::START`] the place of the file header.
    pub const fn offset(self, page_size: PageSize) -> u64 {
        match self.0.checked_sub(1) {
            Some(before) => {
                WAL_HEADER_BYTES as u64 + before as u64 * (FRAME_HEADER_BYTES as u64 + page_size.get() as u64)
            }
            None => 0,
        }
    }

    /// Where this frame's page starts in the file. Meaningless for [`FrameNo::START`].
    pub const fn page_offset(self, page_size: PageSize) -> u64 {
        self.offset(page_size) + FRAME_HEADER_BYTES as u64
    }

    /// Bytes of the file up to and including this frame.
    pub const fn end(self, page_size: PageSize) -> u64 {
        self.next().offset(page_size)
    }
}

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameNo({})", self.0)
    }
}

/// A place in the log: after which frame of which generation, and the running checksum there.
///
/// Two logs that agree on a position agree on every byte before it, as far as the checksum can tell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WalPosition {
    /// Generation.
    pub salts: Salts,
    /// The last frame before this place.
    pub frame: FrameNo,
    /// Running checksum after that frame (of the file header when there is none).
    pub checksum: [u32; 2],
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_lie_one_after_the_other() {
        let page_size = PageSize::new(4096).unwrap();
        assert_eq!(FrameNo(1).offset(page_size), 32);
        assert_eq!(FrameNo(1).page_offset(page_size), 56);
        assert_eq!(FrameNo(2).offset(page_size), 32 + 4120);
        assert_eq!(FrameNo(2).end(page_size), 32 + 2 * 4120);
        assert_eq!(FrameNo::START.end(page_size), 32);
        let widest = PageSize::new(65536).unwrap();
        assert_eq!(FrameNo(u32::MAX).offset(widest), 32 + (u64::from(u32::MAX) - 1) * 65_560);
    }
}
