//! `upload-limit`: what leaves for the hub, in bytes per second for the whole node.
//!
//! A token bucket between the queue of the link and the stream. Only what the node sends is slowed down: acks and answers of
//! the hub, HTTP/2's own frames and downloads are not. Messages keep their order, so a control message waits for what was
//! queued before it; the queue of a limited link is therefore so short ([`queue_bytes`]) that this is about half a second.
//!
//! Non-goals: bytes are those of the messages, not of TLS, TCP and IP around them (some percent more).

use super::link::Queued;
use futures_util::stream::{self, Stream};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use walhub_proto::v1::ReplicateRequest;
use walhub_proto::v1::replicate_request::Message;

/// What a message counts beside its payload.
const OVERHEAD: usize = 64;
/// The bucket holds what the limit gives in this time.
const BURST: Duration = Duration::from_millis(250);
/// Chunks of a limited link are not smaller than this.
const MIN_CHUNK: u64 = 16 * 1024;

/// Bytes per second, for the whole node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UploadLimit(pub u64);

impl UploadLimit {
    /// Bytes that may wait in the queue: half a second's.
    pub(super) fn queue_bytes(self) -> usize {
        usize::try_from(self.0 / 2).unwrap_or(usize::MAX).max(4 * MIN_CHUNK as usize)
    }

    /// Largest chunk: a quarter of a second's, so that databases take turns.
    pub(super) fn max_chunk(self) -> usize {
        usize::try_from((self.0 / 4).max(MIN_CHUNK)).unwrap_or(usize::MAX)
    }
}

/// Bytes that may leave now; negative while a message before was larger than what there was.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: UploadLimit, now: Instant) -> Self {
        let per_second = limit.0 as f64;
        Self { per_second, level: per_second * BURST.as_secs_f64(), at: now }
    }

    /// Takes bytes out; they may leave after this time.
    fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let most = self.per_second * BURST.as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(most) - bytes as f64;
        Duration::from_secs_f64((-self.level).max(0.0) / self.per_second)
    }
}

struct Throttled {
    queue: mpsc::Receiver<Queued>,
    /// Messages that were taken from the queue together.
    taken: VecDeque<ReplicateRequest>,
    bucket: Option<Bucket>,
}

/// The messages of a queue, no faster than the limit. Their room in the queue is given back when they are taken from it.
pub(super) fn throttled(
    queue: mpsc::Receiver<Queued>,
    limit: Option<UploadLimit>,
) -> impl Stream<Item = ReplicateRequest> + Send {
    let bucket = limit.map(|limit| Bucket::new(limit, Instant::now()));
    stream::unfold(Throttled { queue, taken: VecDeque::new(), bucket }, |mut from| async {
        let message = loop {
            match from.taken.pop_front() {
                Some(message) => break message,
                None => from.taken = from.queue.recv().await?.messages.into(),
            }
        };
        if let Some(bucket) = &mut from.bucket {
            let wait = bucket.take(size(&message), Instant::now());
            if wait > Duration::ZERO {
                tokio::time::sleep(wait).await;
            }
        }
        Some((message, from))
    })
}

fn size(request: &ReplicateRequest) -> usize {
    let payload = match &request.message {
        Some(Message::Segment(chunk)) => chunk.data.len(),
        Some(Message::Open(open)) => open.path.len() + open.name.len(),
        Some(Message::OrderUpdate(update)) => update.message.len(),
        Some(Message::Hello(_) | Message::Close(_)) | None => 0,
    };
    payload + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of these messages leaves, all of them waiting from the beginning.
    fn leave(limit: UploadLimit, sizes: impl IntoIterator<Item = usize>) -> Vec<Duration> {
        let begun = Instant::now();
        let mut bucket = Bucket::new(limit, begun);
        let mut now = begun;
        let mut leave = |bytes| {
            now += bucket.take(bytes, now);
            now - begun
        };
        sizes.into_iter().map(&mut leave).collect()
    }

    #[test]
    fn bytes_leave_at_the_limit_and_the_first_ones_at_once() {
        let at = leave(UploadLimit(100_000), [50_000; 21]);
        // 1,050,000 bytes, of which the bucket held 25,000.
        let end = at[20].as_secs_f64();
        assert!((10.2..10.3).contains(&end), "{end}");
        let small = leave(UploadLimit(100_000), [200; 100]);
        assert_eq!(small[99], Duration::ZERO);
    }

    #[test]
    fn a_pause_fills_the_bucket_and_no_more() {
        let limit = UploadLimit(100_000);
        let begun = Instant::now();
        let mut bucket = Bucket::new(limit, begun);
        assert_eq!(bucket.take(25_000, begun), Duration::ZERO);
        let later = begun + Duration::from_secs(60);
        assert_eq!(bucket.take(25_000, later), Duration::ZERO);
        assert_eq!(bucket.take(10_000, later), Duration::from_millis(100));
    }

    #[test]
    fn a_control_message_waits_for_what_is_queued_before_it_and_that_is_short() {
        for limit in [1 << 17, 1 << 20, 10 << 20].map(UploadLimit) {
            let queued = limit.queue_bytes() / limit.max_chunk();
            let at = leave(limit, std::iter::repeat_n(limit.max_chunk(), queued).chain([OVERHEAD]));
            assert!(at[queued] < Duration::from_millis(600), "{limit:?} {at:?}");
        }
    }

    #[test]
    fn slow_limits_keep_chunks_that_fit_the_queue() {
        for limit in [1, 4096, 65_536, 1 << 20, u64::MAX].map(UploadLimit) {
            assert!(limit.max_chunk() <= limit.queue_bytes(), "{limit:?}");
        }
    }
}
