//! How often a log is read: each commit at once while they come now and then, all that gathered while they stream.
//!
//! A wake costs the node many times what a transaction does (measured: 350 µs with what it sends and gets, on caches that others
//! have used meanwhile, against 2), so a steady stream of commits is read once a *window* (`pace`) and a lone commit as soon as
//! it is there. What tells the two apart is a bucket that fills by one with each commit and empties at [`LONE_PER_SECOND`]: a
//! burst may last for [`STREAM`] commits before it counts as a stream, and a stream ends with the first window in which nothing
//! came.
//!
//! What gathers in a window becomes one segment, unless every transaction is to be a restore point of its own: consecutive
//! transactions rewrite the same few pages, and to compress, encrypt and send each version is most of what capture would cost.
//! Only what was committed within [`Pace::joined`] is joined, however long the log is that waits to be read.
//!
//! Bounds: what a commit may wait because of this is one window; readings per second are at most one a window in a stream,
//! and about [`LONE_PER_SECOND`] in the long run otherwise.

use std::time::Duration;
use tokio::time::Instant;

/// Commits per second that are each read at once, however long they go on.
const LONE_PER_SECOND: f64 = 60.0;
/// Commits beyond that rate which make a stream.
const STREAM: f64 = 12.0;
/// The bucket is full.
const FULL: f64 = 24.0;
/// Least time between two readings of lone commits.
pub(super) const LONE_PACE: Duration = Duration::from_millis(4);
/// A busy machine reads a window late: by this much, and it is joined all the same.
const LATE: Duration = Duration::from_millis(200);

/// What can be restored of a stream of commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RestorePoints {
    /// Every transaction.
    Transaction,
    /// The last one of each window; commits that come now and then each, as ever.
    #[default]
    Window,
}

/// The bucket of one log.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    level: f64,
    at: Instant,
    /// When the log was last read to its end: whatever is unread was committed after that.
    end: Option<Instant>,
}

impl Pace {
    pub(super) fn new(window: Duration, now: Instant) -> Self {
        Self { window, level: 0.0, at: now, end: None }
    }

    /// Time between two readings of a stream.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Commits that share a restore point lie at most this far apart.
    fn joined(&self) -> Duration {
        self.window + LATE
    }

    /// Reading begins, or goes on after a time in which nobody read.
    pub(super) fn resumes(&mut self) {
        self.end = None;
    }

    /// There was nothing left to read at this time.
    pub(super) fn read_to_end(&mut self, at: Instant) {
        self.end = Some(at);
    }

    /// True when what is unread at this time is part of a stream, and none of it older than [`Pace::joined`].
    pub(super) fn joins(&self, now: Instant) -> bool {
        self.streams() && self.end.is_some_and(|end| now.saturating_duration_since(end) <= self.joined())
    }

    /// The log was read at this time and gave so many transactions.
    pub(super) fn read(&mut self, transactions: u64, at: Instant) {
        let passed = at.saturating_duration_since(self.at).as_secs_f64();
        self.at = at;
        let left = (self.level - passed * LONE_PER_SECOND).max(0.0);
        self.level = (left + transactions as f64).min(FULL);
    }

    /// True while commits stream: the next reading is a window after the last one, and needs no event.
    pub(super) fn streams(&self) -> bool {
        self.level >= STREAM
    }

    /// Nothing came for a whole window.
    pub(super) fn silent(&mut self) {
        self.level = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(200);

    /// Feeds commits at a steady rate, read as the pace says, for `seconds`; gives readings per second at the end and
    /// whether it streams.
    fn steady(rate: f64, seconds: f64) -> (usize, bool) {
        let begun = Instant::now();
        let mut pace = Pace::new(WINDOW, begun);
        let (mut now, mut seen, mut readings) = (0.0, 0, Vec::new());
        while now < seconds {
            let step = if pace.streams() { WINDOW } else { LONE_PACE };
            now += step.as_secs_f64();
            let there = (now * rate) as u64;
            if there > seen {
                pace.read(there - seen, begun + Duration::from_secs_f64(now));
                seen = there;
                readings.push(now);
            } else if pace.streams() {
                pace.silent();
            }
        }
        (readings.iter().filter(|at| **at > seconds - 1.0).count(), pace.streams())
    }

    #[test]
    fn few_commits_are_read_one_by_one_for_ever() {
        for rate in [0.5, 10.0, 50.0] {
            let (readings, streams) = steady(rate, 10.0);
            assert!(!streams && readings.abs_diff(rate as usize) <= 1, "{rate}/s: {readings}");
        }
    }

    #[test]
    fn a_stream_is_read_at_the_pace() {
        for rate in [100.0, 500.0, 20_000.0] {
            let (readings, streams) = steady(rate, 10.0);
            assert!(streams && readings.abs_diff(5) <= 1, "{rate}/s: {readings}");
        }
    }

    #[test]
    fn only_a_stream_that_is_read_in_time_is_joined() {
        let now = Instant::now();
        let mut pace = Pace::new(WINDOW, now);
        pace.read(100, now);
        assert!(!pace.joins(now), "the log was never read to its end: it may be a day's");
        pace.read_to_end(now);
        assert!(pace.joins(now + WINDOW) && pace.joins(now + pace.joined()));
        assert!(!pace.joins(now + pace.joined() * 2));
        pace.resumes();
        assert!(!pace.joins(now + WINDOW));
        pace.read_to_end(now);
        pace.silent();
        assert!(!pace.joins(now + WINDOW));
    }

    #[test]
    fn a_short_burst_is_no_stream_and_silence_ends_one() {
        let now = Instant::now();
        let mut pace = Pace::new(WINDOW, now);
        for n in 1..12 {
            pace.read(1, now + LONE_PACE * n);
            assert!(!pace.streams(), "{n}");
        }
        pace.read(100, now + LONE_PACE * 12);
        assert!(pace.streams());
        pace.silent();
        pace.read(1, now + LONE_PACE * 30);
        assert!(!pace.streams());
    }
}
