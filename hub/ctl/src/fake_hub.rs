//! A hub in the test's own process: real mTLS, real gRPC, scripted answers.

use crate::authority::{Authority, Validity};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status};
use walhub_common::ltx::squeeze;
use walhub_common::task::TaskGroup;
use walhub_common::tls::{Acceptor, Identity, ServerStream, accept};
use walhub_common::{Checksum, Pgno};
use walhub_proto::v1;
use walhub_proto::v1::fleet_service_server::{FleetService, FleetServiceServer};
use walhub_proto::v1::restore_pages_response::Message as PagesMessage;
use walhub_proto::v1::restore_service_server::{RestoreService, RestoreServiceServer};

/// What the hub does when asked for one database.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    /// Sends this database file (pages of 512 bytes), in two messages.
    Whole,
    /// Sends it under another checksum.
    WrongChecksum,
    /// Sends half of it, then this status.
    Breaks(Status),
    /// Sends half of it, says so, and then nothing.
    Hangs(Arc<tokio::sync::Notify>),
    /// Ends after the first message, with status OK.
    Short,
    /// Is registered, but empty.
    Nothing,
}

/// Pages 1..=3 after transaction 9.
pub(crate) fn image() -> Vec<u8> {
    [[1_u8; 512], [7; 512], [3; 512]].concat()
}

fn checksum() -> Checksum {
    let sums = image()
        .chunks(512)
        .enumerate()
        .map(|(i, page)| Checksum::of_page(pgno(i + 1), page))
        .collect::<Vec<_>>();
    sums.into_iter().fold(Checksum::EMPTY, Checksum::toggle)
}

fn pgno(number: usize) -> Pgno {
    Pgno::new(number as u32).unwrap()
}

/// A running hub; ends when dropped.
pub(crate) struct FakeHub {
    address: String,
    dir: tempfile::TempDir,
    group: TaskGroup,
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.group.token().cancel();
    }
}

impl FakeHub {
    /// Serves `databases`, by `agent/name`.
    pub(crate) async fn start(databases: &[(&str, Script)]) -> FakeHub {
        let dir = tempfile::tempdir().unwrap();
        let day = Validity::from_now(time::Duration::days(1));
        Authority::create(dir.path(), "test CA", day).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let issue = |uri: &str, hosts: &[String], name: &str| {
            authority.issue(&Identity::parse(uri).unwrap(), hosts, day, &dir.path().join(name)).unwrap()
        };
        let hub = issue("spiffe://walhub/hub/h", &["127.0.0.1".into()], "hub");
        issue("spiffe://walhub/operator/ann", &[], "ann");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let group = TaskGroup::new("fake hub");
        let scripts: BTreeMap<String, Script> =
            databases.iter().map(|(key, script)| ((*key).to_owned(), script.clone())).collect();
        let acceptor = Acceptor::open(hub).unwrap();
        let (sender, receiver) = mpsc::channel(4);
        group.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if let Ok((stream, _)) = accept(socket, &acceptor).await {
                    let _ = sender.send(Ok::<_, io::Error>(Stream(stream))).await;
                }
            }
        });
        let service = Service { scripts: Arc::new(scripts), group: group.clone() };
        let token = group.token().clone();
        group.spawn(async move {
            let server = Server::builder()
                .add_service(RestoreServiceServer::new(service.clone()))
                .add_service(FleetServiceServer::new(service));
            server
                .serve_with_incoming_shutdown(ReceiverStream::new(receiver), token.cancelled_owned())
                .await
                .unwrap();
        });
        FakeHub { address, dir, group }
    }

    /// A folder of this test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Words of a command line that end with how to connect.
    pub(crate) fn command(&self, words: &[&str]) -> Vec<String> {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let mut all = vec!["hubctl".to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all.extend(["--hub".to_owned(), self.address.clone()]);
        all.extend(["--ca".to_owned(), file("ca.pem"), "--cert".to_owned(), file("ann.pem")]);
        all.extend(["--key".to_owned(), file("ann.key")]);
        all
    }
}

#[derive(Clone)]
struct Service {
    scripts: Arc<BTreeMap<String, Script>>,
    group: TaskGroup,
}

impl Service {
    fn script(&self, request: &v1::RestoreRequest) -> Result<Script, Status> {
        let key = request.database.clone().unwrap_or_default();
        let key = format!("{}/{}", key.agent, key.name);
        self.scripts
            .get(&key)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("the hub does not know {key}")))
    }
}

fn file(min: u64, max: u64) -> v1::FileInfo {
    let range = Some(v1::TxidRange { min, max });
    v1::FileInfo { source: "disk".into(), level: 0, range, size: 0, timestamp_ms: 1000 }
}

fn plan(checksum: Checksum) -> v1::RestorePlan {
    v1::RestorePlan {
        position: Some(v1::Position { txid: 9, checksum: checksum.get() }),
        timestamp_ms: 1_795_354_117_090,
        page_size: 512,
        commit: 3,
        files: vec![file(1, 4), file(5, 9)],
        total_bytes: 100,
        ..v1::RestorePlan::default()
    }
}

#[tonic::async_trait]
impl RestoreService for Service {
    async fn plan_restore(
        &self,
        request: Request<v1::RestoreRequest>,
    ) -> Result<Response<v1::RestorePlan>, Status> {
        self.script(request.get_ref())?;
        Ok(Response::new(plan(checksum())))
    }

    type RestorePagesStream = ReceiverStream<Result<v1::RestorePagesResponse, Status>>;

    async fn restore_pages(
        &self,
        request: Request<v1::RestorePagesRequest>,
    ) -> Result<Response<Self::RestorePagesStream>, Status> {
        let script = self.script(request.get_ref().point.as_ref().unwrap())?;
        let promised = if matches!(script, Script::WrongChecksum) { Checksum::EMPTY } else { checksum() };
        let frames = |pages: &[u32]| {
            let blocks = pages.iter().map(|page| squeeze(&image()[(*page as usize - 1) * 512..][..512]));
            let blocks: Vec<Vec<u8>> = blocks.collect();
            let lengths = blocks.iter().map(|block| block.len() as u32).collect();
            let (pages, data) = (pages.to_vec(), blocks.concat().into());
            PagesMessage::Frames(v1::PageFrames { pages, lengths, data })
        };
        let mut messages = vec![PagesMessage::Plan(plan(promised)), frames(&[2, 1]), frames(&[3])];
        if matches!(script, Script::Breaks(_) | Script::Hangs(_) | Script::Short) {
            messages.truncate(2);
        }
        let (sender, receiver) = mpsc::channel(1);
        self.group.spawn(async move {
            for message in messages {
                if sender.send(Ok(v1::RestorePagesResponse { message: Some(message) })).await.is_err() {
                    return;
                }
            }
            match script {
                Script::Breaks(status) => {
                    let _ = sender.send(Err(status)).await;
                }
                Script::Hangs(reached) => {
                    reached.notify_one();
                    sender.closed().await;
                }
                _ => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type PageChecksumsStream = ReceiverStream<Result<v1::PageChecksumsResponse, Status>>;

    async fn page_checksums(
        &self,
        _: Request<v1::PageChecksumsRequest>,
    ) -> Result<Response<Self::PageChecksumsStream>, Status> {
        Err(Status::unimplemented("not asked for by hubctl"))
    }
}

#[tonic::async_trait]
impl FleetService for Service {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let wanted = &request.get_ref().agent;
        let database = |(key, script): (&String, &Script)| {
            let (agent, name) = key.split_once('/').unwrap();
            let txid = if matches!(script, Script::Nothing) { 0 } else { 9 };
            let key = v1::DatabaseRef { agent: agent.into(), name: name.into() };
            let buffered = Some(v1::Position { txid, checksum: 0 });
            (wanted.is_empty() || wanted == agent).then(|| v1::DatabaseStatus {
                database: Some(key),
                buffered,
                ..Default::default()
            })
        };
        let databases = self.scripts.iter().filter_map(database).collect();
        Ok(Response::new(v1::StatusResponse { databases, ..Default::default() }))
    }

    async fn label_agent(
        &self,
        _: Request<v1::LabelAgentRequest>,
    ) -> Result<Response<v1::LabelAgentResponse>, Status> {
        Err(Status::unimplemented("not asked for by these tests"))
    }

    async fn list_files(
        &self,
        _request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<v1::ListFilesResponse>, Status> {
        let errors = vec!["offsite: no route".to_owned()];
        Ok(Response::new(v1::ListFilesResponse { files: vec![file(1, 4), file(5, 9)], errors }))
    }
}

/// tonic wants to know about connections; the stream's type belongs to others.
struct Stream(ServerStream);

impl Connected for Stream {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
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
