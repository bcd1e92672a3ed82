//! What the hub takes, synced to disk before each ack: segments/s and MB/s from 1, 100 and 1,000 simulated agents, each
//! with its own certificate and stream over real mTLS. The simulated agents run on the same two cores.

use crate::setup::hub;
use crate::table::Row;
use crate::{Plan, process};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::task::TaskGroup;
use walhub_common::tls::{self, Connector, TlsPaths};
use walhub_common::{Checksum, PageSize, Pgno, TxidRange};
use walhub_proto::v1::replicate_request::Message as Say;
use walhub_proto::v1::replicate_response::Message as Hear;
use walhub_proto::v1::replication_service_client::ReplicationServiceClient;
use walhub_proto::v1::{AckLevel, Hello, OpenDatabase, ReplicateRequest, SegmentChunk};
use walhub_tests::certs::{Authority, Files, Who};
use walhub_tests::scratch::Scratch;

/// Segments one agent may have unacked: this many, or as many as make up [`WINDOW_BYTES`], but two.
const WINDOW: u64 = 64;
/// A thousand agents with more would measure this machine's memory.
const WINDOW_BYTES: u64 = 1 << 20;
/// Agents that connect at one time: the handshakes of a thousand at once are another measurement.
const CONNECTING: usize = 32;

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    for agents in plan.pick(vec![1, 100, 1000], vec![1, 20]) {
        let small = measure(agents, 1, plan);
        let mut row =
            Row::new(format!("hub ingest, {agents} agents, 1-page segments: segments/s"), small.rate, None)
                .more_is_better();
        if agents == 100 {
            row = row.goal("≥ 5,000/s", |row| row.ours >= 5000.0);
        }
        rows.push(row);
        rows.push(Row::new(format!("hub memory then, {agents} agents, MB"), small.resident, None));
        let large = measure(agents, 200, plan);
        let row =
            Row::new(format!("hub ingest, {agents} agents, 200-page segments: MB/s"), large.megabytes, None);
        rows.push(row.more_is_better());
    }
    rows
}

struct Measured {
    rate: f64,
    megabytes: f64,
    resident: f64,
}

fn measure(agents: usize, pages: u32, plan: &Plan) -> Measured {
    let scratch = Scratch::new("bench-ingest");
    let authority = Authority::new(&scratch.join("pki"), "bench");
    let (hub, address, _) = hub(scratch.path(), &authority);
    let files: Vec<Files> = (0..agents).map(|n| authority.issue(Who::Agent(&format!("node-{n}")))).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let acked = Arc::new(AtomicU64::new(0));
    let bytes = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(AtomicU64::new(0));
    let end = Arc::new(AtomicBool::new(false));
    let (start, started) = watch::channel(false);
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    runtime.block_on(async {
        let group = TaskGroup::new("agents");
        for files in files {
            let agent = Agent {
                address: address.clone(),
                pages,
                acked: acked.clone(),
                bytes: bytes.clone(),
                ready: ready.clone(),
                end: end.clone(),
                started: started.clone(),
                connecting: connecting.clone(),
            };
            group.spawn(agent.run(files));
        }
        while ready.load(Ordering::Relaxed) < agents as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        start.send_replace(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (began, segments, sent) =
            (Instant::now(), acked.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(plan.pick(8, 3))).await;
        let seconds = began.elapsed().as_secs_f64();
        let measured = Measured {
            rate: (acked.load(Ordering::Relaxed) - segments) as f64 / seconds,
            megabytes: (bytes.load(Ordering::Relaxed) - sent) as f64 / 1e6 / seconds,
            resident: process::resident(hub.id()).expect("read the hub") as f64 / 1e6,
        };
        end.store(true, Ordering::Relaxed);
        group.shutdown(Duration::from_secs(20)).await;
        measured
    })
}

/// One simulated node with one database of `pages` pages, all of which each segment changes.
struct Agent {
    address: String,
    pages: u32,
    acked: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    ready: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    started: watch::Receiver<bool>,
    connecting: Arc<Semaphore>,
}

impl Agent {
    async fn run(mut self, files: Files) {
        let connector = Arc::new(
            Connector::open(TlsPaths { ca: files.ca, cert: files.cert, key: files.key })
                .expect("certificates"),
        );
        let address = self.address.clone();
        let connect = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let (address, connector) = (address.clone(), connector.clone());
            async move { tls::connect(&address, None, &connector).await.map(TokioIo::new) }
        });
        let turn = self.connecting.acquire().await.expect("never closed");
        let channel =
            Endpoint::from_static("http://hub").connect_with_connector(connect).await.expect("connect");
        drop(turn);
        let (say, said) = mpsc::channel(WINDOW as usize + 2);
        send(
            &say,
            Say::Hello(Hello {
                takes_orders: false,
                protocol_version: 1,
                agent_version: "bench".into(),
                epoch: 0,
                instance_id: Bytes::from_static(&[7; 16]),
            }),
        )
        .await;
        send(
            &say,
            Say::Open(OpenDatabase {
                handle: 1,
                name: "db".into(),
                lineage: 0,
                position: None,
                path: "/simulated".into(),
            }),
        )
        .await;
        let mut client = ReplicationServiceClient::new(channel);
        let mut heard = client.replicate(ReceiverStream::new(said)).await.expect("replicate").into_inner();
        let mut history = History::new(self.pages);
        let (mut last_acked, mut segment_bytes) = (0, 0);
        while let Some(message) = heard.message().await.expect("the stream broke") {
            match message.message.expect("a message") {
                Hear::Opened(_) => {}
                Hear::Ack(ack) if ack.level == AckLevel::Buffered as i32 => {
                    let segments = ack.txid - last_acked;
                    self.acked.fetch_add(segments, Ordering::Relaxed);
                    self.bytes.fetch_add(segments * segment_bytes, Ordering::Relaxed);
                    if last_acked == 0 {
                        // Nobody floods the hub before everybody is connected and has a base there.
                        self.ready.fetch_add(1, Ordering::Relaxed);
                        self.started.wait_for(|started| *started).await.expect("the bench goes on");
                    }
                    last_acked = ack.txid;
                }
                Hear::Refused(refused) => panic!("refused: {}", refused.message),
                _ => continue,
            }
            let window = WINDOW_BYTES.checked_div(segment_bytes).unwrap_or(0).clamp(2, WINDOW);
            let ahead = if last_acked == 0 { 1 } else { last_acked + window };
            while history.txid < ahead {
                if self.end.load(Ordering::Relaxed) {
                    return;
                }
                let segment = history.next();
                // All of one agent are of one size, but for a few bytes.
                segment_bytes = segment.data.len() as u64;
                send(&say, Say::Segment(segment)).await;
            }
        }
    }
}

async fn send(say: &mpsc::Sender<ReplicateRequest>, message: Say) {
    say.send(ReplicateRequest { message: Some(message) }).await.expect("the stream ended");
}

/// Makes segments that follow each other.
struct History {
    txid: u64,
    checksum: Option<Checksum>,
    pages: Vec<Vec<u8>>,
}

impl History {
    fn new(pages: u32) -> History {
        // Half noise, half zeros: compresses to about a half.
        let page = |_| (0..4096usize).map(|i| if i < 2048 { rand::random::<u8>() } else { 0 }).collect();
        History { txid: 0, checksum: None, pages: (0..pages).map(page).collect() }
    }

    fn next(&mut self) -> SegmentChunk {
        self.txid += 1;
        let mut post = Checksum::EMPTY;
        for (at, page) in self.pages.iter_mut().enumerate() {
            page[0..8].copy_from_slice(&self.txid.to_be_bytes());
            post = post.toggle(Checksum::of_page(Pgno::new(at as u32 + 1).expect("from 1"), page));
        }
        let range = TxidRange::from_raw(self.txid, self.txid).expect("a range");
        let header = Header {
            page_size: PageSize::new(4096).expect("a page size"),
            commit: self.pages.len() as u32,
            range,
            timestamp_ms: 0,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre: self.checksum, post }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("header");
        for (at, page) in self.pages.iter().enumerate() {
            encoder.page(Pgno::new(at as u32 + 1).expect("from 1"), page).expect("page");
        }
        let data = encoder.finish().expect("trailer").0;
        let pre = self.checksum.replace(post);
        SegmentChunk {
            handle: 1,
            range: Some(walhub_proto::convert::range_to_wire(range)),
            pre_checksum: pre.map_or(0, Checksum::get),
            post_checksum: post.get(),
            agent_time_ms: 0,
            chunk: 0,
            last: true,
            data: data.into(),
            ..SegmentChunk::default()
        }
    }
}
