//! What is known of one database's levels: learned from listings once, kept up by what is made.

use super::publish::Holders;
use crate::copies::{LaneId, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, Level, PageSize, Txid, TxidRange};
use walhub_store::compact::windows::Piece;
use walhub_store::destinations::{DestinationError, Listed};

/// A file that the level above has not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) piece: Piece,
    pub(super) bytes: u64,
    /// The time is that of the transaction, not of an upload.
    pub(super) exact: bool,
    pub(super) holders: Holders,
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct State {
    /// Newest transaction in a file of level 1, 2, …
    pub(super) done: Vec<Option<Txid>>,
    /// Files of level 1, 2, … behind the newest file of the level above. None of the highest level.
    pub(super) files: Vec<Vec<Known>>,
    /// Page size of the newest file.
    pub(super) page_size: Option<PageSize>,
    /// Newest snapshot at each destination, and when it was made, Unix ms.
    pub(super) snapshots: BTreeMap<LaneId, (Option<Txid>, i64)>,
}

impl State {
    pub(super) fn new(levels: usize) -> Self {
        Self {
            done: vec![None; levels],
            files: vec![Vec::new(); levels],
            page_size: None,
            snapshots: BTreeMap::new(),
        }
    }

    /// Asks each of `places` once what it holds on the levels in use. One that does not answer is taken to hold nothing of
    /// them, and to have got a snapshot now: others do not wait for it.
    pub(super) async fn load(
        levels: usize,
        key: &DatabaseKey,
        places: &[Arc<Place>],
        now_ms: i64,
        cancel: &CancellationToken,
    ) -> State {
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for place in places {
            match list(levels, key, place, cancel).await {
                Ok(listed) => found.extend(listed.into_iter().map(|file| (place.lane, file))),
                Err(error) => {
                    tracing::warn!(database = %key, %error, "a destination does not say what it holds of the levels");
                    silent.push(place.lane);
                }
            }
        }
        let mut state = State::of(levels, &found);
        state.snapshots.extend(silent.into_iter().map(|lane| (lane, (None, now_ms))));
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
            let Some(above) = state.done.get(at + 1).copied() else { continue };
            let before = state.files[at].last().map(|known| known.piece.range.max()).max(above);
            // What overlaps was made twice, in different ways: the first one stays.
            if Some(range.min()) > before {
                state.files[at].push(Known {
                    piece: Piece { range, time_ms: file.time_ms },
                    bytes: file.size,
                    exact: false,
                    holders: Arc::new(Mutex::new(lanes)),
                });
            }
        }
        state
    }

    /// All levels go on behind `txid`: a whole image of the database, which a snapshot stands for.
    pub(super) fn restart_behind(&mut self, txid: Txid) {
        for done in &mut self.done {
            *done = (*done).max(Some(txid));
        }
        self.files.iter_mut().for_each(Vec::clear);
    }
}

async fn list(
    levels: usize,
    key: &DatabaseKey,
    place: &Place,
    cancel: &CancellationToken,
) -> Result<Vec<Listed>, DestinationError> {
    let mut found = Vec::new();
    for level in (1..=levels as u8).chain([Level::SNAPSHOT.get()]) {
        let level = Level::new(level).expect("BUG: at most 8 levels and 9");
        found.extend(place.destination.list(key, level, cancel).await?);
    }
    Ok(found)
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
        assert_eq!(*state.files[0][0].holders.lock().unwrap(), BTreeSet::from([0, 1]));
        assert_eq!(state.snapshots[&0], (Txid::new(9), 9));
        // Retention took the lower levels, and something was made twice.
        let state = State::of(3, &[listed(3, 2, 50), listed(1, 51, 53), listed(1, 52, 60)]);
        assert_eq!(state.done, [Txid::new(60), Txid::new(50), Txid::new(50)]);
        assert_eq!(ranges(&state.files[0]), [(51, 53)]);
    }
}
