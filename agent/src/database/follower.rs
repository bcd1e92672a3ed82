//! The blocking half of a database: everything that reads the file. It travels into a blocking thread for each call and
//! back, so one owner holds it at any time.

use super::report::Report;
use super::sink::{Discard, GatherSink, LinkSink, Sent};
use crate::capture::{Capture, CaptureError, Maintained, Next, SegmentMeta, Sink};
use crate::ship::inbox::{Inbox, Patience};
use crate::ship::link::{Link, MESSAGE_BYTES};
use crate::ship::window::{Budget, Keep, Window};
use crate::spool::Spool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_common::{Pos, Txid};
use walhub_proto::v1::replicate_request::Message;

/// Room on the link for a byte of log, as a fraction: LZ4 makes a page longer by a hundredth at worst, every segment has a header
/// and an index, and is a message; the smallest page has 512 bytes.
const ROOM: (usize, usize) = (2 * 512 + MESSAGE_BYTES, 512);
/// What writers may add to the log between the look at it and the reading.
const AT_HAND_MORE: usize = 32 * 1024;
/// A hub that takes smaller chunks than this gets them one by one.
const AT_HAND_CHUNK: usize = 16 * 1024;
/// Reading at hand goes on for this long at most.
const AT_HAND_TIME: Duration = Duration::from_millis(2);
/// Acks are looked at after this much reading.
const SLICE: Duration = Duration::from_millis(10);
/// IN_MODIFY comes before the commit is visible; these are the first looks after it.
const GLANCES: [Duration; 3] =
    [Duration::from_micros(50), Duration::from_micros(150), Duration::from_micros(800)];

/// Capture, window and spool of one database.
pub(super) struct Follower {
    pub(super) capture: Capture,
    pub(super) window: Window,
    pub(super) spool: Spool,
}

/// Where segments go.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) link: Arc<Link>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) budget: Arc<Budget>,
    pub(super) handle: u32,
    /// Where bytes are counted.
    pub(super) report: Arc<Report>,
}

/// What becomes of transactions that are there together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Segments {
    /// Each is a segment.
    Single,
    /// They share one.
    Joined,
}

/// How a round of reading ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more is committed.
    UpToDate,
    /// Time to look at the mail; there may be more.
    Slice,
    /// The window is full: acks must come first. Or the log is: writers are faster than the reading.
    NoRoom,
    /// The WAL was recycled under unread frames.
    Lost,
}

impl Follower {
    /// Sends committed transactions in order.
    pub(super) fn pump(
        &mut self,
        to: &Target,
        glance: bool,
        segments: Segments,
    ) -> Result<Pumped, CaptureError> {
        if glance {
            for pause in GLANCES {
                if self.capture.header_moved() {
                    break;
                }
                std::thread::sleep(pause);
            }
        }
        let begun = Instant::now();
        loop {
            if !to.budget.has_room() {
                return Ok(Pumped::NoRoom);
            }
            let mut sink = LinkSink::new(to, Patience::LastPass, Keep::new(&to.budget));
            match self.next(&mut sink, segments)? {
                Next::Sent(meta) => self.window.push(sink.entry(&meta)),
                Next::UpToDate => {
                    self.capture.maintain()?;
                    return Ok(Pumped::UpToDate);
                }
                Next::Lost(_) => return Ok(Pumped::Lost),
            }
            if begun.elapsed() >= SLICE {
                // Under writers that never pause the log is never read to its end, and must still be checkpointed.
                return Ok(match self.capture.maintain()? {
                    Maintained::Overrun => Pumped::NoRoom,
                    _ => Pumped::Slice,
                });
            }
        }
    }

    /// As [`Follower::pump`], when everything is at hand: little to read, room on the link for all of it. Then no thread
    /// need be woken for it, and the messages leave together. `None`: not now, or not all: a checkpoint is due.
    pub(super) fn pump_at_hand(
        &mut self,
        to: &Target,
        segments: Segments,
    ) -> Result<Option<Pumped>, CaptureError> {
        let Some(ahead) = self.capture.at_hand().filter(|_| to.link.max_chunk >= AT_HAND_CHUNK) else {
            return Ok(None);
        };
        // No more than is needed: databases that stream come here all at once.
        let (room, per) = ROOM;
        let room = (ahead as usize + AT_HAND_MORE) * room / per;
        let Some(slot) = to.link.try_slot(room) else { return Ok(None) };
        let mut messages = Vec::new();
        let pumped = self.gather(to, segments, room, &mut messages);
        // What was read before an error is in the window, and must be on the link as well.
        if !messages.is_empty() {
            slot.send(messages);
        }
        pumped
    }

    fn gather(
        &mut self,
        to: &Target,
        segments: Segments,
        mut room: usize,
        messages: &mut Vec<Message>,
    ) -> Result<Option<Pumped>, CaptureError> {
        let begun = Instant::now();
        let (bytes, per) = ROOM;
        loop {
            if !to.budget.has_room() {
                return Ok(Some(Pumped::NoRoom));
            }
            let mut sink = GatherSink::new(to, messages);
            let most = (room * per / bytes) as u64;
            match self.capture.next_at_hand(&mut sink, segments == Segments::Joined, most)? {
                Some(Next::Sent(meta)) => {
                    let entry = sink.entry(&meta);
                    room = room.saturating_sub(entry.total_bytes() as usize + MESSAGE_BYTES);
                    self.window.push(entry);
                }
                Some(Next::UpToDate) if self.capture.upkeep_is_due() => return Ok(None),
                Some(Next::UpToDate) => return Ok(Some(Pumped::UpToDate)),
                Some(Next::Lost(_)) => return Ok(Some(Pumped::Lost)),
                None => break,
            }
            if begun.elapsed() >= AT_HAND_TIME {
                break;
            }
        }
        // Under writers that never pause the end is never reached, and a checkpoint must come all the same.
        Ok((!self.capture.upkeep_is_due()).then_some(Pumped::Slice))
    }

    fn next(&mut self, sink: &mut dyn Sink, segments: Segments) -> Result<Next, CaptureError> {
        match segments {
            Segments::Single => self.capture.next(sink),
            Segments::Joined => self.capture.next_joined(sink),
        }
    }

    /// Reads transactions that the hub has, up to its position.
    pub(super) fn replay(&mut self, until: Pos, to: &Target) -> Result<Pumped, CaptureError> {
        while self.capture.position().is_none_or(|at| at.txid < until.txid) {
            if to.link.is_closed() || to.inbox.interrupts(to.link.id, Patience::None) {
                return Ok(Pumped::Slice);
            }
            match self.capture.next(&mut Discard)? {
                Next::Sent(_) => {}
                Next::UpToDate => return Ok(Pumped::UpToDate),
                Next::Lost(_) => return Ok(Pumped::Lost),
            }
        }
        Ok(Pumped::Slice)
    }

    /// One segment with everything since `since`.
    pub(super) fn delta(
        &mut self,
        since: Option<Pos>,
        to: &Target,
    ) -> Result<(SegmentMeta, Sent), CaptureError> {
        let mut sink = LinkSink::new(to, Patience::None, Keep::nothing(&to.budget));
        let meta = match since {
            None => self.capture.snapshot(&mut sink)?,
            Some(_) => self.capture.delta_since(since, &mut sink)?,
        };
        let sent = sink.sent();
        self.window.push(sink.entry(&meta));
        Ok((meta, sent))
    }

    /// One segment with every page that differs from the page map; `None` when none does.
    pub(super) fn heal(&mut self, to: &Target) -> Result<Option<(SegmentMeta, Sent)>, CaptureError> {
        let mut sink = LinkSink::new(to, Patience::None, Keep::nothing(&to.budget));
        let Some(meta) = self.capture.heal(&mut sink)? else { return Ok(None) };
        let sent = sink.sent();
        self.window.push(sink.entry(&meta));
        Ok(Some((meta, sent)))
    }

    /// The hub has everything up to `txid` on its disk.
    pub(super) fn acked(&mut self, txid: Txid) {
        self.window.ack(txid);
        self.spool.acked(txid);
        self.capture.acked(txid);
    }
}
