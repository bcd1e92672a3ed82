//! Before a first snapshot in parts: what the hub holds already, of an image of another database like this one, need not be
//! sent. Pages are compared by strong hashes: those of the other side are not believed to be ours by a checksum.

use super::drive::{Driver, End};
use super::follower::Target;
use super::rest::Pacer;
use super::snapshot::Context;
use super::steps::unavailable;
use crate::capture::{CaptureError, Staged};
use crate::ship::connect::status_reason;
use crate::ship::inbox::Staging;
use std::cell::Cell;
use std::time::Duration;
use tonic::transport::Channel;
use walhub_common::PageSize;
use walhub_common::limits::MAX_MESSAGE_BYTES;
use walhub_common::stretch::{MAX_NAMED, PageHash, STRETCH_PAGES, StretchHash};
use walhub_proto::v1::image_service_client::ImageServiceClient;
use walhub_proto::v1::{DatabaseRef, MatchStretchesRequest, StagedPagesRequest};

/// The hub's side of the comparison.
struct Asked {
    client: ImageServiceClient<Channel>,
    database: DatabaseRef,
}

impl Driver<'_> {
    /// What the hub holds of this database: `held` of an earlier attempt, or an image, which becomes what it holds. It is
    /// noted in the table that comes back, for the walks to send only the rest.
    pub(super) async fn match_with_hub(
        &mut self,
        mut staged: Staged,
        held: Option<Staging>,
        to: &Target,
    ) -> Result<Staged, End> {
        let shared = &self.db.shared;
        let database = DatabaseRef { agent: shared.agent.to_string(), name: self.db.name.to_string() };
        let client =
            ImageServiceClient::new(to.link.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut asked = Asked { client, database };
        if held.is_none() {
            let context = self.context(to);
            let sample =
                self.blocking(move |f| paced(&context, |pacer| f.capture.sample_stretches(pacer))).await?;
            let (page_size, sample) = self.sent(sample, &to.link)?;
            if asked.stretches(page_size, &sample, false).await?.0.is_empty() {
                return Ok(staged);
            }
        }
        let context = self.context(to);
        let hashing = self.blocking(move |f| {
            let hashes = paced(&context, |pacer| f.capture.hash_stretches(&mut staged, pacer));
            (staged, hashes)
        });
        let (mut staged, hashes) = hashing.await?;
        let hashes = self.sent(hashes, &to.link)?;
        let Some(page_size) = staged.page_size() else { return Ok(staged) };
        let (matched, holds) = asked.stretches(page_size, &hashes, true).await?;
        if let Some(holds) = holds.filter(|holds| holds.page_size == page_size) {
            staged.resume(page_size, holds.next_part);
        }
        let mut differ = hashes.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        differ.retain(|number| matched.binary_search(number).is_err());
        for number in &differ {
            staged.forget(*number).map_err(|e| super::drive::failed(CaptureError::Staged(e)))?;
        }
        if holds.is_some() {
            for some in differ.chunks(MAX_NAMED) {
                staged = self.match_pages(staged, some.to_vec(), &mut asked, to).await?;
            }
        }
        staged.go_on().map_err(|e| unavailable(e.to_string()))?;
        let (stretches, alike) = (hashes.len(), matched.len());
        tracing::info!(database = %self.db.name, stretches, alike, pages = staged.pages(), "the hub holds pages of this database already");
        Ok(staged)
    }

    async fn match_pages(
        &mut self,
        mut staged: Staged,
        stretches: Vec<u32>,
        asked: &mut Asked,
        to: &Target,
    ) -> Result<Staged, End> {
        let pages = asked.pages(&stretches).await?;
        let context = self.context(to);
        let matching = self.blocking(move |f| {
            let matched =
                paced(&context, |pacer| f.capture.match_pages(&mut staged, &stretches, &pages, pacer));
            (staged, matched)
        });
        let (staged, matched) = matching.await?;
        self.sent(matched, &to.link)?;
        Ok(staged)
    }
}

fn paced<T>(context: &Context, work: impl FnOnce(&mut Pacer<'_>) -> T) -> T {
    let (waited, sent) = (Cell::new(Duration::ZERO), Cell::new(0));
    work(&mut Pacer::new(context, &waited, &sent))
}

impl Asked {
    /// Which of the stretches agree, and what the hub holds now.
    async fn stretches(
        &mut self,
        page_size: PageSize,
        stretches: &[(u32, StretchHash)],
        adopt: bool,
    ) -> Result<(Vec<u32>, Option<Staging>), End> {
        let request = MatchStretchesRequest {
            database: Some(self.database.clone()),
            page_size: page_size.get(),
            stretches: stretches.iter().map(|(number, _)| *number).collect(),
            hashes: stretches.iter().flat_map(|(_, hash)| *hash).collect::<Vec<u8>>().into(),
            adopt,
        };
        let answer =
            self.client.match_stretches(request).await.map_err(|s| unavailable(status_reason(&s)))?;
        let answer = answer.into_inner();
        if !answer.matched.is_sorted() {
            return Err(unavailable("the hub names stretches out of order".into()));
        }
        Ok((answer.matched, answer.staging.as_ref().and_then(crate::ship::session::staging)))
    }

    /// The hashes of the staged pages.
    async fn pages(&mut self, stretches: &[u32]) -> Result<Vec<PageHash>, End> {
        let request =
            StagedPagesRequest { database: Some(self.database.clone()), stretches: stretches.to_vec() };
        let answer = self.client.staged_pages(request).await.map_err(|s| unavailable(status_reason(&s)))?;
        let hashes = answer.into_inner().hashes;
        let (hashes, rest) = hashes.as_chunks::<16>();
        if !rest.is_empty() || hashes.len() != stretches.len() * STRETCH_PAGES as usize {
            return Err(unavailable(format!(
                "the hub names {} pages of {} stretches",
                hashes.len(),
                stretches.len()
            )));
        }
        Ok(hashes.to_vec())
    }
}
