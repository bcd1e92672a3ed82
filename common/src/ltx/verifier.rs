//! Verifies one LTX file that arrives in pieces of any size: the hub's gate before the buffer.

use super::parser::{Event, Parser};
use super::{Header, LtxError};
use crate::Checksum;

/// A file on its way in. Memory: two pages and one page's compressed bytes. The old frame form is refused: agents do
/// not write it.
#[derive(Debug)]
pub struct Verifier {
    parser: Parser,
    pending: Vec<u8>,
    page: Vec<u8>,
    bytes: u64,
    max_bytes: u64,
    image: Checksum,
    done: bool,
}

/// A verified file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// Its length.
    pub bytes: u64,
    /// Its pages.
    pub pages: u32,
    /// Database checksum of its pages, when it holds all of them (a file from TXID 1).
    pub image_checksum: Option<Checksum>,
}

impl Verifier {
    /// Takes files of at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            parser: Parser::new(),
            pending: Vec::new(),
            page: Vec::new(),
            bytes: 0,
            max_bytes,
            image: Checksum::EMPTY,
            done: false,
        }
    }

    /// Header, once its 100 bytes have passed.
    pub fn header(&self) -> Option<&Header> {
        self.parser.header()
    }

    /// Takes the next piece. After an error the file is refused for good.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), LtxError> {
        self.bytes += piece.len() as u64;
        if self.bytes > self.max_bytes {
            return Err(LtxError::TooLarge { what: "segment bytes", limit: self.max_bytes });
        }
        while !piece.is_empty() {
            if self.done {
                return Err(LtxError::TrailingBytes);
            }
            let need = self.parser.need();
            if self.pending.is_empty() && piece.len() >= need {
                let (item, rest) = piece.split_at(need);
                piece = rest;
                let event = self.parser.take(item, &mut self.page)?;
                self.on(event)?;
                continue;
            }
            let take = (need - self.pending.len()).min(piece.len());
            self.pending.extend_from_slice(&piece[..take]);
            piece = &piece[take..];
            if self.pending.len() == need {
                let event = self.parser.take(&self.pending, &mut self.page)?;
                self.pending.clear();
                self.on(event)?;
            }
        }
        Ok(())
    }

    fn on(&mut self, event: Event) -> Result<(), LtxError> {
        match event {
            Event::Page(pgno) => {
                if self.parser.header().is_some_and(Header::is_snapshot) {
                    self.image = self.image.toggle(Checksum::of_page(pgno, &self.page));
                }
            }
            Event::FrameFollows(pgno) => {
                return Err(LtxError::Page {
                    pgno: pgno.get(),
                    reason: "the frame form is not accepted here",
                });
            }
            Event::Done(_) => self.done = true,
            Event::More | Event::Header | Event::EndOfPages => {}
        }
        Ok(())
    }

    /// The verdict, after the last piece.
    pub fn finish(self) -> Result<Verified, LtxError> {
        if !self.done {
            return Err(LtxError::Truncated);
        }
        let header = *self.parser.header().expect("BUG: a complete file has a header");
        let image_checksum = header.is_snapshot().then_some(self.image);
        Ok(Verified { header, bytes: self.bytes, pages: self.parser.pages(), image_checksum })
    }
}
