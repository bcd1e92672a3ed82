//! `RetentionService`: what destinations keep, and holds. For operators.

use super::peer::Peer;
use super::restore::info;
use super::{Handles, status};
use crate::retain::Report;
use futures_util::Stream;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use walhub_common::{DatabaseKey, DestinationName, clock};
use walhub_proto::v1::retention_service_server::RetentionService;
use walhub_proto::v1::{self, RetentionReport, RetentionVerdict};
use walhub_store::destinations::Listed;
use walhub_store::restore::PlannedFile;
use walhub_store::retention::Kept;

/// Files in one message.
const FILES: usize = 1000;
/// Messages that wait for the connection.
const AHEAD: usize = 4;

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }

    fn known(&self, asked: Option<&v1::DatabaseRef>, peer: &Peer) -> Result<DatabaseKey, Status> {
        let key = peer.may_read(asked)?;
        match self.handles.retainer.knows(&key) {
            true => Ok(key),
            false => Err(Status::not_found(format!(
                "the hub knows no database {key}; see `hubctl databases list`"
            ))),
        }
    }
}

pub(super) fn reference(key: &DatabaseKey) -> v1::DatabaseRef {
    v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() }
}

/// A report as messages of bounded size.
fn messages(report: &Report) -> Vec<RetentionReport> {
    let verdict = |file: &Listed, delete: bool, reason: String| {
        let (level, range, size, time_ms) = (file.level, file.range, file.size, file.time_ms);
        let planned = PlannedFile { source: report.destination.clone(), level, range, size, time_ms };
        RetentionVerdict { file: Some(info(&planned)), delete, reason }
    };
    let mut files: Vec<RetentionVerdict> =
        report.plan.delete.iter().map(|(file, why)| verdict(file, true, why.to_string())).collect();
    let stays = |why: &Kept| match why {
        Kept::Awaited(txid) => {
            let by = report.needs.points.get(txid).map(|by| format!(" ({by})")).unwrap_or_default();
            format!("{why}{by}")
        }
        why => why.to_string(),
    };
    files.extend(report.plan.keep.iter().map(|(file, why)| verdict(file, false, stays(why))));
    let message = |files: &[RetentionVerdict]| RetentionReport {
        database: Some(reference(&report.database)),
        destination: report.destination.to_string(),
        files: files.to_vec(),
        ..RetentionReport::default()
    };
    let mut messages: Vec<RetentionReport> = files.chunks(FILES).map(message).collect();
    if messages.is_empty() {
        messages.push(message(&[]));
    }
    if let Some(last) = messages.last_mut() {
        last.deleted = report.deleted as u64;
        last.error = report.error.clone().unwrap_or_default();
    }
    messages
}

#[tonic::async_trait]
impl RetentionService for Service {
    type RetainStream = Pin<Box<dyn Stream<Item = Result<RetentionReport, Status>> + Send>>;

    async fn retain(
        &self,
        request: Request<v1::RetainRequest>,
    ) -> Result<Response<Self::RetainStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let asked = request.get_ref();
        let database = match &asked.database {
            Some(_) => Some(self.known(asked.database.as_ref(), peer)?),
            None => None,
        };
        let destination = match asked.destination.as_str() {
            "" => None,
            name => Some(DestinationName::new(name).map_err(|e| status::invalid("destination", e))?),
        };
        let (run, retainer) = (asked.run, self.handles.retainer.clone());
        if run {
            tracing::info!(peer = %peer.identity, database = ?database, destination = ?destination, "retention was asked for");
        }
        let (out, messages_out) = mpsc::channel(AHEAD);
        self.handles.tasks.spawn(async move {
            let take = |report: Report| {
                let out = out.clone();
                async move {
                    for message in messages(&report) {
                        if out.send(Ok(message)).await.is_err() {
                            return false;
                        }
                    }
                    true
                }
            };
            if let Err(error) =
                retainer.now(destination.as_ref(), database.as_ref(), run, clock::now_ms(), take).await
            {
                let _ = out.send(Err(status::invalid("destination", error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages_out))))
    }

    async fn add_hold(
        &self,
        request: Request<v1::AddHoldRequest>,
    ) -> Result<Response<v1::AddHoldResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let key = self.known(request.get_ref().database.as_ref(), peer)?;
        let holds = self.handles.retainer.holds();
        holds.add(&key, &request.get_ref().reason).await.map_err(|e| Status::unavailable(e.to_string()))?;
        tracing::info!(peer = %peer.identity, database = %key, "put on hold");
        Ok(Response::new(v1::AddHoldResponse {}))
    }

    async fn release_hold(
        &self,
        request: Request<v1::ReleaseHoldRequest>,
    ) -> Result<Response<v1::ReleaseHoldResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let key = peer.may_read(request.get_ref().database.as_ref())?;
        let released = self.handles.retainer.holds().release(&key).await;
        if !released.map_err(|e| Status::unavailable(e.to_string()))? {
            return Err(Status::not_found(format!("{key} is not on hold; see `hubctl hold list`")));
        }
        tracing::info!(peer = %peer.identity, database = %key, "hold released");
        Ok(Response::new(v1::ReleaseHoldResponse {}))
    }

    async fn list_holds(
        &self,
        request: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let hold = |hold: crate::retain::Hold| v1::Hold {
            database: Some(reference(&hold.database)),
            since_ms: hold.since_ms,
            reason: hold.reason,
        };
        let holds = self.handles.retainer.holds().list().into_iter().map(hold).collect();
        Ok(Response::new(v1::ListHoldsResponse { holds }))
    }
}
