//! `DestinationsService`: trials of destinations.

use super::peer::Peer;
use super::{Handles, status};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use walhub_proto::v1;
use walhub_proto::v1::destinations_service_server::DestinationsService;
use walhub_store::destinations::DynDestination;
use walhub_store::destinations::check::{self, Outcome, Step};

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

#[tonic::async_trait]
impl DestinationsService for Service {
    async fn check_destinations(
        &self,
        request: Request<v1::CheckDestinationsRequest>,
    ) -> Result<Response<v1::CheckDestinationsResponse>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let name = &request.get_ref().name;
        let roster = self.handles.fleet.board.roster();
        let chosen: Vec<DynDestination> = roster
            .places()
            .iter()
            .filter(|place| name.is_empty() || place.name().as_str() == name)
            .map(|place| place.destination.clone())
            .collect();
        if chosen.is_empty() {
            return Err(status::invalid("name", format!("there is no destination {name}")));
        }
        // Ends with whoever asked.
        let cancel = CancellationToken::new();
        let _guard = cancel.clone().drop_guard();
        let destinations = join_all(chosen.iter().map(|destination| trial(destination, &cancel))).await;
        Ok(Response::new(v1::CheckDestinationsResponse { destinations }))
    }
}

async fn trial(destination: &DynDestination, cancel: &CancellationToken) -> v1::CheckedDestination {
    let steps = check::check(&**destination, cancel).await;
    v1::CheckedDestination {
        name: destination.name().to_string(),
        kind: destination.kind().to_owned(),
        location: destination.location(),
        steps: steps.into_iter().map(convert).collect(),
    }
}

fn convert(step: Step) -> v1::CheckStep {
    let (outcome, cause, message) = match step.outcome {
        Outcome::Passed(remark) => ("passed", "", remark),
        Outcome::Failed(cause, text) => ("failed", cause.as_str(), text),
        Outcome::Skipped => ("skipped", "", String::new()),
    };
    v1::CheckStep {
        name: step.name.to_owned(),
        outcome: outcome.to_owned(),
        cause: cause.to_owned(),
        message,
        elapsed_ms: u64::try_from(step.elapsed.as_millis()).unwrap_or(u64::MAX),
    }
}
