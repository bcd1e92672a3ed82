//! Segments of a session: judged, verified, handed to the buffer, acknowledged when it returns.

use super::super::BUDGET_UNIT;
use super::super::assemble::{Assembly, Facts};
use super::super::error::{Refusal, SessionError};
use super::super::handle::{Incoming, Phase, Step};
use super::super::origin::OpenError;
use super::{Done, INLINE_BYTES, Session};
use crate::buffer::{BufferError, Chunk, SegmentMeta};
use bytes::Bytes;
use futures_util::Stream;
use std::io;
use walhub_common::Pos;
use walhub_proto::v1::{AckLevel, ReplicateRequest, SegmentChunk};

impl<S> Session<'_, S>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
{
    pub(super) async fn segment(&mut self, chunk: SegmentChunk) -> Result<(), SessionError> {
        let handle = chunk.handle;
        let Some(state) = self.handles.get_mut(&handle) else {
            let refusal = Refusal::malformed(format!("handle {handle} is not open on this stream"));
            tracing::warn!(agent = %self.agent, handle, "segment for a handle that is not open");
            self.say_refused(handle, &refusal, None);
            return Ok(());
        };
        if chunk.staged || chunk.uses_staged {
            return self.staged(chunk).await;
        }
        let step = match state.phase {
            Phase::Taking if state.stage.is_busy() => {
                Err(Refusal::busy("a segment came before the first snapshot was complete"))
            }
            Phase::Taking => state.chunk(&chunk, self.max_segment_bytes),
            Phase::Opening { .. } => Err(Refusal::malformed("a segment came before the database was opened")),
            Phase::Refusing(_) | Phase::Refused | Phase::Closing => return Ok(()),
        };
        match step {
            Ok(Step::Drop) => {}
            // While its append is still under way, the ack of that append is the answer.
            Ok(Step::Known) => {
                if let Some(txid) = state.buffered {
                    self.outbox.ack(handle, AckLevel::Buffered, txid);
                }
            }
            Ok(Step::Verify(assembly)) => self.verify(assembly, chunk).await?,
            Err(refusal) => self.refuse(handle, refusal),
        }
        Ok(())
    }

    async fn verify(&mut self, mut assembly: Box<Assembly>, chunk: SegmentChunk) -> Result<(), SessionError> {
        let (handle, number, last, data) = (chunk.handle, chunk.chunk, chunk.last, chunk.data);
        let (assembly, data, verdict) = if data.len() <= INLINE_BYTES {
            let verdict = assembly.push(&data);
            (assembly, data, verdict)
        } else {
            let work = tokio::task::spawn_blocking(move || {
                let verdict = assembly.push(&data);
                (assembly, data, verdict)
            });
            self.alongside(work).await?.map_err(|e| SessionError::Internal(e.to_string()))?
        };
        if let Err(refusal) = verdict {
            self.refuse(handle, refusal);
            return Ok(());
        }
        let (facts, time_ms) = (*assembly.facts(), assembly.time_ms());
        if last {
            if let Err(refusal) = assembly.finish() {
                self.refuse(handle, refusal);
                return Ok(());
            }
        } else if let Some(state) = self.handles.get_mut(&handle)
            && matches!(state.phase, Phase::Taking)
        {
            state.incoming = Incoming::New(assembly);
        }
        self.append(handle, facts, time_ms, number, last, data).await
    }

    async fn append(
        &mut self,
        handle: u32,
        facts: Facts,
        time_ms: i64,
        number: u32,
        last: bool,
        data: Bytes,
    ) -> Result<(), SessionError> {
        let units = data.len().div_ceil(BUDGET_UNIT) as u32;
        let budget = self.hub.budget.clone();
        let permit = match budget.clone().try_acquire_many_owned(units) {
            Ok(permit) => permit,
            Err(_) => self
                .alongside(budget.acquire_many_owned(units))
                .await?
                .map_err(|e| SessionError::Internal(e.to_string()))?,
        };
        // An earlier append may have failed while this one waited.
        let Some(state) = self.handles.get_mut(&handle) else { return Ok(()) };
        let (Phase::Taking, Some(database)) = (&state.phase, state.database) else { return Ok(()) };
        let Facts { range, pre, post, agent_time_ms } = facts;
        let end = last.then_some(Pos { txid: range.max(), checksum: post });
        if let Some(end) = end {
            (state.tail, state.tail_ms) = (Some(end), time_ms);
        }
        state.leftover = !last;
        state.under_way += 1;
        let bytes = data.len();
        self.inflight_bytes += bytes;
        let meta = SegmentMeta { range, pre, post, time_ms, agent_time_ms };
        let chunk = Chunk { database, meta, number, last, data };
        let buffer = self.hub.buffer.clone();
        self.under_way.push(Box::pin(async move {
            let result = buffer.append(chunk).await;
            drop(permit);
            Done::Appended { handle, bytes, end, result }
        }));
        Ok(())
    }

    pub(super) fn done(&mut self, done: Done) -> Result<(), SessionError> {
        let (handle, failed) = match done {
            Done::Appended { handle, bytes, end, result } => {
                self.inflight_bytes -= bytes;
                (handle, self.appended(handle, end, result)?)
            }
            Done::Abandoned { handle, result } => {
                self.ended(handle);
                (handle, result.err().map(failure).transpose()?)
            }
            Done::Looked { handle, result } => (handle, self.looked(handle, result)),
            Done::Staged { handle, result, claim } => (handle, self.part_done(handle, result, claim)),
            Done::Sealed { handle, end, time_ms, result } => {
                (handle, self.seal_done(handle, end, time_ms, result)?)
            }
            Done::Registered { handle, result } => {
                self.ended(handle);
                match result {
                    Ok(held) => {
                        if self.handles.get(&handle).is_some_and(|h| matches!(h.phase, Phase::Opening { .. }))
                        {
                            self.opened(handle, &held);
                        }
                        (handle, None)
                    }
                    Err(OpenError::Buffer(error)) => (handle, Some(failure(error)?)),
                    Err(OpenError::Refused(refusal)) => (handle, Some(refusal)),
                }
            }
        };
        match failed {
            Some(refusal) => self.fail(handle, refusal),
            None => self.settle(handle),
        }
        Ok(())
    }

    fn appended(
        &mut self,
        handle: u32,
        end: Option<Pos>,
        result: Result<(), BufferError>,
    ) -> Result<Option<Refusal>, SessionError> {
        self.ended(handle);
        let state = self.handles.get_mut(&handle).expect("BUG: a handle ended before its appends");
        match result {
            Ok(()) => {
                if let Some(end) = end {
                    state.buffered = state.buffered.max(Some(end.txid));
                    self.outbox.ack(handle, AckLevel::Buffered, end.txid);
                }
                Ok(None)
            }
            Err(error) => {
                state.leftover = true;
                failure(error).map(Some)
            }
        }
    }

    fn ended(&mut self, handle: u32) {
        if let Some(state) = self.handles.get_mut(&handle) {
            state.under_way -= 1;
        }
    }

    /// An operation failed: the first failure decides, those behind it follow from it.
    fn fail(&mut self, handle: u32, refusal: Refusal) {
        match self.handles.get(&handle).map(|state| &state.phase) {
            Some(Phase::Taking | Phase::Opening { .. }) => self.refuse(handle, refusal),
            _ => self.settle(handle),
        }
    }
}

/// A failure of the buffer that concerns one database, as a refusal; one that concerns all, as the stream's end.
pub(super) fn failure(error: BufferError) -> Result<Refusal, SessionError> {
    match error {
        BufferError::Full { .. } => {
            Ok(Refusal::busy(format!("{error}; the hub takes more when a destination has caught up")))
        }
        BufferError::SegmentTooLarge { .. } => Ok(Refusal::oversized(error.to_string())),
        BufferError::Io { ref source, .. } if disk_full(source) => {
            Ok(Refusal::busy(format!("{error}; the hub takes more when there is room on its disk")))
        }
        BufferError::OutOfOrder { .. } | BufferError::UnknownDatabase(_) => {
            Ok(Refusal::busy(format!("the hub lost its place in this database, open it again ({error})")))
        }
        BufferError::Closed => Err(SessionError::Shutdown),
        other => Err(SessionError::Buffer(other)),
    }
}

fn disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
