//! A hub in memory that does what the contract says and, when asked to, everything that can go wrong: it drops streams,
//! refuses, acks late, and forgets. It judges what it gets: one contiguous chain of verified segments per database. It is
//! long because the contract it keeps, and every way of breaking it, must be read together.

use crate::certs::Certificates;
use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use walhub_common::ltx::{Decoder, Verifier};
use walhub_common::restore::{Applier, Report};
use walhub_common::task::TaskGroup;
use walhub_common::tls::{self, Acceptor, ServerStream};
use walhub_common::{Checksum, Pos, Txid, TxidRange};
use walhub_proto::convert::{position_from_wire, position_to_wire, range_from_wire};
use walhub_proto::v1::page_checksums_response::Message as Checksums;
use walhub_proto::v1::replicate_request::Message as Said;
use walhub_proto::v1::replicate_response::Message as Answer;
use walhub_proto::v1::replication_service_server::{ReplicationService, ReplicationServiceServer};
use walhub_proto::v1::restore_service_server::{RestoreService, RestoreServiceServer};
use walhub_proto::v1::{
    Ack, AckLevel, DatabaseOpened, PageChecksumsRequest, PageChecksumsResponse, PageList, PageRun, PageTable,
    RefusalCode, Refused, ReplicateRequest, ReplicateResponse, RestorePagesRequest, RestorePagesResponse,
    RestorePlan, RestoreRequest, SegmentChunk, Welcome,
};

/// Smaller than what the capture makes, so that chunks are cut again.
const MAX_CHUNK: usize = 256 * 1024;
const LATE: Duration = Duration::from_millis(30);
const MAX_SEGMENT: u64 = 1 << 30;

/// How often something goes wrong, out of 1000 segments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) drop_before_storing: u32,
    pub(crate) drop_before_acking: u32,
    pub(crate) refuse_gap: u32,
    pub(crate) refuse_busy: u32,
    pub(crate) refuse_corrupted: u32,
    pub(crate) ack_late: u32,
    pub(crate) ack_never: u32,
}

/// One stored segment.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) range: TxidRange,
    pub(crate) end: Pos,
    pub(crate) bytes: Bytes,
}

/// One database.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) lineage: u64,
    pub(crate) segments: Vec<Stored>,
}

impl History {
    pub(crate) fn position(&self) -> Option<Pos> {
        self.segments.last().map(|s| s.end)
    }
}

#[derive(Debug)]
struct State {
    databases: BTreeMap<String, History>,
    faults: Faults,
    rng: StdRng,
    epoch: u64,
    streams: u64,
    /// Raised when a history is changed behind the streams: those that are open judge no more.
    generation: u64,
    wrongs: Vec<String>,
    refuse_node: Option<Status>,
    refuse_open: BTreeSet<String>,
    connections: TaskGroup,
}

/// The hub.
#[derive(Clone, Debug)]
pub(crate) struct FakeHub {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    /// Keeps the port for this hub while it does not listen.
    _port: Arc<TcpSocket>,
    acceptor: Arc<Acceptor>,
}

/// A running listener; stop it to make the hub unreachable.
pub(crate) struct Listening {
    group: TaskGroup,
    state: Arc<Mutex<State>>,
}

impl Listening {
    /// Ends every connection and frees the port.
    pub(crate) async fn stop(self) {
        let connections = lock(&self.state).connections.clone();
        connections.shutdown(Duration::from_secs(5)).await;
        self.group.shutdown(Duration::from_secs(5)).await;
    }
}

/// A socket with this address; several of one hub may have it.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

impl FakeHub {
    pub(crate) fn new(certificates: &Certificates, seed: u64) -> Self {
        let port = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let state = State {
            databases: BTreeMap::new(),
            faults: Faults::default(),
            rng: StdRng::seed_from_u64(seed),
            epoch: 0,
            streams: 0,
            generation: 0,
            wrongs: Vec::new(),
            refuse_node: None,
            refuse_open: BTreeSet::new(),
            connections: TaskGroup::new("fake hub streams"),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            address: port.local_addr().unwrap(),
            _port: Arc::new(port),
            acceptor: Arc::new(Acceptor::open(certificates.hub.clone()).unwrap()),
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// Every stream is refused with this until `None`.
    pub(crate) fn refuse_node(&self, status: Option<Status>) {
        lock(&self.state).refuse_node = status;
    }

    /// One database is refused as busy whenever it is opened.
    pub(crate) fn refuse_open(&self, name: &str, refuse: bool) {
        let mut state = lock(&self.state);
        if refuse {
            state.refuse_open.insert(name.into());
        } else {
            state.refuse_open.remove(name);
        }
    }

    pub(crate) fn history(&self, name: &str) -> History {
        lock(&self.state).databases.get(name).cloned().unwrap_or_default()
    }

    /// Streams that were welcomed.
    pub(crate) fn streams(&self) -> u64 {
        lock(&self.state).streams
    }

    /// Loses everything after `keep` segments of a database, as a hub whose disk was replaced.
    pub(crate) fn forget(&self, name: &str, keep: usize) {
        let mut state = lock(&self.state);
        state.generation += 1;
        if let Some(history) = state.databases.get_mut(name) {
            history.segments.truncate(keep);
        }
    }

    /// Replaces a history.
    pub(crate) fn replace(&self, name: &str, history: History) {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.databases.insert(name.into(), history);
    }

    /// What the agent did that the contract forbids.
    pub(crate) fn wrongs(&self) -> Vec<String> {
        lock(&self.state).wrongs.clone()
    }

    /// Restores a database from what arrived.
    pub(crate) fn restore(&self, name: &str, out: &Path) -> Report {
        let mut applier = Applier::new(out, true).unwrap();
        let history = self.history(name);
        for stored in &history.segments {
            applier.apply(&stored.range.to_string(), &stored.bytes[..]).unwrap();
        }
        applier.finish(history.position().map(|p| p.checksum)).unwrap()
    }

    /// Ends all streams; the listener goes on.
    pub(crate) async fn hang_up(&self) {
        let old = {
            let mut state = lock(&self.state);
            std::mem::replace(&mut state.connections, TaskGroup::new("fake hub streams"))
        };
        old.shutdown(Duration::from_secs(5)).await;
    }

    /// Serves until stopped.
    pub(crate) async fn listen(&self) -> Listening {
        let listener = bound(self.address).listen(128).unwrap();
        lock(&self.state).connections = TaskGroup::new("fake hub streams");
        let group = TaskGroup::new("fake hub");
        let (streams, incoming) = mpsc::channel(4);
        let (acceptor, token) = (self.acceptor.clone(), group.token().clone());
        group.spawn(async move {
            loop {
                let socket = tokio::select! {
                    () = token.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                socket.set_nodelay(true).unwrap();
                // A client that hangs up in the handshake is none of our business.
                if let Ok((stream, _)) = tls::accept(socket, &acceptor).await
                    && streams.send(Ok::<_, io::Error>(Socket(stream))).await.is_err()
                {
                    return;
                }
            }
        });
        let server = Server::builder()
            .add_service(ReplicationServiceServer::new(self.clone()).max_decoding_message_size(2 << 20))
            .add_service(RestoreServiceServer::new(self.clone()));
        let token = group.token().clone();
        group.spawn(async move {
            let stopped = token.cancelled_owned();
            tokio::select! {
                served = server.serve_with_incoming(ReceiverStream::new(incoming)) => served.unwrap(),
                () = stopped => {}
            }
        });
        Listening { group, state: self.state.clone() }
    }
}

#[tonic::async_trait]
impl ReplicationService for FakeHub {
    type ReplicateStream = ReceiverStream<Result<ReplicateResponse, Status>>;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        if let Some(status) = lock(&self.state).refuse_node.clone() {
            return Err(status);
        }
        let (answers, out) = mpsc::channel(256);
        let connections = lock(&self.state).connections.clone();
        let generation = lock(&self.state).generation;
        let stream =
            Stream { hub: self.clone(), generation, answers, handles: HashMap::new(), late: HashMap::new() };
        let token = connections.token().clone();
        connections.spawn(async move {
            let answers = stream.answers.clone();
            let ended = tokio::select! {
                () = token.cancelled() => Err(Status::unavailable("the hub hangs up")),
                ended = stream.run(request.into_inner()) => ended,
            };
            if let Err(status) = ended {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

struct Handle {
    name: String,
    refused: bool,
    partial: Option<(SegmentChunk, BytesMut)>,
}

struct Stream {
    hub: FakeHub,
    generation: u64,
    answers: mpsc::Sender<Result<ReplicateResponse, Status>>,
    handles: HashMap<u32, Handle>,
    /// Acks that wait until the agent falls silent.
    late: HashMap<u32, Txid>,
}

enum Fate {
    Normal,
    DropBeforeStoring,
    DropBeforeAcking,
    Refuse(RefusalCode),
    AckLate,
    AckNever,
}

impl Stream {
    async fn run(mut self, mut said: Streaming<ReplicateRequest>) -> Result<(), Status> {
        let gone = |_| Status::unavailable("gone");
        let Some(Said::Hello(hello)) = said.message().await.map_err(gone)?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("no hello first"));
        };
        let epoch = {
            let mut state = lock(&self.hub.state);
            if hello.epoch != 0 && hello.epoch < state.epoch {
                return Err(Status::failed_precondition("an older image of this node"));
            }
            state.epoch = if hello.epoch == 0 { state.epoch + 1 } else { hello.epoch };
            state.streams += 1;
            state.epoch
        };
        self.say(Answer::Welcome(Welcome { hub_version: "fake".into(), epoch, max_chunk_bytes: 256 * 1024 }))
            .await?;
        loop {
            let message = tokio::select! {
                biased;
                message = said.message() => message.map_err(gone)?,
                () = tokio::time::sleep(LATE), if !self.late.is_empty() => {
                    for (handle, txid) in std::mem::take(&mut self.late) {
                        self.ack(handle, txid).await?;
                    }
                    continue;
                }
            };
            let Some(message) = message else { break };
            if lock(&self.hub.state).generation != self.generation {
                return Err(Status::unavailable("the hub lost its disk"));
            }
            match message.message {
                Some(Said::Open(open)) => {
                    if lock(&self.hub.state).refuse_open.contains(&open.name) {
                        self.refuse(open.handle, RefusalCode::Busy, "the buffer is full").await?;
                        continue;
                    }
                    let opened = {
                        let mut state = lock(&self.hub.state);
                        let lineage = state.rng.random_range(1..u64::MAX);
                        let history = state.databases.entry(open.name.clone()).or_default();
                        if history.lineage == 0 {
                            history.lineage = if open.lineage == 0 { lineage } else { open.lineage };
                        }
                        DatabaseOpened {
                            handle: open.handle,
                            lineage: history.lineage,
                            position: Some(position_to_wire(history.position())),
                            durable_txid: 0,
                            staging: None,
                            images: false,
                        }
                    };
                    position_from_wire(open.position.as_ref()).unwrap();
                    if open.lineage != 0 && open.lineage != opened.lineage {
                        self.refuse(open.handle, RefusalCode::Fork, "another lineage").await?;
                        continue;
                    }
                    let handle = Handle { name: open.name, refused: false, partial: None };
                    self.handles.insert(open.handle, handle);
                    self.say(Answer::Opened(opened)).await?;
                }
                Some(Said::Segment(chunk)) => self.chunk(chunk).await?,
                Some(Said::Close(close)) => {
                    self.handles.remove(&close.handle);
                }
                Some(Said::Hello(_) | Said::OrderUpdate(_)) | None => {
                    return Err(Status::invalid_argument("unexpected message"));
                }
            }
        }
        Ok(())
    }

    async fn chunk(&mut self, chunk: SegmentChunk) -> Result<(), Status> {
        let number = chunk.handle;
        let Some(handle) = self.handles.get_mut(&number) else {
            self.wrong(format!("a segment for handle {number} that is not open"));
            return Ok(());
        };
        if handle.refused {
            return Ok(());
        }
        if chunk.data.len() > MAX_CHUNK || chunk.data.is_empty() {
            let text = format!("{}: a chunk of {} bytes", handle.name, chunk.data.len());
            self.wrong(text);
            return Ok(());
        }
        let (first, mut bytes) = match handle.partial.take() {
            None if chunk.chunk == 0 => (chunk.clone(), BytesMut::new()),
            Some((first, bytes)) if chunk.range == first.range && chunk.chunk > 0 => (first, bytes),
            _ => {
                let text =
                    format!("{}: chunk {} of {:?} out of order", handle.name, chunk.chunk, chunk.range);
                self.wrong(text);
                return Ok(());
            }
        };
        bytes.extend_from_slice(&chunk.data);
        if !chunk.last {
            handle.partial = Some((first, bytes));
            return Ok(());
        }
        let name = handle.name.clone();
        self.segment(number, &name, &first, bytes.freeze()).await
    }

    async fn segment(
        &mut self,
        handle: u32,
        name: &str,
        said: &SegmentChunk,
        bytes: Bytes,
    ) -> Result<(), Status> {
        match self.fate() {
            Fate::DropBeforeStoring => Err(Status::unavailable("dropped before storing")),
            Fate::Refuse(code) => self.refuse(handle, code, "by the dice").await,
            fate => {
                let txid = match self.judge(name, said, bytes) {
                    Ok(txid) => txid,
                    Err(text) => {
                        self.wrong(format!("{name}: {text}"));
                        return self.refuse(handle, RefusalCode::Fork, &text).await;
                    }
                };
                match fate {
                    Fate::DropBeforeAcking => return Err(Status::unavailable("dropped before acking")),
                    Fate::AckLate => {
                        self.late.insert(handle, txid);
                        return Ok(());
                    }
                    Fate::AckNever => return Ok(()),
                    _ => {}
                }
                self.late.remove(&handle);
                self.ack(handle, txid).await
            }
        }
    }

    async fn ack(&mut self, handle: u32, txid: Txid) -> Result<(), Status> {
        for level in [AckLevel::Buffered, AckLevel::Durable] {
            self.say(Answer::Ack(Ack { handle, level: level as i32, txid: txid.get() })).await?;
        }
        Ok(())
    }

    /// Next or duplicate is stored or known; everything else is wrong.
    fn judge(&self, name: &str, said: &SegmentChunk, bytes: Bytes) -> Result<Txid, String> {
        let range = range_from_wire(said.range.as_ref()).map_err(|e| e.to_string())?;
        let mut verifier = Verifier::new(MAX_SEGMENT);
        verifier.push(&bytes).map_err(|e| e.to_string())?;
        let verified = verifier.finish().map_err(|e| e.to_string())?;
        let provenance = verified.header.provenance.ok_or("no provenance")?;
        if verified.header.range != range
            || provenance.pre.map_or(0, |c| c.get()) != said.pre_checksum
            || provenance.post.get() != said.post_checksum
            || verified.image_checksum.is_some_and(|c| c != provenance.post)
        {
            return Err(format!("the file of {range} is not what its message says"));
        }
        let mut state = lock(&self.hub.state);
        if state.generation != self.generation {
            return Ok(range.max());
        }
        let history = state.databases.get_mut(name).ok_or("not registered")?;
        let at = history.position();
        let end = Pos { txid: range.max(), checksum: provenance.post };
        if range.follows(at.map(|p| p.txid)) && provenance.pre == at.map(|p| p.checksum) {
            history.segments.push(Stored { range, end, bytes });
            return Ok(range.max());
        }
        match at {
            Some(at) if at == end => Ok(at.txid),
            Some(at) if range.max() < at.txid => Ok(at.txid),
            _ => Err(format!("{range} ({:?} to {end}) does not follow {at:?}", provenance.pre)),
        }
    }

    fn fate(&self) -> Fate {
        let mut state = lock(&self.hub.state);
        let f = state.faults;
        let mut dice = state.rng.random_range(0..1000_u32);
        let mut hit = |share: u32| {
            let hit = dice < share;
            dice = dice.saturating_sub(share);
            if hit {
                dice = u32::MAX;
            }
            hit
        };
        if hit(f.drop_before_storing) {
            Fate::DropBeforeStoring
        } else if hit(f.drop_before_acking) {
            Fate::DropBeforeAcking
        } else if hit(f.refuse_gap) {
            Fate::Refuse(RefusalCode::Gap)
        } else if hit(f.refuse_busy) {
            Fate::Refuse(RefusalCode::Busy)
        } else if hit(f.refuse_corrupted) {
            Fate::Refuse(RefusalCode::Corrupted)
        } else if hit(f.ack_late) {
            Fate::AckLate
        } else if hit(f.ack_never) {
            Fate::AckNever
        } else {
            Fate::Normal
        }
    }

    async fn refuse(&mut self, handle: u32, code: RefusalCode, why: &str) -> Result<(), Status> {
        let position = self.handles.get_mut(&handle).map(|h| {
            h.refused = true;
            position_to_wire(self.hub.history(&h.name).position())
        });
        self.say(Answer::Refused(Refused { handle, code: code as i32, message: why.into(), position })).await
    }

    async fn say(&self, answer: Answer) -> Result<(), Status> {
        let sent = self.answers.send(Ok(ReplicateResponse { message: Some(answer) })).await;
        sent.map_err(|_| Status::cancelled("the agent is gone"))
    }

    fn wrong(&self, text: String) {
        lock(&self.hub.state).wrongs.push(text);
    }
}

#[tonic::async_trait]
impl RestoreService for FakeHub {
    async fn plan_restore(&self, _: Request<RestoreRequest>) -> Result<Response<RestorePlan>, Status> {
        Err(Status::unimplemented("not asked for by agents that follow"))
    }

    type RestorePagesStream = ReceiverStream<Result<RestorePagesResponse, Status>>;

    async fn restore_pages(
        &self,
        _: Request<RestorePagesRequest>,
    ) -> Result<Response<Self::RestorePagesStream>, Status> {
        Err(Status::unimplemented("not asked for by agents that follow"))
    }

    type PageChecksumsStream = ReceiverStream<Result<PageChecksumsResponse, Status>>;

    async fn page_checksums(
        &self,
        request: Request<PageChecksumsRequest>,
    ) -> Result<Response<Self::PageChecksumsStream>, Status> {
        let request = request.into_inner();
        let name = request.database.map(|d| d.name).unwrap_or_default();
        let history = self.history(&name);
        let until = position_from_wire(request.until.as_ref()).unwrap();
        if history.position() != until || until.is_none() {
            return Err(Status::failed_precondition("the hub is elsewhere"));
        }
        let mut pages: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut page_size, mut commit) = (0, 0);
        for segment in history.segments.iter().filter(|s| s.range.max().get() > request.after_txid) {
            let mut file = Decoder::new(&segment.bytes[..]).unwrap();
            (page_size, commit) = (file.header().page_size.get(), file.header().commit);
            let mut page = Vec::new();
            while let Some(pgno) = file.next_page(&mut page).unwrap() {
                pages.insert(pgno.get(), Checksum::of_page(pgno, &page).get());
            }
            pages.retain(|pgno, _| *pgno <= commit);
        }
        let whole = request.after_txid == 0;
        let table = PageTable { position: request.until, page_size, commit, whole };
        let mut messages = vec![Checksums::Table(table)];
        let pages: Vec<(u32, u64)> = pages.into_iter().collect();
        for batch in pages.chunks(50) {
            let (numbers, checksums): (Vec<u32>, Vec<u64>) = batch.iter().copied().unzip();
            messages.push(match whole {
                true => Checksums::Run(PageRun { first: numbers[0], checksums }),
                false => Checksums::List(PageList { pages: numbers, checksums }),
            });
        }
        let (out, answers) = mpsc::channel(4);
        let connections = lock(&self.state).connections.clone();
        connections.spawn(async move {
            for message in messages {
                if out.send(Ok(PageChecksumsResponse { message: Some(message) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// A TLS stream that tonic can serve.
struct Socket(ServerStream);

impl Connected for Socket {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
