//! `RestoreService`: plans, the pages of a plan, and the page checksums of a database.

use super::peer::Peer;
use super::{Handles, checksums, pages, status};
use crate::restore::{self, Request as Asked};
use crate::retain;
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use walhub_common::{DatabaseKey, Pos, Txid};
use walhub_proto::convert;
use walhub_proto::v1::restore_pages_response::Message as PagesMessage;
use walhub_proto::v1::restore_request::Target as WireTarget;
use walhub_proto::v1::restore_service_server::RestoreService;
use walhub_proto::v1::{
    FileInfo, PageChecksumsRequest, Position, RestorePagesRequest, RestorePagesResponse, RestorePlan,
    RestoreRequest,
};
use walhub_store::restore::source::BUFFER;
use walhub_store::restore::{Ask, DynSource, PlannedFile, Prepared, SourceName, Target, estimate};

/// Messages of at most 1 MiB that are made before the connection takes them.
const READ_AHEAD: usize = 4;

pub(super) struct Service {
    handles: Handles,
}

/// A request that was allowed, planned and found possible.
struct Planned {
    database: DatabaseKey,
    sources: Vec<DynSource>,
    prepared: Prepared,
    wire: RestorePlan,
    /// Nothing of it is deleted meanwhile.
    pin: retain::Pin,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }

    async fn plan(&self, peer: &Peer, request: &RestoreRequest) -> Result<Planned, Status> {
        let asked = asked(peer, request)?;
        let restores = &self.handles.restores;
        let sources = restores.select(asked.source.as_ref()).map_err(|e| status::unknown_source(&e))?;
        let pin = restores.pins().pin(&asked.database).await;
        let prepared = restores.prepare(&sources, &asked).await.map_err(|e| status::prepare(&e))?;
        let wire = self.describe(&asked, &sources, &prepared);
        Ok(Planned { database: asked.database, sources, prepared, wire, pin })
    }

    fn describe(&self, asked: &Asked, sources: &[DynSource], prepared: &Prepared) -> RestorePlan {
        let Prepared { plan, header, .. } = prepared;
        let estimate = estimate(plan, |name| {
            sources.iter().find(|source| source.name() == name).map_or(BUFFER, |source| source.kind())
        });
        let last = plan.files.last();
        // Without files the receiver stands at the target already; only the hub's own position can name its checksum.
        let held = self.handles.buffer.find(&asked.database).and_then(|held| held.position);
        let checksum = match header {
            Some(header) => header.provenance.map(|p| p.post),
            None => held.filter(|pos: &Pos| pos.txid == plan.reached).map(|pos| pos.checksum),
        };
        RestorePlan {
            position: Some(Position {
                txid: plan.reached.get(),
                checksum: checksum.map_or(0, |sum| sum.get()),
            }),
            timestamp_ms: restore::time_ms(last, header.as_ref()),
            page_size: header.map_or(0, |header| header.page_size.get()),
            commit: header.map_or(0, |header| header.commit),
            files: plan.files.iter().map(info).collect(),
            total_bytes: plan.total_bytes(),
            requests: estimate.requests,
            cost_micros: estimate.cost_micros,
            estimated_ms: estimate.time_ms,
        }
    }
}

fn asked(peer: &Peer, request: &RestoreRequest) -> Result<Asked, Status> {
    let database = peer.may_read(request.database.as_ref())?;
    let target = match request.target {
        None => Target::Latest,
        Some(WireTarget::Txid(txid)) => {
            Target::Txid(Txid::new(txid).ok_or_else(|| status::invalid("txid", "transactions count from 1"))?)
        }
        Some(WireTarget::TimestampMs(ms)) => Target::TimestampMs(ms),
    };
    let source = match request.source.as_str() {
        "" => None,
        name => Some(SourceName::new(name).map_err(|e| status::invalid("source", e))?),
    };
    Ok(Asked { database, target, after: Txid::new(request.after_txid), source })
}

pub(super) fn info(file: &PlannedFile) -> FileInfo {
    FileInfo {
        source: file.source.to_string(),
        level: u32::from(file.level.get()),
        range: Some(convert::range_to_wire(file.range)),
        size: file.size,
        timestamp_ms: file.time_ms,
    }
}

#[tonic::async_trait]
impl RestoreService for Service {
    type PageChecksumsStream = checksums::Answers;

    async fn page_checksums(
        &self,
        request: Request<PageChecksumsRequest>,
    ) -> Result<Response<Self::PageChecksumsStream>, Status> {
        let peer = Peer::of(request.extensions())?.clone();
        checksums::serve(&self.handles, &peer, request.get_ref()).await.map(Response::new)
    }

    type RestorePagesStream = Pin<Box<dyn Stream<Item = Result<RestorePagesResponse, Status>> + Send>>;

    async fn restore_pages(
        &self,
        request: Request<RestorePagesRequest>,
    ) -> Result<Response<Self::RestorePagesStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let RestorePagesRequest { point, wanted, verify_files } = request.get_ref();
        let point = point.as_ref().ok_or_else(|| status::invalid("point", "missing"))?;
        let Planned { database, sources, prepared, wire, pin } = self.plan(peer, point).await?;
        let unwanted = pages::unwanted(wanted, wire.commit)?;
        let (txid, wanted) = (prepared.plan.reached.get(), wire.commit - unwanted.len());
        tracing::info!(%database, txid, pages = wanted, "restore");
        let verify = *verify_files;
        let ask = Ask { verify, span_bytes: pages::MESSAGE_BYTES as u64, ..Ask::new(unwanted) };
        let mut frames = self.handles.restores.pages(&sources, &database, &prepared, ask);
        let (ahead, read) = mpsc::channel(READ_AHEAD);
        self.handles.tasks.spawn(async move {
            let _pin = pin;
            while let Some(frames) = frames.next().await {
                let messages = match frames {
                    Ok(frames) => pages::messages(&frames).into_iter().map(Ok).collect(),
                    Err(error) => {
                        tracing::warn!(%database, %error, "a restore broke off");
                        vec![Err(status::pages(&error))]
                    }
                };
                for message in messages {
                    if ahead.send(message).await.is_err() {
                        return;
                    }
                }
            }
        });
        let plan = RestorePagesResponse { message: Some(PagesMessage::Plan(wire)) };
        let plan = futures_util::stream::once(async { Ok(plan) });
        Ok(Response::new(Box::pin(plan.chain(ReceiverStream::new(read)))))
    }

    async fn plan_restore(&self, request: Request<RestoreRequest>) -> Result<Response<RestorePlan>, Status> {
        Ok(Response::new(self.plan(Peer::of(request.extensions())?, request.get_ref()).await?.wire))
    }
}
