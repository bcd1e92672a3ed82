//! From a stream of messages to files that blocking code reads: the bridge between a network task and an
//! [`Applier`] on a thread of its own.
//!
//! ```text
//! network task ─ file("name") · data(bytes)… · file(…) … · finish(checksum) ─▶ bounded queue ─▶ Feed ▸ FeedFile: Read
//! ```
//!
//! Invariants
//! - At most [`QUEUE_EVENTS`] messages wait: a slow disk slows the stream down, and memory stays bounded.
//! - A stream that ends without [`Feeder::finish`] is a failure for the reader, wherever it breaks: a restore from
//!   half a stream cannot succeed.
//! - When the reader gives up, the next send says so ([`FeedClosed`]); the reader's own error tells why.

use super::{Applier, Report, RestoreError};
use crate::Checksum;
use crate::ltx::LtxError;
use bytes::{Buf, Bytes};
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Messages between the network and the reader; each holds at most one chunk.
const QUEUE_EVENTS: usize = 8;

#[derive(Debug)]
enum Event {
    File(String),
    Data(Bytes),
    Finish(Option<Checksum>),
    Fail(String),
}

/// The reader has given up; its own result says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader of the stream has ended")]
pub struct FeedClosed;

/// The network's end. Dropping it without [`Feeder::finish`] makes the reader fail.
#[derive(Debug)]
pub struct Feeder(mpsc::Sender<Event>);

/// The reader's end, for blocking code.
#[derive(Debug)]
pub struct Feed {
    events: mpsc::Receiver<Event>,
    next_name: Option<String>,
    current: Bytes,
    end: Option<Option<Checksum>>,
}

/// Two ends of one stream.
pub fn channel() -> (Feeder, Feed) {
    let (sender, events) = mpsc::channel(QUEUE_EVENTS);
    (Feeder(sender), Feed { events, next_name: None, current: Bytes::new(), end: None })
}

impl Feeder {
    /// The next file begins; `name` is what errors call it.
    pub async fn file(&self, name: impl Into<String>) -> Result<(), FeedClosed> {
        self.send(Event::File(name.into())).await
    }

    /// Bytes of the file that began last.
    pub async fn data(&self, data: Bytes) -> Result<(), FeedClosed> {
        self.send(Event::Data(data)).await
    }

    /// The stream ended as it should; `expected` is the database checksum that the sender promised.
    pub async fn finish(self, expected: Option<Checksum>) -> Result<(), FeedClosed> {
        self.send(Event::Finish(expected)).await
    }

    /// The stream broke; the reader fails with this reason.
    pub async fn fail(self, reason: impl Into<String>) -> Result<(), FeedClosed> {
        self.send(Event::Fail(reason.into())).await
    }

    async fn send(&self, event: Event) -> Result<(), FeedClosed> {
        self.0.send(event).await.map_err(|_| FeedClosed)
    }
}

impl Feed {
    /// Waits for the next file; `None` when the stream has ended as it should. What was not read of the file before
    /// is skipped.
    pub fn next_file(&mut self) -> io::Result<Option<FeedFile<'_>>> {
        loop {
            if let Some(name) = self.next_name.take() {
                self.current = Bytes::new();
                return Ok(Some(FeedFile { feed: self, name }));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            match self.receive()? {
                Event::Data(_) => {}
                other => self.note(other)?,
            }
        }
    }

    /// The checksum promised with the end of the stream; known once [`Feed::next_file`] has returned `None`.
    pub fn expected(&self) -> Option<Checksum> {
        self.end.flatten()
    }

    /// Applies every file and verifies the result. Blocks; run it on a thread that may.
    pub fn restore(mut self, mut applier: Applier) -> Result<Report, RestoreError> {
        let fault =
            |e| RestoreError::Input { name: "the stream of the restore".into(), source: LtxError::Io(e) };
        while let Some(file) = self.next_file().map_err(fault)? {
            let name = file.name().to_owned();
            applier.apply(&name, file)?;
        }
        applier.finish(self.expected())
    }

    fn receive(&mut self) -> io::Result<Event> {
        self.events.blocking_recv().ok_or_else(|| broken("the stream ended early"))
    }

    fn note(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::File(name) => self.next_name = Some(name),
            Event::Finish(expected) => self.end = Some(expected),
            Event::Data(data) => self.current = data,
            Event::Fail(reason) => return Err(broken(reason)),
        }
        Ok(())
    }
}

/// Not `UnexpectedEof`: that says of a file that it is cut short, and here the way it came is to blame.
fn broken(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, reason.into())
}

/// One file of the stream.
#[derive(Debug)]
pub struct FeedFile<'a> {
    feed: &'a mut Feed,
    name: String,
}

impl FeedFile<'_> {
    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Read for FeedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.feed.current.has_remaining() {
            if self.feed.next_name.is_some() || self.feed.end.is_some() {
                return Ok(0);
            }
            let event = self.feed.receive()?;
            self.feed.note(event)?;
        }
        let n = buffer.len().min(self.feed.current.len());
        self.feed.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::{Encoder, Header};
    use crate::{PageSize, Pgno, TxidRange};

    fn file(range: (u64, u64), fill: u8) -> Vec<u8> {
        let header = Header {
            page_size: PageSize::new(512).unwrap(),
            commit: 3,
            range: TxidRange::from_raw(range.0, range.1).unwrap(),
            timestamp_ms: 1000,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: None,
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for number in 1..=3 {
            encoder.page(Pgno::new(number).unwrap(), &[fill; 512]).unwrap();
        }
        encoder.finish().unwrap().0
    }

    fn checksum(fill: u8) -> Checksum {
        let sum = |n| Checksum::of_page(Pgno::new(n).unwrap(), &[fill; 512]);
        (1..=3).map(sum).fold(Checksum::EMPTY, Checksum::toggle)
    }

    async fn send(feeder: &Feeder, name: &str, bytes: &[u8], cut: usize) {
        feeder.file(name).await.unwrap();
        for piece in bytes.chunks(cut) {
            feeder.data(Bytes::copy_from_slice(piece)).await.unwrap();
        }
    }

    /// What comes of a restore that `send` feeds, and whether the output exists.
    async fn restored(send: impl AsyncFnOnce(Feeder)) -> (Result<Report, RestoreError>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let applier = Applier::new(&path, false).unwrap();
        let (feeder, feed) = channel();
        let reader = tokio::task::spawn_blocking(move || feed.restore(applier));
        send(feeder).await;
        let result = reader.await.unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, usize::from(result.is_ok()), "nothing lies around");
        (result, path.exists())
    }

    #[tokio::test]
    async fn files_cut_anywhere_come_out_whole() {
        for cut in [1, 7, 100, 1 << 20] {
            let (result, exists) = restored(async |feeder| {
                send(&feeder, "a", &file((1, 4), 1), cut).await;
                send(&feeder, "b", &file((5, 5), 2), cut).await;
                feeder.finish(Some(checksum(2))).await.unwrap();
            })
            .await;
            let report = result.unwrap();
            assert!(exists);
            assert_eq!((report.range.max().get(), report.checksum), (5, checksum(2)));
        }
    }

    #[tokio::test]
    async fn a_stream_without_an_end_is_no_restore() {
        let broken_between = restored(async |feeder| send(&feeder, "a", &file((1, 4), 1), 64).await).await;
        assert!(broken_between.0.unwrap_err().to_string().contains("ended early"));
        let bytes = file((1, 4), 1);
        let broken_inside = restored(async |feeder| send(&feeder, "a", &bytes[..200], 64).await).await;
        assert!(broken_inside.0.unwrap_err().to_string().contains("ended early"));
        let failed = restored(async |feeder| {
            send(&feeder, "a", &file((1, 4), 1), 64).await;
            feeder.fail("the hub said no").await.unwrap();
        })
        .await;
        assert!(failed.0.unwrap_err().to_string().contains("the hub said no"));
        assert!(!broken_between.1 && !broken_inside.1 && !failed.1);
    }

    #[tokio::test]
    async fn a_wrong_checksum_is_an_error_and_leaves_nothing() {
        let (result, exists) = restored(async |feeder| {
            send(&feeder, "a", &file((1, 4), 1), 64).await;
            feeder.finish(Some(checksum(9))).await.unwrap();
        })
        .await;
        assert!(matches!(result, Err(RestoreError::Mismatch { .. })));
        assert!(!exists);
    }

    #[tokio::test]
    async fn the_sender_learns_that_the_reader_gave_up() {
        let (result, _) = restored(async |feeder| {
            feeder.file("a").await.unwrap();
            while feeder.data(Bytes::from(vec![7; 1000])).await.is_ok() {}
            assert_eq!(feeder.finish(None).await, Err(FeedClosed));
        })
        .await;
        assert!(matches!(result, Err(RestoreError::Input { .. })));
    }

    #[test]
    fn an_unread_file_is_skipped() {
        let (feeder, mut feed) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            send(&feeder, "a", b"abc", 1).await;
            send(&feeder, "b", b"def", 3).await;
            feeder.finish(None).await.unwrap();
        });
        let mut first = feed.next_file().unwrap().unwrap();
        assert_eq!(first.name(), "a");
        assert_eq!(first.read(&mut [0; 1]).unwrap(), 1);
        let mut text = String::new();
        feed.next_file().unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "def");
        assert!(feed.next_file().unwrap().is_none());
        assert_eq!(feed.expected(), None);
    }
}
