//! The format as a sans-I/O state machine: tells how many bytes it needs next, takes them, verifies as it goes. The
//! pulling [`super::Decoder`] and the pushed [`super::Verifier`] are thin shells around it.

use super::encoder::next_page;
use super::header::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
use super::{LtxError, max_block_bytes};
use crate::checksum::FileDigest;
use crate::{Checksum, Pgno};

/// Appends an unsigned LEB128 varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Most bytes of the index taken at once.
const INDEX_STEP: u64 = 64 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Header,
    PageHead,
    BlockSize { pgno: Pgno },
    Block { pgno: Pgno, size: usize },
    Frame { pgno: Pgno },
    Index { left: u64 },
    IndexLength,
    Trailer,
    Done,
}

/// What a step brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// More bytes are needed.
    More,
    /// The header is known.
    Header,
    /// A page lies in the page buffer.
    Page(Pgno),
    /// A page in the old form follows: an LZ4 frame without a size. See [`Parser::frame_page`].
    FrameFollows(Pgno),
    /// The last page has passed.
    EndOfPages,
    /// The file is complete and verified.
    Done(Trailer),
}

#[derive(Debug)]
pub(super) struct Parser {
    stage: Stage,
    header: Option<Header>,
    no_checksum: bool,
    digest: FileDigest,
    /// Index as it must come: digest and length instead of the bytes, so that memory does not grow with the file.
    index_digest: FileDigest,
    index_bytes: u64,
    seen_index: FileDigest,
    varints: Vec<u8>,
    offset: u64,
    last: u32,
    pages: u32,
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Header,
            header: None,
            no_checksum: false,
            digest: FileDigest::default(),
            index_digest: FileDigest::default(),
            index_bytes: 0,
            seen_index: FileDigest::default(),
            varints: Vec::with_capacity(30),
            offset: 0,
            last: 0,
            pages: 0,
        }
    }

    /// Header; present after [`Event::Header`].
    pub(super) fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Pages so far.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes that [`Parser::take`] wants next; 0 when done or when a frame follows.
    pub(super) fn need(&self) -> usize {
        match self.stage {
            Stage::Header => HEADER_BYTES,
            Stage::PageHead => 6,
            Stage::BlockSize { .. } => 4,
            Stage::Block { size, .. } => size,
            Stage::Frame { .. } | Stage::Done => 0,
            Stage::Index { left } => left.min(INDEX_STEP) as usize,
            Stage::IndexLength => 8,
            Stage::Trailer => TRAILER_BYTES,
        }
    }

    /// Takes exactly [`Parser::need`] bytes. A page is left in `page`, which is resized to one page.
    pub(super) fn take(&mut self, bytes: &[u8], page: &mut Vec<u8>) -> Result<Event, LtxError> {
        debug_assert_eq!(bytes.len(), self.need());
        match self.stage {
            Stage::Header => {
                let (header, no_checksum) = Header::decode_with_flags(bytes)?;
                self.digest.update(bytes);
                self.offset = bytes.len() as u64;
                self.header = Some(header);
                self.no_checksum = no_checksum;
                self.stage = Stage::PageHead;
                Ok(Event::Header)
            }
            Stage::PageHead => self.page_head(bytes),
            Stage::BlockSize { pgno } => {
                let size = u32::from_be_bytes(bytes.try_into().expect("BUG: 4 bytes")) as usize;
                let page_bytes = self.known().page_size.bytes();
                if size == 0 || size > max_block_bytes(page_bytes) {
                    return Err(LtxError::Page { pgno: pgno.get(), reason: "impossible compressed size" });
                }
                self.digest.update(bytes);
                self.stage = Stage::Block { pgno, size };
                Ok(Event::More)
            }
            Stage::Block { pgno, size } => {
                page.resize(self.known().page_size.bytes(), 0);
                match lz4_flex::block::decompress_into(bytes, page) {
                    Ok(written) if written == page.len() => {}
                    Ok(_) => {
                        return Err(LtxError::Page {
                            pgno: pgno.get(),
                            reason: "it expands to less than a page",
                        });
                    }
                    Err(_) => return Err(LtxError::Page { pgno: pgno.get(), reason: "damaged LZ4 block" }),
                }
                self.accept(pgno, 10 + size as u64, page);
                Ok(Event::Page(pgno))
            }
            Stage::Index { left } => {
                self.seen_index.update(bytes);
                self.digest.update(bytes);
                let left = left - bytes.len() as u64;
                if left > 0 {
                    self.stage = Stage::Index { left };
                } else if self.seen_index.finish() != self.index_digest.finish() {
                    return Err(LtxError::Index);
                } else {
                    self.stage = Stage::IndexLength;
                }
                Ok(Event::More)
            }
            Stage::IndexLength => {
                if u64::from_be_bytes(bytes.try_into().expect("BUG: 8 bytes")) != self.index_bytes {
                    return Err(LtxError::Index);
                }
                self.digest.update(bytes);
                self.stage = Stage::Trailer;
                Ok(Event::More)
            }
            Stage::Trailer => self.trailer(bytes.try_into().expect("BUG: 16 bytes")),
            Stage::Frame { .. } | Stage::Done => unreachable!("BUG: no bytes are due"),
        }
    }

    /// Gives the page of a frame that followed, which took `frame_bytes` in the file.
    pub(super) fn frame_page(&mut self, frame_bytes: u64, page: &[u8]) -> Pgno {
        let Stage::Frame { pgno } = self.stage else { unreachable!("BUG: no frame is due") };
        self.accept(pgno, 6 + frame_bytes, page);
        pgno
    }

    fn known(&self) -> &Header {
        self.header.as_ref().expect("BUG: the header comes first")
    }

    fn page_head(&mut self, bytes: &[u8]) -> Result<Event, LtxError> {
        self.digest.update(bytes);
        let number = u32::from_be_bytes(bytes[0..4].try_into().expect("BUG: 4 bytes"));
        let flags = u16::from_be_bytes(bytes[4..6].try_into().expect("BUG: 2 bytes"));
        let fault = |reason| Err(LtxError::Page { pgno: number, reason });
        let lock = self.known().page_size.lock_page();
        let Some(pgno) = Pgno::new(number) else {
            if flags != 0 {
                return fault("page 0 with flags");
            }
            if self.known().is_snapshot() && next_page(self.last, lock) <= self.known().commit {
                return fault("a file from TXID 1 must hold every page");
            }
            self.index_digest.update(&[0]);
            self.index_bytes += 1;
            self.stage = Stage::Index { left: self.index_bytes };
            return Ok(Event::EndOfPages);
        };
        if pgno == lock {
            return fault("the lock page is never stored");
        }
        if number <= self.last {
            return fault("pages must ascend");
        }
        if self.known().is_snapshot() && number != next_page(self.last, lock) {
            return fault("a file from TXID 1 must hold every page");
        }
        match flags {
            0 => {
                self.stage = Stage::Frame { pgno };
                Ok(Event::FrameFollows(pgno))
            }
            1 => {
                self.stage = Stage::BlockSize { pgno };
                Ok(Event::More)
            }
            _ => fault("unknown flags"),
        }
    }

    fn accept(&mut self, pgno: Pgno, frame_bytes: u64, page: &[u8]) {
        self.digest.update(page);
        self.varints.clear();
        put_varint(&mut self.varints, u64::from(pgno.get()));
        put_varint(&mut self.varints, self.offset);
        put_varint(&mut self.varints, frame_bytes);
        self.index_digest.update(&self.varints);
        self.index_bytes += self.varints.len() as u64;
        self.offset += frame_bytes;
        self.last = pgno.get();
        self.pages += 1;
        self.stage = Stage::PageHead;
    }

    fn trailer(&mut self, bytes: &[u8; TRAILER_BYTES]) -> Result<Event, LtxError> {
        let trailer = Trailer::decode(bytes, self.no_checksum)?;
        self.digest.update(&bytes[0..8]);
        let computed: Checksum = self.digest.finish();
        if computed != trailer.file {
            return Err(LtxError::Checksum { found: trailer.file.get(), computed: computed.get() });
        }
        self.stage = Stage::Done;
        Ok(Event::Done(trailer))
    }
}
