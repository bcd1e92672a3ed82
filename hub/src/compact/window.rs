//! The files of levels: what the next one may be made of, and the making.

use super::error::WorkError;
use super::make::Job;
use super::millis;
use super::sources::{self, From, Part};
use super::state::{Known, State};
use super::work::Worker;
use crate::buffer::Registered;
use crate::copies::Place;
use std::sync::Arc;
use walhub_common::ltx::LtxError;
use walhub_common::{Level, Txid, TxidRange};
use walhub_store::compact::windows::Piece;
use walhub_store::compact::{CompactError, Input};

/// So often it is tried to learn what destinations hold of what the buffer has given back; then a level has a hole.
const PATIENCE: u32 = 4;

impl Worker {
    /// Where levels begin: behind the first image of the database, which is no window's change. Its copy on level 0 is the
    /// first snapshot, as far as the interval is concerned.
    pub(super) async fn begin(&self, database: &Registered, state: &mut State) -> Result<(), WorkError> {
        let Registered { id, key, .. } = database;
        let oldest = self.buffer.list(*id, None, 1)?.into_iter().next().map(|oldest| oldest.meta);
        let first = oldest.filter(|oldest| oldest.range.min() == Txid::FIRST);
        if let Some(first) = &first {
            for place in &self.board.row(*id, key).terms.places {
                state.snapshots.entry(place.lane).or_insert_with(|| (Some(first.range.max()), first.time_ms));
            }
        }
        if state.done.first().is_none_or(Option::is_some) {
            return Ok(());
        }
        let behind = match (first, oldest) {
            (Some(first), _) => Some(first.range.max()),
            (None, oldest) => {
                let places = sources::places(&self.board, *id, key);
                let begun = sources::beginning(&places, key, &self.stop).await?;
                begun.or_else(|| oldest.and_then(|oldest| Txid::new(oldest.range.min().get() - 1)))
            }
        };
        if let Some(behind) = behind {
            state.restart_behind(behind);
        }
        Ok(())
    }

    /// What the level with index `at` may be made of, in order: files of the level `below`, or segments, before which files of
    /// level 0 stand in for what the buffer has given back.
    pub(super) async fn parts(
        &self,
        database: &Registered,
        state: &mut State,
        (at, below): (usize, Option<usize>),
        now_ms: i64,
    ) -> Result<Vec<Part>, WorkError> {
        if let Some(below) = below {
            let level = level_of(below);
            return Ok(state.files[below].iter().map(|known| Part::file(level, known.clone())).collect());
        }
        let (window_ms, done) = (millis(self.levels[at]), state.done[at]);
        let buffered = self.buffer.list(database.id, done, 1)?.into_iter().next();
        let begins = buffered.as_ref().map(|segment| segment.meta.range.min());
        self.fill_gap(database, state, done, begins).await?;
        let mut parts: Vec<Part> =
            state.raw.iter().map(|known| Part::file(Level::RAW, known.clone())).collect();
        let first_ms = parts.first().map(|part| part.piece.time_ms);
        let Some(first_ms) = first_ms.or_else(|| buffered.map(|segment| segment.meta.time_ms)) else {
            return Ok(parts);
        };
        let until_ms = (first_ms.div_euclid(window_ms) + 1).saturating_mul(window_ms).min(now_ms);
        let after = parts.last().map(|part| part.piece.range.max()).max(done);
        let segments = sources::segments(&*self.buffer, database.id, after, Some(until_ms))?;
        parts.extend(segments.into_iter().map(Part::segment));
        Ok(parts)
    }

    /// Knows the files of level 0 that lie between what is `done` and what the buffer begins with.
    async fn fill_gap(
        &self,
        database: &Registered,
        state: &mut State,
        done: Option<Txid>,
        begins: Option<Txid>,
    ) -> Result<(), WorkError> {
        let Registered { id, key, position, .. } = database;
        state.raw.retain(|known| Some(known.piece.range.max()) > done);
        let until = match begins {
            Some(begins) => Txid::new(begins.get() - 1),
            None => position.map(|position| position.txid),
        };
        let Some(until) = until.filter(|until| Some(*until) > done) else {
            state.raw.clear();
            return Ok(());
        };
        state.raw.retain(|known| known.piece.range.min() <= until);
        if state.raw.last().is_some_and(|last| last.piece.range.max() >= until) {
            return Ok(());
        }
        let places = sources::places(&self.board, *id, key);
        let found = sources::level_0(&places, key, done, until, &self.stop).await;
        let patient = self.failures(*id) < PATIENCE;
        match found {
            Err(error) if patient => return Err(error.into()),
            Ok(_) if places.is_empty() && patient => {
                return Err(WorkError::NoInputs(format!("transactions up to {until}")));
            }
            Err(_) => state.raw.clear(),
            Ok(found) => state.raw = found,
        }
        Ok(())
    }

    /// Makes the file of one window; false when what it is made of is still on its way to destinations.
    pub(super) async fn window(
        &mut self,
        database: &Registered,
        state: &mut State,
        (at, below): (usize, Option<usize>),
        mut parts: Vec<Part>,
    ) -> Result<bool, WorkError> {
        let (level, Registered { id, key, .. }) = (level_of(at), database);
        loop {
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(true) };
            let range = TxidRange::new(first.piece.range.min(), last.piece.range.max());
            let Some(range) = range else { return Ok(true) };
            let what = format!("level {level} file {range}");
            let inputs = self.inputs(database, below.is_some(), &parts, range).await?;
            let Some((inputs, input_bytes, time_ms)) = inputs else {
                let under_way = |part: &Part| match &part.from {
                    From::Buffer(_) => false,
                    From::Files(_, known) => known.whereabouts.is_under_way(),
                };
                return match parts.iter().any(under_way) {
                    true => Ok(false),
                    false => Err(WorkError::NoInputs(what)),
                };
            };
            let made = self.make(database, Job { level, range, time_ms, inputs, input_bytes }).await;
            let (made, path) = match made {
                // A whole new image of the database: a snapshot stands for it. The levels end before it and go on behind it.
                Err(WorkError::Compact {
                    error: CompactError::Ltx(LtxError::PageSizeChange { first, second }),
                    ..
                }) => {
                    let before = parts.len();
                    parts.retain(|part| part.piece.range.max() <= first.max());
                    if below.is_some() || parts.is_empty() || parts.len() == before {
                        state.restart_behind(second.max());
                        return Ok(true);
                    }
                    continue;
                }
                made => made?,
            };
            let page_size = made.header.page_size;
            if state.page_size.replace(page_size).is_some_and(|before| before != page_size) {
                let _ = std::fs::remove_file(&path);
                state.restart_behind(range.max());
                return Ok(true);
            }
            let known = Known {
                piece: Piece { range, time_ms },
                bytes: made.bytes,
                exact: true,
                whereabouts: Default::default(),
            };
            let mut lanes = self.takers(*id, key, Some(self.levels[at]));
            lanes.retain(|lane| !self.lacks_more(database, state, *lane));
            let output = self.output(database, level, &made, path, known.whereabouts.clone());
            self.send(&lanes, &output);
            state.done[at] = Some(range.max());
            if let Some(below) = below {
                state.files[below].retain(|known| known.piece.range.max() > range.max());
            }
            state.push(at, known);
            return Ok(true);
        }
    }

    /// Inputs of a file, their bytes, and the time of its newest transaction. `None`: nobody who answers holds them all.
    async fn inputs(
        &self,
        database: &Registered,
        levels: bool,
        parts: &[Part],
        range: TxidRange,
    ) -> Result<Option<(Vec<Input>, u64, i64)>, WorkError> {
        let Registered { id, key, .. } = database;
        let places = sources::places(&self.board, *id, key);
        let near = |part: &Part| match &part.from {
            From::Buffer(_) => true,
            From::Files(_, known) => {
                sources::holder(&places, known).is_some_and(|place| place.destination.kind() == "file")
            }
        };
        // Files of the level below are smaller than all the segments in them, but only a folder is as near.
        if levels
            && !parts.iter().all(near)
            && let Some(segments) = sources::buffered(&*self.buffer, *id, range)?
        {
            let parts: Vec<Part> = segments.into_iter().map(Part::segment).collect();
            return self.opened(database, &places, &parts).await;
        }
        self.opened(database, &places, parts).await
    }

    async fn opened(
        &self,
        database: &Registered,
        places: &[Arc<Place>],
        parts: &[Part],
    ) -> Result<Option<(Vec<Input>, u64, i64)>, WorkError> {
        let (mut inputs, mut time_ms) = (Vec::with_capacity(parts.len()), 0);
        for (nth, part) in parts.iter().enumerate() {
            time_ms = part.piece.time_ms;
            match &part.from {
                From::Buffer(segment) => {
                    inputs.push(sources::from_buffer(&self.buffer, database.id, segment.clone()));
                }
                From::Files(level, known) => {
                    let Some(place) = sources::holder(places, known) else { return Ok(None) };
                    if nth + 1 == parts.len() && !known.exact {
                        time_ms = sources::time_of(place, &database.key, *level, known, &self.stop).await?;
                    }
                    inputs.push(sources::from_destination(place, &database.key, *level, known, &self.stop));
                }
            }
        }
        Ok(Some((inputs, parts.iter().map(|part| part.bytes).sum(), time_ms)))
    }
}

/// The level with this index.
pub(super) fn level_of(at: usize) -> Level {
    Level::new(at as u8 + 1).expect("BUG: at most 8 levels")
}
