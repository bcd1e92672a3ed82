//! The 32 bytes at the start of a WAL file.

use super::{Checksummer, FrameNo, Salts, WAL_HEADER_BYTES, WalPosition, be32};
use crate::PageSize;

const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// A file header that verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Byte order of the words that the checksum reads; every number of the file itself is big-endian.
    pub big_endian: bool,
    /// Bytes per page of the database.
    pub page_size: PageSize,
    /// Counts the checkpoints of the file.
    pub sequence: u32,
    /// Generation.
    pub salts: Salts,
    /// Checksum of the header: the running checksum before the first frame.
    pub checksum: [u32; 2],
}

/// Why 32 bytes are no file header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Not a WAL file.
    #[error("not a SQLite WAL: magic {0:#010x}")]
    Magic(u32),
    /// A format no SQLite has written.
    #[error("unknown WAL version {0}")]
    Version(u32),
    /// No page size of SQLite.
    #[error("impossible page size {0} in the WAL header")]
    PageSize(u32),
    /// Torn or damaged.
    #[error("the checksum of the WAL header does not match")]
    Checksum,
}

impl WalHeader {
    /// Reads and verifies a header.
    pub fn parse(bytes: &[u8; WAL_HEADER_BYTES]) -> Result<WalHeader, HeaderError> {
        let magic = be32(bytes, 0);
        if magic & !1 != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        let version = be32(bytes, 4);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let page_size = be32(bytes, 8);
        let page_size = PageSize::new(page_size).ok_or(HeaderError::PageSize(page_size))?;
        let big_endian = magic & 1 == 1;
        let mut sum = Checksummer::new(big_endian, [0, 0]);
        sum.update(&bytes[..24]);
        let checksum = [be32(bytes, 24), be32(bytes, 28)];
        if sum.sums() != checksum {
            return Err(HeaderError::Checksum);
        }
        let salts = Salts([be32(bytes, 16), be32(bytes, 20)]);
        Ok(WalHeader { big_endian, page_size, sequence: be32(bytes, 12), salts, checksum })
    }

    /// The header with these fields, its checksum computed.
    pub fn new(big_endian: bool, page_size: PageSize, sequence: u32, salts: Salts) -> WalHeader {
        let mut header = WalHeader { big_endian, page_size, sequence, salts, checksum: [0, 0] };
        let mut sum = Checksummer::new(big_endian, [0, 0]);
        sum.update(&header.encode()[..24]);
        header.checksum = sum.sums();
        header
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; WAL_HEADER_BYTES] {
        let fields = [
            MAGIC | u32::from(self.big_endian),
            VERSION,
            self.page_size.get(),
            self.sequence,
            self.salts.0[0],
            self.salts.0[1],
            self.checksum[0],
            self.checksum[1],
        ];
        let mut bytes = [0; WAL_HEADER_BYTES];
        for (out, field) in bytes.chunks_exact_mut(4).zip(fields) {
            out.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    /// The place before the first frame.
    pub fn start(&self) -> WalPosition {
        WalPosition { salts: self.salts, frame: FrameNo::START, checksum: self.checksum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers() -> impl Strategy<Value = WalHeader> {
        (any::<bool>(), 9u32..=16, any::<u32>(), any::<[u32; 2]>()).prop_map(
            |(big, shift, sequence, salts)| {
                WalHeader::new(big, PageSize::new(1 << shift).unwrap(), sequence, Salts(salts))
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in headers()) {
            prop_assert_eq!(WalHeader::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn any_changed_byte_is_noticed(header in headers(), at in 0..WAL_HEADER_BYTES, flip in 1u8..) {
            let mut bytes = header.encode();
            bytes[at] ^= flip;
            prop_assert!(WalHeader::parse(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_round_trip(bytes in any::<[u8; WAL_HEADER_BYTES]>()) {
            if let Ok(header) = WalHeader::parse(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_header_written_by_sqlite_is_read() {
        // From a -wal file of SQLite 3.40 on a little-endian machine.
        let bytes = [
            0x37, 0x7f, 0x06, 0x82, 0x00, 0x2d, 0xe2, 0x18, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x3e, 0xfa, 0xa2, 0xac, 0x85, 0x1f, 0xf4, 0xcb, 0x81, 0x89, 0xfd, 0x51, 0x05, 0x65, 0xf4, 0x7b,
        ];
        let header = WalHeader::parse(&bytes).unwrap();
        assert_eq!((header.big_endian, header.page_size.get(), header.sequence), (false, 4096, 0));
    }
}
