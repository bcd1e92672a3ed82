//! How often a log is read: each commit at once while they come now and then, all that gathered while they stream.
//!
//! A wake costs the node many times what a transaction does (measured: 60-100 µs against 5), so a steady stream of commits
//! is read every [`STREAM_PACE`] and a lone commit as soon as it is there. What tells the two apart is a bucket that fills
//! by one with each commit and empties at [`LONE_PER_SECOND`]: a burst may last for [`STREAM`] commits before it counts as
//! a stream, and a stream ends with the first window in which nothing came.
//!
//! Bounds: what a commit may wait because of this is one pace; readings per second are at most `1 / STREAM_PACE` in a
//! stream, and about [`LONE_PER_SECOND`] in the long run otherwise.

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
/// Time between two readings of a stream.
pub(super) const STREAM_PACE: Duration = Duration::from_millis(50);

/// The bucket of one log.
#[derive(Debug)]
pub(super) struct Pace {
    level: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// The log was read at this time and gave so many transactions.
    pub(super) fn read(&mut self, transactions: u64, at: Instant) {
        let passed = at.saturating_duration_since(self.at).as_secs_f64();
        self.at = at;
        let left = (self.level - passed * LONE_PER_SECOND).max(0.0);
        self.level = (left + transactions as f64).min(FULL);
    }

    /// True while commits stream: the next reading is [`STREAM_PACE`] after the last one, and needs no event.
    pub(super) fn streams(&self) -> bool {
        self.level >= STREAM
    }

    /// Nothing came for a whole pace.
    pub(super) fn silent(&mut self) {
        self.level = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds commits at a steady rate, read as the pace says, for `seconds`; gives readings per second at the end and
    /// whether it streams.
    fn steady(rate: f64, seconds: f64) -> (usize, bool) {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let (mut now, mut seen, mut readings) = (0.0, 0, Vec::new());
        while now < seconds {
            let step = if pace.streams() { STREAM_PACE } else { LONE_PACE };
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
            assert!(streams && readings.abs_diff(20) <= 1, "{rate}/s: {readings}");
        }
    }

    #[test]
    fn a_short_burst_is_no_stream_and_silence_ends_one() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
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
