//! When the databases of which sync interval are looked at. Pure: the caller says what time it is.
//!
//! A group is looked at once per interval while anything is buffered, and not at all while nothing is: no group has a timer
//! of its own. The first transactions after a pause go at once; a look that finds nothing starts no pause, but looks are at
//! least the shortest interval apart, or a second where that is longer.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Looks that found nothing need not be further apart: they cost no request.
const PACE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Group {
    due: Option<Instant>,
    /// Last look that found something to put.
    flushed: Option<Instant>,
    /// Last look.
    looked: Option<Instant>,
}

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    groups: BTreeMap<Duration, Group>,
    /// No interval is shorter than this.
    least: Duration,
}

impl Schedule {
    /// These intervals from now on; what is known of those that stay, stays.
    pub(super) fn set_intervals(&mut self, intervals: impl IntoIterator<Item = Duration>) {
        let mut groups = BTreeMap::new();
        for interval in intervals {
            groups.insert(interval, self.groups.remove(&interval).unwrap_or_default());
        }
        self.groups = groups;
    }

    /// Stretches intervals that are shorter than this.
    pub(super) fn set_least(&mut self, least: Duration) {
        self.least = least;
    }

    /// The interval that is really kept for databases of `interval`.
    pub(super) fn effective(&self, interval: Duration) -> Duration {
        interval.max(self.least)
    }

    /// Does any group wait for news?
    pub(super) fn listens(&self) -> bool {
        self.groups.values().any(|group| group.due.is_none())
    }

    /// Something was buffered.
    pub(super) fn news(&mut self, now: Instant) {
        let intervals: Vec<Duration> = self.groups.keys().copied().collect();
        for interval in intervals {
            self.look_soon(interval, now);
        }
    }

    /// Something of this group was buffered.
    pub(super) fn look_soon(&mut self, interval: Duration, now: Instant) {
        let pace = self.groups.keys().next().map_or(interval, |least| self.effective(*least)).min(PACE);
        let pause = self.effective(interval);
        let Some(group) = self.groups.get_mut(&interval) else { return };
        if group.due.is_none() {
            let flushed = group.flushed.map(|at| at + pause);
            let looked = group.looked.map(|at| at + pace);
            group.due = [Some(now), flushed, looked].into_iter().flatten().max();
        }
    }

    /// When the next group is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.groups.values().filter_map(|group| group.due).min()
    }

    /// Groups that are to be looked at now; say of each what was [found](Self::looked).
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Duration> {
        let mut due = Vec::new();
        for (interval, group) in &mut self.groups {
            if group.due.take_if(|at| *at <= now).is_some() {
                due.push(*interval);
            }
        }
        due
    }

    /// A group was looked at.
    pub(super) fn looked(&mut self, interval: Duration, now: Instant, found: bool) {
        if let Some(group) = self.groups.get_mut(&interval) {
            group.looked = Some(now);
            if found {
                group.flushed = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_secs(1);
    const SLOW: Duration = Duration::from_secs(60);

    fn schedule() -> (Schedule, Instant) {
        let mut schedule = Schedule::default();
        schedule.set_intervals([SLOW, FAST, FAST]);
        (schedule, Instant::now())
    }

    /// A second of a fleet: every group that is due is looked at, and has something when `has` says so.
    fn looks(
        schedule: &mut Schedule,
        start: Instant,
        seconds: u64,
        has: impl Fn(Duration, u64) -> bool,
    ) -> Vec<(Duration, u64)> {
        let mut looks = Vec::new();
        for tenth in 0..seconds * 10 {
            let now = start + Duration::from_millis(tenth * 100);
            schedule.news(now);
            for interval in schedule.take_due(now) {
                let found = has(interval, tenth);
                schedule.looked(interval, now, found);
                if found {
                    looks.push((interval, tenth / 10));
                }
            }
        }
        looks
    }

    #[test]
    fn each_group_keeps_its_rhythm_while_something_is_buffered_all_the_time() {
        let (mut schedule, start) = schedule();
        let looks = looks(&mut schedule, start, 180, |_, _| true);
        let of = |wanted| {
            looks.iter().filter(|(interval, _)| *interval == wanted).map(|(_, at)| *at).collect::<Vec<_>>()
        };
        assert_eq!(of(SLOW), [0, 60, 120]);
        assert_eq!(of(FAST).len(), 180);
    }

    #[test]
    fn the_first_one_after_a_look_in_vain_waits_no_interval() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.set_intervals([SLOW]);
        // Looked at when the hub starts; the first transaction comes half a minute later.
        let looks = looks(&mut schedule, start, 120, |_, tenth| tenth >= 305);
        assert_eq!(looks.iter().map(|(_, at)| *at).collect::<Vec<_>>(), [31, 91]);
    }

    #[test]
    fn the_first_one_after_a_pause_goes_at_once_although_others_were_busy() {
        let (mut schedule, start) = schedule();
        // The slow database commits once, at 100.2 s; the fast ones all the time.
        let looks = looks(&mut schedule, start, 200, |interval, tenth| interval == FAST || tenth >= 1002);
        let first = looks.iter().find(|(interval, _)| *interval == SLOW).unwrap().1;
        assert!((100..=101).contains(&first), "{first}");
    }

    #[test]
    fn without_news_nothing_is_due() {
        let (mut schedule, start) = schedule();
        assert_eq!(schedule.next(), None);
        schedule.look_soon(SLOW, start);
        assert_eq!(schedule.next(), Some(start));
        assert_eq!(schedule.take_due(start), [SLOW]);
        schedule.looked(SLOW, start, true);
        assert_eq!((schedule.next(), schedule.listens()), (None, true));
        schedule.look_soon(SLOW, start + FAST);
        assert_eq!(schedule.next(), Some(start + SLOW));
    }

    #[test]
    fn a_stretched_interval_is_kept_and_a_reload_keeps_what_is_known() {
        let (mut schedule, start) = schedule();
        schedule.set_least(FAST * 10);
        let flushes = looks(&mut schedule, start, 60, |_, _| true);
        assert_eq!(flushes.iter().filter(|(interval, _)| *interval == FAST).count(), 6);
        schedule.set_intervals([SLOW]);
        schedule.take_due(start + SLOW * 2);
        schedule.look_soon(SLOW, start + FAST * 30);
        assert_eq!(schedule.next(), Some(start + SLOW));
        schedule.set_intervals([FAST]);
        assert_eq!(schedule.next(), None);
    }
}
