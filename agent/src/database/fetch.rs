//! Page checksums that the hub holds, from the restore service into a blocking reader.

use crate::capture::HubPages;
use crate::page_map::Change;
use crate::ship::connect::status_reason;
use std::io;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;
use walhub_common::limits::{MAX_MESSAGE_BYTES, MAX_PAGES};
use walhub_common::{AgentName, Checksum, DatabaseName, PageSize, Pgno, Pos, Txid};
use walhub_proto::convert::{position_from_wire, position_to_wire};
use walhub_proto::v1::page_checksums_response::Message;
use walhub_proto::v1::restore_service_client::RestoreServiceClient;
use walhub_proto::v1::{DatabaseRef, PageChecksumsRequest, PageChecksumsResponse, PageTable};

/// Batches under way between the network and the reader; each holds at most 64 Ki pages.
const QUEUE: usize = 2;

type Batch = Result<Vec<Change>, String>;

/// The hub's answer, of which the first message has been read.
pub(super) struct Fetch {
    messages: Streaming<PageChecksumsResponse>,
    sender: mpsc::Sender<Batch>,
}

/// The blocking end of a [`Fetch`].
pub(super) struct Fetched {
    position: Pos,
    page_size: PageSize,
    commit: u32,
    after: Option<Txid>,
    batches: mpsc::Receiver<Batch>,
}

/// Asks for the pages at `until` that were changed after `after`; for all of them without it.
pub(super) async fn fetch(
    channel: Channel,
    database: (&AgentName, &DatabaseName),
    after: Option<Txid>,
    until: Pos,
) -> Result<(Fetch, Fetched), String> {
    let request = PageChecksumsRequest {
        database: Some(DatabaseRef { agent: database.0.to_string(), name: database.1.to_string() }),
        after_txid: after.map_or(0, Txid::get),
        until: Some(position_to_wire(Some(until))),
        staged: false,
    };
    let (messages, table) = ask(channel, request).await?;
    let (page_size, commit) = check(&table, until)?;
    let (sender, batches) = mpsc::channel(QUEUE);
    let after = after.filter(|_| !table.whole);
    Ok((Fetch { messages, sender }, Fetched { position: until, page_size, commit, after, batches }))
}

/// Sends the request and reads the table that begins the answer.
async fn ask(
    channel: Channel,
    request: PageChecksumsRequest,
) -> Result<(Streaming<PageChecksumsResponse>, PageTable), String> {
    let mut client = RestoreServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = client.page_checksums(request).await.map_err(|s| status_reason(&s))?;
    let mut messages = answer.into_inner();
    let first = messages.message().await.map_err(|s| status_reason(&s))?.and_then(|m| m.message);
    match first {
        Some(Message::Table(table)) => Ok((messages, table)),
        _ => Err("the answer has no beginning".into()),
    }
}

/// The next batch, for which the watchdog knows that the network is waited for.
fn next_batch(batches: &mut mpsc::Receiver<Batch>) -> Option<io::Result<Vec<Change>>> {
    let batch = crate::watchdog::waiting(|| batches.blocking_recv())?;
    Some(batch.map_err(|text| io::Error::new(io::ErrorKind::ConnectionAborted, text)))
}

/// Pages of an unfinished first snapshot that the hub keeps: the blocking end.
pub(super) struct FetchedStaged {
    batches: mpsc::Receiver<Batch>,
}

/// Asks for the pages that the hub keeps of an unfinished first snapshot.
pub(super) async fn fetch_staged(
    channel: Channel,
    database: (&AgentName, &DatabaseName),
) -> Result<(Fetch, FetchedStaged), String> {
    let request = PageChecksumsRequest {
        database: Some(DatabaseRef { agent: database.0.to_string(), name: database.1.to_string() }),
        after_txid: 0,
        until: None,
        staged: true,
    };
    let (messages, _) = ask(channel, request).await?;
    let (sender, batches) = mpsc::channel(QUEUE);
    Ok((Fetch { messages, sender }, FetchedStaged { batches }))
}

impl FetchedStaged {
    /// Hands everything to `take`, as it comes. Blocks. Pages that a database cannot have end it.
    pub(super) fn read_staged(
        mut self,
        page_size: PageSize,
        mut take: impl FnMut(&[Change]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut last = 0;
        while let Some(batch) = next_batch(&mut self.batches) {
            let batch = batch?;
            for (pgno, _) in &batch {
                if pgno.get() <= last || pgno.get() > MAX_PAGES || *pgno == page_size.lock_page() {
                    return Err(io::Error::other(format!("page {pgno} came after page {last}")));
                }
                last = pgno.get();
            }
            take(&batch)?;
        }
        Ok(())
    }
}

fn check(table: &PageTable, until: Pos) -> Result<(PageSize, u32), String> {
    let position = position_from_wire(table.position.as_ref()).map_err(|e| e.to_string())?;
    if position != Some(until) {
        return Err(format!("asked for {until}, the answer is about {position:?}"));
    }
    match PageSize::new(table.page_size) {
        Some(size) if (1..=MAX_PAGES).contains(&table.commit) => Ok((size, table.commit)),
        _ => Err(format!("a database of {} pages of {} bytes cannot be", table.commit, table.page_size)),
    }
}

impl Fetch {
    /// Passes everything on. A failure reaches the reader as well.
    pub(super) async fn run(mut self) -> Result<(), String> {
        loop {
            let batch = match self.messages.message().await {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => batch(message),
                Err(status) => Err(status_reason(&status)),
            };
            let failed = batch.as_ref().err().cloned();
            // The reader may have failed; it says so itself.
            let sent = self.sender.send(batch).await;
            match (failed, sent) {
                (Some(text), _) => return Err(text),
                (None, Err(_)) => return Ok(()),
                (None, Ok(())) => {}
            }
        }
    }
}

fn batch(message: PageChecksumsResponse) -> Batch {
    let change = |pgno: u32, checksum: u64| {
        let change = Pgno::new(pgno).zip(Checksum::new(checksum));
        change.ok_or_else(|| format!("page {pgno} with checksum {checksum:016x} cannot be"))
    };
    match message.message {
        Some(Message::Run(run)) => {
            let end = run.first.checked_add(u32::try_from(run.checksums.len()).map_err(|e| e.to_string())?);
            let pages = run.first..end.ok_or("more pages than a database can have")?;
            pages.zip(run.checksums).map(|(pgno, checksum)| change(pgno, checksum)).collect()
        }
        Some(Message::List(list)) if list.pages.len() == list.checksums.len() => list
            .pages
            .into_iter()
            .zip(list.checksums)
            .map(|(pgno, checksum)| change(pgno, checksum))
            .collect(),
        Some(Message::List(_)) => Err("not as many checksums as pages".into()),
        Some(Message::Table(_)) | None => Err("a message that does not belong there".into()),
    }
}

impl Fetched {
    /// Hands everything to `take`, as it comes. Blocks.
    pub(super) fn read<T>(mut self, take: impl FnOnce(HubPages<'_>) -> T) -> T {
        let batches = &mut std::iter::from_fn(|| next_batch(&mut self.batches));
        let Self { position, page_size, commit, after, .. } = self;
        take(HubPages { position, page_size, commit, after, batches })
    }
}
