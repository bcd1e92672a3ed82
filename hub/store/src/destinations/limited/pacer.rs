//! A rate as arithmetic: how long to wait before the next one. Pure: the caller says what time it is.

use std::time::Duration;
use tokio::time::Instant;

/// Units per second on average, at most a second's worth at once; one that is larger goes, and is waited for afterwards.
#[derive(Debug)]
pub(super) struct Pacer {
    per_second: f64,
    /// When everything taken so far is paid for.
    paid: Option<Instant>,
}

const BURST: Duration = Duration::from_secs(1);

impl Pacer {
    pub(super) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1) as f64, paid: None }
    }

    /// Takes `units`, and says how long to wait before they may be used.
    pub(super) fn take(&mut self, units: u64, now: Instant) -> Duration {
        let from = self.paid.map_or(now, |paid| paid.max(now));
        let wait = (from - now).saturating_sub(BURST);
        self.paid = Some(from + Duration::from_secs_f64(units as f64 / self.per_second));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_holds_after_a_burst() {
        let (mut pacer, start) = (Pacer::new(10), Instant::now());
        let mut now = start;
        for _ in 0..100 {
            now += pacer.take(1, now);
        }
        let took = now - start;
        assert!((Duration::from_millis(8500)..=Duration::from_secs(10)).contains(&took), "{took:?}");
        // A pause saves up no more than a second.
        now += Duration::from_secs(100);
        let resumed = now;
        for _ in 0..30 {
            now += pacer.take(1, now);
        }
        assert!(now - resumed >= Duration::from_millis(1800), "{:?}", now - resumed);
    }

    #[test]
    fn a_large_one_goes_and_the_next_one_waits_for_it() {
        let (mut pacer, now) = (Pacer::new(1000), Instant::now());
        assert_eq!(pacer.take(10_000, now), Duration::ZERO);
        assert_eq!(pacer.take(1, now), Duration::from_secs(9));
    }
}
