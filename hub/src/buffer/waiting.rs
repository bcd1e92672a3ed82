//! What waits for the log, and who hears of it.

use super::failure::Failure;
use super::log::head::DatabaseHead;
use super::log::record::Payload;
use super::log::writer::Item;
use super::{BufferError, Chunk, DatabaseId, Registered};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use walhub_common::Pos;

/// Tells a caller.
pub(super) type Reply<T> = oneshot::Sender<Result<T, BufferError>>;

/// See [`Item`].
#[derive(Debug)]
pub(super) enum Waiting {
    Chunk { chunk: Chunk, payload: Payload, permit: OwnedSemaphorePermit, reply: Option<Reply<()>> },
    Database { head: DatabaseHead, reply: Reply<Registered> },
    Adopt { head: DatabaseHead, position: Pos, time_ms: i64, reply: Reply<Registered> },
    Abandon(DatabaseId),
    Rewrite { chunk: Chunk, payload: Payload },
    AbandonRewrite(DatabaseId),
    Barrier(Reply<()>),
}

impl Waiting {
    /// As the writer sees it.
    pub(super) fn item(&self) -> Item<'_> {
        match self {
            Waiting::Chunk { chunk, payload, .. } => Item::Chunk(chunk, *payload),
            Waiting::Database { head, .. } => Item::Database(head),
            Waiting::Adopt { head, position, time_ms, .. } => Item::Adopt(head, *position, *time_ms),
            Waiting::Abandon(id) => Item::Abandon(*id),
            Waiting::Rewrite { chunk, payload } => Item::Rewrite(chunk, *payload),
            Waiting::AbandonRewrite(id) => Item::AbandonRewrite(*id),
            Waiting::Barrier(_) => Item::Barrier,
        }
    }

    /// It counts for nobody before it is on disk.
    pub(super) fn waits_for_sync(&self) -> bool {
        match self {
            Waiting::Chunk { reply, .. } => reply.is_some(),
            // Once it is whole the index forgets those that it stands for.
            Waiting::Rewrite { chunk, .. } => chunk.last,
            Waiting::Database { .. } | Waiting::Adopt { .. } | Waiting::Barrier(_) => true,
            Waiting::Abandon(_) | Waiting::AbandonRewrite(_) => false,
        }
    }

    /// It was not written.
    pub(super) fn fail(self, failure: &Failure) {
        match self {
            Waiting::Chunk { reply: Some(reply), .. } | Waiting::Barrier(reply) => {
                drop(reply.send(Err(failure.to_error())));
            }
            Waiting::Database { reply, .. } | Waiting::Adopt { reply, .. } => {
                drop(reply.send(Err(failure.to_error())));
            }
            Waiting::Chunk { reply: None, .. }
            | Waiting::Abandon(_)
            | Waiting::Rewrite { .. }
            | Waiting::AbandonRewrite(_) => {}
        }
    }
}
