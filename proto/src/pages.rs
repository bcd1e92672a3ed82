//! A client's side of a restore that fetches only what differs: the checksum of every page at a position, then the pages
//! that the client lacks.
//!
//! What a caller may rely on: what comes is complete when the end is reached, and nothing else is accepted; a hub that says
//! nothing for long is an error. Pages are still compressed, and not proven: their checksums are in the table.

use crate::convert::{position_from_wire, position_to_wire, promise_from_wire};
use crate::v1::page_checksums_response::Message as TableMessage;
use crate::v1::restore_pages_response::Message as PagesMessage;
use crate::v1::restore_service_client::RestoreServiceClient;
use crate::v1::{
    DatabaseRef, PageChecksumsRequest, PageChecksumsResponse, PageSpan, RestorePagesRequest,
    RestorePagesResponse, RestorePlan, RestoreRequest,
};
use std::ops::RangeInclusive;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use walhub_common::limits::{MAX_MESSAGE_BYTES, MAX_PAGES};
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
    /// Asks for them; `wanted` ascend, at most [`SPANS`].
    pub async fn open(
        channel: Channel,
        point: RestoreRequest,
        wanted: &[RangeInclusive<u32>],
    ) -> Result<Pages, PagesError> {
        let span =
            |run: &RangeInclusive<u32>| PageSpan { first: *run.start(), count: run.end() - run.start() + 1 };
        let request = RestorePagesRequest { point: Some(point), wanted: wanted.iter().map(span).collect() };
        let asked = async { client(channel).restore_pages(request).await };
        let mut messages = within(FIRST_WORD, asked).await?.into_inner();
        let first = within(FIRST_WORD, messages.message()).await?;
        match first.and_then(|first| first.message) {
            Some(PagesMessage::Plan(_)) => Ok(Pages { messages }),
            _ => Err(PagesError::Protocol("pages without a plan")),
        }
    }

    /// The next ones, in any order; `None` when all came.
    pub async fn next(&mut self) -> Result<Option<Frames>, PagesError> {
        let odd = || PagesError::Protocol("pages that do not fit their list");
        let Some(message) = within(STALL, self.messages.message()).await? else { return Ok(None) };
        let Some(PagesMessage::Frames(frames)) = message.message else { return Err(odd()) };
        if frames.pages.len() != frames.lengths.len() {
            return Err(odd());
        }
        let mut at = 0_u32;
        let mut blocks = Vec::with_capacity(frames.pages.len());
        for (page, bytes) in frames.pages.into_iter().zip(frames.lengths) {
            let pgno = Pgno::new(page).ok_or_else(odd)?;
            blocks.push(Block { pgno, at, bytes });
            at = at.checked_add(bytes).ok_or_else(odd)?;
        }
        if at as usize != frames.data.len() {
            return Err(odd());
        }
        Ok(Some(Frames { blocks, data: frames.data }))
    }
}
