//! Sessions over a plain channel, against the buffer's twin in memory: every kind of bad segment, and what must not be
//! disturbed by it.

mod segments;
mod staged;
mod streams;

use super::{Ingest, Origins, SessionError};
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, EveryDatabase, WalBuffer};
use crate::copies::{Board, InService, Policy, Roster, Rules};
use crate::fleet::{Epochs, Fleet, LabelBook, OrderDesk, Registry};
use crate::staging::{Sealed, Staging};
use crate::testutil::{Image, Segment, chunks, place};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_common::task::TaskGroup;
use walhub_common::{AgentName, Checksum, DatabaseKey, Txid};
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_proto::v1::replicate_response::Message as Response;
use walhub_proto::v1::{
    Ack, AckLevel, CloseDatabase, DatabaseOpened, Hello, OpenDatabase, OrderUpdate, Position, RefusalCode,
    Refused, ReplicateRequest, ReplicateResponse, RestoreOrder, SegmentChunk, Welcome,
};

struct Hub {
    ingest: Ingest,
    buffer: Arc<MemoryBuffer>,
    fleet: Arc<Fleet>,
    staging: Arc<Staging>,
    tasks: TaskGroup,
    _dir: tempfile::TempDir,
}

impl Hub {
    fn new() -> Self {
        Self::with_buffer(MemoryBuffer::new(64 << 20))
    }

    fn with_buffer(buffer: MemoryBuffer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fleet = Arc::new(Fleet {
            epochs: Epochs::open(dir.path()).unwrap(),
            registry: Registry::default(),
            labels: LabelBook::open(dir.path()).unwrap(),
            orders: OrderDesk::default(),
            board: Arc::new(Board::new(Roster::new(
                vec![place(0, "one")],
                Rules::new(Vec::new(), Policy::default()),
            ))),
        });
        let buffer = Arc::new(buffer);
        let sealed = Arc::new(Sealed::open(dir.path()).unwrap());
        let staging = Arc::new(Staging::open(dir.path(), 64 << 20, sealed).unwrap());
        let tasks = TaskGroup::new("test");
        let shutdown = CancellationToken::new();
        let origins = Origins::new(InService::fixed(&[]), shutdown.clone());
        let ingest =
            Ingest::new(buffer.clone(), fleet.clone(), staging.clone(), tasks.clone(), origins, shutdown);
        Self { ingest, buffer, fleet, staging, tasks, _dir: dir }
    }

    fn connect(&self, agent: &str) -> Client {
        let (requests, inbound) = mpsc::channel(64);
        let (out, responses) = mpsc::channel(64);
        let (ingest, agent) = (self.ingest.clone(), AgentName::new(agent).unwrap());
        let end = self.tasks.spawn(async move {
            ingest.serve(agent, "127.0.0.1:1", ReceiverStream::new(inbound), out).await
        });
        Client { takes_orders: true, requests, responses, end }
    }

    async fn welcomed(&self, agent: &str, epoch: u64) -> Client {
        let mut client = self.connect(agent);
        client.hello(epoch, b"instance").await;
        assert!(matches!(client.next().await, Response::Welcome(_)));
        client
    }

    /// What the buffer holds of a database: its ranges, and the position.
    fn held(&self, key: &str) -> (Vec<(u64, u64)>, u64) {
        let key: DatabaseKey = key.parse().unwrap();
        let Some(database) = self.buffer.find(&key) else { return (Vec::new(), 0) };
        let segments = self.buffer.list(database.id, None, 1000).unwrap();
        let range = |s: &crate::buffer::SegmentRef| (s.meta.range.min().get(), s.meta.range.max().get());
        (segments.iter().map(range).collect(), database.position.map_or(0, |p| p.txid.get()))
    }
}

struct Client {
    takes_orders: bool,
    requests: mpsc::Sender<Result<ReplicateRequest, SessionError>>,
    responses: mpsc::Receiver<ReplicateResponse>,
    end: tokio::task::JoinHandle<Result<(), SessionError>>,
}

impl Client {
    async fn say(&self, message: Request) {
        self.requests.send(Ok(ReplicateRequest { message: Some(message) })).await.unwrap();
    }

    async fn hello(&self, epoch: u64, instance: &'static [u8]) {
        self.say(Request::Hello(Hello {
            protocol_version: 1,
            agent_version: "test".into(),
            epoch,
            instance_id: instance.into(),
            takes_orders: self.takes_orders,
        }))
        .await;
    }

    async fn next(&mut self) -> Response {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.recv());
        next.await.expect("the hub says nothing").expect("the hub ended the stream").message.unwrap()
    }

    async fn open(&mut self, handle: u32, name: &str) -> DatabaseOpened {
        self.ask_open(handle, name, 0, None).await;
        match self.next().await {
            Response::Opened(opened) => opened,
            other => panic!("expected DatabaseOpened, got {other:?}"),
        }
    }

    async fn ask_open(&self, handle: u32, name: &str, lineage: u64, position: Option<Position>) {
        let open =
            OpenDatabase { handle, name: name.into(), lineage, position, path: format!("/data/{name}") };
        self.say(Request::Open(open)).await;
    }

    async fn send(&self, handle: u32, segment: &Segment) {
        for chunk in chunks(handle, segment, 300) {
            self.say(Request::Segment(chunk)).await;
        }
    }

    async fn chunk(&self, chunk: SegmentChunk) {
        self.say(Request::Segment(chunk)).await;
    }

    /// Waits until `txid` of `handle` is acknowledged.
    async fn acked(&mut self, handle: u32, txid: u64) {
        loop {
            match self.next().await {
                Response::Ack(Ack { handle: h, level, txid: t })
                    if h == handle && level == i32::from(AckLevel::Buffered) =>
                {
                    assert!(t <= txid, "acked {t} before it was sent");
                    if t == txid {
                        return;
                    }
                }
                Response::Ack(_) => {}
                other => panic!("expected an ack of {txid}, got {other:?}"),
            }
        }
    }

    async fn refused(&mut self, handle: u32, code: RefusalCode) -> Refused {
        loop {
            match self.next().await {
                Response::Ack(_) => {}
                Response::Refused(refused) => {
                    assert_eq!((refused.handle, refused.code), (handle, i32::from(code)), "{refused:?}");
                    assert!(!refused.message.is_empty());
                    return refused;
                }
                other => panic!("expected a refusal, got {other:?}"),
            }
        }
    }

    async fn end(self) -> Result<(), SessionError> {
        drop(self.requests);
        tokio::time::timeout(Duration::from_secs(20), self.end).await.unwrap().unwrap()
    }
}

/// A database of three transactions at the hub, a second one beside it, and the image to go on from.
async fn two_databases(hub: &Hub) -> (Client, Image, Image) {
    let mut client = hub.welcomed("a", 1).await;
    let (mut image, mut other) = (Image::new(8), Image::new(8));
    for (handle, name, image) in [(1, "app", &mut image), (2, "other", &mut other)] {
        assert_eq!(client.open(handle, name).await.position, Some(Position { txid: 0, checksum: 0 }));
        client.send(handle, &image.first()).await;
        client.send(handle, &image.commit(&[2])).await;
        client.send(handle, &image.commit(&[3, 9])).await;
        client.acked(handle, 3).await;
    }
    (client, image, other)
}

/// The second database still takes segments, and the first one goes on after it was opened again.
async fn others_go_on(hub: &Hub, client: &mut Client, image: &mut Image, other: &mut Image) {
    client.send(2, &other.commit(&[1])).await;
    client.acked(2, other.txid()).await;
    assert_eq!(hub.held("a/app").1, image.txid(), "a refused segment was stored");
    let opened = client.open(1, "app").await;
    let position = Position { txid: image.txid(), checksum: image.checksum().get() };
    assert_eq!(opened.position, Some(position));
    client.send(1, &image.commit(&[4])).await;
    client.acked(1, image.txid()).await;
}
