//! Jittered exponential backoff: the only code that sleeps before a retry.

use rand::Rng;
use std::time::Duration;

/// What a failure means for the caller: the classes that every error at a seam answers with `class()`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// May go away by itself: retry.
    Transient,
    /// The peer asks to slow down: retry with a longer pause.
    Throttled,
    /// Will not go away by itself: an operator must act; probe rarely.
    Permanent,
    /// We were asked to stop.
    Cancelled,
    /// The outcome is not known (a time-out after the request was sent): look before retrying.
    Unknown,
}

/// Delays that double from `min` to `max`, each drawn from the upper half of its step.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..8).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays[7] >= Duration::from_millis(500) && delays[7] <= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
