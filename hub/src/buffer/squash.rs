//! What is done when the buffer is full: the choice, which segments are merged, and what that costs. Pure; bytes of LTX
//! files are merged by a [`Merger`] from outside.
//!
//! A database's segments are merged oldest first, and sizes decide which: a segment that is larger than all behind it
//! stays as it is, so that a large one is not copied for the sake of each small one that follows.

use super::{BufferError, DatabaseId, SegmentMeta, SegmentRef};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::io::{Read, Write};
use std::ops::Range;
use walhub_common::{Txid, TxidRange};

/// What the buffer does at its bound when destinations lag.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum WhenFull {
    /// Takes nothing more until all destinations have got on: agents keep what is new.
    #[default]
    Block,
    /// Gives back what another destination holds, then gives up restore points that nobody holds.
    Squash,
}

/// What making room has cost a database.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GivenUp {
    /// Restore points that no destination holds.
    pub points: u64,
    /// From the first transaction concerned to the last.
    pub range: Option<TxidRange>,
}

impl GivenUp {
    /// Together with what was given up later.
    #[must_use]
    pub fn and(self, later: GivenUp) -> GivenUp {
        let range = match (self.range, later.range) {
            (Some(a), Some(b)) => TxidRange::new(a.min().min(b.min()), a.max().max(b.max())),
            (a, b) => a.or(b),
        };
        GivenUp { points: self.points + later.points, range }
    }
}

/// Costs of all databases.
pub(super) type Losses = HashMap<DatabaseId, GivenUp>;

/// Why segments were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Only this many of them, from the first, can be one file.
    #[error("only the first {0} segments can become one")]
    Only(usize),
    /// It did not work.
    #[error("{0}")]
    Failed(String),
    /// The result could not be written.
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

/// Gives the bytes of a segment.
pub type Opens<'a> = dyn Fn(&SegmentRef) -> Result<Box<dyn Read + Send>, BufferError> + 'a;

/// Makes one segment of several. The buffer itself does not know what is in them.
pub trait Merger: Send + Sync + Debug {
    /// Writes one LTX file to `out` that stands for `segments`: contiguous, oldest first, of at most [`MAX_GROUPS`]
    /// groups. It has the newest version of each page and these facts, `open` gives the bytes of one of them. Blocking.
    fn merge(
        &self,
        segments: &[SegmentRef],
        whole: SegmentMeta,
        open: &Opens<'_>,
        out: &mut dyn Write,
    ) -> Result<(), MergeError>;
}

/// Merges nothing: a buffer that is only to block needs no other.
#[derive(Debug)]
pub struct NoMerger;

impl Merger for NoMerger {
    fn merge(
        &self,
        _: &[SegmentRef],
        _: SegmentMeta,
        _: &Opens<'_>,
        _: &mut dyn Write,
    ) -> Result<(), MergeError> {
        Err(MergeError::Failed("this buffer merges nothing".to_owned()))
    }
}

/// Groups merged at once; each costs a chunk, two pages and a read buffer.
pub const MAX_GROUPS: usize = 32;
/// Segments of a group.
pub const GROUP_SEGMENTS: usize = 64;
/// Bytes of a group of more than one segment: it is merged in memory.
pub const GROUP_BYTES: u64 = 256 * 1024;
/// Segments that a run can have.
pub(super) const MAX_RUN: usize = MAX_GROUPS * GROUP_SEGMENTS;
/// Merging that saves less than this part of its input does not go on.
pub(super) const LEAST_GAIN: u64 = 8;

/// Cuts segments into groups that are merged first.
pub fn groups(segments: &[SegmentRef]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (at, segment) in segments.iter().enumerate() {
        bytes += segment.bytes;
        match groups.last_mut() {
            Some(group) if group.len() < GROUP_SEGMENTS && bytes <= GROUP_BYTES => group.end = at + 1,
            _ => {
                bytes = segment.bytes;
                groups.push(at..at + 1);
            }
        }
    }
    groups
}

/// The facts of the segment that stands for `segments`.
pub(super) fn whole(segments: &[SegmentRef]) -> Option<SegmentMeta> {
    let (first, last) = (segments.first()?.meta, segments.last()?.meta);
    let range = TxidRange::new(first.range.min(), last.range.max())?;
    Some(SegmentMeta { range, pre: first.pre, ..last })
}

/// Which of a database's `segments`, oldest first, are merged next. `left` is the size of them and of all that follow,
/// `budget` the size of those that may be merged. A run does not reach across one of `cuts`, where destinations stand.
pub(super) fn next_run(
    segments: &[SegmentRef],
    mut left: u64,
    cuts: &BTreeSet<Txid>,
    budget: u64,
) -> Option<Range<usize>> {
    let mut start = 0;
    while start < segments.len() {
        let first = &segments[start];
        left = left.saturating_sub(first.bytes);
        if first.bytes <= left && first.bytes <= budget {
            let run = start..start + run_length(&segments[start..], cuts, budget);
            if run.len() > 1 {
                return Some(run);
            }
        }
        start += 1;
    }
    None
}

fn run_length(segments: &[SegmentRef], cuts: &BTreeSet<Txid>, budget: u64) -> usize {
    let mut bytes = 0;
    let mut length = 0;
    for (at, segment) in segments.iter().enumerate() {
        let follows = at == 0 || segment.meta.range.follows(Some(segments[at - 1].meta.range.max()));
        bytes += segment.bytes;
        if !follows || bytes > budget {
            break;
        }
        length = at + 1;
        if cuts.contains(&segment.meta.range.max()) {
            break;
        }
    }
    let fits = groups(&segments[..length]).get(MAX_GROUPS).map_or(length, |group| group.start);
    fits.min(MAX_RUN)
}

/// What merging `segments` costs, when the furthest destination stands at `furthest`.
pub(super) fn cost(segments: &[SegmentRef], furthest: Option<Txid>) -> GivenUp {
    let Some((_, inner)) = segments.split_last() else { return GivenUp::default() };
    let ends = inner.iter().map(|segment| segment.meta.range.max());
    let lost: Vec<Txid> = ends.filter(|end| Some(*end) > furthest).collect();
    let range = lost.first().zip(lost.last()).and_then(|(first, last)| TxidRange::new(*first, *last));
    GivenUp { points: lost.len() as u64, range }
}

#[cfg(test)]
#[path = "squash_tests.rs"]
mod tests;
