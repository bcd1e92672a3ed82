//! What lies in a log file.

use super::super::index::Index;
use super::super::log::file::LogFile;
use super::super::log::head::{At, Before, Head};
use super::super::log::scan::{Found, Scanner};
use super::super::{BufferError, DatabaseId};
use std::collections::{BTreeMap, HashMap};
use std::io;
use walhub_common::{Txid, TxidRange};

/// A segment that lies in the file, wholly or in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) database: DatabaseId,
    pub(super) range: TxidRange,
    /// Where the segment begins.
    pub(super) first: At,
    /// Its last chunk lies here. Otherwise it goes on in the next file, or was given up.
    pub(super) complete: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) file: u64,
    pub(super) parts: Vec<Part>,
}

impl Contents {
    /// Reads the headers of a file.
    pub(super) fn of(file: &LogFile) -> Result<Contents, BufferError> {
        let io = |source: io::Error| BufferError::Io { doing: "read a log file", source };
        let mut parts = Vec::new();
        let mut unfinished: HashMap<(DatabaseId, bool), Part> = HashMap::new();
        let mut scanner = Scanner::new(file).map_err(io)?;
        while let Some(found) = scanner.next().map_err(io)? {
            let Found::Record(record) = found else { continue };
            let Head::Chunk(chunk) = record.header.head else { continue };
            let here = (file.header.number, record.offset);
            let first = chunk.before.map_or(here, |Before { first, .. }| first);
            let (database, range) = (chunk.database, chunk.meta.range);
            let part = Part { database, range, first, complete: chunk.last };
            if chunk.last {
                unfinished.remove(&(database, chunk.rewritten));
                parts.push(part);
            } else {
                unfinished.insert((database, chunk.rewritten), part);
            }
        }
        parts.extend(unfinished.into_values());
        Ok(Contents { file: file.header.number, parts })
    }

    /// The last transaction of each database, of segments that count.
    pub(super) fn last(&self, index: &Index) -> Result<BTreeMap<DatabaseId, Txid>, BufferError> {
        let mut last: BTreeMap<DatabaseId, Txid> = BTreeMap::new();
        for part in &self.parts {
            if part.complete || part.is_known(index)? {
                let txid = part.range.max();
                last.entry(part.database).and_modify(|last| *last = txid.max(*last)).or_insert(txid);
            }
        }
        Ok(last)
    }
}

impl Part {
    /// True when the index knows the segment in this place.
    fn is_known(&self, index: &Index) -> Result<bool, BufferError> {
        let known = index.get(self.database, self.range.min())?;
        Ok(known.is_some_and(|segment| segment.meta.range == self.range && segment.place.first == self.first))
    }

    /// What has become of a segment that somebody still needs.
    pub(super) fn fate(&self, index: &Index) -> Result<Fate, BufferError> {
        let Some(segment) = index.covering(self.database, self.range.min())? else {
            return Ok(if self.complete { Fate::Unknown } else { Fate::Elsewhere });
        };
        Ok(match segment.meta.range {
            range if range == self.range && segment.place.first == self.first => Fate::Here,
            range if range.max() >= self.range.max() => Fate::Elsewhere,
            _ if self.complete => Fate::Unknown,
            _ => Fate::Elsewhere,
        })
    }
}

/// See [`Part::fate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// This is it: it lies here alone.
    Here,
    /// Another segment stands for it, or it was given up before it was complete.
    Elsewhere,
    /// The index does not say: the file stays.
    Unknown,
}
