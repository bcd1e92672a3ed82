//! Takes segments from agents: who they are, what continues which history, and when it may be acknowledged.
//!
//! # Invariants
//! - Nothing is stored that was not verified: a segment's last chunk is appended only after the whole file proved to be
//!   what the message fields say, and a segment without its last chunk does not exist.
//! - `BUFFERED` is said only after the buffer returned from the append, hence after its fsync; a refusal waits until
//!   everything under way for its database has ended, so the position it names is true.
//! - A fault of one database never touches another one of the same stream.
//! - Memory is bounded: bytes per agent, bytes per hub, operations per agent; a session at its bound stops reading, and
//!   HTTP/2 flow control carries that to the agent.
//!
//! Non-goals: no copying to destinations, no knowledge of gRPC beyond the messages.

pub mod assemble;
pub mod dedup;
pub mod error;
mod handle;
pub(crate) mod newest;
mod origin;
mod outbox;
mod session;

pub use error::{Refusal, SessionError};
pub use origin::Origins;

use crate::buffer::{BufferError, DatabaseId, WalBuffer};
use crate::fleet::Fleet;
use crate::staging::Staging;
use futures_util::Stream;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use walhub_common::AgentName;
use walhub_common::task::TaskGroup;
use walhub_proto::v1::{ReplicateRequest, ReplicateResponse};

/// Segment bytes of all agents together that wait for their fsync.
pub const MAX_INFLIGHT_BYTES: usize = 256 * 1024 * 1024;
/// Unit of the byte budget.
const BUDGET_UNIT: usize = 1024;

/// Handle on the part of the hub that takes segments.
#[derive(Clone)]
pub struct Ingest {
    buffer: Arc<dyn WalBuffer>,
    fleet: Arc<Fleet>,
    staging: Arc<Staging>,
    /// Snapshots being put together: they outlive the session that sent the last part.
    seals: TaskGroup,
    origins: Arc<Origins>,
    budget: Arc<Semaphore>,
    shutdown: CancellationToken,
    broken: CancellationToken,
}

impl Ingest {
    /// Sessions end with [`SessionError::Shutdown`] when `shutdown` is cancelled.
    pub fn new(
        buffer: Arc<dyn WalBuffer>,
        fleet: Arc<Fleet>,
        staging: Arc<Staging>,
        seals: TaskGroup,
        origins: Origins,
        shutdown: CancellationToken,
    ) -> Self {
        let budget = Arc::new(Semaphore::new(MAX_INFLIGHT_BYTES / BUDGET_UNIT));
        let origins = Arc::new(origins);
        Self { buffer, fleet, staging, seals, origins, budget, shutdown, broken: CancellationToken::new() }
    }

    /// Drives one agent's stream to its end. `Ok` when the agent closed it.
    ///
    /// When it returns, nothing of the session is under way any more: what was appended is durable, what was unfinished
    /// is given up.
    pub async fn serve<S>(
        &self,
        agent: AgentName,
        peer: &str,
        inbound: S,
        out: mpsc::Sender<ReplicateResponse>,
    ) -> Result<(), SessionError>
    where
        S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
    {
        let result = session::serve(self, agent, peer, inbound, out).await;
        if let Err(SessionError::Buffer(_)) = &result {
            self.look_at_buffer().await;
        }
        result
    }

    /// Completes when the buffer takes nothing more from anybody until it is opened again.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// A buffer that fails even at what needs no disk fails at everything.
    async fn look_at_buffer(&self) {
        let nothing = self.buffer.abandon(DatabaseId(u64::MAX)).await;
        if let Err(error @ BufferError::Io { .. }) = nothing {
            tracing::error!(%error, "the buffer is broken, the hub must be started again");
            self.broken.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
