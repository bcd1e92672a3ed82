//! `ControlService`: what operators change in a running hub.

use super::peer::Peer;
use super::{Handles, status};
use crate::reload::ReloadError;
use tonic::{Request, Response, Status};
use walhub_proto::v1::control_service_server::ControlService;
use walhub_proto::v1::{ReloadRequest, ReloadResponse};

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

#[tonic::async_trait]
impl ControlService for Service {
    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let response = match self.handles.reloader.reload(request.get_ref().dry_run).await {
            Ok(diff) => ReloadResponse {
                changes: diff.changes,
                needs_restart: diff.needs_restart.into_iter().map(str::to_owned).collect(),
                faults: Vec::new(),
            },
            Err(ReloadError::Faults(faults)) => ReloadResponse {
                faults: faults.to_string().lines().map(str::to_owned).collect(),
                ..ReloadResponse::default()
            },
            Err(error) => return Err(status::reload(&error)),
        };
        Ok(Response::new(response))
    }
}
