//! Whether the wall clock may be believed: rounds delete by age, and one wrong hour of a clock that ran ahead would end histories
//! for good.
//!
//! What a caller may rely on: time that goes on as the monotonic clock does is believed, and so is a clock that was set back (less is
//! old then). One that is ahead of that by more than [`TOLERANCE`], or at the start by more than [`GRACE`] of the newest
//! transaction, is doubted: until it is as before, or has gone on steadily for [`GRACE`]. A machine that slept, or a fleet that said
//! nothing for a day before the hub's start, waits that long for nothing but room.

use std::time::{Duration, Instant};

/// Ahead by so much is not doubted.
const TOLERANCE: Duration = Duration::from_secs(3600);
/// Steady for so long, a clock is believed: time for people to see the warning.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Nothing may be deleted by the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Doubt {
    /// By so much it is ahead of what it should be, ms.
    pub(super) ahead_ms: i64,
    /// If it goes on steadily, it is believed after this.
    pub(super) left: Duration,
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall_ms: i64,
    at: Instant,
}

impl Reading {
    /// What the wall clock says beyond what it should, ms.
    fn ahead_ms(self, later: Reading) -> i64 {
        let passed = later.at.saturating_duration_since(self.at).as_millis();
        let expected = self.wall_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX));
        later.wall_ms.saturating_sub(expected)
    }
}

/// Remembers what was believed last.
#[derive(Debug)]
pub(super) struct WallClock {
    believed: Reading,
    /// Since when the clock has gone on steadily, but not from there.
    doubted: Option<Reading>,
}

impl WallClock {
    /// `newest_ms`: hub time of the newest transaction, if there is one.
    pub(super) fn new(wall_ms: i64, at: Instant, newest_ms: Option<i64>) -> Self {
        let start = newest_ms.filter(|newest| wall_ms.saturating_sub(*newest) > GRACE.as_millis() as i64);
        Self { believed: Reading { wall_ms: start.unwrap_or(wall_ms), at }, doubted: None }
    }

    /// Whether ages may be judged by it now.
    pub(super) fn judge(&mut self, wall_ms: i64, at: Instant) -> Result<(), Doubt> {
        let now = Reading { wall_ms, at };
        let tolerance = TOLERANCE.as_millis() as i64;
        let ahead_ms = self.believed.ahead_ms(now);
        let steady = self.doubted.filter(|since| since.ahead_ms(now).saturating_abs() <= tolerance);
        let since = steady.unwrap_or(now);
        let left = GRACE.saturating_sub(at.saturating_duration_since(since.at));
        if ahead_ms <= tolerance || left.is_zero() {
            *self = Self { believed: now, doubted: None };
            return Ok(());
        }
        self.doubted = Some(since);
        Err(Doubt { ahead_ms, left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: i64 = 1_800_000_000_000;

    /// Looks after so many hours, at a wall clock that is off by so many.
    fn looks(newest_ms: Option<i64>, script: &[(u64, i64)]) -> Vec<bool> {
        let start = Instant::now();
        let off = script.first().map_or(0, |(_, off)| *off);
        let mut clock = WallClock::new(NOW + off * HOUR, start, newest_ms);
        let look = |(hours, off): &(u64, i64)| {
            let wall_ms = NOW + (*hours as i64 + off) * HOUR;
            clock.judge(wall_ms, start + Duration::from_secs(hours * 3600)).is_ok()
        };
        script.iter().map(look).collect()
    }

    #[test]
    fn a_clock_that_goes_on_is_believed_also_when_nobody_looks_for_long() {
        assert_eq!(looks(None, &[(0, 0), (1, 0), (500, 0), (501, 1)]), [true; 4]);
        assert_eq!(looks(Some(NOW - 23 * HOUR), &[(0, 0)]), [true]);
    }

    #[test]
    fn a_jump_ahead_is_doubted_until_it_is_undone() {
        assert_eq!(
            looks(None, &[(0, 0), (1, 9000), (2, 9000), (24, 9000), (25, 0)]),
            [true, false, false, false, true]
        );
    }

    #[test]
    fn a_jump_ahead_is_believed_after_a_steady_day_only() {
        assert_eq!(looks(None, &[(0, 0), (1, 9000), (24, 9000), (25, 9000)]), [true, false, false, true]);
        // It jumps again in between.
        let again = [(0, 0), (1, 9000), (20, 12_000), (25, 12_000), (43, 12_000), (44, 12_000)];
        assert_eq!(looks(None, &again), [true, false, false, false, false, true]);
        // As a clock does that was never set before.
        assert_eq!(looks(None, &[(0, -400_000), (1, 0), (26, 0)]), [true, false, true]);
    }

    #[test]
    fn a_clock_that_was_set_back_is_believed_and_its_way_forth_is_doubted() {
        assert_eq!(looks(None, &[(0, 0), (1, -9000), (2, -9000), (3, 0)]), [true, true, true, false]);
    }

    #[test]
    fn a_start_long_after_the_newest_transaction_waits_a_day() {
        let newest = Some(NOW - 25 * HOUR);
        assert_eq!(looks(newest, &[(0, 0), (1, 0), (24, 0)]), [false, false, true]);
        // The clock was wrong, and is set right.
        assert_eq!(looks(newest, &[(0, 9000), (1, -25)]), [false, true]);
        assert_eq!(looks(Some(i64::MIN), &[(0, 0)]), [false]);
        assert_eq!(looks(Some(i64::MAX), &[(0, 0)]), [true]);
    }

    #[test]
    fn the_doubt_says_by_how_much_and_for_how_long() {
        let start = Instant::now();
        let mut clock = WallClock::new(NOW, start, None);
        let at = start + Duration::from_secs(7200);
        assert_eq!(
            clock.judge(NOW + 10 * HOUR, at),
            Err(Doubt { ahead_ms: 8 * HOUR, left: Duration::from_secs(24 * 3600) })
        );
    }
}
