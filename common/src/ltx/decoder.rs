//! Reads one LTX file front to back, verifying as it goes.

use super::parser::{Event, Parser};
use super::{Header, LtxError, Trailer, max_block_bytes};
use crate::Pgno;
use std::io::Read;

/// A file being read. Memory: two pages, whatever the file claims. Pages are verified only by [`Decoder::finish`]: who
/// must not act on damaged pages acts after it.
#[derive(Debug)]
pub struct Decoder<R> {
    input: R,
    parser: Parser,
    header: Header,
    bytes: Vec<u8>,
    block: Option<usize>,
    at_end: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    pub fn new(mut input: R) -> Result<Self, LtxError> {
        let mut parser = Parser::new();
        let mut bytes = vec![0; parser.need()];
        input.read_exact(&mut bytes).map_err(LtxError::from_read)?;
        parser.take(&bytes, &mut Vec::new())?;
        let header = *parser.header().expect("BUG: the header was just taken");
        bytes.resize(max_block_bytes(header.page_size.bytes()).max(64 * 1024), 0);
        Ok(Self { input, parser, header, bytes, block: None, at_end: false })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page` (resized to one page); `None` after the last. Ascending. A page beyond the
    /// header's `commit` is possible in foreign files and must be dropped by the caller.
    pub fn next_page(&mut self, page: &mut Vec<u8>) -> Result<Option<Pgno>, LtxError> {
        self.block = None;
        while !self.at_end {
            let need = self.parser.need();
            self.input.read_exact(&mut self.bytes[..need]).map_err(LtxError::from_read)?;
            match self.parser.take(&self.bytes[..need], page)? {
                Event::Page(pgno) => {
                    self.block = Some(need);
                    return Ok(Some(pgno));
                }
                Event::FrameFollows(pgno) => return self.frame(pgno, page).map(Some),
                Event::EndOfPages => self.at_end = true,
                Event::More | Event::Header | Event::Done(_) => {}
            }
        }
        Ok(None)
    }

    /// LZ4 block of the page that [`Decoder::next_page`] just gave, unless it came in the old frame form.
    pub fn block(&self) -> Option<&[u8]> {
        self.block.map(|size| &self.bytes[..size])
    }

    /// Skips what pages are left, then verifies index, file checksum and the end of the stream.
    pub fn finish(&mut self) -> Result<Trailer, LtxError> {
        let mut page = Vec::new();
        while self.next_page(&mut page)?.is_some() {}
        loop {
            let need = self.parser.need();
            self.input.read_exact(&mut self.bytes[..need]).map_err(LtxError::from_read)?;
            if let Event::Done(trailer) = self.parser.take(&self.bytes[..need], &mut page)? {
                let mut probe = [0; 1];
                return match self.input.read(&mut probe)? {
                    0 => Ok(trailer),
                    _ => Err(LtxError::TrailingBytes),
                };
            }
        }
    }

    /// The form of Litestream before 0.5.16: one LZ4 frame per page, its end known only by decoding it.
    fn frame(&mut self, pgno: Pgno, page: &mut Vec<u8>) -> Result<Pgno, LtxError> {
        let fault = |reason| LtxError::Page { pgno: pgno.get(), reason };
        let mut counted = Counted { input: &mut self.input, bytes: 0 };
        let mut frame = lz4_flex::frame::FrameDecoder::new(&mut counted);
        page.resize(self.header.page_size.bytes(), 0);
        frame.read_exact(page).map_err(|_| fault("damaged LZ4 frame"))?;
        // The end mark and the content checksum are read, and verified, by asking for one byte more.
        match frame.read(&mut [0; 1]) {
            Ok(0) => {}
            Ok(_) => return Err(fault("it expands to more than a page")),
            Err(_) => return Err(fault("damaged LZ4 frame")),
        }
        let bytes = counted.bytes;
        Ok(self.parser.frame_page(bytes, page))
    }
}

struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buf)?;
        self.bytes += read as u64;
        Ok(read)
    }
}
