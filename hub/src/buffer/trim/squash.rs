//! Makes room at the expense of restore points: segments of the databases with the largest backlog become fewer.

use super::super::log::reader::SegmentReader;
use super::super::rewrite::Rewriter;
use super::super::squash::{GivenUp, LEAST_GAIN, MAX_RUN, MergeError, cost, next_run, whole};
use super::super::{BufferError, DatabaseId, OUTSIDE, SegmentRef, Takers};
use super::{Enough, Trimmed};
use std::collections::BTreeSet;
use std::io::Read;
use std::sync::PoisonError;
use walhub_common::Txid;

/// Merges segments of `backlog`, the largest first, until enough has become free. True when something has.
pub(super) fn squash(
    on: &Trimmed<'_>,
    takers: &dyn Takers,
    backlog: &[(DatabaseId, u64)],
) -> Result<bool, BufferError> {
    let wanted = on.total().saturating_sub(on.bounds.low);
    let mut freed = 0;
    let mut merged = false;
    for (id, bytes) in backlog {
        if freed >= wanted {
            break;
        }
        let pass = Pass::of(on, takers, *id, *bytes).run(wanted - freed)?;
        freed += pass.freed;
        merged |= pass.merged > 0;
        if pass.merged > 0 {
            tell(on, *id, &pass);
        }
    }
    Ok(merged)
}

/// Merges as much of one database as can be, whatever it brings.
#[cfg(test)]
pub(in crate::buffer) fn squash_one(
    on: &Trimmed<'_>,
    takers: &dyn Takers,
    id: DatabaseId,
) -> Result<(), BufferError> {
    on.index.move_segments()?;
    let mut left = 0;
    on.index.every(|of, segment| {
        left += if of == id { segment.bytes } else { 0 };
        true
    })?;
    let pass = Pass::of(on, takers, id, left).run(u64::MAX)?;
    tell(on, id, &pass);
    Ok(())
}

/// One database's turn.
struct Pass<'a> {
    on: &'a Trimmed<'a>,
    id: DatabaseId,
    /// Where to go on.
    after: Option<Txid>,
    /// LTX bytes behind that.
    left: u64,
    cuts: BTreeSet<Txid>,
    furthest: Option<Txid>,
    freed: u64,
    merged: u64,
    given_up: GivenUp,
}

impl<'a> Pass<'a> {
    fn of(on: &'a Trimmed<'a>, takers: &dyn Takers, id: DatabaseId, left: u64) -> Self {
        let mut cuts: BTreeSet<Txid> =
            on.cursors.of(takers.of(id).iter(), id).into_iter().flatten().collect();
        let furthest = cuts.last().copied();
        cuts.extend(takers.kept(id).into_iter().map(|run| run.max()));
        let after = on.passed(takers, id, Enough::One);
        let given_up = GivenUp::default();
        Self { on, id, after, left, cuts, furthest, freed: 0, merged: 0, given_up }
    }

    fn run(mut self, wanted: u64) -> Result<Self, BufferError> {
        let mut rewriter = Rewriter::new(self.on.flusher);
        let merged = self.merge_all(&mut rewriter, wanted);
        // Whatever came of it, what is whole is on disk and stands for the others.
        let finished = rewriter.finish();
        self.on.index.move_segments()?;
        finished?;
        match merged {
            // The room that is kept for this is used up: what has been merged makes some.
            Ok(()) | Err(BufferError::Full { .. }) => Ok(self),
            Err(error) => Err(error),
        }
    }

    fn merge_all(&mut self, rewriter: &mut Rewriter<'_>, wanted: u64) -> Result<(), BufferError> {
        while self.freed < wanted {
            let page = self.page()?;
            let Some(run) = next_run(&page, self.left, &self.cuts, self.on.budget()) else {
                if page.len() < MAX_RUN {
                    return Ok(());
                }
                self.skip(&page);
                continue;
            };
            self.skip(&page[..run.start]);
            let inputs = &page[run];
            let Some((count, after)) = self.merge(rewriter, inputs)? else {
                self.skip(inputs);
                continue;
            };
            let all = count == inputs.len();
            let inputs = &inputs[..count];
            let taken: u64 = inputs.iter().map(|segment| segment.bytes).sum();
            self.skip(inputs);
            if count < 2 {
                continue;
            }
            self.given_up = self.given_up.and(cost(inputs, self.furthest));
            self.merged += count as u64;
            self.freed += taken.saturating_sub(after);
            if all && taken.saturating_sub(after) < taken / LEAST_GAIN {
                return Ok(());
            }
        }
        Ok(())
    }

    fn page(&self) -> Result<Vec<SegmentRef>, BufferError> {
        let mut page = Vec::new();
        self.on.index.scan(self.id, Txid::following(self.after), |segment| {
            if !(self.on.outside && segment.bytes == OUTSIDE.len() as u64) {
                page.push(segment);
            }
            page.len() < MAX_RUN
        })?;
        Ok(page)
    }

    fn skip(&mut self, segments: &[SegmentRef]) {
        let Some(last) = segments.last() else { return };
        self.after = Some(last.meta.range.max());
        self.left = self.left.saturating_sub(segments.iter().map(|segment| segment.bytes).sum());
    }

    /// Merges the first of `inputs`, as many as can be one, and says how many and into how many bytes; one is left as it
    /// is. `None` when they are damaged.
    fn merge(
        &self,
        rewriter: &mut Rewriter<'_>,
        inputs: &[SegmentRef],
    ) -> Result<Option<(usize, u64)>, BufferError> {
        let open = |segment: &SegmentRef| {
            let reader = SegmentReader::open(self.on.files, self.id, segment)?;
            Ok(Box::new(reader) as Box<dyn Read + Send>)
        };
        let mut count = inputs.len();
        while count > 1 {
            let inputs = &inputs[..count];
            let Some(meta) = whole(inputs) else { return Ok(None) };
            let mut sink = rewriter.segment(self.id, meta);
            match self.on.merger.merge(inputs, meta, &open, &mut sink) {
                Ok(()) => return Ok(Some((count, sink.end()?))),
                Err(MergeError::Only(fewer)) => count = fewer.min(count - 1),
                Err(error) => {
                    if let Some(failure) = sink.failure() {
                        return Err(failure);
                    }
                    let database = self.id.0;
                    tracing::error!(database, range = %meta.range, %error, "buffered segments cannot be merged");
                    return Ok(None);
                }
            }
        }
        Ok(Some((count.max(1), 0)))
    }
}

/// Says what it has cost, for good.
fn tell(on: &Trimmed<'_>, id: DatabaseId, pass: &Pass<'_>) {
    let GivenUp { points, range } = pass.given_up;
    let (segments, bytes) = (pass.merged, pass.freed);
    on.flusher.room().squashed(segments);
    let key = on.flusher.registry(|r| r.get(id).map(|database| database.key.to_string())).unwrap_or_default();
    match range {
        Some(transactions) => tracing::warn!(
            database = %key, restore_points = points, first = transactions.min().get(), last = transactions.max().get(),
            segments, bytes, "the buffer is full: restore points were given up, no data"
        ),
        None => tracing::info!(database = %key, segments, bytes, "the buffer is full: segments were merged"),
    }
    let mut losses = on.losses.lock().unwrap_or_else(PoisonError::into_inner);
    let total = losses.entry(id).or_default();
    *total = total.and(pass.given_up);
}
