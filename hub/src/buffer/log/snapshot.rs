//! The state that every log file starts with.

use super::head::{DatabaseHead, Head, encode_cursors};
use super::record::{Payload, encode};
use crate::buffer::DatabaseId;
use std::collections::BTreeMap;
use walhub_common::{DestinationName, Pos, Txid};

const CURSORS_PER_RECORD: usize = 32 * 1024;

/// Cursors of all lanes.
pub(in crate::buffer) type Cursors = BTreeMap<DestinationName, BTreeMap<DatabaseId, Txid>>;

/// A database and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct DatabaseState {
    /// The database.
    pub(in crate::buffer) head: DatabaseHead,
    /// Its position.
    pub(in crate::buffer) position: Option<Pos>,
    /// Hub time of the position.
    pub(in crate::buffer) time_ms: i64,
}

/// All that the log knows besides segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct State {
    /// The databases.
    pub(in crate::buffer) databases: BTreeMap<DatabaseId, DatabaseState>,
    /// The number that the next new one gets.
    pub(in crate::buffer) next_id: u64,
    /// Cursors; those of a snapshot are as old as its file.
    pub(in crate::buffer) cursors: Cursors,
}

impl Default for State {
    fn default() -> Self {
        Self { databases: BTreeMap::new(), next_id: 1, cursors: Cursors::new() }
    }
}

impl State {
    /// The records of a snapshot for the file with this salt.
    pub(in crate::buffer) fn encode(&self, salt: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.databases.len() * 192);
        let mut record = |head: &Head, payload: &[u8]| {
            encode(&mut out, head, Payload::of(payload), salt, 0);
            out.extend_from_slice(payload);
        };
        for DatabaseState { head, position, time_ms } in self.databases.values() {
            let state = Head::State { database: head.clone(), position: *position, time_ms: *time_ms };
            record(&state, b"");
        }
        for (lane, entries) in &self.cursors {
            let entries: Vec<_> = entries.iter().map(|(id, txid)| (*id, *txid)).collect();
            for table in entries.chunks(CURSORS_PER_RECORD) {
                record(&Head::Cursors { lane: lane.clone() }, &encode_cursors(table));
            }
        }
        record(&Head::SnapshotEnd { next_id: self.next_id }, b"");
        out
    }
}
