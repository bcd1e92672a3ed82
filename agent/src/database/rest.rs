//! How fast a first snapshot may be: it rests as long as it works, so that the application keeps its share of disk and
//! processor, and stays under the configured rate.
//!
//! Time in which the link takes nothing is rest as well.

use super::report::Snapshot;
use super::snapshot::Context;
use crate::capture::Pace;
use crate::ship::inbox::Patience;
use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

/// Rest for each unit of work.
const REST: u32 = 1;
/// Rests are this long at least; shorter ones are saved up.
const LEAST_REST: Duration = Duration::from_millis(2);
/// A rest looks up this often whether the work is still wanted.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Between two lines in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// See the module doc.
pub(super) struct Pacer<'a> {
    context: &'a Context,
    waited: &'a Cell<Duration>,
    sent: &'a Cell<u64>,
    /// End of the last rest.
    since: Instant,
    owed: Duration,
    begun: Instant,
    bytes: u64,
    counted: u64,
    logged: Instant,
}

impl<'a> Pacer<'a> {
    /// `waited` grows by the time in which the link took nothing, `sent` by the bytes it took.
    pub(super) fn new(context: &'a Context, waited: &'a Cell<Duration>, sent: &'a Cell<u64>) -> Self {
        let (now, owed) = (Instant::now(), Duration::ZERO);
        Self { context, waited, sent, since: now, owed, begun: now, bytes: 0, counted: 0, logged: now }
    }

    fn wanted(&self) -> io::Result<()> {
        let Context { to, desk, .. } = self.context;
        if to.link.is_closed() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match to.inbox.interrupts(to.link.id, Patience::None) || desk.wants_pause() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }

    fn sleep(&self, until: Instant) -> io::Result<()> {
        loop {
            self.wanted()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            crate::watchdog::beat();
            std::thread::sleep(left.min(LOOK_UP));
        }
    }
}

impl Pace for Pacer<'_> {
    fn rest(&mut self, bytes: u64) -> io::Result<()> {
        let waited = self.waited.take();
        let worked = self.since.elapsed().saturating_sub(waited);
        self.owed = (self.owed + worked * REST).saturating_sub(waited);
        self.bytes += bytes;
        let mut until = Instant::now();
        if self.owed >= LEAST_REST {
            until += self.owed;
            self.owed = Duration::ZERO;
        }
        if let Some(rate) = self.context.rate {
            until = until.max(self.begun + Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64));
        }
        self.sleep(until)?;
        self.since = Instant::now();
        Ok(())
    }

    fn progress(&mut self, staged: u32, all: u32) {
        let sent = self.sent.get();
        let bytes = self.context.report.snapshot_sent(Snapshot {
            pages_done: staged,
            pages: all,
            bytes_sent: sent - self.counted,
        });
        self.counted = sent;
        if self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            tracing::info!(database = %self.context.name, pages_done = staged, pages = all, bytes_sent = bytes, "first snapshot");
        }
    }
}
