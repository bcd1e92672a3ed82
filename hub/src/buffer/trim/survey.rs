//! Who holds how much of the log: of each file, what still has to be kept, and of each database, what waits. Pure.

use super::super::{DatabaseId, SegmentRef};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What a record takes beside its data, about.
const RECORD_BYTES: u64 = 160;

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Bytes of segments that are still needed and lie in a file, wholly or in part: what it takes to copy them.
    files: BTreeMap<u64, u64>,
    /// LTX bytes that wait, by database.
    backlog: BTreeMap<DatabaseId, u64>,
    /// Something is there only for a point that is awaited.
    keeps: bool,
}

impl Survey {
    /// Counts a segment that lanes still need.
    pub(super) fn count(&mut self, database: DatabaseId, segment: &SegmentRef) {
        self.lies(segment);
        *self.backlog.entry(database).or_default() += segment.bytes;
    }

    /// Counts a segment that no lane needs, and that leads to a point that is awaited.
    pub(super) fn count_kept(&mut self, segment: &SegmentRef) {
        self.lies(segment);
        self.keeps = true;
    }

    /// True when room can be made at the expense of points that are awaited.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    fn lies(&mut self, segment: &SegmentRef) {
        let bytes = segment.bytes + RECORD_BYTES * u64::from(segment.place.chunks);
        for file in segment.place.first.0..=segment.place.last.0 {
            *self.files.entry(file).or_default() += bytes;
        }
    }

    /// Those of `files`, given with their sizes, of which at most half is needed, with what is, in their order: the
    /// oldest restore points go first.
    pub(super) fn nearly_dead(&self, files: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let needed = files.iter().filter_map(|(file, size)| {
            let needed = self.files.get(file).copied().unwrap_or(0);
            (needed <= size / 2).then_some((*file, needed))
        });
        needed.collect()
    }

    /// The databases by what waits of them, the largest first.
    pub(super) fn backlog(&self) -> Vec<(DatabaseId, u64)> {
        let mut backlog: Vec<(DatabaseId, u64)> =
            self.backlog.iter().map(|(id, bytes)| (*id, *bytes)).collect();
        backlog.sort_by_key(|(id, bytes)| (Reverse(*bytes), *id));
        backlog
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Place, SegmentMeta};
    use walhub_common::{Checksum, TxidRange};

    fn segment(first: u64, last: u64, bytes: u64) -> SegmentRef {
        let meta = SegmentMeta {
            range: TxidRange::from_raw(1, 1).unwrap(),
            pre: None,
            post: Checksum::new(1 << 63).unwrap(),
            time_ms: 0,
            agent_time_ms: 0,
        };
        SegmentRef { meta, bytes, place: Place { first: (first, 0), last: (last, 0), chunks: 1 } }
    }

    #[test]
    fn a_file_costs_what_its_segments_cost_wherever_else_they_lie() {
        let mut survey = Survey::default();
        survey.count(DatabaseId(1), &segment(2, 4, 1000));
        survey.count(DatabaseId(2), &segment(4, 4, 3000));
        survey.count(DatabaseId(1), &segment(6, 6, 100));
        let files: Vec<(u64, u64)> = (1..=6).map(|file| (file, 2400)).collect();
        assert_eq!(survey.nearly_dead(&files), [(1, 0), (2, 1160), (3, 1160), (5, 0), (6, 260)]);
        assert_eq!(survey.backlog(), [(DatabaseId(2), 3000), (DatabaseId(1), 1100)]);
    }
}
