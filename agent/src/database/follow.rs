//! Both sides agree: every transaction is sent as it commits.
//!
//! IN_MODIFY of the `-wal` comes before the commit is visible, with `synchronous=FULL` by a whole fsync. So after a write
//! without news the header is looked at again: three times within a millisecond by the blocking thread, then by timers
//! whose distance grows with the time since the write. Without a write nothing runs but the slow poll.
//!
//! A commit after a pause is read at once, a steady stream of them once a window with all that gathered ([`super::pace`]).
//! A stream needs no file events, so the watch is taken off the file meanwhile: it costs the application something with
//! every write. The windows of all databases end together, with the beat of one [`crate::pulse`].

use super::drive::{Driver, End, failed, sleep_until};
use super::follower::{Pumped, Segments, Target};
use super::pace::{LONE_PACE, RestorePoints};
use crate::capture::State as CaptureState;
use crate::database::State;
use crate::ship::inbox::{LAST_PASS, Mail};
use crate::ship::link::Link;
use crate::watchdog;
use std::time::Duration;
use tokio::time::Instant;
use walhub_common::Pos;

/// The first timed look after a write that brought no news; later ones follow as the time since has grown by a quarter.
const FIRST_LOOK: Duration = Duration::from_millis(1);

impl Driver<'_> {
    /// Sends each transaction as it commits. `Ok` when the positions must be compared again.
    pub(super) async fn follow(&mut self, to: &Target) -> Result<(), End> {
        let followed = self.each(to).await;
        // Every other state waits for events.
        let watched = self.wal_watch.start(&self.db.shared.watcher, &self.db.inbox).map_err(End::Failed);
        followed.and(watched)
    }

    async fn each(&mut self, to: &Target) -> Result<(), End> {
        self.db.report.enter(State::Following);
        self.following = true;
        self.pace.resumes();
        let mut glance = false;
        loop {
            let begun = Instant::now();
            let before = self.home().capture.position();
            self.asked.extend(self.db.desk.take());
            let joined = self.db.shared.restore_points == RestorePoints::Window && self.pace.joins(begun);
            let segments = if joined { Segments::Joined } else { Segments::Single };
            let pumped = self.pump(to, std::mem::take(&mut glance), segments).await?;
            self.hub = self.home().capture.position();
            if self.hub != before {
                self.unexplained = None;
                let txid = |at: Option<Pos>| at.map_or(0, |at| at.txid.get());
                self.pace.read(txid(self.hub).saturating_sub(txid(before)), begun);
            }
            self.account();
            match pumped {
                Pumped::Lost => return Ok(()),
                Pumped::Slice => {
                    self.look(&to.link)?;
                    self.answer_restores().await?;
                }
                Pumped::NoRoom => {
                    if self.wait_for_room(to).await? {
                        return Ok(());
                    }
                }
                Pumped::UpToDate => {
                    self.pace.read_to_end(begun);
                    self.answer_calls().await?;
                    if self.stream(&to.link, begun).await? {
                        continue;
                    }
                    glance = self.news(&to.link, begun).await?;
                    tokio::time::sleep_until(begun + LONE_PACE).await;
                }
            }
        }
    }

    /// Reads what there is: right here when that takes no time, else on a blocking thread.
    async fn pump(&mut self, to: &Target, glance: bool, segments: Segments) -> Result<Pumped, End> {
        if !glance {
            let watched = self.watched.clone();
            let pumped = watchdog::watch(&watched, || self.home_mut().pump_at_hand(to, segments));
            if let Some(pumped) = self.sent(pumped, &to.link)? {
                return Ok(pumped);
            }
        }
        let target = to.clone();
        let pumped = self.blocking(move |f| f.pump(&target, glance, segments)).await?;
        self.sent(pumped, &to.link)
    }

    /// Waits for the next window of a stream, given when the log was read last. False when there is no stream (any more).
    async fn stream(&mut self, link: &Link, read: Instant) -> Result<bool, End> {
        if !self.pace.streams() {
            // It may have thinned out, without a silent window.
            self.wal_watch.start(&self.db.shared.watcher, &self.db.inbox).map_err(End::Failed)?;
            return Ok(false);
        }
        let pulse = &self.db.shared.pulse;
        self.wal_watch.stream(pulse);
        let window = self.pace.window();
        while read.elapsed() < window {
            tokio::select! {
                () = pulse.beat() => {
                    if self.home().capture.header_moved() {
                        return Ok(true);
                    }
                    // The first beat may come at any time, later ones come with the window.
                    if read.elapsed() >= window / 4 * 3 {
                        break;
                    }
                }
                mail = self.mail_on(link) => {
                    let mail = mail?;
                    if mail.asked {
                        return Ok(true);
                    }
                    self.upkeep(&mail).await?;
                }
            }
        }
        if self.home().capture.header_moved() {
            return Ok(true);
        }
        self.pace.silent();
        self.wal_watch.start(&self.db.shared.watcher, &self.db.inbox).map_err(End::Failed)?;
        Ok(false)
    }

    /// Waits until there may be a new commit, given when the log was read last. True when it should be looked for closely.
    async fn news(&mut self, link: &Link, read: Instant) -> Result<bool, End> {
        loop {
            if self.home().capture.header_moved() {
                return Ok(false);
            }
            let look_at = self.next_look();
            let mail = tokio::select! {
                () = sleep_until(look_at) => continue,
                mail = self.mail_on(link) => mail?,
            };
            if mail.asked {
                return Ok(false);
            }
            if mail.wal {
                self.unexplained = Some(Instant::now());
                // Soon after a reading this is most likely a write that was read already: the timed looks are enough.
                if read.elapsed() >= LONE_PACE {
                    return Ok(!self.home().capture.header_moved());
                }
            }
            self.upkeep(&mail).await?;
        }
    }

    /// Goes on with a checkpoint that waits for acks, or makes use of a pause; with nothing to checkpoint no thread is
    /// woken.
    async fn upkeep(&mut self, mail: &Mail) -> Result<(), End> {
        if mail.poll {
            self.look_at_readers().await?;
        }
        let may = mail.buffered.is_some() || mail.poll;
        let capture = &self.home().capture;
        if may && capture.state() == CaptureState::Backfill || mail.poll && capture.rests() {
            self.blocking(|f| f.capture.maintain()).await?.map_err(failed)?;
        }
        Ok(())
    }

    /// When to look again after a write that was no commit yet: soon at first, then ever more rarely.
    fn next_look(&mut self) -> Option<Instant> {
        let since = self.unexplained?.elapsed();
        if since > self.db.shared.poll_interval {
            self.unexplained = None;
            return None;
        }
        Some(Instant::now() + (since / 4).max(FIRST_LOOK))
    }

    /// Waits until the budget has room. True when the WAL was squashed meanwhile.
    async fn wait_for_room(&mut self, to: &Target) -> Result<bool, End> {
        loop {
            let freed = to.budget.freed();
            if self.limit_wal(true).await? {
                return Ok(true);
            }
            if to.budget.has_room() {
                return Ok(false);
            }
            to.budget.press();
            tokio::select! {
                () = freed => {}
                mail = self.mail_on(&to.link) => { mail?; }
            }
        }
    }

    /// Sends what was committed until now and waits a moment for its acks.
    pub(super) async fn last_pass(&mut self) {
        let Some(link) = self.link().filter(|link| self.following && link.id == self.link_id) else { return };
        let to = self.target(&link);
        let deadline = Instant::now() + LAST_PASS;
        let mut done = false;
        while !(done && self.home().window.is_empty()) && Instant::now() < deadline && !link.is_closed() {
            if !done {
                let target = to.clone();
                match self.blocking(move |f| f.pump(&target, false, Segments::Single)).await {
                    Ok(Ok(Pumped::UpToDate)) => done = true,
                    Ok(Ok(Pumped::Slice | Pumped::NoRoom)) => {}
                    Ok(Ok(Pumped::Lost) | Err(_)) | Err(_) => return,
                }
            }
            if let Some(txid) = self.db.inbox.take().buffered {
                self.acked(txid);
            } else if done {
                tokio::time::sleep(FIRST_LOOK).await;
            }
        }
        self.account();
    }
}
