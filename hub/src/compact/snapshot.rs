//! Whole databases, for the destinations that are due.

use super::error::WorkError;
use super::make::Job;
use super::publish::Output;
use super::sources;
use super::state::State;
use super::whereabouts::Whereabouts;
use super::work::Worker;
use super::{jitter, millis};
use crate::buffer::Registered;
use crate::copies::{LaneId, Place};
use std::sync::Arc;
use std::time::Duration;
use walhub_common::ltx::LtxError;
use walhub_common::{Level, Txid, TxidRange};
use walhub_store::compact::CompactError;

/// A destination for which too much waits is asked again after this time.
const CROWDED_MS: i64 = 60_000;

impl Worker {
    /// A snapshot for the destinations that are due; when the next one is.
    pub(super) async fn snapshot(
        &mut self,
        database: &Registered,
        state: &mut State,
        now_ms: i64,
    ) -> Result<Option<i64>, WorkError> {
        let Registered { id, key, position, .. } = database;
        let newest = match state.done.iter().max() {
            Some(done) => *done,
            None => position.map(|position| position.txid),
        };
        let Some(newest) = newest else { return Ok(None) };
        let row = self.board.row(*id, key);
        let (mut due, mut next_ms): (Vec<LaneId>, Option<i64>) = (Vec::new(), None);
        for place in &row.terms.places {
            let (snapshot, since_ms) = state.snapshots.get(&place.lane).copied().unwrap_or((None, i64::MIN));
            if snapshot >= Some(newest) {
                continue;
            }
            let interval = place.entry.snapshot_interval;
            let at_ms = since_ms
                .saturating_add(millis(interval))
                .saturating_add(jitter(key, interval.min(Duration::from_secs(3600))));
            let at_ms = match at_ms <= now_ms {
                true if self.publisher.has_room(place.lane) => {
                    due.push(place.lane);
                    continue;
                }
                true => now_ms + CROWDED_MS,
                false => at_ms,
            };
            next_ms = Some(next_ms.map_or(at_ms, |next| next.min(at_ms)));
        }
        if due.is_empty() {
            return Ok(next_ms);
        }
        let mut failed = None;
        for place in sources::places(&self.board, *id, key) {
            match self.whole(database, &place, newest).await {
                Ok(Some(output)) => {
                    let txid = output.key.range.max();
                    for lane in self.send(&due, &output) {
                        state.snapshots.insert(lane, (Some(txid), now_ms));
                    }
                    return Ok(next_ms);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| WorkError::NoInputs(format!("a snapshot of {newest}"))))
    }

    /// A snapshot from what `place` and the buffer hold.
    async fn whole(
        &mut self,
        database: &Registered,
        place: &Arc<Place>,
        newest: Txid,
    ) -> Result<Option<Arc<Output>>, WorkError> {
        let mut oldest = Txid::FIRST;
        loop {
            let whole =
                sources::whole(&self.buffer, place, &database.key, newest, oldest, &self.stop).await?;
            let Some(whole) = whole else { return Ok(None) };
            let Some(range) = TxidRange::new(Txid::FIRST, whole.reached) else { return Ok(None) };
            let sources::Whole { time_ms, inputs, bytes: input_bytes, .. } = whole;
            let job = Job { level: Level::SNAPSHOT, range, time_ms, inputs, input_bytes };
            match self.make(database, job).await {
                Ok((made, path)) => {
                    let whereabouts = Whereabouts::default();
                    return Ok(Some(self.output(database, Level::SNAPSHOT, &made, path, whereabouts)));
                }
                // What was before the new image is of no use: the snapshot that the lane put for it is.
                Err(WorkError::Compact {
                    error: CompactError::Ltx(LtxError::PageSizeChange { second, .. }),
                    ..
                }) if second.max() > oldest => oldest = second.max(),
                Err(error) => return Err(error),
            }
        }
    }
}
