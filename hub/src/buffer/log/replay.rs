//! What a run of records means: databases, positions, and where complete segments lie. No file access: records in,
//! state out.

use super::head::{At, Before, ChunkHead, Head};
use super::snapshot::{Cursors, DatabaseState, State};
use super::writer::Written;
use crate::buffer::tail::{follows, position_after};
use crate::buffer::{DatabaseId, Place, SegmentMeta, SegmentRef};
use std::collections::{BTreeSet, HashMap};
use walhub_common::{Pos, Txid};

/// The state after the records applied so far. Applying starts at the beginning of any file.
#[derive(Debug)]
pub(in crate::buffer) struct Replay {
    state: State,
    /// Positions; also of databases whose registration is damaged here and comes again with a later snapshot.
    positions: HashMap<DatabaseId, (Option<Pos>, i64)>,
    /// Unfinished segments; true for those that are rewritten.
    open: HashMap<(DatabaseId, bool), Open>,
    snapshot_cursors: Cursors,
    first_file: u64,
    /// Files that exist: what lay in others was given back.
    present: BTreeSet<u64>,
    oddities: Oddities,
}

/// Things that only damage can cause, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::buffer) struct Oddities {
    /// Databases that no record names.
    pub(in crate::buffer) unknown_databases: u64,
    /// Segments that do not continue what came before.
    pub(in crate::buffer) gaps: u64,
    /// Segments whose earlier chunks are missing.
    pub(in crate::buffer) incomplete: u64,
}

#[derive(Debug)]
struct Open {
    meta: SegmentMeta,
    next: u32,
    previous: At,
}

impl Replay {
    /// Nothing yet; the first record will be one of file `first_file`, those that exist are `present`.
    pub(in crate::buffer) fn new(first_file: u64, present: impl IntoIterator<Item = u64>) -> Self {
        Self {
            state: State::default(),
            positions: HashMap::new(),
            open: HashMap::new(),
            snapshot_cursors: Cursors::new(),
            first_file,
            present: present.into_iter().collect(),
            oddities: Oddities::default(),
        }
    }

    /// True when this file exists.
    pub(in crate::buffer) fn holds(&self, file: u64) -> bool {
        self.present.contains(&file)
    }

    /// The end: the state, and what was odd.
    pub(in crate::buffer) fn finish(mut self) -> (State, Oddities) {
        for (id, (position, time_ms)) in self.positions {
            match self.state.databases.get_mut(&id) {
                Some(database) => (database.position, database.time_ms) = (position, time_ms),
                None => self.oddities.unknown_databases += 1,
            }
            // A number is not given to another database, come what may.
            self.state.next_id = self.state.next_id.max(id.0 + 1);
        }
        (self.state, self.oddities)
    }

    /// Applies a table of cursors that belongs to a snapshot.
    pub(in crate::buffer) fn cursors(&mut self, head: &Head, entries: Vec<(DatabaseId, Txid)>) {
        if let Head::Cursors { lane } = head {
            self.snapshot_cursors.entry(lane.clone()).or_default().extend(entries);
        }
    }

    /// Applies a record. Gives the segment that it completes.
    pub(in crate::buffer) fn apply(&mut self, head: &Head, payload_bytes: u32, at: At) -> Option<Written> {
        match head {
            Head::Chunk(chunk) => return self.chunk(chunk, payload_bytes, at),
            Head::Database(head) => {
                self.state.next_id = self.state.next_id.max(head.id.0 + 1);
                let fresh = || DatabaseState { head: head.clone(), position: None, time_ms: 0 };
                self.state.databases.entry(head.id).or_insert_with(fresh).head = head.clone();
            }
            Head::State { database, position, time_ms } => {
                let state = DatabaseState { head: database.clone(), position: *position, time_ms: *time_ms };
                self.state.databases.insert(database.id, state);
                let known = self.positions.entry(database.id).or_default();
                if position.map(|p| p.txid) > known.0.map(|p| p.txid) {
                    *known = (*position, *time_ms);
                }
            }
            Head::Cursors { .. } => {}
            Head::SnapshotEnd { next_id } => {
                self.state.next_id = self.state.next_id.max(*next_id);
                self.state.cursors = std::mem::take(&mut self.snapshot_cursors);
            }
        }
        None
    }

    fn chunk(&mut self, chunk: &ChunkHead, payload_bytes: u32, at: At) -> Option<Written> {
        let id = chunk.database;
        let key = (id, chunk.rewritten);
        let whole = match &chunk.before {
            None => true,
            Some(before) => match self.open.get(&key) {
                Some(open) => {
                    open.meta == chunk.meta && open.next == chunk.number && open.previous == before.previous
                }
                // Its earlier chunks lie before the first file that is read here.
                None => before.previous.0 < self.first_file,
            },
        };
        if !chunk.last {
            if whole {
                self.open.insert(key, Open { meta: chunk.meta, next: chunk.number + 1, previous: at });
            } else {
                self.open.remove(&key);
            }
            return None;
        }
        self.open.remove(&key);
        let (position, time_ms) = self.positions.entry(id).or_default();
        let reached = position.is_some_and(|p| chunk.meta.range.max() <= p.txid);
        if !chunk.rewritten {
            if reached {
                self.oddities.gaps += 1;
                return None;
            }
            if !follows(*position, &chunk.meta) {
                self.oddities.gaps += 1;
            }
        }
        // What is rewritten was there before: only damage hides that.
        if !reached {
            self.oddities.gaps += u64::from(chunk.rewritten);
            (*position, *time_ms) = (Some(position_after(&chunk.meta)), chunk.meta.time_ms);
        }
        if !whole {
            // A file goes when nobody needs the segments that lie in it: the rest of them is of no use.
            let gone = chunk.before.is_some_and(|before| !self.present.contains(&before.previous.0));
            self.oddities.incomplete += u64::from(!gone);
            return None;
        }
        let segment = segment(chunk, payload_bytes, at);
        Some(Written { database: id, segment, rewritten: chunk.rewritten })
    }
}

/// The segment whose last chunk this is.
pub(in crate::buffer) fn segment(chunk: &ChunkHead, payload_bytes: u32, at: At) -> SegmentRef {
    let (first, bytes) = match chunk.before {
        Some(Before { first, bytes, .. }) => (first, bytes),
        None => (at, 0),
    };
    SegmentRef {
        meta: chunk.meta,
        bytes: bytes + u64::from(payload_bytes),
        place: Place { first, last: at, chunks: chunk.number + 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::log::head::DatabaseHead;
    use walhub_common::{Checksum, TxidRange};

    fn checksum(n: u64) -> Checksum {
        Checksum::new(1 << 63 | n).unwrap()
    }

    fn meta(min: u64, max: u64) -> SegmentMeta {
        SegmentMeta {
            range: TxidRange::from_raw(min, max).unwrap(),
            pre: (min > 1).then(|| checksum(min - 1)),
            post: checksum(max),
            time_ms: 7,
            agent_time_ms: 8,
        }
    }

    fn chunk(meta: SegmentMeta, number: u32, last: bool, before: Option<Before>) -> Head {
        Head::Chunk(ChunkHead { database: DatabaseId(1), meta, number, last, before, rewritten: false })
    }

    fn replay_with_a_database(first_file: u64) -> Replay {
        let mut replay = Replay::new(first_file, 1..=9);
        let head =
            DatabaseHead { id: DatabaseId(1), lineage: 3, key: "a/b".parse().unwrap(), path: String::new() };
        replay.apply(&Head::Database(head), 0, (first_file, 64));
        replay
    }

    #[test]
    fn a_segment_counts_when_its_last_chunk_has_come() {
        let mut replay = replay_with_a_database(1);
        assert_eq!(replay.apply(&chunk(meta(1, 4), 0, false, None), 100, (1, 200)), None);
        let before = Before { first: (1, 200), previous: (1, 200), bytes: 100 };
        let done = replay.apply(&chunk(meta(1, 4), 1, true, Some(before)), 5, (2, 64)).unwrap();
        assert_eq!(done.segment.bytes, 105);
        assert_eq!(done.segment.place, Place { first: (1, 200), last: (2, 64), chunks: 2 });
        let (state, oddities) = replay.finish();
        assert_eq!(oddities, Oddities::default());
        let position = Pos { txid: Txid::new(4).unwrap(), checksum: checksum(4) };
        assert_eq!(state.databases[&DatabaseId(1)].position, Some(position));
        assert_eq!(state.next_id, 2);
    }

    #[test]
    fn chunks_before_the_first_file_read_are_taken_on_trust_and_missing_ones_are_not() {
        let before = Before { first: (4, 200), previous: (4, 900), bytes: 100 };
        let last = chunk(meta(1, 1), 2, true, Some(before));
        assert!(replay_with_a_database(5).apply(&last, 5, (5, 300)).is_some());
        let mut replay = replay_with_a_database(4);
        assert!(replay.apply(&last, 5, (5, 300)).is_none());
        let (state, oddities) = replay.finish();
        assert_eq!(oddities.incomplete, 1);
        assert!(state.databases[&DatabaseId(1)].position.is_some(), "it was acknowledged");
    }

    #[test]
    fn a_gap_is_adopted_and_an_old_segment_is_not() {
        let mut replay = replay_with_a_database(1);
        assert!(replay.apply(&chunk(meta(1, 1), 0, true, None), 5, (1, 300)).is_some());
        assert!(replay.apply(&chunk(meta(3, 3), 0, true, None), 5, (1, 500)).is_some());
        assert!(replay.apply(&chunk(meta(2, 2), 0, true, None), 5, (1, 700)).is_none());
        let (state, oddities) = replay.finish();
        assert_eq!(oddities.gaps, 2);
        assert_eq!(state.databases[&DatabaseId(1)].position.unwrap().txid.get(), 3);
    }

    fn state_at(txid: u64) -> Head {
        let position = Pos { txid: Txid::new(txid).unwrap(), checksum: checksum(txid) };
        let database =
            DatabaseHead { id: DatabaseId(1), lineage: 3, key: "a/b".parse().unwrap(), path: String::new() };
        Head::State { database, position: Some(position), time_ms: 9 }
    }

    #[test]
    fn a_state_moves_a_database_forward_and_never_back() {
        let mut replay = replay_with_a_database(1);
        assert!(replay.apply(&chunk(meta(1, 1), 0, true, None), 5, (1, 300)).is_some());
        replay.apply(&state_at(4), 0, (1, 500));
        assert!(replay.apply(&chunk(meta(5, 5), 0, true, None), 5, (1, 700)).is_some());
        replay.apply(&state_at(5), 0, (2, 64));
        assert!(replay.apply(&chunk(meta(6, 6), 0, true, None), 5, (2, 300)).is_some());
        replay.apply(&state_at(2), 0, (2, 500));
        let (state, oddities) = replay.finish();
        assert_eq!(oddities, Oddities::default());
        assert_eq!(state.databases[&DatabaseId(1)].position.unwrap().txid.get(), 6);
    }

    #[test]
    fn a_database_that_no_record_names_is_counted_and_its_number_is_not_used_again() {
        let mut replay = Replay::new(1, [1]);
        assert!(replay.apply(&chunk(meta(1, 1), 0, true, None), 5, (1, 300)).is_some());
        let (state, oddities) = replay.finish();
        assert_eq!(oddities.unknown_databases, 1);
        assert_eq!((state.databases.len(), state.next_id), (0, 2));
    }
}
