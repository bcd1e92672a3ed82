//! Up to where each lane has taken each database. Kept in memory, written down now and then: after a crash a cursor may
//! be older than it was, which only repeats work.

use super::DatabaseId;
use super::log::snapshot::Cursors;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::{DestinationName, Txid};

/// A cursor: lane, database, last TXID taken, `None` when it was cleared.
pub(super) type Moved = (DestinationName, DatabaseId, Option<Txid>);

/// All cursors.
#[derive(Debug, Default)]
pub(super) struct CursorTable(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    all: Cursors,
    unwritten: BTreeMap<DestinationName, BTreeMap<DatabaseId, Option<Txid>>>,
    moves: u64,
}

impl CursorTable {
    /// As written down.
    pub(super) fn new(all: Cursors) -> Self {
        Self(Mutex::new(State { all, ..State::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a lane stands.
    pub(super) fn get(&self, lane: &DestinationName, database: DatabaseId) -> Option<Txid> {
        self.lock().all.get(lane)?.get(&database).copied()
    }

    /// Moves a lane.
    pub(super) fn set(&self, lane: &DestinationName, database: DatabaseId, txid: Txid) {
        let mut state = self.lock();
        let state = &mut *state;
        state.moves += 1;
        of(&mut state.all, lane).insert(database, txid);
        of(&mut state.unwritten, lane).insert(database, Some(txid));
    }

    /// A lane has taken nothing.
    pub(super) fn clear(&self, lane: &DestinationName, database: DatabaseId) {
        let mut state = self.lock();
        let state = &mut *state;
        let had = state.all.get_mut(lane).and_then(|entries| entries.remove(&database));
        if had.is_some() {
            state.moves += 1;
            of(&mut state.unwritten, lane).insert(database, None);
        }
    }

    /// Counts moves: what could not be trimmed at one count may be at a later one.
    pub(super) fn moves(&self) -> u64 {
        self.lock().moves
    }

    /// All of them.
    pub(super) fn snapshot(&self) -> Cursors {
        self.lock().all.clone()
    }

    /// Those that moved since the last call.
    pub(super) fn take_unwritten(&self) -> Vec<Moved> {
        let unwritten = std::mem::take(&mut self.lock().unwritten);
        let lanes = unwritten.into_iter();
        lanes.flat_map(|(lane, of)| of.into_iter().map(move |(id, at)| (lane.clone(), id, at))).collect()
    }

    /// Where these lanes stand, `None` for those that have taken nothing.
    pub(super) fn of<'a>(
        &self,
        lanes: impl IntoIterator<Item = &'a DestinationName>,
        database: DatabaseId,
    ) -> Vec<Option<Txid>> {
        let state = self.lock();
        let at = |lane| state.all.get(lane).and_then(|of| of.get(&database)).copied();
        lanes.into_iter().map(at).collect()
    }
}

/// The entries of a lane; its name is copied once.
fn of<'a, V>(
    table: &'a mut BTreeMap<DestinationName, BTreeMap<DatabaseId, V>>,
    lane: &DestinationName,
) -> &'a mut BTreeMap<DatabaseId, V> {
    if !table.contains_key(lane) {
        table.insert(lane.clone(), BTreeMap::new());
    }
    table.get_mut(lane).expect("BUG: it was just put in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_without_a_cursor_has_passed_nothing() {
        let table = CursorTable::default();
        let lanes = ["a", "b"].map(|n| DestinationName::new(n).unwrap());
        let (id, txid) = (DatabaseId(1), Txid::new(5));
        table.set(&lanes[0], id, txid.unwrap());
        assert_eq!(table.of(&lanes, id), [txid, None]);
        assert_eq!(table.of(&lanes, DatabaseId(2)), [None, None]);
        assert_eq!(table.of(&[], id), []);
    }

    #[test]
    fn only_what_moved_is_written() {
        let table = CursorTable::default();
        let lane = DestinationName::new("a").unwrap();
        table.set(&lane, DatabaseId(1), Txid::FIRST);
        table.set(&lane, DatabaseId(1), Txid::FIRST.next());
        assert_eq!(table.take_unwritten(), [(lane.clone(), DatabaseId(1), Some(Txid::FIRST.next()))]);
        assert_eq!(table.take_unwritten(), []);
        assert_eq!(table.snapshot().len(), 1);
        table.clear(&lane, DatabaseId(1));
        table.clear(&lane, DatabaseId(2));
        assert_eq!(table.take_unwritten(), [(lane.clone(), DatabaseId(1), None)]);
        assert_eq!(table.get(&lane, DatabaseId(1)), None);
    }
}
