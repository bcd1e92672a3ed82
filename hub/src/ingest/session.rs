//! Drives one agent's stream. One task owns everything here; many appends of the buffer are under way at once, and one
//! fsync acknowledges all of them that it covers.

use super::assemble::{Assembly, Facts};
use super::error::{Refusal, SessionError};
use super::handle::{Handle, Incoming, Phase, Step};
use super::outbox::Outbox;
use super::{BUDGET_UNIT, Ingest};
use crate::buffer::{BufferError, Chunk, DatabaseId, Registered, SegmentMeta};
use crate::fleet::board::Inbox;
use crate::fleet::registry::Seat;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use walhub_common::limits::{
    HANDSHAKE_TIMEOUT, MAX_CHUNK_BYTES, MAX_DATABASES_PER_AGENT, MAX_INFLIGHT_BYTES_PER_AGENT,
};
use walhub_common::{AgentName, DatabaseKey, DatabaseName, Pos};
use walhub_proto::convert;
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_proto::v1::replicate_response::Message as Response;
use walhub_proto::v1::{
    AckLevel, CloseDatabase, DatabaseOpened, Hello, OpenDatabase, Refused, ReplicateRequest,
    ReplicateResponse, SegmentChunk, Welcome,
};

const PROTOCOL_VERSION: u32 = 1;
/// Buffer operations of one agent under way.
const MAX_UNDER_WAY: usize = 4096;
/// Messages that an agent may leave unread before it is read no further.
const MAX_OUTBOX: usize = 1024;
/// Chunks above this are verified off the runtime's threads.
const INLINE_BYTES: usize = 64 * 1024;
/// Longest path that is kept for people.
const MAX_PATH_CHARS: usize = 4096;

/// An operation of the buffer that has ended.
enum Done {
    Appended { handle: u32, bytes: usize, end: Option<Pos>, result: Result<(), BufferError> },
    Abandoned { handle: u32, result: Result<(), BufferError> },
    Registered { handle: u32, result: Result<Registered, BufferError> },
}

struct Session<'a, S> {
    hub: &'a Ingest,
    agent: AgentName,
    seat: Seat,
    inbound: S,
    out: mpsc::Sender<ReplicateResponse>,
    outbox: Outbox,
    /// `durable` news from the lanes.
    inbox: Arc<Inbox>,
    handles: HashMap<u32, Handle>,
    names: HashMap<DatabaseName, u32>,
    ids: HashMap<DatabaseId, u32>,
    /// Databases this agent has at the hub, open or not.
    databases: usize,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    inflight_bytes: usize,
    max_segment_bytes: u64,
}

pub(super) async fn serve<S>(
    hub: &Ingest,
    agent: AgentName,
    peer: &str,
    mut inbound: S,
    out: mpsc::Sender<ReplicateResponse>,
) -> Result<(), SessionError>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
{
    let hello = greet(hub, &mut inbound).await?;
    // Before anybody is disturbed: a node from the past must not end the session of the living one.
    hub.fleet.epochs.check(&agent, hello.epoch, &hello.instance_id)?;
    let version: String = hello.agent_version.chars().take(64).collect();
    let token = hub.shutdown.child_token();
    let seat = hub.fleet.registry.seat(&agent, peer, &version, token).await.map_err(|_| ended(hub))?;
    let epoch = hub.fleet.epochs.claim(&agent, hello.epoch, &hello.instance_id).await?;
    tracing::info!(%agent, peer, version, epoch, "agent connected");
    let mut session = Session::new(hub, agent.clone(), seat, inbound, out);
    session.outbox.push(Response::Welcome(Welcome {
        hub_version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch,
        max_chunk_bytes: MAX_CHUNK_BYTES as u32,
    }));
    let result = session.drive().await;
    session.wind_down().await;
    match &result {
        Ok(()) => tracing::info!(%agent, peer, "agent disconnected"),
        Err(cause) => tracing::info!(%agent, peer, %cause, "agent's stream ended"),
    }
    result
}

/// Why a session was told to go.
fn ended(hub: &Ingest) -> SessionError {
    if hub.shutdown.is_cancelled() { SessionError::Shutdown } else { SessionError::Replaced }
}

async fn greet<S>(hub: &Ingest, inbound: &mut S) -> Result<Hello, SessionError>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin,
{
    let first = tokio::select! {
        first = tokio::time::timeout(HANDSHAKE_TIMEOUT, inbound.next()) => first,
        () = hub.shutdown.cancelled() => return Err(SessionError::Shutdown),
    };
    let message = match first {
        Ok(Some(message)) => message?.message,
        Ok(None) => return Err(SessionError::BadHello("the stream was closed")),
        Err(_) => return Err(SessionError::BadHello("nothing came in time")),
    };
    match message {
        Some(Request::Hello(hello)) if hello.protocol_version != PROTOCOL_VERSION => {
            Err(SessionError::BadHello("another protocol version was offered"))
        }
        Some(Request::Hello(hello))
            if hello.instance_id.is_empty()
                || hello.instance_id.len() > crate::fleet::epochs::MAX_INSTANCE_BYTES =>
        {
            Err(SessionError::BadHello("instance_id must have 1 to 64 bytes"))
        }
        Some(Request::Hello(hello)) => Ok(hello),
        _ => Err(SessionError::BadHello("another message came first")),
    }
}

impl<'a, S> Session<'a, S>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
{
    fn new(
        hub: &'a Ingest,
        agent: AgentName,
        seat: Seat,
        inbound: S,
        out: mpsc::Sender<ReplicateResponse>,
    ) -> Self {
        let databases = hub.buffer.databases().iter().filter(|d| d.key.agent == agent).count();
        Self {
            hub,
            agent,
            seat,
            inbound,
            out,
            outbox: Outbox::default(),
            inbox: Arc::default(),
            handles: HashMap::new(),
            names: HashMap::new(),
            ids: HashMap::new(),
            databases,
            under_way: FuturesUnordered::new(),
            inflight_bytes: 0,
            max_segment_bytes: hub.buffer.usage().max_bytes,
        }
    }

    async fn drive(&mut self) -> Result<(), SessionError> {
        let mut more = true;
        let out = self.out.clone();
        loop {
            if !more && self.under_way.is_empty() && self.outbox.is_empty() {
                return Ok(());
            }
            let room = more
                && self.inflight_bytes + MAX_CHUNK_BYTES <= MAX_INFLIGHT_BYTES_PER_AGENT
                && self.under_way.len() < MAX_UNDER_WAY
                && self.outbox.len() < MAX_OUTBOX;
            tokio::select! {
                biased;
                () = self.seat.replaced().cancelled() => return Err(ended(self.hub)),
                // What has ended comes before what is new: acks of one fsync merge, and memory is given back.
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => self.done(done)?,
                permit = out.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => permit.send(self.outbox.pop().expect("BUG: the outbox is not empty")),
                    Err(_) => return Err(SessionError::Broken("the agent reads no more".to_owned())),
                },
                () = self.inbox.wait() => self.durable_news(),
                message = self.inbound.next(), if room => match message {
                    Some(message) => self.message(message?).await?,
                    None => more = false,
                },
            }
        }
    }

    /// Lets everything under way end, gives up what is unfinished, closes every handle.
    async fn wind_down(&mut self) {
        let handles: Vec<u32> = self.handles.keys().copied().collect();
        for handle in handles {
            self.close(handle);
        }
        while let Some(done) = self.under_way.next().await {
            if let Err(error) = self.done(done) {
                tracing::warn!(agent = %self.agent, %error, "operation failed while a session ended");
            }
        }
        for database in self.ids.keys() {
            self.hub.fleet.board.close(*database);
        }
    }

    async fn message(&mut self, message: ReplicateRequest) -> Result<(), SessionError> {
        self.seat.heard();
        match message.message {
            Some(Request::Segment(chunk)) => self.segment(chunk).await,
            Some(Request::Open(open)) => self.open(open).await,
            Some(Request::Close(CloseDatabase { handle })) => {
                self.close(handle);
                Ok(())
            }
            Some(Request::Hello(_)) => Err(SessionError::BadMessage("Hello came twice")),
            None => Err(SessionError::BadMessage("a message without content")),
        }
    }

    fn durable_news(&mut self) {
        for (database, txid) in self.inbox.take() {
            if let Some(handle) = self.ids.get(&database) {
                self.outbox.ack(*handle, AckLevel::Durable, txid);
            }
        }
    }

    /// Waits for `work` while operations of the buffer end as usual: whoever waits for room would wait for ever otherwise.
    async fn alongside<T>(&mut self, work: impl Future<Output = T>) -> Result<T, SessionError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => self.done(done)?,
                out = &mut work => return Ok(out),
            }
        }
    }

    // === opening and closing ===

    async fn open(&mut self, open: OpenDatabase) -> Result<(), SessionError> {
        let handle = open.handle;
        // Opening again is closing first; the position is read when nothing is under way any more.
        self.close(handle);
        while self.handles.contains_key(&handle) {
            let done = self.under_way.next().await.expect("BUG: a closing handle has nothing under way");
            self.done(done)?;
        }
        if let Err(refusal) = self.try_open(&open) {
            self.say_refused(handle, &refusal, None);
        }
        Ok(())
    }

    fn try_open(&mut self, open: &OpenDatabase) -> Result<(), Refusal> {
        let name = DatabaseName::new(open.name.as_str())?;
        let position = convert::position_from_wire(open.position.as_ref())?;
        if open.handle == 0 {
            return Err(Refusal::malformed("handles are counted from 1"));
        }
        if let Some(other) = self.names.get(&name) {
            return Err(Refusal::malformed(format!("{name} is already open under handle {other}")));
        }
        let key = DatabaseKey::new(self.agent.clone(), name.clone());
        let path: String = open.path.chars().take(MAX_PATH_CHARS).collect();
        let held = self.hub.buffer.find(&key);
        if held.is_none() {
            if self.databases >= MAX_DATABASES_PER_AGENT {
                return Err(Refusal::busy(format!(
                    "this node has {} databases at the hub already, the most it may have",
                    self.databases
                )));
            }
            self.databases += 1;
        }
        self.names.insert(name, open.handle);
        let state = Handle::opening(key.clone(), open.lineage, position);
        let state = self.handles.entry(open.handle).or_insert(state);
        match held {
            Some(held) if held.path == path => self.opened(open.handle, &held),
            _ => {
                state.under_way += 1;
                let (buffer, handle, lineage) = (self.hub.buffer.clone(), open.handle, open.lineage);
                self.under_way.push(Box::pin(async move {
                    let result = buffer.register(&key, (lineage != 0).then_some(lineage), &path).await;
                    Done::Registered { handle, result }
                }));
            }
        }
        Ok(())
    }

    fn opened(&mut self, handle: u32, held: &Registered) {
        let state = self.handles.get_mut(&handle).expect("BUG: an opened handle is known");
        self.ids.insert(held.id, handle);
        let durable = self.hub.fleet.board.open(held.id, self.inbox.clone());
        match state.registered(held) {
            Ok(()) => self.outbox.push(Response::Opened(DatabaseOpened {
                handle,
                lineage: held.lineage,
                position: Some(convert::position_to_wire(held.position)),
                durable_txid: durable.map_or(0, |txid| txid.get()),
            })),
            Err(refusal) => self.refuse(handle, refusal),
        }
    }

    fn close(&mut self, handle: u32) {
        if let Some(state) = self.handles.get_mut(&handle) {
            state.phase = Phase::Closing;
            state.incoming = Incoming::Nothing;
            self.settle(handle);
        }
    }

    fn refuse(&mut self, handle: u32, refusal: Refusal) {
        if let Some(state) = self.handles.get_mut(&handle) {
            tracing::warn!(database = %state.key, code = refusal.code.as_str_name(), reason = %refusal, "segment refused");
            state.incoming = Incoming::Nothing;
            state.phase = Phase::Refusing(refusal);
            self.settle(handle);
        }
    }

    /// Takes a handle that has nothing under way to the end that was decided for it.
    fn settle(&mut self, handle: u32) {
        let Some(state) = self.handles.get_mut(&handle) else { return };
        if state.under_way > 0 || !matches!(state.phase, Phase::Refusing(_) | Phase::Closing) {
            return;
        }
        if let (true, Some(database)) = (std::mem::take(&mut state.leftover), state.database) {
            state.under_way += 1;
            let buffer = self.hub.buffer.clone();
            self.under_way.push(Box::pin(async move {
                Done::Abandoned { handle, result: buffer.abandon(database).await }
            }));
            return;
        }
        match std::mem::replace(&mut state.phase, Phase::Refused) {
            Phase::Refusing(refusal) => {
                let position = self.hub.buffer.find(&state.key).and_then(|held| held.position);
                if let Some(database) = state.database {
                    self.ids.remove(&database);
                    self.hub.fleet.board.close(database);
                    self.hub.fleet.board.post_refusal(database, &refusal.message);
                }
                self.say_refused(handle, &refusal, position);
            }
            _ => {
                let state = self.handles.remove(&handle).expect("BUG: the handle was just there");
                self.names.remove(&state.key.name);
                if let Some(database) = state.database {
                    self.ids.remove(&database);
                    self.hub.fleet.board.close(database);
                }
            }
        }
    }

    fn say_refused(&mut self, handle: u32, refusal: &Refusal, position: Option<Pos>) {
        self.outbox.push(Response::Refused(Refused {
            handle,
            code: refusal.code.into(),
            message: refusal.message.clone(),
            position: Some(convert::position_to_wire(position)),
        }));
    }

    // === segments ===

    async fn segment(&mut self, chunk: SegmentChunk) -> Result<(), SessionError> {
        let handle = chunk.handle;
        let Some(state) = self.handles.get_mut(&handle) else {
            let refusal = Refusal::malformed(format!("handle {handle} is not open on this stream"));
            tracing::warn!(agent = %self.agent, handle, "segment for a handle that is not open");
            self.say_refused(handle, &refusal, None);
            return Ok(());
        };
        let step = match state.phase {
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

    // === what has ended ===

    fn done(&mut self, done: Done) -> Result<(), SessionError> {
        let (handle, failed) = match done {
            Done::Appended { handle, bytes, end, result } => {
                self.inflight_bytes -= bytes;
                (handle, self.appended(handle, end, result)?)
            }
            Done::Abandoned { handle, result } => {
                self.ended(handle);
                (handle, result.err().map(failure).transpose()?)
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
                    Err(error) => (handle, Some(failure(error)?)),
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
fn failure(error: BufferError) -> Result<Refusal, SessionError> {
    match error {
        BufferError::Full { .. } => {
            Ok(Refusal::busy(format!("{error}; the hub takes more when a destination has caught up")))
        }
        BufferError::OutOfOrder { .. } | BufferError::UnknownDatabase(_) => {
            Ok(Refusal::busy(format!("the hub lost its place in this database, open it again ({error})")))
        }
        BufferError::Closed => Err(SessionError::Shutdown),
        other => Err(SessionError::Buffer(other)),
    }
}
