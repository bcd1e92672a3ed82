//! `DrillService`: restores that are tried before they are needed, for operators.

use super::peer::Peer;
use super::retention::reference;
use super::{Handles, status};
use crate::drills::{Asked, Copy, Drill, DrillError, OlderPoint, Outlook, Verdict};
use futures_util::{Stream, stream};
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use walhub_common::{DatabaseKey, DestinationName};
use walhub_proto::v1::drill_service_server::DrillService;
use walhub_proto::v1::{self, DrillOutlook, DrillRepair, DrillVerdict, ListDrillsResponse};

/// Drills in one message.
const DRILLS: usize = 500;

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }

    /// The copies that are asked for.
    fn copies(
        &self,
        database: &DatabaseKey,
        destination: Option<&DestinationName>,
    ) -> Result<Vec<Copy>, Status> {
        let copies = self.handles.drills.copies_of(database).ok_or_else(|| {
            Status::not_found(format!("the hub knows no database {database}; see `hubctl databases list`"))
        })?;
        let known: Vec<String> = copies.iter().map(|copy| copy.destination.to_string()).collect();
        let asked: Vec<Copy> = copies
            .into_iter()
            .filter(|copy| destination.is_none_or(|asked| *asked == copy.destination))
            .collect();
        match (destination, asked.is_empty()) {
            (Some(asked), true) => Err(Status::not_found(format!(
                "{database} does not go to a destination called {asked}; it goes to {}",
                known.join(", ")
            ))),
            _ => Ok(asked),
        }
    }
}

fn named(destination: &str) -> Result<Option<DestinationName>, Status> {
    match destination {
        "" => Ok(None),
        name => Ok(Some(DestinationName::new(name).map_err(|e| status::invalid("destination", e))?)),
    }
}

fn verdict(verdict: Verdict) -> DrillVerdict {
    match verdict {
        Verdict::Passed => DrillVerdict::Passed,
        Verdict::Repaired => DrillVerdict::Repaired,
        Verdict::Failed => DrillVerdict::Failed,
        Verdict::Undone => DrillVerdict::Undone,
        Verdict::Repairing => DrillVerdict::Repairing,
    }
}

fn wire(drill: Drill) -> v1::Drill {
    v1::Drill {
        database: Some(reference(&drill.copy.database)),
        destination: drill.copy.destination.to_string(),
        began_ms: drill.began_ms,
        elapsed_ms: drill.elapsed_ms,
        verdict: verdict(drill.verdict).into(),
        txid: drill.txid,
        point_ms: drill.point_ms,
        database_bytes: drill.database_bytes,
        bytes: drill.bytes,
        requests: drill.requests,
        message: drill.message,
        repairs: drill.repairs,
        older: drill
            .older
            .into_iter()
            .map(|OlderPoint { txid, point_ms }| v1::OlderPoint { txid, point_ms })
            .collect(),
    }
}

fn outlook(outlook: Outlook) -> DrillOutlook {
    let Outlook { rules, copies, running } = outlook;
    let at = running.as_ref().map(|(copy, _)| copy);
    DrillOutlook {
        every_ms: rules.every.map_or(0, |every| every.as_millis() as u64),
        sample: rules.sample,
        copies: copies as u64,
        running: at.map(|copy| reference(&copy.database)),
        running_at: at.map(|copy| copy.destination.to_string()).unwrap_or_default(),
        running_since_ms: running.as_ref().map_or(0, |(_, since_ms)| *since_ms),
    }
}

#[tonic::async_trait]
impl DrillService for Service {
    type ListDrillsStream = Pin<Box<dyn Stream<Item = Result<ListDrillsResponse, Status>> + Send>>;

    async fn list_drills(
        &self,
        request: Request<v1::ListDrillsRequest>,
    ) -> Result<Response<Self::ListDrillsStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let asked = request.get_ref();
        let database = match &asked.database {
            Some(_) => Some(peer.may_read(asked.database.as_ref())?),
            None => None,
        };
        let (destination, drills) = (named(&asked.destination)?, &self.handles.drills);
        let found = drills.list(database.as_ref(), destination.as_ref(), asked.history);
        let mut messages: Vec<ListDrillsResponse> = found
            .chunks(DRILLS)
            .map(|some| ListDrillsResponse {
                outlook: None,
                drills: some.iter().cloned().map(wire).collect(),
            })
            .collect();
        if messages.is_empty() {
            messages.push(ListDrillsResponse::default());
        }
        messages[0].outlook = Some(outlook(drills.outlook()));
        Ok(Response::new(Box::pin(stream::iter(messages.into_iter().map(Ok)))))
    }

    type RunDrillStream = Pin<Box<dyn Stream<Item = Result<v1::Drill, Status>> + Send>>;

    async fn run_drill(
        &self,
        request: Request<v1::RunDrillRequest>,
    ) -> Result<Response<Self::RunDrillStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let asked = request.get_ref();
        let database = peer.may_read(asked.database.as_ref())?;
        let copies = self.copies(&database, named(&asked.destination)?.as_ref())?;
        let drills = self.handles.drills.clone();
        let repair = match asked.repair() {
            DrillRepair::Unspecified => drills.outlook().rules.repair,
            DrillRepair::Yes => true,
            DrillRepair::No => false,
        };
        let every_file = asked.every_file;
        tracing::info!(peer = %peer.identity, %database, repair, every_file, "a drill was asked for");
        let (out, results) = mpsc::channel(1);
        self.handles.tasks.spawn(async move {
            for copy in copies {
                let made = tokio::select! {
                    made = drills.run(Asked { copy, repair, every_file }) => made,
                    () = out.closed() => return,
                };
                let said = made.map(wire).map_err(|error| match error {
                    DrillError::Busy => Status::resource_exhausted(error.to_string()),
                    DrillError::Ended => Status::unavailable(error.to_string()),
                });
                let over = said.is_err();
                if out.send(said).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(results))))
    }
}
