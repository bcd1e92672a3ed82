//! The checksums of what is kept of an unfinished first snapshot, cut into messages.

use super::checksums::{Answers, PAGES, READ_AHEAD};
use super::{Handles, status};
use crate::staging::StagingError;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use walhub_common::{Checksum, DatabaseKey, Pgno};
use walhub_proto::v1::page_checksums_response::Message;
use walhub_proto::v1::{PageChecksumsResponse, PageList, PageRun, PageTable};

pub(super) async fn serve(handles: &Handles, database: DatabaseKey) -> Result<Answers, Status> {
    let staging = handles.staging.clone();
    if staging.is_sealing(&database) {
        return Err(status::staging(&StagingError::Sealing));
    }
    let (ahead, messages) = mpsc::channel(READ_AHEAD);
    handles.tasks.spawn(async move {
        let read = tokio::task::spawn_blocking(move || {
            let send =
                |message| ahead.blocking_send(Ok(PageChecksumsResponse { message: Some(message) })).is_ok();
            let told = (|| {
                let held = staging.held(&database)?;
                let mut table = PageTable::default();
                if let Some(held) = held {
                    (table.page_size, table.commit) = (held.page_size.get(), held.pages);
                }
                let mut wanted = send(Message::Table(table));
                let mut first = 1_u32;
                while let Some(from) = Pgno::new(first).filter(|_| wanted) {
                    let sums = staging.checksums(&database, from, PAGES)?;
                    if let Some(message) = pages(first, &sums) {
                        wanted = send(message);
                    }
                    match first.checked_add(sums.len() as u32) {
                        Some(next) if sums.len() == PAGES => first = next,
                        _ => break,
                    }
                }
                Ok::<_, StagingError>(())
            })();
            if let Err(error) = told {
                tracing::warn!(%database, %error, "no checksums of staged pages");
                let _ = ahead.blocking_send(Err(status::staging(&error)));
            }
        });
        if let Err(error) = read.await {
            tracing::error!(%error, "a bug ended the reading of staged pages");
        }
    });
    Ok(ReceiverStream::new(messages).boxed())
}

/// Those that are there: as a run when none is missing.
fn pages(first: u32, sums: &[Option<Checksum>]) -> Option<Message> {
    let checksums: Vec<u64> = sums.iter().flatten().map(|sum| sum.get()).collect();
    if checksums.is_empty() {
        return None;
    }
    if checksums.len() == sums.len() {
        return Some(Message::Run(PageRun { first, checksums }));
    }
    let there = sums.iter().enumerate().filter(|(_, sum)| sum.is_some());
    let pages = there.map(|(at, _)| first + at as u32).collect();
    Some(Message::List(PageList { pages, checksums }))
}
