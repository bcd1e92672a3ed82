//! Reads one segment back, verifying every record. Holds the log files it needs: unlinking them does not disturb it.

use super::file::{Files, LogFile};
use super::head::{At, ChunkHead, Head};
use super::record::{Header, Malformed, PREFIX_BYTES, decode, head_bytes};
use crate::buffer::{BufferError, DatabaseId, SegmentRef};
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Longest prefix, head and padding of a chunk.
const CHUNK_HEADER_BYTES: usize = PREFIX_BYTES + 104 + 8;
/// A small record is read in one call.
const FIRST_READ_BYTES: u64 = 8192;

/// Bytes of one segment, in order.
#[derive(Debug)]
pub(in crate::buffer) struct SegmentReader {
    database: DatabaseId,
    segment: SegmentRef,
    files: HashMap<u64, Arc<LogFile>>,
    /// Places of the chunks still to be read, last first.
    places: Vec<At>,
    number: u32,
    chunk: Vec<u8>,
    at: usize,
}

impl SegmentReader {
    /// Finds all chunks and reads the first one.
    pub(in crate::buffer) fn open(
        files: &Files,
        database: DatabaseId,
        segment: &SegmentRef,
    ) -> Result<Self, BufferError> {
        let mut reader = Self {
            database,
            segment: segment.clone(),
            files: HashMap::new(),
            places: Vec::new(),
            number: 0,
            chunk: Vec::new(),
            at: 0,
        };
        let place = &segment.place;
        let mut at = place.last;
        for number in (0..place.chunks).rev() {
            reader.pin(files, at.0)?;
            reader.places.push(at);
            if number > 0 {
                let mut bytes = [0; CHUNK_HEADER_BYTES];
                let got = reader.read_at(at, &mut bytes)?;
                let (_, head) = reader.parse(at, &bytes[..got], number)?;
                let before = head.before.ok_or_else(|| corrupt(at, "a chunk without those before it"))?;
                at = before.previous;
            }
        }
        if at != place.first {
            return Err(corrupt(at, "the chunks do not lead to the start of the segment"));
        }
        reader.next_chunk()?;
        Ok(reader)
    }

    fn pin(&mut self, files: &Files, number: u64) -> Result<(), BufferError> {
        if self.files.contains_key(&number) {
            return Ok(());
        }
        let file = match files.get(number) {
            Ok(Some(file)) => file,
            Ok(None) => {
                return Err(BufferError::Trimmed {
                    database: self.database,
                    txid: self.segment.meta.range.min(),
                });
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(corrupt((number, 0), e)),
            Err(source) => return Err(BufferError::Io { doing: "open a log file", source }),
        };
        self.files.insert(number, file);
        Ok(())
    }

    /// Reads until `bytes` is full or the file ends.
    fn read_at(&self, at: At, bytes: &mut [u8]) -> Result<usize, BufferError> {
        let file = &self.files.get(&at.0).expect("BUG: the file was pinned").file;
        let mut got = 0;
        while got < bytes.len() {
            match file.read_at(&mut bytes[got..], at.1 + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BufferError::Io { doing: "read the log", source }),
            }
        }
        Ok(got)
    }

    /// The header of chunk `number`, which must lie at `at`.
    fn parse(&self, at: At, bytes: &[u8], number: u32) -> Result<(Header, ChunkHead), BufferError> {
        let salt = self.files.get(&at.0).expect("BUG: the file was pinned").header.salt;
        let parsed = || {
            let prefix = bytes.first_chunk().ok_or(Malformed("the record is cut off"))?;
            let end = PREFIX_BYTES + head_bytes(prefix, salt)?;
            decode(bytes.get(..end).ok_or(Malformed("the head is cut off"))?)
        };
        let header = parsed().map_err(|e| corrupt(at, e))?;
        match header.head {
            Head::Chunk(chunk)
                if chunk.database == self.database
                    && chunk.meta == self.segment.meta
                    && chunk.number == number
                    && chunk.last == (number + 1 == self.segment.place.chunks) =>
            {
                Ok((header, chunk))
            }
            _ => Err(corrupt(at, "another record lies here")),
        }
    }

    /// Takes the next chunk; false at the end.
    fn next_chunk(&mut self) -> Result<bool, BufferError> {
        let Some(at) = self.places.pop() else { return Ok(false) };
        let first = (self.segment.bytes + CHUNK_HEADER_BYTES as u64).min(FIRST_READ_BYTES);
        let mut bytes = std::mem::take(&mut self.chunk);
        bytes.resize(usize::try_from(first).expect("BUG: small"), 0);
        let got = self.read_at(at, &mut bytes)?;
        let (header, _) = self.parse(at, &bytes[..got], self.number)?;
        let payload_at = usize::try_from(header.payload_at).expect("BUG: heads are short");
        let total = payload_at + header.payload.bytes as usize;
        bytes.truncate(got.min(total));
        if bytes.len() < total {
            let have = bytes.len();
            bytes.resize(total, 0);
            let more = self.read_at((at.0, at.1 + have as u64), &mut bytes[have..])?;
            bytes.truncate(have + more);
        }
        header.payload.verify(bytes.get(payload_at..).unwrap_or_default()).map_err(|e| corrupt(at, e))?;
        (self.chunk, self.at) = (bytes, payload_at);
        self.number += 1;
        Ok(true)
    }
}

fn corrupt(at: At, reason: impl ToString) -> BufferError {
    BufferError::Corrupt { file: at.0, offset: at.1, reason: reason.to_string() }
}

impl Read for SegmentReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.next_chunk() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(BufferError::Io { source, .. }) => return Err(source),
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        let count = out.len().min(self.chunk.len() - self.at);
        out[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
