//! The table of page checksums, cut into messages.

use super::peer::Peer;
use super::{Handles, staged, status};
use crate::restore::Batch;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use walhub_common::{Pos, Txid};
use walhub_proto::convert;
use walhub_proto::v1::page_checksums_response::Message;
use walhub_proto::v1::{PageChecksumsRequest, PageChecksumsResponse, PageList, PageRun, PageTable};

/// Pages in one message, at most: 13 bytes each.
pub(super) const PAGES: usize = 64 * 1024;
/// Messages made before the connection takes them.
pub(super) const READ_AHEAD: usize = 2;
/// A receiver that takes nothing for this long loses its turn to others.
const STALLED: Duration = Duration::from_secs(60);

pub(super) type Answers = BoxStream<'static, Result<PageChecksumsResponse, Status>>;

/// The stream of answers to one request.
pub(super) async fn serve(
    handles: &Handles,
    peer: &Peer,
    request: &PageChecksumsRequest,
) -> Result<Answers, Status> {
    let database = peer.may_read(request.database.as_ref())?;
    if request.staged {
        return staged::serve(handles, database).await;
    }
    let until =
        convert::position_from_wire(request.until.as_ref()).map_err(|e| status::invalid("until", e))?;
    let until: Pos =
        until.ok_or_else(|| status::invalid("until", "a position after a transaction is needed"))?;
    let after = Txid::new(request.after_txid);
    let table = handles.restores.checksums(&database, after, until).await;
    let table = table.map_err(|error| {
        tracing::warn!(%database, %error, "no page checksums");
        status::checksums(&error)
    })?;
    let pages = &table.pages;
    tracing::info!(%database, txid = until.txid.get(), commit = pages.commit, whole = pages.whole(), "page checksums");
    let head = PageTable {
        position: Some(convert::position_to_wire(Some(until))),
        page_size: pages.page_size.get(),
        commit: pages.commit,
        whole: pages.whole(),
    };
    let (ahead, messages) = mpsc::channel(READ_AHEAD);
    let (complete, completed) = oneshot::channel();
    handles.tasks.spawn(async move {
        let mut next = Some((Message::Table(head), 1));
        while let Some((message, from)) = next {
            let message = PageChecksumsResponse { message: Some(message) };
            match tokio::time::timeout(STALLED, ahead.send(message)).await {
                Ok(Ok(())) => {}
                // The receiver is gone, or as good as gone.
                Ok(Err(_)) | Err(_) => return,
            }
            next = table.pages.batch(from, PAGES).map(|(batch, next)| (wire(batch), next));
        }
        let _ = complete.send(());
    });
    // A stream that was cut short must not look like a whole one.
    let end = stream::once(completed).filter_map(|completed| async move {
        let stalled = || Status::deadline_exceeded("the page checksums were not taken in time");
        completed.is_err().then(|| Err(stalled()))
    });
    Ok(ReceiverStream::new(messages).map(Ok).chain(end).boxed())
}

fn wire(batch: Batch) -> Message {
    match batch {
        Batch::Run(first, checksums) => Message::Run(PageRun { first, checksums }),
        Batch::List(pages, checksums) => Message::List(PageList { pages, checksums }),
    }
}
