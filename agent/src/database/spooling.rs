//! What happens when a WAL has passed its limit and the hub cannot take its transactions: they go to the node's disk, in
//! batches that are synced before their frames may be overwritten. And the way back: what was spooled is sent first.

use super::drive::{Driver, End, failed};
use super::follower::{Follower, Target};
use super::sink::LinkSink;
use crate::capture::{Capture, CaptureError, Maintained, Next, Sink, Standing};
use crate::ship::inbox::Patience;
use crate::ship::window::Keep;
use crate::spool::BATCH_BYTES;
use std::io;
use std::time::{Duration, Instant};
use walhub_common::{Pos, TxidRange};

/// The mail is looked at after this much sending.
const SLICE: Duration = Duration::from_millis(100);

/// What is left of a log when it is copied under the writer lock.
const NEAR_END: u64 = 1 << 20;

/// What was given up among the transactions that the hub does not have yet, and reported already: the delta that brings
/// those must not report it again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    /// Restore points, of transactions in the spool.
    pub(super) squashed: u64,
    /// Transactions after it that will be one restore point together.
    pub(super) skipped: u64,
}

impl Lost {
    /// Restore points.
    pub(super) fn points(self) -> u64 {
        self.squashed + self.skipped.saturating_sub(1)
    }
}

/// How a round of sending what was spooled ended.
enum Unspooled {
    /// Time to look at the mail; the hub will stand here once it has arrived.
    Sent(Option<Pos>),
    /// Nothing is left after the hub's position.
    Done(Option<Pos>),
    /// The hub knows another transaction under this TXID.
    Fork(Pos),
    /// A file could not be read; the spool was given up.
    Unreadable(String),
}

impl Follower {
    /// Takes everything committed off the WAL, so that it may begin anew: to the spool while that has room, else only the
    /// page map moves on.
    ///
    /// `hurry`: writers are faster than the reading. `wal_limit`: bytes.
    pub(super) fn spool(&mut self, hurry: bool, wal_limit: u64) -> Result<Lost, CaptureError> {
        let mut lost = Lost::default();
        if self.spool.takes() {
            self.spool_window();
            // Writers may be faster than this, and then the limit of the log counts for more than restore points. An
            // eighth of it is left for what they do until they are kept out.
            let enough = wal_limit - wal_limit / 8;
            lost.squashed += self.spool_while(|c| c.unread_bytes() > NEAR_END && c.wal_bytes() <= enough)?;
            let cleared = self.capture.clear_log()?;
            lost.squashed += self.spool_while(Capture::holds_transactions)?;
            // Too much to read while writers wait: as long as the limit is not near, another try costs nothing.
            let again = cleared == Maintained::Overrun && self.capture.wal_bytes() <= enough;
            if self.spool.takes() && (again || cleared != Maintained::Overrun) {
                return Ok(lost);
            }
            self.spool.suspend();
        }
        self.window.clear();
        lost.skipped = self.capture.make_room(hurry)?;
        Ok(lost)
    }

    /// Ends the capture. What is in memory only goes to the spool.
    pub(super) fn let_go(mut self) -> Result<(), CaptureError> {
        if self.capture.holds_transactions() && self.spool.takes() {
            self.spool_window();
            // What is lost here is a restore point; the data is in the page map.
            let _ = self.spool_while(Capture::holds_transactions);
        }
        self.capture.detach()
    }

    /// Segments that were sent and not acked come before those in the WAL.
    fn spool_window(&mut self) {
        if !self.window.is_empty() && self.window.end() == self.capture.position() {
            let written = self.spool.begin().and_then(|mut batch| {
                for entry in self.window.entries() {
                    let chunks = entry.chunks().filter(|c| !c.is_empty());
                    let Some((last, chunks)) = chunks.and_then(|c| c.split_last()) else { return Ok(()) };
                    batch.begin(&entry.meta)?;
                    chunks.iter().try_for_each(|chunk| batch.chunk(chunk.clone(), false))?;
                    batch.chunk(last.clone(), true)?;
                }
                self.spool.append(batch).map(|_| ())
            });
            // They are acked yet, or travel in a delta.
            if let Err(e) = written {
                tracing::debug!(error = %e, "the unacked segments were not spooled");
            }
        }
        self.window.clear();
    }

    /// Spools transaction by transaction, to the end of the log at most. Says how many restore points a squash cost.
    fn spool_while(&mut self, wanted: impl Fn(&Capture) -> bool) -> Result<u64, CaptureError> {
        let mut lost = 0;
        loop {
            if !wanted(&self.capture) {
                return Ok(lost);
            }
            if self.spool.is_full(self.capture.mapped_bytes()) {
                lost += self.squash()?;
            }
            if !self.spool.takes() {
                return Ok(lost);
            }
            let (mut batch, mut up_to_date) = match self.spool.begin() {
                Ok(batch) => (batch, false),
                Err(e) => {
                    self.give_up_spooling(&e);
                    return Ok(lost);
                }
            };
            while batch.bytes() < BATCH_BYTES && !up_to_date && wanted(&self.capture) {
                match self.capture.next(&mut batch) {
                    Ok(Next::Sent(_)) => {}
                    Ok(Next::UpToDate | Next::Lost(_)) => up_to_date = true,
                    Err(CaptureError::Sink(e)) => {
                        self.give_up_spooling(&e);
                        return Ok(lost);
                    }
                    Err(e) => {
                        self.spool.suspend();
                        return Err(e);
                    }
                }
            }
            match self.spool.append(batch) {
                Ok(Some(end)) => self.capture.acked(end.txid),
                Ok(None) => {}
                Err(e) => self.give_up_spooling(&e),
            }
            if up_to_date {
                return Ok(lost);
            }
        }
    }

    /// One delta in place of everything spooled: the newest version of each page.
    fn squash(&mut self) -> Result<u64, CaptureError> {
        if self.spool.is_empty() {
            let full =
                io::Error::new(io::ErrorKind::QuotaExceeded, "spool-max is reached by other databases");
            self.give_up_spooling(&full);
            return Ok(0);
        }
        let (before, known) = (self.spool.start(), self.spool.lost_restore_points());
        let mut batch = match self.spool.begin_in_place() {
            Ok(batch) => batch,
            Err(e) => {
                self.give_up_spooling(&e);
                return Ok(0);
            }
        };
        match self.capture.delta_since(before, &mut batch) {
            Ok(meta) => match self.spool.replace(batch) {
                Ok(_) => {
                    self.capture.acked(meta.range.max());
                    Ok((meta.range.count() - 1).saturating_sub(known))
                }
                Err(e) => {
                    self.give_up_spooling(&e);
                    Ok(0)
                }
            },
            Err(CaptureError::Sink(e)) => {
                self.give_up_spooling(&e);
                Ok(0)
            }
            Err(e) => {
                self.spool.suspend();
                Err(e)
            }
        }
    }

    fn give_up_spooling(&mut self, error: &io::Error) {
        tracing::warn!(error = %error, "nothing more is spooled on this node until the hub is back; the latest state is kept, restore points are not");
        self.spool.suspend();
    }

    /// Squashes a spool that is larger than its database, for a hub that needs all of it. Says how many restore points
    /// that cost, those of transactions after the spool included; `None` when nothing was done.
    fn tighten(&mut self, hub: Option<Pos>) -> Result<Option<u64>, CaptureError> {
        let aligned = self.capture.standing() == Standing::Aligned;
        let large = self.spool.outgrew(self.capture.mapped_bytes());
        if aligned && large && hub == self.spool.start() { self.squash().map(Some) } else { Ok(None) }
    }

    /// Sends what was spooled after `hub`.
    fn unspool(&mut self, hub: Option<Pos>, to: &Target) -> Result<Unspooled, CaptureError> {
        let (begun, mut at) = (Instant::now(), hub);
        loop {
            let segments = match self.spool.segments_after(at) {
                Ok(segments) => segments,
                Err(e) => return Ok(self.unreadable(&e)),
            };
            let Some(mut segments) = segments else { return Ok(Unspooled::Done(at)) };
            loop {
                let mut sink = LinkSink::new(to, Patience::None, Keep::nothing(&to.budget));
                match segments.send_next(&mut sink) {
                    Ok(Some(Ok(meta))) => at = Some(meta.position()),
                    Ok(Some(Err(ours))) => return Ok(Unspooled::Fork(ours)),
                    Ok(None) => break,
                    Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(self.unreadable(&e)),
                    Err(e) => return Err(CaptureError::Sink(e)),
                }
                if begun.elapsed() >= SLICE {
                    return Ok(Unspooled::Sent(at));
                }
            }
        }
    }

    fn unreadable(&mut self, error: &io::Error) -> Unspooled {
        self.spool.clear();
        Unspooled::Unreadable(error.to_string())
    }
}

impl Driver<'_> {
    pub(super) fn tell_lost(&mut self, lost: Lost) {
        let before = self.told_lost.points();
        self.told_lost.squashed += lost.squashed;
        self.told_lost.skipped += lost.skipped;
        self.db.report.lost(self.told_lost.points() - before);
    }

    /// A segment joined so many transactions into one restore point; what was told of them already is not told again.
    pub(super) fn tell_joined(&mut self, range: TxidRange) {
        let told = std::mem::take(&mut self.told_lost).points();
        self.db.report.lost((range.count() - 1).saturating_sub(told));
    }

    /// What is spooled beyond the hub's position can never follow it: the next transactions are made anew.
    pub(super) fn drop_unconnected_spool(&mut self) {
        let hub = self.hub.map(|hub| hub.txid);
        if self.home().spool.end().map(|end| end.txid) <= hub {
            return;
        }
        self.home_mut().spool.clear();
        tracing::warn!(database = %self.db.name, "removed spooled transactions that do not connect to the hub's position; the data travels in one delta");
    }

    /// Both sides agree: what is spooled from now on connects.
    pub(super) fn resume_spooling(&mut self) {
        self.home_mut().spool.resume();
    }

    /// Step: sends what was spooled, oldest first.
    pub(super) async fn unspool(&mut self, to: &Target) -> Result<(), End> {
        let hub = self.hub;
        if let Some(lost) = self.blocking(move |f| f.tighten(hub)).await?.map_err(failed)? {
            // What was skipped behind the spool is in the delta now, and was told.
            let told = std::mem::take(&mut self.told_lost.skipped).saturating_sub(1);
            self.tell_lost(Lost { squashed: lost.saturating_sub(told), skipped: 0 });
        }
        tracing::info!(database = %self.db.name, bytes = self.home().spool.bytes(), "sending what was spooled");
        loop {
            let (hub, target) = (self.hub, to.clone());
            let sent = self.blocking(move |f| f.unspool(hub, &target)).await?;
            match self.sent(sent, &to.link)? {
                Unspooled::Sent(at) => self.hub = at,
                Unspooled::Done(at) => {
                    self.hub = at;
                    self.told_lost.squashed = 0;
                    return self.look(&to.link);
                }
                Unspooled::Fork(ours) => {
                    let txid = ours.txid.get();
                    return Err(End::Fork(format!(
                        "transaction {txid} was spooled here with another checksum than the hub's"
                    )));
                }
                Unspooled::Unreadable(text) => {
                    tracing::warn!(database = %self.db.name, reason = text, "the spool was given up; one delta takes its place");
                    return Ok(());
                }
            }
            self.look(&to.link)?;
            self.limit_wal(false).await?;
            self.account();
        }
    }
}
