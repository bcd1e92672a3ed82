//! Walks the records of one file in order, past damaged stretches, in a window of bounded memory.

use super::file::{FILE_HEADER_BYTES, LogFile};
use super::record::{ALIGN, Header, Malformed, PREFIX_BYTES, decode, head_bytes, looks_like_one};
use std::io;
use std::os::unix::fs::FileExt;

const WINDOW_BYTES: usize = 256 * 1024;

/// What lies at the scanner's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) enum Found {
    /// A record with a good header.
    Record(Scanned),
    /// Bytes that are no record, up to the next good header.
    Damage {
        /// Where they start.
        offset: u64,
        /// The next good record.
        next: u64,
        /// What is wrong at the start.
        reason: Malformed,
    },
}

/// A record with a good header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Scanned {
    /// Where it starts.
    pub(in crate::buffer) offset: u64,
    /// Prefix and head.
    pub(in crate::buffer) header: Header,
}

impl Scanned {
    /// The byte after it.
    pub(in crate::buffer) fn end(&self) -> u64 {
        self.offset + self.header.record_bytes()
    }
}

/// Walks one file. After the last good record, [`Scanner::offset`] is the end of the log in this file.
#[derive(Debug)]
pub(in crate::buffer) struct Scanner<'a> {
    file: &'a LogFile,
    offset: u64,
    window: Window<'a>,
}

impl<'a> Scanner<'a> {
    /// From the first record.
    pub(in crate::buffer) fn new(file: &'a LogFile) -> io::Result<Self> {
        let length = file.file.metadata()?.len();
        let window = Window { file, length, start: 0, bytes: Vec::new() };
        Ok(Self { file, offset: FILE_HEADER_BYTES, window })
    }

    /// Where the next record would start.
    pub(in crate::buffer) fn offset(&self) -> u64 {
        self.offset
    }

    /// True when everything from here on is zeros: a file that was never written further, not a torn one.
    pub(in crate::buffer) fn rest_is_blank(&mut self) -> io::Result<bool> {
        let mut at = self.offset;
        while at < self.window.length {
            let bytes = (self.window.length - at).min(WINDOW_BYTES as u64);
            let bytes = self.window.get(at, usize::try_from(bytes).expect("BUG: window over 4 GiB"))?;
            let Some(bytes) = bytes else { break };
            if bytes.iter().any(|b| *b != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// The next record or damaged stretch; `None` when no good record follows.
    pub(in crate::buffer) fn next(&mut self) -> io::Result<Option<Found>> {
        match self.header_at(self.offset)? {
            Ok(header) => {
                let scanned = Scanned { offset: self.offset, header };
                self.offset = scanned.end();
                Ok(Some(Found::Record(scanned)))
            }
            Err(reason) => {
                let offset = self.offset;
                let Some(next) = self.find_after(offset)? else { return Ok(None) };
                self.offset = next;
                Ok(Some(Found::Damage { offset, next, reason }))
            }
        }
    }

    /// The payload of a record of this file.
    pub(in crate::buffer) fn payload(&mut self, record: &Scanned) -> io::Result<Result<&[u8], Malformed>> {
        let Header { payload, payload_at, .. } = record.header;
        let bytes = self.window.get(record.offset + payload_at, payload.bytes as usize)?;
        Ok(match bytes {
            Some(bytes) => payload.verify(bytes).map(|()| bytes),
            None => Err(Malformed("the payload is cut off")),
        })
    }

    fn header_at(&mut self, offset: u64) -> io::Result<Result<Header, Malformed>> {
        let salt = self.file.header.salt;
        let Some(prefix) = self.window.get(offset, PREFIX_BYTES)?.and_then(|b| b.first_chunk()) else {
            return Ok(Err(Malformed("the file ends")));
        };
        let head = match head_bytes(prefix, salt) {
            Ok(head) => head,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(bytes) = self.window.get(offset, PREFIX_BYTES + head)? else {
            return Ok(Err(Malformed("the head is cut off")));
        };
        let header = match decode(bytes) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        if offset + header.record_bytes() > self.window.length {
            return Ok(Err(Malformed("the payload is cut off")));
        }
        Ok(Ok(header))
    }

    fn find_after(&mut self, damaged: u64) -> io::Result<Option<u64>> {
        let salt = self.file.header.salt;
        let mut at = damaged + ALIGN as u64;
        while let Some(bytes) = self.window.at_least(at, PREFIX_BYTES)? {
            let starts = (0..=bytes.len() - PREFIX_BYTES).step_by(ALIGN);
            let tried = starts.clone().last().expect("BUG: a window of one prefix has one start");
            let candidate = starts.into_iter().find(|start| looks_like_one(&bytes[*start..], salt));
            match candidate {
                None => at += (tried + ALIGN) as u64,
                Some(start) => {
                    at += start as u64;
                    if self.header_at(at)?.is_ok() {
                        return Ok(Some(at));
                    }
                    at += ALIGN as u64;
                }
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
struct Window<'a> {
    file: &'a LogFile,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Exactly these bytes; `None` when the file ends before.
    fn get(&mut self, offset: u64, count: usize) -> io::Result<Option<&[u8]>> {
        Ok(self.at_least(offset, count)?.map(|bytes| &bytes[..count]))
    }

    /// These bytes and whatever of the window follows them.
    fn at_least(&mut self, offset: u64, count: usize) -> io::Result<Option<&[u8]>> {
        if offset + count as u64 > self.length {
            return Ok(None);
        }
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + count as u64 > end {
            let wanted = (count.max(WINDOW_BYTES) as u64).min(self.length - offset);
            self.bytes.resize(usize::try_from(wanted).expect("BUG: window over 4 GiB"), 0);
            self.start = offset;
            if let Err(e) = self.file.file.read_exact_at(&mut self.bytes, offset) {
                self.bytes.clear();
                return Err(e);
            }
        }
        let from = usize::try_from(offset - self.start).expect("BUG: outside the window");
        Ok(Some(&self.bytes[from..]))
    }
}
