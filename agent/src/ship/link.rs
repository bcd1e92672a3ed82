//! One open stream to the hub, as the database tasks see it: a bounded way out.
//!
//! Invariants: at most [`OUTBOX_BYTES`] wait in the queue, whatever the number of databases; what was queued is either
//! taken by the stream or lost with the link, and then the link is closed for everybody.

use super::throttle::UploadLimit;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use walhub_common::limits::MAX_CHUNK_BYTES;
use walhub_proto::v1::replicate_request::Message;
use walhub_proto::v1::{ReplicateRequest, SegmentChunk};

/// Bytes that may wait for the stream to take them.
const OUTBOX_BYTES: usize = 2 * MAX_CHUNK_BYTES;
/// Messages that may wait.
const OUTBOX_MESSAGES: usize = 1024;
/// What a message costs beside its payload.
pub const MESSAGE_BYTES: usize = 128;

/// A blocked sender looks up this often whether it should give up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// The stream ended; the caller waits for the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link to the hub is closed")]
pub struct Closed;

/// Why a blocking send did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The stream ended.
    Closed,
    /// The caller did not want to wait any longer.
    GivenUp,
}

/// Messages with the room they take; the room is given back when the stream takes them.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) messages: Vec<ReplicateRequest>,
    _room: OwnedSemaphorePermit,
}

impl Queued {
    fn one(message: Message, room: OwnedSemaphorePermit) -> Self {
        Self { messages: vec![ReplicateRequest { message: Some(message) }], _room: room }
    }
}

/// Room in the queue that somebody has.
#[derive(Debug)]
pub struct Slot {
    room: OwnedSemaphorePermit,
    place: mpsc::OwnedPermit<Queued>,
}

impl Slot {
    /// Queues the messages together: the stream takes them at once. They should fit; where a database grew by pages that no
    /// frame brought they may not, and then more waits in the queue than it has room for, this once.
    pub fn send(mut self, messages: Vec<Message>) {
        let used: usize = messages.iter().map(|message| cost(message) as usize).sum();
        drop(self.room.split(self.room.num_permits().saturating_sub(used)));
        let messages =
            messages.into_iter().map(|message| ReplicateRequest { message: Some(message) }).collect();
        self.place.send(Queued { messages, _room: self.room });
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Link {
    /// Number of this stream since start.
    pub id: u64,
    /// Largest chunk the hub takes.
    pub max_chunk: usize,
    /// The connection, for other services of the hub.
    pub channel: Channel,
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Link {
    /// A link and the end that the stream reads.
    pub(super) fn new(
        id: u64,
        max_chunk: usize,
        channel: Channel,
        queue: mpsc::Sender<Queued>,
        room: Arc<Semaphore>,
    ) -> Self {
        let max_chunk = max_chunk.clamp(1, MAX_CHUNK_BYTES);
        Self { id, max_chunk, channel, queue, room, closed: CancellationToken::new() }
    }

    /// The queue of a new stream, before anybody knows whether the hub welcomes it.
    pub(super) fn queue(
        limit: Option<UploadLimit>,
    ) -> (mpsc::Sender<Queued>, mpsc::Receiver<Queued>, Arc<Semaphore>) {
        let (tx, rx) = mpsc::channel(OUTBOX_MESSAGES);
        let bytes = limit.map_or(OUTBOX_BYTES, |limit| limit.queue_bytes().min(OUTBOX_BYTES));
        (tx, rx, Arc::new(Semaphore::new(bytes + 16 * MESSAGE_BYTES)))
    }

    /// Queues a message; waits for room.
    pub async fn send(&self, message: Message) -> Result<(), Closed> {
        let send = async {
            let room = self.room.clone().acquire_many_owned(cost(&message)).await.map_err(|_| Closed)?;
            queue(&self.queue, message, room).await
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Closed),
            sent = send => sent,
        }
    }

    /// Queues a message when there is room for it right now.
    pub fn try_send(&self, message: Message) -> Result<(), Closed> {
        let room = self.room.clone().try_acquire_many_owned(cost(&message)).map_err(|_| Closed)?;
        self.queue.try_send(Queued::one(message, room)).map_err(|_| Closed)
    }

    /// Room for messages of `bytes` together, when there is so much right now: whoever has it need not wait any more.
    pub fn try_slot(&self, bytes: usize) -> Option<Slot> {
        let room = u32::try_from(bytes).ok()?;
        let room = self.room.clone().try_acquire_many_owned(room).ok()?;
        let place = self.queue.clone().try_reserve_owned().ok()?;
        Some(Slot { room, place })
    }

    /// Queues a message from a blocking thread; waits for room, unless `gives_up` says otherwise meanwhile.
    pub fn send_blocking(&self, message: Message, gives_up: impl Fn() -> bool) -> Result<(), Unsent> {
        if self.is_closed() {
            return Err(Unsent::Closed);
        }
        if gives_up() {
            return Err(Unsent::GivenUp);
        }
        let Ok(room) = self.room.clone().try_acquire_many_owned(cost(&message)) else {
            return self.wait_blocking(message, gives_up);
        };
        match self.queue.try_reserve() {
            Ok(place) => {
                place.send(Queued::one(message, room));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(())) => Err(Unsent::Closed),
            Err(mpsc::error::TrySendError::Full(())) => {
                drop(room);
                self.wait_blocking(message, gives_up)
            }
        }
    }

    fn wait_blocking(&self, message: Message, gives_up: impl Fn() -> bool) -> Result<(), Unsent> {
        tokio::runtime::Handle::current().block_on(async {
            let send = self.send(message);
            tokio::pin!(send);
            loop {
                tokio::select! {
                    sent = &mut send => return sent.map_err(|Closed| Unsent::Closed),
                    () = tokio::time::sleep(LOOK_UP) => if gives_up() { return Err(Unsent::GivenUp) },
                }
            }
        })
    }

    /// True when the stream has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Resolves when the stream has ended.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Ends the link for everybody who holds it.
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.room.close();
    }
}

/// Queues the first message of a stream.
pub(super) async fn greet(
    tx: &mpsc::Sender<Queued>,
    room: &Arc<Semaphore>,
    message: Message,
) -> Result<(), Closed> {
    let room = room.clone().acquire_many_owned(cost(&message)).await.map_err(|_| Closed)?;
    queue(tx, message, room).await
}

async fn queue(
    tx: &mpsc::Sender<Queued>,
    message: Message,
    room: OwnedSemaphorePermit,
) -> Result<(), Closed> {
    tx.send(Queued::one(message, room)).await.map_err(|_| Closed)
}

fn cost(message: &Message) -> u32 {
    let payload = match message {
        Message::Segment(SegmentChunk { data, .. }) => data.len().min(OUTBOX_BYTES),
        Message::Open(open) => open.path.len().min(OUTBOX_BYTES),
        Message::OrderUpdate(update) => update.message.len().min(OUTBOX_BYTES),
        Message::Hello(_) | Message::Close(_) => 0,
    };
    u32::try_from(payload + MESSAGE_BYTES).expect("BUG: a message beyond the outbox")
}
