//! Sessions over a plain channel, against the buffer's twin in memory: every kind of bad segment, and what must not be
//! disturbed by it.

use super::{Ingest, SessionError};
use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, WalBuffer};
use crate::fleet::board::LaneFacts;
use crate::fleet::policy::{Policy, Site};
use crate::fleet::{Board, Epochs, Fleet, Registry};
use crate::testutil::{Image, Segment, chunks};
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
    Ack, AckLevel, CloseDatabase, DatabaseOpened, Hello, OpenDatabase, Position, RefusalCode, Refused,
    ReplicateRequest, ReplicateResponse, SegmentChunk, Welcome,
};

struct Hub {
    ingest: Ingest,
    buffer: Arc<MemoryBuffer>,
    fleet: Arc<Fleet>,
    tasks: TaskGroup,
    _dir: tempfile::TempDir,
}

impl Hub {
    fn new() -> Self {
        Self::with_buffer(MemoryBuffer::new(64 << 20))
    }

    fn with_buffer(buffer: MemoryBuffer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lane = LaneFacts {
            site: Site { name: "one".into(), media: "disk".into(), offsite: false },
            kind: "file",
            location: String::new(),
            sync_interval: Duration::from_secs(1),
        };
        let fleet = Arc::new(Fleet {
            epochs: Epochs::open(dir.path()).unwrap(),
            registry: Registry::default(),
            board: Board::new(Policy::default(), vec![lane]),
        });
        let buffer = Arc::new(buffer);
        let ingest = Ingest::new(buffer.clone(), fleet.clone(), CancellationToken::new());
        Self { ingest, buffer, fleet, tasks: TaskGroup::new("test"), _dir: dir }
    }

    fn connect(&self, agent: &str) -> Client {
        let (requests, inbound) = mpsc::channel(64);
        let (out, responses) = mpsc::channel(64);
        let (ingest, agent) = (self.ingest.clone(), AgentName::new(agent).unwrap());
        let end = self.tasks.spawn(async move {
            ingest.serve(agent, "127.0.0.1:1", ReceiverStream::new(inbound), out).await
        });
        Client { requests, responses, end }
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

#[tokio::test]
async fn segments_are_stored_in_order_with_the_hubs_time() {
    let hub = Hub::new();
    let (client, image, _) = two_databases(&hub).await;
    assert_eq!(hub.held("a/app"), (vec![(1, 1), (2, 2), (3, 3)], 3));
    let database = hub.buffer.find(&"a/app".parse().unwrap()).unwrap();
    assert_eq!(database.position.unwrap().checksum, image.checksum());
    assert_eq!(database.path, "/data/app");
    let times: Vec<i64> =
        hub.buffer.list(database.id, None, 10).unwrap().iter().map(|s| s.meta.time_ms).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_duplicate_is_acknowledged_again_and_stored_once() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(8);
    let (first, second) = (image.first(), image.commit(&[2]));
    for segment in [&first, &second, &first, &second] {
        client.send(1, segment).await;
    }
    client.acked(1, 2).await;
    client.send(1, &first).await;
    client.acked(1, 2).await;
    assert_eq!(hub.held("a/app").0, [(1, 1), (2, 2)]);
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_gap_is_refused_with_the_position_to_go_on_from() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut ahead = image.clone();
    ahead.commit(&[1]);
    client.send(1, &ahead.commit(&[2])).await;
    let refused = client.refused(1, RefusalCode::Gap).await;
    assert_eq!(refused.position, Some(Position { txid: 3, checksum: image.checksum().get() }));
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn after_a_refusal_a_handle_takes_nothing_until_it_is_opened_again() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut ahead = image.clone();
    ahead.commit(&[1]);
    client.send(1, &ahead.commit(&[2])).await;
    // In order, but too late: what follows a gap was sent before the agent could know of it.
    client.send(1, &image.clone().commit(&[5])).await;
    client.refused(1, RefusalCode::Gap).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_fork_is_refused_and_overwrites_nothing() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut fork = image.clone().commit(&[1]);
    fork.forge_pre(Checksum::new(1 << 63 | 99).unwrap());
    client.send(1, &fork).await;
    client.refused(1, RefusalCode::Fork).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
    // The same transaction with another content.
    let mut twin = Image::new(8);
    twin.first();
    for _ in 0..2 {
        twin.commit(&[7]);
    }
    let (txid, mut last) = (image.txid(), twin.commit(&[7]));
    assert_eq!(last.txid().get(), txid);
    last.forge_pre(Checksum::new(1 << 63 | 99).unwrap());
    client.send(1, &last).await;
    client.refused(1, RefusalCode::Fork).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_corrupted_segment_is_refused() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let segment = image.clone().commit(&[1, 2, 3]);
    let mut pieces = chunks(1, &segment, 300);
    let at = pieces.len() - 2;
    let mut bad = pieces[at].data.to_vec();
    bad[100] ^= 1;
    pieces[at].data = bad.into();
    for piece in pieces {
        client.chunk(piece).await;
    }
    client.refused(1, RefusalCode::Corrupted).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn an_oversized_chunk_is_refused() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut chunk = chunks(1, &image.clone().commit(&[1]), 1 << 20).remove(0);
    chunk.data = vec![0; MAX_CHUNK_BYTES + 1].into();
    client.chunk(chunk).await;
    client.refused(1, RefusalCode::Oversized).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_chunk_out_of_order_is_malformed() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let segment = image.clone().commit(&[1, 2, 3]);
    let pieces = chunks(1, &segment, 300);
    client.chunk(pieces[0].clone()).await;
    client.chunk(pieces[2].clone()).await;
    client.refused(1, RefusalCode::Malformed).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_foreign_handle_is_malformed_and_disturbs_nobody() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    client.send(77, &image.clone().commit(&[1])).await;
    loop {
        // One answer per chunk; the database of the same transactions is not concerned.
        match client.next().await {
            Response::Refused(refused) => {
                assert_eq!((refused.handle, refused.code), (77, i32::from(RefusalCode::Malformed)));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let pieces = chunks(77, &image.clone().commit(&[1]), 300).len();
    for _ in 1..pieces {
        client.refused(77, RefusalCode::Malformed).await;
    }
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn names_and_handles_are_checked() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    for (handle, name) in [(9, "../etc"), (9, ""), (0, "x"), (9, "other")] {
        client.ask_open(handle, name, 0, None).await;
        client.refused(handle, RefusalCode::Malformed).await;
    }
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
    client.say(Request::Close(CloseDatabase { handle: 2 })).await;
    assert_eq!(client.open(9, "other").await.position.unwrap().txid, other.txid());
}

#[tokio::test]
async fn another_lineage_or_another_checksum_is_a_fork_at_opening() {
    let hub = Hub::new();
    let (mut client, image, _) = two_databases(&hub).await;
    let lineage = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().lineage;
    client.ask_open(1, "app", lineage ^ 1, None).await;
    client.refused(1, RefusalCode::Fork).await;
    let position = Position { txid: 3, checksum: image.checksum().get() ^ 2 };
    client.ask_open(1, "app", lineage, Some(position)).await;
    client.refused(1, RefusalCode::Fork).await;
    client.ask_open(1, "app", lineage, Some(Position { txid: 3, checksum: image.checksum().get() })).await;
    assert!(matches!(client.next().await, Response::Opened(_)));
    client.ask_open(5, "new", 4711, None).await;
    match client.next().await {
        Response::Opened(opened) => assert_eq!(opened.lineage, 4711, "an unknown lineage is adopted"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unfinished_segment_is_given_up_with_its_stream() {
    let hub = Hub::new();
    let (client, mut image, _) = two_databases(&hub).await;
    let segment = image.commit(&[1, 2, 3]);
    let pieces = chunks(1, &segment, 300);
    for piece in &pieces[..2] {
        client.chunk(piece.clone()).await;
    }
    client.end().await.unwrap();
    assert_eq!(hub.held("a/app").1, 3);
    let mut client = hub.welcomed("a", 1).await;
    assert_eq!(client.open(1, "app").await.position.unwrap().txid, 3);
    client.send(1, &segment).await;
    client.acked(1, 4).await;
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older_one() {
    let hub = Hub::new();
    let (older, mut image, _) = two_databases(&hub).await;
    let mut newer = hub.welcomed("a", 1).await;
    assert!(matches!(older.end().await, Err(SessionError::Replaced)));
    newer.open(1, "app").await;
    newer.send(1, &image.commit(&[1])).await;
    newer.acked(1, 4).await;
}

#[tokio::test]
async fn an_older_image_is_refused_and_the_living_one_stays() {
    let hub = Hub::new();
    let mut living = hub.welcomed("a", 5).await;
    for (epoch, instance) in [(4, &b"instance"[..]), (5, b"twin")] {
        let stale = hub.connect("a");
        stale.hello(epoch, if epoch == 4 { b"instance" } else { b"twin" }).await;
        let error = stale.end().await.unwrap_err();
        assert!(matches!(error, SessionError::Stale(_)), "{error} for {instance:?}");
        assert!(error.to_string().contains("an older image of node a"), "{error}");
    }
    living.open(1, "app").await;
    living.end().await.unwrap();
    let mut stateless = hub.connect("a");
    stateless.hello(0, b"new disk").await;
    match stateless.next().await {
        Response::Welcome(Welcome { epoch, .. }) => assert_eq!(epoch, 6),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_ended() {
    let hub = Hub::new();
    let client = hub.connect("a");
    client.ask_open(1, "app", 0, None).await;
    assert!(matches!(client.end().await, Err(SessionError::BadHello(_))));
    let client = hub.connect("a");
    client.say(Request::Hello(Hello { protocol_version: 2, ..Hello::default() })).await;
    assert!(matches!(client.end().await, Err(SessionError::BadHello(_))));
    let client = hub.welcomed("a", 1).await;
    client.hello(1, b"instance").await;
    assert!(matches!(client.end().await, Err(SessionError::BadMessage(_))));
}

#[tokio::test]
async fn a_full_buffer_says_busy_and_takes_more_once_there_is_room() {
    let hub = Hub::with_buffer(MemoryBuffer::new(60_000));
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(100);
    client.send(1, &image.first()).await;
    client.acked(1, 1).await;
    let mut sent = vec![image.commit(&[1, 2, 3, 4])];
    while sent.len() < 20 {
        sent.push(image.commit(&[1, 2, 3, 4]));
    }
    for segment in &sent {
        client.send(1, segment).await;
    }
    let refused = client.refused(1, RefusalCode::Busy).await;
    let held = refused.position.unwrap().txid;
    assert_eq!(hub.held("a/app").1, held, "the refusal names the true position");
    // A destination catches up.
    let lane = "one".parse().unwrap();
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    hub.buffer.set_cursor(&lane, id, Txid::new(held).unwrap()).unwrap();
    hub.buffer.trim(&[lane]).await.unwrap();
    assert_eq!(client.open(1, "app").await.position.unwrap().txid, held);
    let next = sent.iter().find(|s| s.range.min().get() == held + 1).unwrap();
    client.send(1, next).await;
    client.acked(1, held + 1).await;
}

#[tokio::test]
async fn durable_is_told_when_the_policy_is_met() {
    let hub = Hub::new();
    let (mut client, _, _) = two_databases(&hub).await;
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    hub.fleet.board.post_copy(0, id, Txid::new(2));
    match client.next().await {
        Response::Ack(ack) => {
            assert_eq!((ack.handle, ack.level, ack.txid), (1, i32::from(AckLevel::Durable), 2));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.open(1, "app").await.durable_txid, 2);
}

#[tokio::test]
async fn many_segments_are_acknowledged_in_order_and_merged() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(4);
    client.send(1, &image.first()).await;
    let segments: Vec<Segment> = (0..500).map(|n| image.commit(&[n % 4 + 1])).collect();
    let requests = client.requests.clone();
    let sender = hub.tasks.spawn(async move {
        for segment in &segments {
            for chunk in chunks(1, segment, 1 << 20) {
                let message = ReplicateRequest { message: Some(Request::Segment(chunk)) };
                requests.send(Ok(message)).await.unwrap();
            }
        }
    });
    client.acked(1, 501).await;
    sender.await.unwrap();
    assert_eq!(hub.held("a/app").0.len(), 501);
}

/// The buffer's own check is the second line: a bug here must not become a hole there.
#[tokio::test]
async fn the_buffer_refuses_what_does_not_follow() {
    let hub = Hub::new();
    let (_client, mut image, _) = two_databases(&hub).await;
    image.commit(&[1]);
    let segment = image.commit(&[2]);
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    let meta = crate::buffer::SegmentMeta {
        range: segment.range,
        pre: segment.pre,
        post: segment.post,
        time_ms: 1,
        agent_time_ms: 1,
    };
    let chunk = Chunk { database: id, meta, number: 0, last: true, data: segment.ltx };
    assert!(hub.buffer.append(chunk).await.is_err());
}
