//! Where captured bytes go: on the link and into the window, or nowhere.

use crate::capture::{SegmentMeta, Sink};
use crate::ship::inbox::Inbox;
use crate::ship::link::{Closed, Link};
use crate::ship::window::{Entry, Keep};
use bytes::Bytes;
use std::io;
use walhub_common::Checksum;
use walhub_proto::convert::range_to_wire;
use walhub_proto::v1::SegmentChunk;
use walhub_proto::v1::replicate_request::Message;

/// Cuts one segment into messages; numbers them.
#[derive(Debug)]
pub(super) struct Chunker {
    handle: u32,
    meta: SegmentMeta,
    next: u32,
}

impl Chunker {
    pub(super) fn new(handle: u32, meta: SegmentMeta) -> Self {
        Self { handle, meta, next: 0 }
    }

    pub(super) fn message(&mut self, data: Bytes, last: bool) -> Message {
        let chunk = self.next;
        self.next += 1;
        Message::Segment(SegmentChunk {
            handle: self.handle,
            range: Some(range_to_wire(self.meta.range)),
            pre_checksum: self.meta.pre.map_or(0, Checksum::get),
            post_checksum: self.meta.post.get(),
            agent_time_ms: self.meta.agent_time_ms,
            chunk,
            last,
            data,
        })
    }
}

/// Sends one segment as it is made. Blocks while the link has no room; fails at once when the link is closed, and when
/// the database must stop or was refused.
#[derive(Debug)]
pub(super) struct LinkSink<'a> {
    link: &'a Link,
    inbox: &'a Inbox,
    handle: u32,
    /// A stop does not interrupt: the last transactions before the end.
    last_pass: bool,
    keep: Option<Keep>,
    chunker: Option<Chunker>,
}

impl<'a> LinkSink<'a> {
    pub(super) fn new(link: &'a Link, inbox: &'a Inbox, handle: u32, keep: Keep, last_pass: bool) -> Self {
        Self { link, inbox, handle, last_pass, keep: Some(keep), chunker: None }
    }

    /// The window's entry for a segment that was sent to its end.
    pub(super) fn entry(mut self, meta: &SegmentMeta) -> Entry {
        let keep = self.keep.take().expect("BUG: one entry per sink");
        Entry::new(*meta, keep)
    }

    fn send(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        if !self.last_pass && self.inbox.interrupts() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let chunker = self.chunker.as_mut().ok_or_else(|| io::Error::other("chunk before begin"))?;
        let closed = |Closed| io::Error::from(io::ErrorKind::NotConnected);
        self.link.send_blocking(chunker.message(data, last)).map_err(closed)
    }
}

impl Sink for LinkSink<'_> {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.chunker = Some(Chunker::new(self.handle, *meta));
        Ok(())
    }

    fn chunk(&mut self, mut data: Bytes, last: bool) -> io::Result<()> {
        if let Some(keep) = &mut self.keep {
            keep.chunk(&data);
        }
        while data.len() > self.link.max_chunk {
            let piece = data.split_to(self.link.max_chunk);
            self.send(piece, false)?;
        }
        self.send(data, last)
    }
}

/// Takes what the hub has already.
#[derive(Debug)]
pub(super) struct Discard;

impl Sink for Discard {
    fn begin(&mut self, _: &SegmentMeta) -> io::Result<()> {
        Ok(())
    }

    fn chunk(&mut self, _: Bytes, _: bool) -> io::Result<()> {
        Ok(())
    }
}
