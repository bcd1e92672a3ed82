//! What is known of one database's levels: learned from listings once, kept up by what is made.

use super::whereabouts::Whereabouts;
use crate::buffer::DatabaseId;
use crate::copies::{LaneId, Place, Points};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Level, PageSize, Txid, TxidRange};
use walhub_store::compact::windows::Piece;
use walhub_store::destinations::Listed;

/// Files of the highest level that are remembered.
const HIGHEST_KEPT: usize = 24;

/// A file that the level above has not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) piece: Piece,
    pub(super) bytes: u64,
    /// The time is that of the transaction, not of an upload.
    pub(super) exact: bool,
    pub(super) whereabouts: Whereabouts,
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct State {
    /// Newest transaction in a file of level 1, 2, …
    pub(super) done: Vec<Option<Txid>>,
    /// Files of level 1, 2, … behind the newest file of the level above; of the highest level the newest few.
    pub(super) files: Vec<Vec<Known>>,
    /// Files of level 0 that stand in for what the buffer has given back of the lowest level's next windows.
    pub(super) raw: Vec<Known>,
    /// Page size of the newest file.
    pub(super) page_size: Option<PageSize>,
    /// Newest snapshot at each destination, and when it was made, Unix ms.
    pub(super) snapshots: BTreeMap<LaneId, (Option<Txid>, i64)>,
    /// A hub that was killed may have left something undone at the end of level 0.
    pub(super) untidy: bool,
}

impl State {
    pub(super) fn new(levels: usize) -> Self {
        Self {
            done: vec![None; levels],
            files: vec![Vec::new(); levels],
            raw: Vec::new(),
            page_size: None,
            snapshots: BTreeMap::new(),
            untidy: false,
        }
    }

    /// Asks each of `places` once what it holds, and notes its restore points. One that does not answer is taken to hold
    /// nothing, and to have got a snapshot now: others do not wait for it.
    pub(super) async fn load(
        levels: usize,
        (id, key): (DatabaseId, &DatabaseKey),
        places: &[Arc<Place>],
        points: &Points,
        now_ms: i64,
        cancel: &CancellationToken,
    ) -> State {
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for place in places {
            let changes = points.changes(place.lane, id);
            match place.destination.list_all(key, cancel).await {
                Ok(listed) => {
                    points.learn(place.lane, id, changes, &listed);
                    let used = |level: Level| {
                        level == Level::SNAPSHOT || (1..=levels).contains(&usize::from(level.get()))
                    };
                    let listed = listed.into_iter().filter(|file| used(file.level));
                    found.extend(listed.map(|file| (place.lane, file)));
                }
                Err(error) => {
                    tracing::warn!(database = %key, %error, "a destination does not say what it holds of the levels");
                    silent.push(place.lane);
                }
            }
        }
        let mut state = State::of(levels, &found);
        state.snapshots.extend(silent.into_iter().map(|lane| (lane, (None, now_ms))));
        state.untidy = true;
        state
    }

    /// From what destinations list. Pure.
    pub(super) fn of(levels: usize, found: &[(LaneId, Listed)]) -> State {
        let mut state = State::new(levels);
        let mut files: BTreeMap<(Level, TxidRange), (Listed, BTreeSet<LaneId>)> = BTreeMap::new();
        for (lane, file) in found {
            if file.level == Level::SNAPSHOT {
                let newest = state.snapshots.entry(*lane).or_insert((None, 0));
                *newest = (*newest).max((Some(file.range.max()), file.time_ms));
                continue;
            }
            let entry = files.entry((file.level, file.range));
            entry.or_insert_with(|| (file.clone(), BTreeSet::new())).1.insert(*lane);
        }
        // A level has at least what the levels above have.
        for (level, range) in files.keys().copied() {
            for done in &mut state.done[..usize::from(level.get())] {
                *done = (*done).max(Some(range.max()));
            }
        }
        for ((level, range), (file, lanes)) in files {
            let at = usize::from(level.get()) - 1;
            let above = state.done.get(at + 1).copied().flatten();
            let before = state.files[at].last().map(|known| known.piece.range.max()).max(above);
            // Files may overlap, where one was made of other files than the one before it.
            if Some(range.max()) > before {
                state.push(
                    at,
                    Known {
                        piece: Piece { range, time_ms: file.time_ms },
                        bytes: file.size,
                        exact: false,
                        whereabouts: Whereabouts::held_by(lanes),
                    },
                );
            }
        }
        state
    }

    /// A file of the level with index `at`, behind those that are known.
    pub(super) fn push(&mut self, at: usize, known: Known) {
        let highest = at + 1 == self.files.len();
        let files = &mut self.files[at];
        files.push(known);
        if highest && files.len() > HIGHEST_KEPT {
            files.remove(0);
        }
    }

    /// All levels go on behind `txid`: a whole image of the database, which a snapshot stands for.
    pub(super) fn restart_behind(&mut self, txid: Txid) {
        for done in &mut self.done {
            *done = (*done).max(Some(txid));
        }
        self.files.iter_mut().for_each(Vec::clear);
        self.raw.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(level: u8, min: u64, max: u64) -> (LaneId, Listed) {
        let range = TxidRange::from_raw(min, max).unwrap();
        (0, Listed { level: Level::new(level).unwrap(), range, size: 1, time_ms: max as i64 })
    }

    fn ranges(known: &[Known]) -> Vec<(u64, u64)> {
        known.iter().map(|k| (k.piece.range.min().get(), k.piece.range.max().get())).collect()
    }

    #[test]
    fn a_restart_finds_what_the_level_above_has_not_taken() {
        let mut found = vec![
            listed(1, 2, 5),
            listed(1, 6, 9),
            listed(1, 10, 12),
            listed(2, 2, 5),
            listed(9, 1, 9),
            listed(9, 1, 4),
        ];
        found.push((1, listed(1, 6, 9).1));
        let state = State::of(3, &found);
        assert_eq!(state.done, [Txid::new(12), Txid::new(5), None]);
        assert_eq!(ranges(&state.files[0]), [(6, 9), (10, 12)]);
        assert_eq!(ranges(&state.files[1]), [(2, 5)]);
        let known = &state.files[0][0].whereabouts;
        assert!(known.is_at(0) && known.is_at(1) && !state.files[0][1].whereabouts.is_at(1));
        assert_eq!(state.snapshots[&0], (Txid::new(9), 9));
        // Retention took the lower levels, and something was made twice: once of segments, once of files.
        let state = State::of(3, &[listed(3, 2, 50), listed(1, 51, 53), listed(1, 52, 60)]);
        assert_eq!(state.done, [Txid::new(60), Txid::new(50), Txid::new(50)]);
        assert_eq!(ranges(&state.files[0]), [(51, 53), (52, 60)]);
        assert_eq!(ranges(&state.files[2]), [(2, 50)]);
    }
}
