//! Where captured bytes go: on the link and into the window, or nowhere.

use super::follower::Target;
use crate::capture::{SegmentMeta, Sink};
use crate::ship::inbox::Patience;
use crate::ship::link::Unsent;
use crate::ship::window::{Entry, Keep};
use crate::watchdog;
use bytes::Bytes;
use std::io;
use walhub_common::Checksum;
use walhub_proto::convert::range_to_wire;
use walhub_proto::v1::SegmentChunk;
use walhub_proto::v1::replicate_request::Message;

/// What a file is to the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A segment of its own.
    Segment,
    /// A part of a first snapshot.
    Part,
    /// The last file of a first snapshot.
    Last,
}

/// Cuts one segment into messages the hub takes, and numbers them.
#[derive(Debug)]
pub(super) struct Chunker {
    handle: u32,
    kind: Kind,
    meta: SegmentMeta,
    max_chunk: usize,
    next: u32,
}

impl Chunker {
    pub(super) fn new(handle: u32, kind: Kind, meta: SegmentMeta, max_chunk: usize) -> Self {
        Self { handle, kind, meta, max_chunk, next: 0 }
    }

    /// The messages for one piece of the segment.
    pub(super) fn cut(&mut self, mut data: Bytes, last: bool) -> Vec<Message> {
        let mut messages = Vec::with_capacity(1);
        while data.len() > self.max_chunk {
            let piece = data.split_to(self.max_chunk);
            messages.push(self.message(piece, false));
        }
        messages.push(self.message(data, last));
        messages
    }

    fn message(&mut self, data: Bytes, last: bool) -> Message {
        let chunk = self.next;
        self.next += 1;
        Message::Segment(SegmentChunk {
            handle: self.handle,
            range: Some(range_to_wire(self.meta.range)),
            pre_checksum: self.meta.pre.map_or(0, Checksum::get),
            post_checksum: if self.kind == Kind::Part { 0 } else { self.meta.post.get() },
            agent_time_ms: self.meta.agent_time_ms,
            chunk,
            last,
            data,
            staged: self.kind == Kind::Part,
            uses_staged: self.kind == Kind::Last,
        })
    }
}

/// What went out of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Sent {
    /// Pages.
    pub(super) pages: u32,
    /// Bytes.
    pub(super) bytes: u64,
}

/// Sends one segment as it is made. Blocks while the link has no room; fails when the link is closed, the database was
/// refused, or its task must stop. After a failure the hub holds half a segment: only a reopened handle goes on.
#[derive(Debug)]
pub(super) struct LinkSink<'a> {
    to: &'a Target,
    kind: Kind,
    patience: Patience,
    keep: Keep,
    chunker: Option<Chunker>,
    sent: Sent,
}

impl<'a> LinkSink<'a> {
    pub(super) fn new(to: &'a Target, patience: Patience, keep: Keep) -> Self {
        Self { to, kind: Kind::Segment, patience, keep, chunker: None, sent: Sent::default() }
    }

    /// For a file of a first snapshot. Its bytes are not kept: they can be made again.
    pub(super) fn staged(to: &'a Target, kind: Kind) -> Self {
        let keep = Keep::nothing(&to.budget);
        Self { to, kind, patience: Patience::None, keep, chunker: None, sent: Sent::default() }
    }

    /// What went out so far.
    pub(super) fn sent(&self) -> Sent {
        self.sent
    }

    /// The window's entry for a segment that was sent to its end.
    pub(super) fn entry(self, meta: &SegmentMeta) -> Entry {
        Entry::new(*meta, self.keep)
    }
}

impl Sink for LinkSink<'_> {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.chunker = Some(Chunker::new(self.to.handle, self.kind, *meta, self.to.link.max_chunk));
        Ok(())
    }

    fn pages(&mut self, pages: u32) {
        self.sent.pages += pages;
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        self.keep.chunk(&data);
        self.sent.bytes += data.len() as u64;
        self.to.report.sent(data.len());
        let chunker = self.chunker.as_mut().ok_or_else(|| io::Error::other("chunk before begin"))?;
        let link = &self.to.link;
        let gives_up = || {
            watchdog::beat();
            self.to.inbox.interrupts(link.id, self.patience)
        };
        for message in chunker.cut(data, last) {
            link.send_blocking(message, gives_up).map_err(|unsent| match unsent {
                Unsent::Closed => io::Error::from(io::ErrorKind::NotConnected),
                Unsent::GivenUp => io::Error::from(io::ErrorKind::Interrupted),
            })?;
        }
        Ok(())
    }
}

/// Gathers the messages of small segments, to be queued together.
#[derive(Debug)]
pub(super) struct GatherSink<'a> {
    to: &'a Target,
    keep: Keep,
    chunker: Option<Chunker>,
    messages: &'a mut Vec<Message>,
}

impl<'a> GatherSink<'a> {
    pub(super) fn new(to: &'a Target, messages: &'a mut Vec<Message>) -> Self {
        Self { to, keep: Keep::new(&to.budget), chunker: None, messages }
    }

    /// The window's entry for a segment that was gathered to its end.
    pub(super) fn entry(self, meta: &SegmentMeta) -> Entry {
        Entry::new(*meta, self.keep)
    }
}

impl Sink for GatherSink<'_> {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.chunker = Some(Chunker::new(self.to.handle, Kind::Segment, *meta, self.to.link.max_chunk));
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, last: bool) -> io::Result<()> {
        self.keep.chunk(&data);
        self.to.report.sent(data.len());
        let chunker = self.chunker.as_mut().ok_or_else(|| io::Error::other("chunk before begin"))?;
        self.messages.extend(chunker.cut(data, last));
        Ok(())
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
