//! `ImportService`: histories that Litestream wrote. For operators.

use super::peer::Peer;
use super::{Handles, status};
use crate::import::{ImportError, Progress};
use futures_util::Stream;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use walhub_proto::convert;
use walhub_proto::v1::import_service_server::ImportService;
use walhub_proto::v1::{ImportProgress, ImportRequest};

/// Messages that wait for the connection; progress that finds no room is left out.
const AHEAD: usize = 16;

pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

fn message(progress: Progress) -> ImportProgress {
    let Progress { files, total_files, bytes } = progress;
    ImportProgress { files, total_files, bytes, position: None }
}

fn refused(error: &ImportError) -> Status {
    let text = error.to_string();
    match error {
        ImportError::Url(_) => Status::invalid_argument(text),
        ImportError::Taken(_) => Status::failed_precondition(text),
        ImportError::Plan(error) => status::restore(error),
        ImportError::Destination(error) => status::source(error),
        ImportError::Damaged(_) => Status::data_loss(text),
        ImportError::Disk(_) | ImportError::Buffer(_) | ImportError::Cancelled => Status::unavailable(text),
    }
}

#[tonic::async_trait]
impl ImportService for Service {
    type ImportStream = Pin<Box<dyn Stream<Item = Result<ImportProgress, Status>> + Send>>;

    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<Self::ImportStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        peer.operator()?;
        let database = peer.may_read(request.get_ref().database.as_ref())?;
        let url = request.into_inner().url;
        let (out, answers) = mpsc::channel(AHEAD);
        let (importer, tasks) = (self.handles.importer.clone(), self.handles.tasks.clone());
        let cancel = tasks.token().clone();
        tasks.spawn(async move {
            let mut last = Progress::default();
            let telling = out.clone();
            let tell = |progress| {
                last = progress;
                let _ = telling.try_send(Ok(message(progress)));
            };
            // Whoever asked may go: then nothing is taken, and what was copied is found again.
            let result = tokio::select! {
                result = importer.import(&url, &database, tell, &cancel) => result,
                () = out.closed() => Err(ImportError::Cancelled),
            };
            let answer = match result {
                Ok(position) => {
                    let position = Some(convert::position_to_wire(Some(position)));
                    Ok(ImportProgress { position, ..message(last) })
                }
                Err(error) => {
                    tracing::warn!(%database, %error, "an import failed");
                    Err(refused(&error))
                }
            };
            let _ = out.send(answer).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
