//! `JobService`: restores of many databases on their nodes, for operators.

use super::peer::Peer;
use super::{Handles, status};
use crate::jobs::{Action, Asked, JobError, Jobs, Planned, View};
use futures_util::Stream;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use walhub_proto::v1::job_service_server::JobService;
use walhub_proto::v1::{
    Job, JobPlan, JobReference, JobRequest, JobState, JobUpdate, ListJobsRequest, ListJobsResponse,
    WatchJobRequest,
};

/// What changes is told this often.
const PACE: Duration = Duration::from_millis(200);
/// Databases in one message.
const MAX_TARGETS: usize = 1000;

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }

    async fn plan(&self, request: Request<JobRequest>) -> Result<Planned, Status> {
        let asked = Asked::new(request.into_inner()).map_err(|e| status::plan(&e))?;
        Box::pin(self.handles.planner.plan(asked)).await.map_err(|e| status::plan(&e))
    }

    async fn act(&self, request: Request<JobReference>, action: Action) -> Result<Response<Job>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let (id, operator) = (request.get_ref().id.clone(), peer.identity.name.to_string());
        let job = self.handles.jobs.act(&id, action, &operator).await.map_err(|e| status::job(&e))?;
        tracing::info!(job = job.id, ?action, operator, "an operator's word about a job");
        Ok(Response::new(job))
    }
}

/// Sends a view, in pieces; false when nobody reads it.
async fn say(out: &mpsc::Sender<Result<JobUpdate, Status>>, view: View) -> bool {
    let View { job, mut targets, .. } = view;
    loop {
        let rest = targets.split_off(targets.len().min(MAX_TARGETS));
        let update = JobUpdate { job: Some(job.clone()), targets };
        if out.send(Ok(update)).await.is_err() {
            return false;
        }
        if rest.is_empty() {
            return true;
        }
        targets = rest;
    }
}

/// Tells a job as it changes, until it ends or nobody reads.
async fn watch(jobs: Jobs, first: View, once: bool, out: mpsc::Sender<Result<JobUpdate, Status>>) {
    let mut changes = jobs.revision();
    let (id, mut since) = (first.job.id.clone(), first.revision);
    let is_end = |job: &Job| matches!(job.state(), JobState::Done | JobState::Failed | JobState::Cancelled);
    let mut ended = is_end(&first.job);
    if !say(&out, first).await {
        return;
    }
    while !ended && !once {
        tokio::select! {
            changed = changes.wait_for(|now| *now > since) => if changed.is_err() { return },
            () = out.closed() => return,
        }
        match jobs.view(&id, since).await {
            Ok(view) => {
                (since, ended) = (view.revision, is_end(&view.job));
                if !say(&out, view).await {
                    return;
                }
            }
            Err(JobError::Ended) => return,
            Err(error) => {
                let _ = out.send(Err(status::job(&error))).await;
                return;
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<JobUpdate, Status>> + Send>>;

    async fn plan_job(&self, request: Request<JobRequest>) -> Result<Response<JobPlan>, Status> {
        Peer::of(request.extensions())?.operator()?;
        Ok(Response::new(self.plan(request).await?.wire()))
    }

    async fn start_job(&self, request: Request<JobRequest>) -> Result<Response<Job>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let operator = peer.identity.name.to_string();
        let planned = self.plan(request).await?;
        let job = self.handles.jobs.begin(planned, &operator).await.map_err(|e| status::job(&e))?;
        Ok(Response::new(job))
    }

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let WatchJobRequest { id, once } = request.into_inner();
        let jobs = self.handles.jobs.clone();
        let first = jobs.view(&id, 0).await.map_err(|e| status::job(&e))?;
        let (out, updates) = mpsc::channel(4);
        let token = self.handles.tasks.token().clone();
        self.handles.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = watch(jobs, first, once, out) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        Peer::of(request.extensions())?.operator()?;
        let jobs = self.handles.jobs.list().await.map_err(|e| status::job(&e))?;
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn pause_job(&self, request: Request<JobReference>) -> Result<Response<Job>, Status> {
        self.act(request, Action::Pause).await
    }

    async fn resume_job(&self, request: Request<JobReference>) -> Result<Response<Job>, Status> {
        self.act(request, Action::Resume).await
    }

    async fn cancel_job(&self, request: Request<JobReference>) -> Result<Response<Job>, Status> {
        self.act(request, Action::Cancel).await
    }
}
