//! What the hub holds of pages that a node is about to send.

use super::peer::Peer;
use super::{Handles, status};
use crate::staging::{Held, StagingError};
use tonic::{Request, Response, Status};
use walhub_common::PageSize;
use walhub_common::stretch::{MAX_NAMED, MAX_STRETCHES, StretchHash};
use walhub_proto::v1::image_service_server::ImageService;
use walhub_proto::v1::{
    MatchStretchesRequest, MatchStretchesResponse, StagedPagesRequest, StagedPagesResponse, Staging as Parts,
};

/// The service.
pub(super) struct Service {
    handles: Handles,
}

impl Service {
    pub(super) fn new(handles: Handles) -> Self {
        Self { handles }
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn match_stretches(
        &self,
        request: Request<MatchStretchesRequest>,
    ) -> Result<Response<MatchStretchesResponse>, Status> {
        let database = Peer::of(request.extensions())?.may_read(request.get_ref().database.as_ref())?;
        let request = request.into_inner();
        let page_size = PageSize::new(request.page_size);
        let page_size = page_size.ok_or_else(|| status::invalid("page_size", "not a page size"))?;
        let stretches = stretches(&request.stretches, &request.hashes)?;
        let (staging, key, adopt) = (self.handles.staging.clone(), database.clone(), request.adopt);
        let (matched, held) = blocking(move || {
            let matched = staging.match_stretches(&key, page_size, &stretches, adopt)?;
            Ok((matched, staging.held(&key)?))
        })
        .await?;
        tracing::info!(%database, stretches = request.stretches.len(), matched = matched.len(), adopt, "compared with what is held");
        Ok(Response::new(MatchStretchesResponse { matched, staging: held.map(Parts::from) }))
    }

    async fn staged_pages(
        &self,
        request: Request<StagedPagesRequest>,
    ) -> Result<Response<StagedPagesResponse>, Status> {
        let database = Peer::of(request.extensions())?.may_read(request.get_ref().database.as_ref())?;
        let wanted = request.into_inner().stretches;
        if wanted.len() > MAX_NAMED {
            return Err(status::invalid("stretches", format!("{} of at most {MAX_NAMED}", wanted.len())));
        }
        ascending(&wanted)?;
        let staging = self.handles.staging.clone();
        let hashes = blocking(move || staging.staged_pages(&database, &wanted)).await?;
        Ok(Response::new(StagedPagesResponse { hashes: hashes.concat().into() }))
    }
}

impl From<Held> for Parts {
    fn from(held: Held) -> Parts {
        Parts {
            next_part: held.next.into(),
            pages: held.pages,
            page_size: held.page_size.get(),
            adopted: held.adopted,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StagingError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|died| Status::internal(died.to_string()))?;
    done.map_err(|error| status::staging(&error))
}

fn stretches(numbers: &[u32], hashes: &[u8]) -> Result<Vec<(u32, StretchHash)>, Status> {
    let (hashes, rest) = hashes.as_chunks::<32>();
    if numbers.len() > MAX_STRETCHES as usize || hashes.len() != numbers.len() || !rest.is_empty() {
        let text = format!("{} hashes of {} stretches, at most {MAX_STRETCHES}", hashes.len(), numbers.len());
        return Err(status::invalid("hashes", text));
    }
    ascending(numbers)?;
    Ok(numbers.iter().copied().zip(hashes.iter().copied()).collect())
}

fn ascending(numbers: &[u32]) -> Result<(), Status> {
    let ordered =
        numbers.is_sorted_by(|a, b| a < b) && numbers.last().is_none_or(|last| *last < MAX_STRETCHES);
    if ordered { Ok(()) } else { Err(status::invalid("stretches", "not ascending, or too large")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_checked() {
        assert_eq!(stretches(&[0, 7], &[3; 64]).unwrap(), [(0, [3; 32]), (7, [3; 32])]);
        for (numbers, bytes) in
            [(&[0, 7][..], 63), (&[0, 7], 32), (&[7, 7], 64), (&[7, 0], 64), (&[MAX_STRETCHES], 32)]
        {
            assert!(stretches(numbers, &vec![3; bytes]).is_err(), "{numbers:?} {bytes}");
        }
    }
}
