//! A lane and its budget of requests: asks the counter of its place, stretches the schedule, and says so.

use super::Venue;
use super::budget::{Budget, Verdict};
use super::schedule::Schedule;
use tokio::time::Instant;
use walhub_common::clock;

/// See the module doc.
#[derive(Debug)]
pub(super) struct Spending {
    budget: Option<Budget>,
    /// The budget is spent until then.
    over: Option<Instant>,
}

impl Spending {
    pub(super) fn new(per_day: Option<u64>) -> Self {
        Self { budget: per_day.map(Budget::new), over: None }
    }

    /// A flush begins: how soon may the next one?
    pub(super) fn flush_begins(&mut self, venue: &Venue, schedule: &mut Schedule) {
        let Some(budget) = &mut self.budget else { return };
        let now_ms = clock::now_ms();
        let used = used_today(venue, now_ms);
        budget.flush_begins(used);
        if let Verdict::Every(least) = budget.verdict(used, now_ms) {
            schedule.set_least(least);
            venue.board.post_health(venue.place.lane, |health| health.least_interval = least);
        }
    }

    /// Nothing more may be asked of the destination today?
    pub(super) fn is_over(&mut self, venue: &Venue) -> bool {
        let Some(budget) = &self.budget else { return false };
        let now_ms = clock::now_ms();
        let used = used_today(venue, now_ms);
        let over = match budget.verdict(used, now_ms) {
            Verdict::Every(_) => None,
            Verdict::Spent(rest) => Some(Instant::now() + rest),
        };
        if over.is_some() != self.over.is_some() {
            if over.is_some() {
                let destination = venue.place.name();
                tracing::warn!(%destination, used, "the requests of today are spent, it goes on at midnight UTC");
            }
            venue.board.post_health(venue.place.lane, |health| health.spent = over.is_some());
        }
        self.over = over;
        over.is_some()
    }

    /// Until when it is over.
    pub(super) fn until(&self) -> Option<Instant> {
        self.over
    }
}

fn used_today(venue: &Venue, now_ms: i64) -> u64 {
    venue.board.meters().of(&venue.place.entry.cursor).today(now_ms).total()
}
