//! Drives one agent's stream. One task owns everything here; many appends of the buffer are under way at once, and one
//! fsync acknowledges all of them that it covers.

mod opening;
mod segments;
mod staged;

use super::Ingest;
use super::error::SessionError;
use super::handle::Handle;
use super::origin::OpenError;
use super::outbox::Outbox;
use crate::buffer::{BufferError, DatabaseId, Registered};
use crate::copies::board::Inbox;
use crate::fleet::orders::Chair;
use crate::fleet::registry::Seat;
use crate::staging::{Held, StagingError};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
pub(super) use staged::Stage;
use staged::{Claim, Unsealed};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use walhub_common::limits::{HANDSHAKE_TIMEOUT, MAX_CHUNK_BYTES, MAX_INFLIGHT_BYTES_PER_AGENT};
use walhub_common::{AgentName, DatabaseName, Pos};
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_proto::v1::replicate_response::Message as Response;
use walhub_proto::v1::{AckLevel, CloseDatabase, Hello, ReplicateRequest, ReplicateResponse, Welcome};

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
    Registered { handle: u32, result: Result<Registered, OpenError> },
    Looked { handle: u32, result: Result<Option<Held>, StagingError> },
    Staged { handle: u32, result: Result<u32, StagingError>, claim: Option<Claim> },
    Sealed { handle: u32, end: Pos, time_ms: i64, result: Result<(), Unsealed> },
}

struct Session<'a, S> {
    hub: &'a Ingest,
    agent: AgentName,
    seat: Seat,
    /// Orders for this agent.
    orders: Chair,
    inbound: S,
    out: mpsc::Sender<ReplicateResponse>,
    outbox: Outbox,
    /// `durable` news from the lanes.
    inbox: Arc<Inbox>,
    handles: HashMap<u32, Handle>,
    names: HashMap<DatabaseName, u32>,
    ids: HashMap<DatabaseId, u32>,
    /// Databases this agent has at the hub, open or not; counted when the first new one comes.
    databases: Option<usize>,
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
    let orders = hub.fleet.orders.sit(&agent, hello.takes_orders);
    let mut session = Session::new(hub, agent.clone(), seat, orders, inbound, out);
    session.outbox.push(Response::Welcome(Welcome {
        hub_version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch,
        max_chunk_bytes: MAX_CHUNK_BYTES as u32,
    }));
    let result = session.drive().await;
    session.wind_down().await;
    match &result {
        Ok(()) => tracing::info!(%agent, peer, "agent disconnected"),
        Err(cause @ SessionError::Buffer(_)) => tracing::error!(%agent, peer, %cause, "agent's stream ended"),
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
        orders: Chair,
        inbound: S,
        out: mpsc::Sender<ReplicateResponse>,
    ) -> Self {
        Self {
            hub,
            agent,
            seat,
            orders,
            inbound,
            out,
            outbox: Outbox::default(),
            inbox: Arc::default(),
            handles: HashMap::new(),
            names: HashMap::new(),
            ids: HashMap::new(),
            databases: None,
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
                order = self.orders.next(), if self.outbox.len() < MAX_OUTBOX => {
                    self.outbox.push(Response::Order(order));
                }
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
            Some(Request::OrderUpdate(update)) => {
                self.orders.update(update);
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

    /// Waits until one operation under way has ended.
    async fn one_done(&mut self) -> Result<(), SessionError> {
        match self.under_way.next().await {
            Some(done) => self.done(done),
            None => Ok(()),
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
}
