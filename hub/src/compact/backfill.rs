//! Files of levels that a destination lacks: skipped because too much waited for it, refused for a while, or made while it was
//! away. They are made anew of a copy that another destination holds.
//!
//! Bounded: files that the level above has not taken yet and the newest few of the highest level, [`AT_ONCE`] in a round, each a
//! few times per destination. What is older, the levels above or the next snapshot stand in for.

use super::error::WorkError;
use super::make::Job;
use super::sources;
use super::state::{Known, State};
use super::window::level_of;
use super::work::Worker;
use crate::buffer::Registered;
use crate::copies::LaneId;

/// Files brought in one round of a database.
const AT_ONCE: usize = 16;
/// When something is still missing, it is looked at again after this time.
const AGAIN_MS: i64 = 60_000;

impl Worker {
    /// Brings what is missing to destinations that may have it now; when to look again.
    pub(super) async fn backfill(
        &mut self,
        database: &Registered,
        state: &State,
        now_ms: i64,
    ) -> Result<Option<i64>, WorkError> {
        let (mut brought, mut again) = (0, false);
        // The highest level holds the oldest transactions: one file leads to the next.
        for at in (0..self.levels.len()).rev() {
            for known in &state.files[at] {
                let lacking = self.lacking(database, at, known);
                let ready: Vec<LaneId> =
                    lacking.iter().copied().filter(|lane| self.may_have(database, *lane, known)).collect();
                again |= ready.len() < lacking.len();
                if ready.is_empty() {
                    continue;
                }
                if brought == AT_ONCE {
                    return Ok(Some(now_ms + 1));
                }
                brought += usize::from(self.bring(database, at, known, &ready).await?);
            }
        }
        Ok(again.then_some(now_ms + AGAIN_MS))
    }

    /// True when a destination has not got a file that it can be given: it gets what is made now after that, in order.
    pub(super) fn lacks_more(&self, database: &Registered, state: &State, lane: LaneId) -> bool {
        let places = sources::places(&self.board, database.id, &database.key);
        state.files.iter().enumerate().any(|(at, files)| {
            files.iter().any(|known| {
                self.lacking(database, at, known).contains(&lane) && sources::holder(&places, known).is_some()
            })
        })
    }

    /// Destinations that take a file and have not got it.
    fn lacking(&self, database: &Registered, at: usize, known: &Known) -> Vec<LaneId> {
        let mut lanes = self.takers(database.id, &database.key, Some(self.levels[at]));
        lanes.retain(|lane| known.whereabouts.is_missing_at(*lane));
        lanes
    }

    /// It has come that far, answers, and has room.
    fn may_have(&self, database: &Registered, lane: LaneId, known: &Known) -> bool {
        let held = self.board.row(database.id, &database.key).held(lane);
        held >= Some(known.piece.range.max())
            && self.board.health(lane).healthy
            && self.publisher.has_room(lane)
    }

    /// False when it is of no use there, or nobody who answers holds it.
    async fn bring(
        &mut self,
        database: &Registered,
        at: usize,
        known: &Known,
        ready: &[LaneId],
    ) -> Result<bool, WorkError> {
        let points = self.board.points();
        let (useful, useless): (Vec<LaneId>, Vec<LaneId>) = ready
            .iter()
            .copied()
            .partition(|lane| points.leads(*lane, database.id, known.piece.range) != Some(false));
        useless.into_iter().for_each(|lane| known.whereabouts.useless(lane));
        let places = sources::places(&self.board, database.id, &database.key);
        let Some(place) = sources::holder(&places, known).filter(|_| !useful.is_empty()) else {
            return Ok(false);
        };
        let level = level_of(at);
        let time_ms = match known.exact {
            true => known.piece.time_ms,
            false => sources::time_of(place, &database.key, level, known, &self.stop).await?,
        };
        let inputs = vec![sources::from_destination(place, &database.key, level, known, &self.stop)];
        let job = Job { level, range: known.piece.range, time_ms, inputs, input_bytes: known.bytes };
        let (made, path) = self.make(database, job).await?;
        let output = self.output(database, level, &made, path, known.whereabouts.clone());
        let taken = self.send(&useful, &output);
        self.report.count(|totals| totals.brought += taken.len() as u64);
        Ok(true)
    }
}
