//! `ReplicationService`: one stream per agent, driven by [`crate::ingest`].

use super::peer::Peer;
use super::{Handles, status};
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use walhub_proto::v1::replication_service_server::ReplicationService;
use walhub_proto::v1::{ReplicateRequest, ReplicateResponse};

/// Answers under way to the connection.
const OUTBOUND: usize = 64;

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

#[tonic::async_trait]
impl ReplicationService for Service {
    type ReplicateStream = Pin<Box<dyn Stream<Item = Result<ReplicateResponse, Status>> + Send>>;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let (agent, address) = (peer.agent()?.clone(), peer.address.clone());
        let inbound = request.into_inner().map(|message| message.map_err(|s| status::broken(&s)));
        let (out, answers) = mpsc::channel(OUTBOUND);
        let ingest = self.handles.ingest.clone();
        // The session outlives a connection that breaks by as long as it takes to settle what is under way.
        let session =
            self.handles.tasks.spawn(async move { ingest.serve(agent, &address, inbound, out).await });
        // The verdict follows the last answer, as the stream's status.
        let end = futures_util::stream::once(async move {
            match session.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(status::session(&error))),
                Err(_) => Some(Err(Status::internal("the session failed; see the hub's log"))),
            }
        });
        let answers = ReceiverStream::new(answers).map(Ok);
        Ok(Response::new(Box::pin(answers.chain(end.filter_map(std::future::ready)))))
    }
}
