//! LTX checksums: CRC-64/GO-ISO with bit 63 set, per page and XORed over a database.

use crate::Pgno;
use crc_fast::{CrcAlgorithm, Digest};
use std::fmt;

const FLAG: u64 = 1 << 63;

/// A page, file or database checksum of LTX: 64 bits, of which bit 63 is always set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(u64);

impl Checksum {
    /// Database checksum of a database without pages.
    pub const EMPTY: Checksum = Checksum(FLAG);

    /// `None` when bit 63 is not set.
    pub const fn new(value: u64) -> Option<Checksum> {
        if value & FLAG != 0 { Some(Checksum(value)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Checksum of one page: CRC-64 over its big-endian number and its bytes.
    pub fn of_page(pgno: Pgno, page: &[u8]) -> Checksum {
        let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
        digest.update(&pgno.get().to_be_bytes());
        digest.update(page);
        Checksum(FLAG | digest.finalize())
    }

    /// The database checksum after adding a page, or after taking the same page out again.
    #[must_use]
    pub const fn toggle(self, page: Checksum) -> Checksum {
        Checksum(FLAG | (self.0 ^ page.0))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({:016x})", self.0)
    }
}

/// A running file checksum.
#[derive(Clone, Debug)]
pub struct FileDigest(Digest);

impl Default for FileDigest {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }
}

impl FileDigest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum so far.
    pub fn finish(&self) -> Checksum {
        Checksum(FLAG | self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_the_one_of_go() {
        let mut digest = FileDigest::default();
        digest.update(b"123456789");
        assert_eq!(digest.finish().get(), FLAG | 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn toggling_twice_changes_nothing() {
        let page = Checksum::of_page(Pgno::FIRST, &[1; 512]);
        assert_eq!(Checksum::EMPTY.toggle(page).toggle(page), Checksum::EMPTY);
        assert_eq!(Checksum::new(7), None);
    }
}
