//! Parts of first snapshots: received in order, kept apart, and put together when the last one came.
//!
//! A snapshot is put together by a task of the hub, not of the session: it takes minutes for a large database, and a link
//! that breaks sooner would never see it done. While it runs, the database is refused to a stream that opens it.

use super::super::Ingest;
use super::super::error::{Refusal, SessionError};
use super::super::handle::Phase;
use super::{Done, Session};
use crate::buffer::{BufferError, Chunk, DatabaseId, OUTSIDE, Registered, SegmentMeta};
use crate::staging::{Held, Incoming as Part, Seal, StagingError};
use bytes::Bytes;
use futures_util::Stream;
use std::sync::Arc;
use tokio::sync::oneshot;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::{Checksum, DatabaseKey, Pos, Txid, TxidRange, clock};
use walhub_proto::convert::{self, WireError};
use walhub_proto::v1::{AckLevel, ReplicateRequest, SegmentChunk};

/// Parts of one database whose fsync is under way.
const FINISHING: usize = 2;

/// A part whose chunks are arriving.
#[derive(Debug)]
pub(in crate::ingest) struct Receiving {
    range: TxidRange,
    sealed: Option<Checksum>,
    agent_time_ms: i64,
    next: u32,
    part: Part,
}

/// What the staging of one handle is doing.
#[derive(Debug, Default)]
pub(in crate::ingest) struct Stage {
    receiving: Option<Box<Receiving>>,
    /// Parts on their way to the disk: one after the other.
    finishing: usize,
    order: Arc<tokio::sync::Mutex<()>>,
    /// The last part came: nothing more is taken until the snapshot is stored.
    complete: bool,
    /// Dropped to wait no longer for a snapshot that is being put together.
    waits: Option<oneshot::Sender<()>>,
}

impl Stage {
    /// Gives up what is being received, and waits for nothing.
    pub(in crate::ingest) fn leave(&mut self) {
        self.receiving = None;
        self.waits = None;
    }

    /// True while segments must not come.
    pub(in crate::ingest) fn is_busy(&self) -> bool {
        self.complete || self.receiving.is_some()
    }
}

/// What a node says of its parts together.
pub(super) struct Claim {
    range: TxidRange,
    post: Checksum,
    agent_time_ms: i64,
}

/// Why no snapshot was stored.
pub(super) enum Unsealed {
    /// The parts.
    Staging(StagingError),
    /// The buffer.
    Buffer(BufferError),
    /// It goes on without this session.
    Left,
}

impl<S> Session<'_, S>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
{
    /// Takes a chunk of a part, or of the file that completes a snapshot.
    pub(super) async fn staged(&mut self, chunk: SegmentChunk) -> Result<(), SessionError> {
        let handle = chunk.handle;
        let first = chunk.chunk == 0;
        while first && self.handles.get(&handle).is_some_and(|state| state.stage.finishing >= FINISHING) {
            self.one_done().await?;
        }
        let Some(state) = self.handles.get_mut(&handle) else { return Ok(()) };
        if !matches!(state.phase, Phase::Taking) {
            return Ok(());
        }
        let last = chunk.last;
        let begun = match state.stage.receiving.take() {
            _ if state.tail.is_some() => Err(Refusal::busy("the database has a history now; open it again")),
            _ if state.stage.complete => Err(Refusal::busy("its first snapshot is being put together")),
            Some(receiving) => receiving.follows(&chunk).map(|()| Some(receiving)),
            None if !first => {
                Err(Refusal::malformed(format!("chunk {} of a part that never began", chunk.chunk)))
            }
            None => facts(&chunk).map(|_| None),
        };
        let receiving = match begun {
            Ok(receiving) => receiving,
            Err(refusal) => {
                self.refuse(handle, refusal);
                return Ok(());
            }
        };
        let (staging, key) = (self.hub.staging.clone(), state.key.clone());
        let write = tokio::task::spawn_blocking(move || {
            let mut receiving = match receiving {
                Some(receiving) => receiving,
                None => {
                    let (range, sealed) = facts(&chunk).expect("BUG: the facts were just read");
                    let (agent_time_ms, part) = (chunk.agent_time_ms, staging.begin(&key)?);
                    Box::new(Receiving { range, sealed, agent_time_ms, next: 0, part })
                }
            };
            receiving.next += 1;
            receiving.part.write(&chunk.data)?;
            Ok(receiving)
        });
        let written = self.alongside(write).await?.map_err(|e| SessionError::Internal(e.to_string()))?;
        match written {
            Err(error) => self.refuse(handle, refusal(&error)),
            Ok(receiving) if last => self.finish(handle, *receiving),
            Ok(receiving) => {
                if let Some(state) =
                    self.handles.get_mut(&handle).filter(|state| matches!(state.phase, Phase::Taking))
                {
                    state.stage.receiving = Some(receiving);
                }
            }
        }
        Ok(())
    }

    /// The part is whole: verify, sync, keep.
    fn finish(&mut self, handle: u32, receiving: Receiving) {
        let Some(state) = self.handles.get_mut(&handle) else { return };
        if !matches!(state.phase, Phase::Taking) {
            return;
        }
        state.under_way += 1;
        state.stage.finishing += 1;
        state.stage.complete = receiving.sealed.is_some();
        let (staging, key) = (self.hub.staging.clone(), state.key.clone());
        let order = state.stage.order.clone();
        self.under_way.push(Box::pin(async move {
            let turn = order.lock_owned().await;
            let Receiving { range, sealed, agent_time_ms, part, .. } = receiving;
            let kept = tokio::task::spawn_blocking(move || staging.finish(&key, part)).await;
            drop(turn);
            let result = match kept {
                Ok(Ok(number)) if sealed.is_none() && range.min().get() != u64::from(number) => {
                    Err(StagingError::Corrupt(format!("part {number} came as part {range}")))
                }
                Ok(result) => result,
                Err(died) => Err(StagingError::Corrupt(died.to_string())),
            };
            Done::Staged { handle, result, claim: sealed.map(|post| Claim { range, post, agent_time_ms }) }
        }));
    }

    /// A part is on disk.
    pub(super) fn part_done(
        &mut self,
        handle: u32,
        result: Result<u32, StagingError>,
        claim: Option<Claim>,
    ) -> Option<Refusal> {
        let state = self.handles.get_mut(&handle)?;
        state.under_way -= 1;
        state.stage.finishing -= 1;
        let number = match result {
            Ok(number) => number,
            Err(error) => return Some(refusal(&error)),
        };
        if let Some(txid) = Txid::new(number.into()) {
            self.outbox.ack(handle, AckLevel::Staged, txid);
        }
        if let (Some(claim), Phase::Taking, Some(database)) = (claim, &state.phase, state.database) {
            let Claim { range, post, agent_time_ms } = claim;
            let (give_up, gone) = oneshot::channel();
            state.stage.waits = Some(give_up);
            state.under_way += 1;
            let time_ms = clock::now_ms();
            let seal = Seal { range, post, last_part: number, agent_time_ms };
            let (hub, key) = (self.hub.clone(), state.key.clone());
            tracing::info!(database = %key, parts = number, "putting the first snapshot together");
            let sealing =
                self.hub.seals.spawn(async move { store(&hub, &key, database, seal, time_ms).await });
            let end = Pos { txid: range.max(), checksum: post };
            self.under_way.push(Box::pin(async move {
                let result = tokio::select! {
                    done = sealing => done.unwrap_or(Err(Unsealed::Left)),
                    _ = gone => Err(Unsealed::Left),
                };
                Done::Sealed { handle, end, time_ms, result }
            }));
        }
        None
    }

    /// The snapshot is stored, or not.
    pub(super) fn seal_done(
        &mut self,
        handle: u32,
        end: Pos,
        time_ms: i64,
        result: Result<(), Unsealed>,
    ) -> Result<Option<Refusal>, SessionError> {
        let Some(state) = self.handles.get_mut(&handle) else { return Ok(None) };
        state.under_way -= 1;
        state.stage.waits = None;
        match result {
            Ok(()) => {
                state.stage.complete = false;
                (state.tail, state.tail_ms) = (Some(end), time_ms);
                state.buffered = Some(end.txid);
                self.outbox.ack(handle, AckLevel::Buffered, end.txid);
                Ok(None)
            }
            Err(Unsealed::Left) => Ok(Some(Refusal::busy("its first snapshot is still being put together"))),
            Err(Unsealed::Staging(error)) => Ok(Some(refusal(&error))),
            Err(Unsealed::Buffer(error)) => super::segments::failure(error).map(Some),
        }
    }

    /// What an open database begins with: nothing to wait for when no parts of it are kept.
    pub(super) fn look(&mut self, handle: u32, held: &Registered) -> bool {
        let staging = self.hub.staging.clone();
        let key = held.key.clone();
        if !staging.has(&key) {
            return false;
        }
        let Some(state) = self.handles.get_mut(&handle) else { return false };
        state.under_way += 1;
        // It has a history: the snapshot was completed in another way, and the parts are of no use.
        let useless = held.position.is_some();
        self.under_way.push(Box::pin(async move {
            let look = move || {
                if useless && !staging.is_sealing(&key) {
                    staging.discard(&key)?;
                }
                staging.held(&key)
            };
            let result = match tokio::task::spawn_blocking(look).await {
                Ok(result) => result,
                Err(died) => Err(StagingError::Corrupt(died.to_string())),
            };
            Done::Looked { handle, result }
        }));
        true
    }

    /// Goes on opening.
    pub(super) fn looked(
        &mut self,
        handle: u32,
        result: Result<Option<Held>, StagingError>,
    ) -> Option<Refusal> {
        let state = self.handles.get_mut(&handle)?;
        state.under_way -= 1;
        if !matches!(state.phase, Phase::Opening { .. }) {
            return None;
        }
        match result {
            // The position may be newer than it was before the look.
            Ok(staged) => match self.hub.buffer.find(&state.key) {
                Some(held) => {
                    self.open_with(handle, &held, staged.filter(|_| held.position.is_none()));
                    None
                }
                None => Some(Refusal::busy("the hub lost its place in this database, open it again")),
            },
            Err(error) => Some(refusal(&error)),
        }
    }
}

impl Receiving {
    fn follows(&self, chunk: &SegmentChunk) -> Result<(), Refusal> {
        if facts(chunk)? != (self.range, self.sealed) || chunk.chunk != self.next {
            return Err(Refusal::malformed(format!(
                "chunk {} came where chunk {} of part {} was due",
                chunk.chunk, self.next, self.range
            )));
        }
        Ok(())
    }
}

/// What the chunks of a part say: its number as a range; or what the snapshot that it completes is.
fn facts(chunk: &SegmentChunk) -> Result<(TxidRange, Option<Checksum>), Refusal> {
    let range = convert::range_from_wire(chunk.range.as_ref())?;
    if chunk.data.len() > MAX_CHUNK_BYTES {
        return Err(Refusal::oversized(format!("chunk of {} bytes", chunk.data.len())));
    }
    if chunk.data.is_empty() && !chunk.last {
        return Err(WireError::new("data", "a chunk without bytes").into());
    }
    if chunk.pre_checksum != 0 {
        return Err(WireError::new("pre_checksum", "a first snapshot has none").into());
    }
    match (chunk.uses_staged, range.follows(None)) {
        (false, _) if range.min() == range.max() && chunk.post_checksum == 0 => Ok((range, None)),
        (false, _) => Err(WireError::new("range", "a part has one number and no checksum").into()),
        (true, false) => Err(WireError::new("range", "a first snapshot starts at 1").into()),
        (true, true) => match Checksum::new(chunk.post_checksum) {
            Some(post) => Ok((range, Some(post))),
            None => Err(WireError::new("post_checksum", "bit 63 is not set").into()),
        },
    }
}

/// Verifies that the parts are the snapshot, and makes them a segment.
async fn store(
    hub: &Ingest,
    key: &DatabaseKey,
    database: DatabaseId,
    seal: Seal,
    time_ms: i64,
) -> Result<(), Unsealed> {
    let (buffer, stop) = (&hub.buffer, hub.seals.token().clone());
    let (staging, whose) = (hub.staging.clone(), key.clone());
    let sealing = move || staging.seal(&whose, database, &seal, || stop.is_cancelled());
    let sealed = tokio::task::spawn_blocking(sealing).await.map_err(|_| Unsealed::Left)?;
    sealed.map_err(|error| match error {
        StagingError::GivenUp => Unsealed::Left,
        error => Unsealed::Staging(error),
    })?;
    let meta = SegmentMeta {
        range: seal.range,
        pre: None,
        post: seal.post,
        time_ms,
        agent_time_ms: seal.agent_time_ms,
    };
    let data = Bytes::from_static(OUTSIDE);
    let appended = buffer.append(Chunk { database, meta, number: 0, last: true, data }).await;
    let (staging, whose, stored) = (hub.staging.clone(), key.clone(), appended.is_ok());
    let settled = tokio::task::spawn_blocking(move || staging.settle(&whose, database, stored)).await;
    if let Ok(Err(error)) = settled {
        tracing::warn!(database = %key, %error, "parts of a first snapshot could not be moved; the next start does it");
    }
    appended.map_err(Unsealed::Buffer)?;
    tracing::info!(database = %key, "the first snapshot is complete");
    Ok(())
}

/// What a failure of the staging means for the node.
fn refusal(error: &StagingError) -> Refusal {
    match error {
        StagingError::Full { .. } => Refusal::busy(format!(
            "{error}; the hub takes more when one of them is complete, or with a larger `buffer.max-bytes`"
        )),
        StagingError::Corrupt(_) => Refusal::corrupted(error.to_string()),
        StagingError::TooLarge(_) => Refusal::oversized(error.to_string()),
        StagingError::OutOfOrder { .. } | StagingError::Sealing | StagingError::GivenUp => {
            Refusal::busy(error.to_string())
        }
        StagingError::Io(_) => Refusal::busy(format!("{error}; the hub's disk may be full")),
    }
}
