//! A client's side of a restore by pages: the plan, then pages until the end; and, for one that fetches only what differs,
//! before it the checksum of every page at the position.
//!
//! What a caller may rely on: what comes is complete when the end is reached, and nothing else is accepted; a hub that says
//! nothing for long is an error. Pages are still compressed, and not proven: `walhub_common::restore` does both.

use crate::convert::{position_from_wire, position_to_wire, promise_from_wire};
use crate::v1::page_checksums_response::Message as TableMessage;
use crate::v1::restore_pages_response::Message as PagesMessage;
use crate::v1::restore_service_client::RestoreServiceClient;
use crate::v1::{
    DatabaseRef, PageChecksumsRequest, PageChecksumsResponse, PageFrames, PageSpan, RestorePagesRequest,
    RestorePagesResponse, RestorePlan, RestoreRequest,
};
use std::ops::RangeInclusive;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use walhub_common::limits::{MAX_MESSAGE_BYTES, MAX_PAGES};
use walhub_common::restore::Point;
use walhub_common::restore::frames::{Block, Frames};
use walhub_common::{Checksum, PageSize, Pgno, Pos, Txid};

/// The hub reads every file of the chain before it says the first word.
const FIRST_WORD: Duration = Duration::from_secs(900);
/// It may have to fetch from far away between two messages, but not for longer.
const STALL: Duration = Duration::from_secs(120);
/// Runs of pages in one request, so that it stays small.
pub const SPANS: usize = 50_000;

/// Why pages did not come.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// The hub's word, or the connection's.
    #[error("{}", .0.message())]
    Status(#[from] Status),
    /// Nothing came.
    #[error("the hub sent nothing for {} s; try again", .0.as_secs())]
    Stalled(Duration),
    /// What came cannot be.
    #[error("the hub does not keep to the protocol: {0}; is it of another version?")]
    Protocol(&'static str),
}

fn client(channel: Channel) -> RestoreServiceClient<Channel> {
    RestoreServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

async fn within<T>(time: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, PagesError> {
    match tokio::time::timeout(time, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(PagesError::Stalled(time)),
    }
}

/// What a restore would give, and its position; `None` when nobody took a checksum there.
pub async fn plan(channel: Channel, point: RestoreRequest) -> Result<(RestorePlan, Option<Pos>), PagesError> {
    let plan = within(STALL, async { client(channel).plan_restore(point).await }).await?.into_inner();
    let odd = |_| PagesError::Protocol("a plan without a position");
    let (txid, checksum) = promise_from_wire(&plan).map_err(odd)?;
    let position = Txid::new(txid).zip(checksum).map(|(txid, checksum)| Pos { txid, checksum });
    Ok((plan, position))
}

/// What a plan promises; an error for one that no restore can be made of.
pub fn point_of(plan: &RestorePlan) -> Result<Point, PagesError> {
    let (txid, checksum) =
        promise_from_wire(plan).map_err(|_| PagesError::Protocol("a plan without a position"))?;
    let txid = Txid::new(txid).ok_or(PagesError::Protocol("a plan that names no transaction"))?;
    let page_size =
        PageSize::new(plan.page_size).ok_or(PagesError::Protocol("a plan that names no page size"))?;
    let commit = Some(plan.commit).filter(|commit| *commit <= MAX_PAGES);
    let commit = commit.ok_or(PagesError::Protocol("a plan that names an impossible size"))?;
    Ok(Point { txid, checksum, page_size, commit, timestamp_ms: plan.timestamp_ms })
}

/// The checksum of every page of a database at a position.
#[derive(Debug)]
pub struct Table {
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages of the database.
    pub commit: u32,
    messages: Streaming<PageChecksumsResponse>,
    /// Pages that came, and the lock page if they are beyond it.
    come: u32,
}

impl Table {
    /// Asks for it.
    pub async fn open(channel: Channel, database: DatabaseRef, until: Pos) -> Result<Table, PagesError> {
        let request = PageChecksumsRequest {
            database: Some(database),
            after_txid: 0,
            until: Some(position_to_wire(Some(until))),
            staged: false,
        };
        let asked = async { client(channel).page_checksums(request).await };
        let mut messages = within(FIRST_WORD, asked).await?.into_inner();
        let first = within(FIRST_WORD, messages.message()).await?;
        let Some(TableMessage::Table(table)) = first.and_then(|first| first.message) else {
            return Err(PagesError::Protocol("page checksums without a beginning"));
        };
        let page_size = PageSize::new(table.page_size).filter(|_| (1..=MAX_PAGES).contains(&table.commit));
        match (page_size, position_from_wire(table.position.as_ref())) {
            (Some(page_size), Ok(Some(at))) if at == until && table.whole => {
                Ok(Table { page_size, commit: table.commit, messages, come: 0 })
            }
            _ => Err(PagesError::Protocol("page checksums of something else")),
        }
    }

    /// The next ones, ascending without a hole but the lock page; `None` when all came.
    pub async fn next(&mut self) -> Result<Option<Vec<Checksum>>, PagesError> {
        let odd = || PagesError::Protocol("page checksums out of order");
        let Some(message) = within(STALL, self.messages.message()).await? else {
            self.pass_lock_page();
            return if self.come == self.commit { Ok(None) } else { Err(odd()) };
        };
        let Some(TableMessage::Run(run)) = message.message else { return Err(odd()) };
        self.pass_lock_page();
        let count = u32::try_from(run.checksums.len()).map_err(|_| odd())?;
        let end = self.come.checked_add(count).filter(|end| *end <= self.commit);
        let lock = self.page_size.lock_page().get();
        let crosses = self.come < lock && end.is_some_and(|end| end >= lock);
        let (true, Some(end), false) = (run.first == self.come + 1, end, crosses) else { return Err(odd()) };
        self.come = end;
        let sums = run.checksums.into_iter().map(|sum| Checksum::new(sum).ok_or_else(odd));
        sums.collect::<Result<_, _>>().map(Some)
    }

    fn pass_lock_page(&mut self) {
        if self.come + 1 == self.page_size.lock_page().get() && self.come < self.commit {
            self.come += 1;
        }
    }
}

/// Some pages of a database at a point.
#[derive(Debug)]
pub struct Pages {
    messages: Streaming<RestorePagesResponse>,
}

impl Pages {
    /// Asks for those in `wanted` (ascending, at most [`SPANS`]; none: all), and waits for the plan. With `verify_files` the
    /// hub reads every file whole before it sends a page of it.
    pub async fn open(
        channel: Channel,
        point: RestoreRequest,
        wanted: &[RangeInclusive<u32>],
        verify_files: bool,
    ) -> Result<(RestorePlan, Pages), PagesError> {
        let span =
            |run: &RangeInclusive<u32>| PageSpan { first: *run.start(), count: run.end() - run.start() + 1 };
        let wanted = wanted.iter().map(span).collect();
        let request = RestorePagesRequest { point: Some(point), wanted, verify_files };
        let asked = async { client(channel).restore_pages(request).await };
        let mut messages = within(FIRST_WORD, asked).await?.into_inner();
        let first = within(FIRST_WORD, messages.message()).await?;
        match first.and_then(|first| first.message) {
            Some(PagesMessage::Plan(plan)) => Ok((plan, Pages { messages })),
            _ => Err(PagesError::Protocol("pages without a plan")),
        }
    }

    /// The next ones, in any order; `None` when all came.
    pub async fn next(&mut self) -> Result<Option<Frames>, PagesError> {
        match within(STALL, self.messages.message()).await?.map(|message| message.message) {
            None => Ok(None),
            Some(Some(PagesMessage::Frames(frames))) => frames_of(frames).map(Some),
            Some(_) => Err(PagesError::Protocol("a message among pages that is not due")),
        }
    }
}

fn frames_of(wire: PageFrames) -> Result<Frames, PagesError> {
    let odd = || PagesError::Protocol("pages that do not fit their list");
    if wire.pages.len() != wire.lengths.len() {
        return Err(odd());
    }
    let mut at = 0_u32;
    let mut blocks = Vec::with_capacity(wire.pages.len());
    for (page, bytes) in wire.pages.into_iter().zip(wire.lengths) {
        blocks.push(Block { pgno: Pgno::new(page).ok_or_else(odd)?, at, bytes });
        at = at.checked_add(bytes).ok_or_else(odd)?;
    }
    if at as usize == wire.data.len() { Ok(Frames { blocks, data: wire.data }) } else { Err(odd()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Position;

    #[test]
    fn frames_and_plans_that_cannot_be_are_refused() {
        let frames = |pages: &[u32], lengths: &[u32], data: &[u8]| {
            let (pages, lengths) = (pages.to_vec(), lengths.to_vec());
            frames_of(PageFrames { pages, lengths, data: data.to_vec().into() })
        };
        let good = frames(&[7, 3], &[1, 2], b"abc").unwrap();
        let found: Vec<_> = good.iter().map(|(pgno, block)| (pgno.get(), block.to_vec())).collect();
        assert_eq!(found, [(7, b"a".to_vec()), (3, b"bc".to_vec())]);
        for bad in [
            frames(&[7], &[1, 2], b"abc"),
            frames(&[7, 3], &[1, 1], b"abc"),
            frames(&[0], &[3], b"abc"),
            frames(&[1, 2], &[u32::MAX, 4], b"abc"),
        ] {
            assert!(matches!(bad, Err(PagesError::Protocol(_))));
        }
        let plan = RestorePlan {
            position: Some(Position { txid: 3, checksum: 0 }),
            page_size: 512,
            commit: 9,
            ..RestorePlan::default()
        };
        assert_eq!(point_of(&plan).unwrap().commit, 9);
        assert!(point_of(&RestorePlan { page_size: 500, ..plan.clone() }).is_err());
        assert!(point_of(&RestorePlan { commit: u32::MAX, ..plan.clone() }).is_err());
        assert!(point_of(&RestorePlan { position: None, ..plan }).is_err());
    }
}
