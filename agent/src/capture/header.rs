//! The header of the wal-index: the only place that says what is committed.

use walhub_common::PageSize;
use walhub_common::wal::{Checksummer, FrameNo, Salts};

/// Words of one copy of the header.
pub(super) const WAL_INDEX_WORDS: usize = 12;
const VERSION: u32 = 3_007_000;

/// Both copies and the backfill counter, as loaded.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct RawHeader {
    pub(super) first: [u32; WAL_INDEX_WORDS],
    pub(super) backfilled: u32,
    pub(super) second: [u32; WAL_INDEX_WORDS],
}

/// A header that was whole when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// The words, to notice a change.
    pub(super) words: [u32; WAL_INDEX_WORDS],
    /// Counts commits; survives restarts of the log, begins again after a recovery.
    pub(super) changes: u32,
    /// Byte order of the words that frame checksums read.
    pub(super) big_endian: bool,
    /// `None` when no frame was ever written through this wal-index.
    pub(super) page_size: Option<PageSize>,
    /// The last committed frame of this generation.
    pub(super) last: FrameNo,
    /// Pages of the database after it; 0 when nothing was ever written through this wal-index.
    pub(super) commit: u32,
    /// Running checksum after `last`; meaningless while `last` is 0.
    pub(super) checksum: [u32; 2],
    /// Generation.
    pub(super) salts: Salts,
    /// Frames up to here are in the database file.
    pub(super) backfilled: FrameNo,
}

impl RawHeader {
    /// `None` while a writer is between the two copies, or when nobody has set the wal-index up.
    pub(super) fn verify(&self) -> Option<Header> {
        let words = self.first;
        if words != self.second || words[0] != VERSION {
            return None;
        }
        let mut bytes = [0; WAL_INDEX_WORDS * 4];
        for (out, word) in bytes.chunks_exact_mut(4).zip(words) {
            out.copy_from_slice(&word.to_ne_bytes());
        }
        let mut sum = Checksummer::new(cfg!(target_endian = "big"), [0, 0]);
        sum.update(&bytes[..40]);
        let initialised = bytes[12] != 0;
        if !initialised || sum.sums() != [words[10], words[11]] {
            return None;
        }
        let last = FrameNo(words[4]);
        let size = u32::from(u16::from_ne_bytes([bytes[14], bytes[15]]));
        Some(Header {
            words,
            changes: words[2],
            big_endian: bytes[13] != 0,
            page_size: PageSize::new((size & 0xfe00) | ((size & 1) << 16)),
            last,
            commit: words[5],
            checksum: [words[6], words[7]],
            salts: salts(&words),
            // Right after a restart the counter may still be the old one.
            backfilled: FrameNo(self.backfilled).min(last),
        })
    }
}

/// The generation, of words that may be torn.
pub(super) fn salts(words: &[u32; WAL_INDEX_WORDS]) -> Salts {
    // The salts are kept in the byte order of the log.
    Salts([u32::from_be(words[8]), u32::from_be(words[9])])
}

/// The published end, of words that may be torn.
pub(super) fn last_frame(words: &[u32; WAL_INDEX_WORDS]) -> u32 {
    words[4]
}

/// True when both are of one generation of the log; the words may be torn.
pub(super) fn same_generation(a: &[u32; WAL_INDEX_WORDS], b: &[u32; WAL_INDEX_WORDS]) -> bool {
    a[8..10] == b[8..10]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(mut words: [u32; WAL_INDEX_WORDS]) -> RawHeader {
        let mut sum = Checksummer::new(cfg!(target_endian = "big"), [0, 0]);
        for pair in words[..10].chunks_exact(2) {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&pair[0].to_ne_bytes());
            bytes[4..].copy_from_slice(&pair[1].to_ne_bytes());
            sum.update(&bytes);
        }
        [words[10], words[11]] = sum.sums();
        RawHeader { first: words, backfilled: 3, second: words }
    }

    fn flags(big_endian: u8, size: u16) -> u32 {
        let [a, b] = size.to_ne_bytes();
        u32::from_ne_bytes([1, big_endian, a, b])
    }

    fn words() -> [u32; WAL_INDEX_WORDS] {
        [VERSION, 0, 9, flags(0, 4096), 17, 40, 5, 6, 7_u32.to_be(), 8_u32.to_be(), 0, 0]
    }

    #[test]
    fn a_whole_header_is_read() {
        let header = raw(words()).verify().unwrap();
        assert_eq!((header.changes, header.last, header.commit), (9, FrameNo(17), 40));
        assert_eq!((header.checksum, header.salts, header.backfilled), ([5, 6], Salts([7, 8]), FrameNo(3)));
        assert_eq!(header.page_size, PageSize::new(4096));
        assert!(!header.big_endian);
    }

    #[test]
    fn a_page_of_64_kib_fits_into_16_bits() {
        let mut words = words();
        words[3] = flags(1, 1);
        let header = raw(words).verify().unwrap();
        assert_eq!((header.page_size, header.big_endian), (PageSize::new(65536), true));
    }

    #[test]
    fn any_difference_between_the_copies_or_to_the_checksum_is_noticed() {
        for i in 0..WAL_INDEX_WORDS {
            let mut torn = raw(words());
            torn.second[i] ^= 1 << 9;
            assert!(torn.verify().is_none(), "{i}");
            torn.first[i] ^= 1 << 9;
            assert!(torn.verify().is_none(), "{i}");
        }
        assert!(RawHeader::default().verify().is_none());
    }

    #[test]
    fn right_after_a_restart_the_old_backfill_counter_means_nothing() {
        let mut words = words();
        words[4] = 0;
        assert_eq!(raw(words).verify().unwrap().backfilled, FrameNo::START);
    }
}
