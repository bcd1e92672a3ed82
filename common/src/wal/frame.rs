//! One frame: 24 bytes of header and a page, chained to everything before it by salts and the running checksum.

use super::{Checksummer, FRAME_HEADER_BYTES, Salts, be32};
use crate::{PageSize, Pgno};

/// The fields of a frame header, not yet verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Page number; 0 is no valid frame.
    pub pgno: u32,
    /// Pages of the database after the commit that this frame ends; 0 when it ends none.
    pub commit: u32,
    /// Generation.
    pub salts: Salts,
    /// Running checksum after this frame.
    pub checksum: [u32; 2],
}

impl FrameHeader {
    /// Reads the fields; any bytes are some header.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> FrameHeader {
        FrameHeader {
            pgno: be32(bytes, 0),
            commit: be32(bytes, 4),
            salts: Salts([be32(bytes, 8), be32(bytes, 12)]),
            checksum: [be32(bytes, 16), be32(bytes, 20)],
        }
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let fields =
            [self.pgno, self.commit, self.salts.0[0], self.salts.0[1], self.checksum[0], self.checksum[1]];
        let mut bytes = [0; FRAME_HEADER_BYTES];
        for (out, field) in bytes.chunks_exact_mut(4).zip(fields) {
            out.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }
}

/// A frame that verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The page it holds.
    pub pgno: Pgno,
    /// `Some(pages of the database)` when it ends a commit.
    pub commit: Option<u32>,
}

/// Why a frame does not continue the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Break {
    /// The frame is of another generation: the log restarted, or this is what an older generation left behind.
    #[error("salts {found} instead of {expected}")]
    Salts {
        /// Of the chain.
        expected: Salts,
        /// In the frame.
        found: Salts,
    },
    /// Page number 0.
    #[error("page number 0")]
    PageZero,
    /// The bytes, or something before them, are not those that were summed.
    #[error("running checksum {found:08x?} instead of {expected:08x?}")]
    Checksum {
        /// Computed.
        expected: [u32; 2],
        /// In the frame.
        found: [u32; 2],
    },
}

/// Verifies frames one after the other, from any position whose running checksum is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameVerifier {
    page_size: PageSize,
    salts: Salts,
    sum: Checksummer,
}

impl FrameVerifier {
    /// Goes on after the frame whose running checksum is `checksum_so_far` (the file header's before frame 1).
    pub const fn new(
        page_size: PageSize,
        big_endian: bool,
        salts: Salts,
        checksum_so_far: [u32; 2],
    ) -> FrameVerifier {
        FrameVerifier { page_size, salts, sum: Checksummer::new(big_endian, checksum_so_far) }
    }

    /// Verifies the next frame. On `Err` nothing has moved: the same frame may be tried again.
    ///
    /// Panics when `page` is not one page long; that is a fault of the caller, not of the bytes.
    pub fn frame(&mut self, header: &[u8; FRAME_HEADER_BYTES], page: &[u8]) -> Result<Frame, Break> {
        assert_eq!(page.len(), self.page_size.bytes(), "BUG: not one page");
        let fields = FrameHeader::parse(header);
        if fields.salts != self.salts {
            return Err(Break::Salts { expected: self.salts, found: fields.salts });
        }
        let pgno = Pgno::new(fields.pgno).ok_or(Break::PageZero)?;
        let mut sum = self.sum;
        sum.update(&header[..8]);
        sum.update(page);
        if sum.sums() != fields.checksum {
            return Err(Break::Checksum { expected: sum.sums(), found: fields.checksum });
        }
        self.sum = sum;
        Ok(Frame { pgno, commit: (fields.commit != 0).then_some(fields.commit) })
    }

    /// Running checksum after the last frame that verified.
    pub const fn checksum(&self) -> [u32; 2] {
        self.sum.sums()
    }

    /// Generation.
    pub const fn salts(&self) -> Salts {
        self.salts
    }

    /// Bytes per page.
    pub const fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The header that a frame must have to continue the chain here, with the chain moved past it: what a writer
    /// would append.
    pub fn append(&mut self, pgno: Pgno, commit: Option<u32>, page: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
        assert_eq!(page.len(), self.page_size.bytes(), "BUG: not one page");
        let mut fields = FrameHeader {
            pgno: pgno.get(),
            commit: commit.unwrap_or(0),
            salts: self.salts,
            checksum: [0; 2],
        };
        self.sum.update(&fields.encode()[..8]);
        self.sum.update(page);
        fields.checksum = self.sum.sums();
        fields.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn header_bytes_round_trip(bytes in any::<[u8; FRAME_HEADER_BYTES]>()) {
            prop_assert_eq!(FrameHeader::parse(&bytes).encode(), bytes);
        }

        #[test]
        fn arbitrary_frames_never_move_the_chain(
            header in any::<[u8; FRAME_HEADER_BYTES]>(),
            page in any::<[u8; 32]>(),
            salts in any::<[u32; 2]>(),
            own_salts in any::<bool>(),
        ) {
            let mut header = header;
            if own_salts {
                header[8..12].copy_from_slice(&salts[0].to_be_bytes());
                header[12..16].copy_from_slice(&salts[1].to_be_bytes());
            }
            let before = FrameVerifier::new(PageSize::new(512).unwrap(), true, Salts(salts), [1, 2]);
            let mut chain = before;
            let page = page.repeat(16);
            // 64 bits of checksum: random bytes do not match.
            prop_assert!(chain.frame(&header, &page).is_err());
            prop_assert_eq!(chain, before);
        }
    }

    #[test]
    fn page_zero_is_no_frame_even_when_the_sums_match() {
        let page = [7; 512];
        let start = FrameVerifier::new(PageSize::new(512).unwrap(), false, Salts([1, 2]), [0, 0]);
        let mut header = FrameHeader { pgno: 0, commit: 0, salts: Salts([1, 2]), checksum: [0; 2] };
        let mut sum = Checksummer::new(false, [0, 0]);
        sum.update(&header.encode()[..8]);
        sum.update(&page);
        header.checksum = sum.sums();
        assert_eq!(start.clone().frame(&header.encode(), &page), Err(Break::PageZero));
    }
}
