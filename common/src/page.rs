//! Page numbers and page sizes of SQLite databases.

use std::fmt;
use std::num::NonZeroU32;

/// Bytes per page: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageSize(u32);

impl PageSize {
    /// `None` for a size SQLite cannot have.
    pub const fn new(bytes: u32) -> Option<PageSize> {
        if bytes >= 512 && bytes <= 65536 && bytes.is_power_of_two() { Some(PageSize(bytes)) } else { None }
    }

    /// Bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes, for indexing.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that holds the lock bytes at 1 GiB. It carries no data: never captured, never in an LTX file, zeros
    /// after a restore.
    pub const fn lock_page(self) -> Pgno {
        match Pgno::new(0x4000_0000 / self.0 + 1) {
            Some(pgno) => pgno,
            None => unreachable!(),
        }
    }

    /// Byte offset of a page in the database file.
    pub const fn offset(self, pgno: Pgno) -> u64 {
        (pgno.get() as u64 - 1) * self.0 as u64
    }

    /// Number of pages that a complete image of `commit` pages stores: all but the lock page.
    pub const fn stored_pages(self, commit: u32) -> u32 {
        if commit >= self.lock_page().get() { commit - 1 } else { commit }
    }
}

/// A page number, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// The first page.
    pub const FIRST: Pgno = Pgno(NonZeroU32::MIN);

    /// `None` for 0.
    pub const fn new(number: u32) -> Option<Pgno> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Pgno(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Zero-based place in an array with one entry per page.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pgno({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_page_lies_at_one_gibibyte() {
        assert_eq!(PageSize::new(4096).unwrap().lock_page().get(), 262_145);
        assert_eq!(PageSize::new(65536).unwrap().lock_page().get(), 16_385);
        assert_eq!(PageSize::new(65536).unwrap().stored_pages(16_562), 16_561);
        assert_eq!(PageSize::new(4096).unwrap().stored_pages(10), 10);
    }

    #[test]
    fn only_sqlite_page_sizes_exist() {
        for bad in [0, 1, 256, 511, 1000, 131_072, u32::MAX] {
            assert!(PageSize::new(bad).is_none(), "{bad}");
        }
    }
}
