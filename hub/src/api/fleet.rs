//! `FleetService`: the picture of everything the peer may see.

use super::peer::Peer;
use super::restore::info;
use super::{Handles, status};
use crate::drills::{Copy, Drills};
use crate::fleet::status::{Scope, assemble};
use tonic::{Request, Response, Status};
use walhub_common::tls::Role;
use walhub_common::{AgentName, DatabaseKey, DatabaseName, DestinationName, clock};
use walhub_proto::v1::fleet_service_server::FleetService;
use walhub_proto::v1::{
    DatabaseRef, DrillBrief, LabelAgentRequest, LabelAgentResponse, ListFilesRequest, ListFilesResponse,
    StatusRequest, StatusResponse,
};
use walhub_store::restore::{PlannedFile, SourceName};

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

fn scope(peer: &Peer, request: &StatusRequest) -> Result<Scope, Status> {
    let agent = match (request.agent.as_str(), peer.identity.role) {
        ("", Role::Agent) => Some(peer.identity.name.clone()),
        ("", _) => None,
        (name, _) => Some(AgentName::new(name).map_err(|e| status::invalid("agent", e))?),
    };
    if let Some(agent) = &agent {
        peer.may_see(agent)?;
    }
    let database = match request.database.as_str() {
        "" => None,
        name => Some(DatabaseName::new(name).map_err(|e| status::invalid("database", e))?),
    };
    Ok(Scope { agent, database })
}

/// Where the copies lie, and how many databases others have, is no business of a node.
fn for_agent(mut picture: StatusResponse) -> StatusResponse {
    if let Some(hub) = &mut picture.hub {
        hub.id.clear();
    }
    for copy in picture.databases.iter_mut().flat_map(|database| &mut database.copies) {
        copy.drill = None;
    }
    for destination in &mut picture.destinations {
        destination.location.clear();
        destination.last_error.clear();
        destination.databases_behind = 0;
        destination.mirror = None;
    }
    if let Some(hub) = &mut picture.hub {
        hub.compaction = None;
    }
    picture
}

/// The last drill of every copy in the picture.
fn with_drills(picture: &mut StatusResponse, drills: &Drills) {
    let now_ms = clock::now_ms();
    for database in &mut picture.databases {
        let Some(DatabaseRef { agent, name }) = &database.database else { continue };
        let (Ok(agent), Ok(name)) = (AgentName::new(agent.as_str()), DatabaseName::new(name.as_str())) else {
            continue;
        };
        let key = DatabaseKey::new(agent, name);
        for copy in &mut database.copies {
            let Ok(destination) = DestinationName::new(copy.destination.as_str()) else { continue };
            let last = drills.last(&Copy { database: key.clone(), destination });
            copy.drill = last.map(|drill| DrillBrief {
                age_ms: u64::try_from(now_ms - drill.began_ms).unwrap_or(0),
                verdict: drill.verdict.as_str().to_owned(),
                message: drill.message,
            });
        }
    }
}

#[tonic::async_trait]
impl FleetService for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let peer = Peer::of(request.extensions())?;
        let scope = scope(peer, request.get_ref())?;
        let to_agent = peer.identity.role == Role::Agent;
        let Handles { fleet, buffer, drills, started_ms, .. } = self.handles.clone();
        // Every lag looks into the index, which may have to read from disk.
        let picture = tokio::task::spawn_blocking(move || {
            let mut picture = assemble(&fleet, buffer.as_ref(), &scope, started_ms);
            with_drills(&mut picture, &drills);
            picture
        })
        .await;
        let picture = picture.map(|picture| if to_agent { for_agent(picture) } else { picture });
        picture.map(Response::new).map_err(|_| Status::internal("the status failed; see the hub's log"))
    }

    async fn label_agent(
        &self,
        request: Request<LabelAgentRequest>,
    ) -> Result<Response<LabelAgentResponse>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let LabelAgentRequest { agent, set, remove } = request.into_inner();
        let agent = AgentName::new(agent).map_err(|e| status::invalid("agent", e))?;
        let labels = self.handles.fleet.labels.change(&agent, set.into_iter().collect(), &remove).await;
        let labels = labels.map_err(|e| status::label(&e))?;
        tracing::info!(%agent, ?labels, "labels changed");
        Ok(Response::new(LabelAgentResponse { labels: labels.into_iter().collect() }))
    }

    async fn list_files(
        &self,
        request: Request<ListFilesRequest>,
    ) -> Result<Response<ListFilesResponse>, Status> {
        let asked = request.get_ref();
        let database = Peer::of(request.extensions())?.may_read(asked.database.as_ref())?;
        let source = match asked.source.as_str() {
            "" => None,
            name => Some(SourceName::new(name).map_err(|e| status::invalid("source", e))?),
        };
        let restores = &self.handles.restores;
        let sources = restores.select(source.as_ref()).map_err(|e| status::unknown_source(&e))?;
        let inventory = restores.inventory(&sources, &database).await;
        let mut files = Vec::new();
        for listing in inventory.listings {
            for file in listing.files {
                let source = listing.source.clone();
                let (level, range, size, time_ms) = (file.level, file.range, file.size, file.time_ms);
                files.push(PlannedFile { source, level, range, size, time_ms });
            }
        }
        files.sort_by(|a, b| (&a.source, a.level, a.range).cmp(&(&b.source, b.level, b.range)));
        let errors = inventory.unanswered.iter().map(|e| format!("{}: {e}", e.destination)).collect();
        Ok(Response::new(ListFilesResponse { files: files.iter().map(info).collect(), errors }))
    }
}
