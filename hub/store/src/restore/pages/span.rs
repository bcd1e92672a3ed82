//! From the index of a file to the ranges that are worth a request. Pure.

use super::GAP_BYTES;
use std::ops::Range;
use walhub_common::PageSet;
use walhub_common::ltx::LtxError;
use walhub_common::ltx::page_index::{Entries, IndexEntry};

/// Pages that are read in one request, ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) entries: Vec<IndexEntry>,
}

impl Span {
    /// The bytes of the file from the first page to the last; there is always one.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.entries.first().map_or(0, |entry| entry.offset);
        start..self.entries.last().map_or(start, |entry| entry.offset + u64::from(entry.bytes))
    }
}

/// The spans of one file.
#[derive(Debug)]
pub(super) struct Spans {
    entries: Entries,
    next: Option<IndexEntry>,
    max_bytes: u64,
}

impl Spans {
    pub(super) fn new(entries: Entries, max_bytes: u64) -> Spans {
        Spans { entries, next: None, max_bytes }
    }

    /// The next span of pages up to `limit` that are not in `claimed` yet; they are afterwards.
    pub(super) fn next(&mut self, claimed: &mut PageSet, limit: u32) -> Result<Option<Span>, LtxError> {
        let mut span = Span { entries: self.next.take().into_iter().collect() };
        for entry in self.entries.by_ref() {
            let entry = entry?;
            if entry.pgno.get() > limit || !claimed.insert(entry.pgno) {
                continue;
            }
            let so_far = span.range();
            let end = entry.offset + u64::from(entry.bytes);
            let joins = entry.offset - so_far.end <= GAP_BYTES && end - so_far.start <= self.max_bytes;
            if span.entries.is_empty() || joins {
                span.entries.push(entry);
            } else {
                self.next = Some(entry);
                return Ok(Some(span));
            }
        }
        Ok((!span.entries.is_empty()).then_some(span))
    }
}
