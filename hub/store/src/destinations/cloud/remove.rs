//! Deleting objects: Azure takes many in one request, GCS one.

use super::fault::explain;
use super::{CloudDestination, location};
use crate::destinations::Fault;
use futures_util::stream::{self, StreamExt};
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

impl CloudDestination {
    /// Deletes objects; those that are not there are no fault.
    pub(super) async fn remove(&self, objects: Vec<String>, cancel: &CancellationToken) -> Result<(), Fault> {
        if cancel.is_cancelled() {
            return Err(Fault::Cancelled);
        }
        let paths = objects.iter().map(|object| location(object)).collect::<Result<Vec<_>, _>>()?;
        let mut deleting = self.store.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        let mut refused = None;
        loop {
            let answer = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Fault::Cancelled),
                answer = tokio::time::timeout(self.request_timeout, deleting.next()) => answer,
            };
            match answer {
                Ok(None) => return refused.map_or(Ok(()), Err),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => match explain(&error).into_fault() {
                    Fault::NotFound => {}
                    // The others of the batch may still go.
                    Fault::Locked(text) => refused = Some(Fault::Locked(text)),
                    fault => return Err(fault),
                },
                Err(_) => return Err(Fault::TimedOut { after: self.request_timeout }),
            }
        }
    }
}
