//! Counts requests to a destination: today's, by kind, and their pace. A day is one of UTC.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// The pace is that of this many minutes.
const PACE_MINUTES: i64 = 10;

/// What a request does: servers ask different prices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Stores something, or a part of it.
    Put,
    /// Lists names.
    List,
    /// Reads something.
    Get,
    /// Deletes something.
    Delete,
}

/// Requests by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    /// Stores, parts of large ones counted each.
    pub puts: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Reads.
    pub gets: u64,
    /// Deletions, many objects in one counted once.
    pub deletes: u64,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.puts + self.lists + self.gets + self.deletes
    }

    fn add(&mut self, kind: Kind, requests: u64) {
        match kind {
            Kind::Put => self.puts += requests,
            Kind::List => self.lists += requests,
            Kind::Get => self.gets += requests,
            Kind::Delete => self.deletes += requests,
        }
    }
}

/// Requests of one day, as they are written down over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Day {
    /// Days since 1970.
    pub number: i64,
    /// Requests of that day.
    pub requests: Requests,
}

#[derive(Debug, Default)]
struct State {
    day: Day,
    /// Since the meter was made.
    all: Requests,
    /// (minute since 1970, requests in it), the newest last.
    minutes: VecDeque<(i64, u64)>,
}

/// See the module doc. Shared by all who send requests to one destination.
#[derive(Debug, Default)]
pub struct Meter(Mutex<State>);

impl Meter {
    /// Goes on from what was written down.
    pub fn from_day(day: Day) -> Self {
        Self(Mutex::new(State { day, ..State::default() }))
    }

    fn at(&self, now_ms: i64) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = now_ms.div_euclid(DAY_MS);
        if state.day.number != number {
            state.day = Day { number, requests: Requests::default() };
        }
        let oldest = now_ms.div_euclid(MINUTE_MS) - PACE_MINUTES;
        while state.minutes.front().is_some_and(|(minute, _)| *minute <= oldest) {
            state.minutes.pop_front();
        }
        state
    }

    /// Counts requests.
    pub fn count(&self, kind: Kind, requests: u64, now_ms: i64) {
        let mut state = self.at(now_ms);
        state.day.requests.add(kind, requests);
        state.all.add(kind, requests);
        let minute = now_ms.div_euclid(MINUTE_MS);
        match state.minutes.back_mut() {
            Some((last, count)) if *last == minute => *count += requests,
            _ => state.minutes.push_back((minute, requests)),
        }
    }

    /// Requests since the meter was made: not those that were written down.
    pub fn all(&self) -> Requests {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// Today's requests.
    pub fn today(&self, now_ms: i64) -> Requests {
        self.at(now_ms).day.requests
    }

    /// Today, to be written down.
    pub fn day(&self, now_ms: i64) -> Day {
        self.at(now_ms).day
    }

    /// What today's requests will be at its end, at the pace of the last minutes.
    pub fn forecast(&self, now_ms: i64) -> u64 {
        let state = self.at(now_ms);
        let (Some((first, _)), now) = (state.minutes.front(), now_ms) else {
            return state.day.requests.total();
        };
        let recent: u64 = state.minutes.iter().map(|(_, count)| count).sum();
        let span = (now - first * MINUTE_MS).max(MINUTE_MS) as f64;
        let more = recent as f64 / span * left_of_day(now_ms) as f64;
        state.day.requests.total() + more as u64
    }
}

/// Milliseconds until the next day begins; at least 1.
pub fn left_of_day(now_ms: i64) -> i64 {
    DAY_MS - now_ms.rem_euclid(DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 20_000 * DAY_MS + DAY_MS / 2;

    #[test]
    fn a_day_ends_at_midnight_and_a_restart_goes_on() {
        let meter = Meter::default();
        meter.count(Kind::Put, 3, NOON);
        meter.count(Kind::List, 2, NOON + 1);
        assert_eq!(meter.today(NOON + 2), Requests { puts: 3, lists: 2, ..Requests::default() });
        let again = Meter::from_day(meter.day(NOON + 2));
        again.count(Kind::Delete, 1, NOON + 3);
        assert_eq!(again.today(NOON + 4).total(), 6);
        assert_eq!(again.today(NOON + left_of_day(NOON)).total(), 0);
        assert_eq!(again.all(), Requests { deletes: 1, ..Requests::default() }, "no day ends that");
    }

    #[test]
    fn the_forecast_follows_the_pace_of_the_last_minutes() {
        let meter = Meter::default();
        assert_eq!(meter.forecast(NOON), 0);
        for second in 0..600 {
            meter.count(Kind::Put, 1, NOON + second * 1000);
        }
        let now = NOON + 600_000;
        let expected = 600 + left_of_day(now) as u64 / 1000;
        let forecast = meter.forecast(now);
        assert!(forecast.abs_diff(expected) * 10 < expected, "{forecast} is not about {expected}");
        // An hour of silence: nothing more is expected.
        assert_eq!(meter.forecast(now + 3_600_000), 600);
    }
}
