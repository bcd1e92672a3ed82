//! What was ordered and what is to be said about it: the decisions of [`crate::orders`], without I/O.
//!
//! Invariants: of one database at most one order runs; of one id one answer is ever the last; what has ended is kept until
//! it was said, and a bounded number beyond that.

use crate::restore::{Failure, Order, Outcome, Phase};
use std::collections::BTreeMap;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::limits::MAX_DATABASES_PER_AGENT;
use walhub_proto::convert::position_to_wire;
use walhub_proto::v1::{OrderState, OrderUpdate, RestoreOrder};

/// Ends that are kept for repetitions.
const KEPT: usize = 256;
/// Longest reason that is said.
const MAX_REASON_CHARS: usize = 2000;

/// An order that has come to its end.
pub(super) struct Ended {
    pub(super) id: String,
    pub(super) update: OrderUpdate,
}

#[derive(Debug)]
enum Stand {
    Waiting(Order),
    Running { order: Order, since: Instant },
    Ended,
}

#[derive(Debug)]
struct Entry {
    arrival: u64,
    stand: Stand,
    update: OrderUpdate,
    cancel: CancellationToken,
    /// The hub does not know `update`.
    unsaid: bool,
    /// Only bytes have changed since: said with the next beat.
    stale: bool,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: BTreeMap<String, Entry>,
    arrivals: u64,
    /// The agent ends: what is cancelled from now on was not cancelled by the hub.
    given_up: bool,
}

impl Book {
    /// True when the id is known: the repetition is dealt with.
    pub(super) fn repeated(&mut self, message: &RestoreOrder) -> bool {
        let Some(entry) = self.entries.get_mut(&message.id) else { return false };
        entry.unsaid = true;
        if message.cancel {
            entry.cancel.cancel();
            if let Stand::Waiting(_) = entry.stand {
                entry.stand = Stand::Ended;
                entry.update.state = OrderState::Cancelled.into();
                entry.update.message = Failure::Cancelled.to_string();
            }
        }
        true
    }

    /// A new order, or why it is none; `ended` is how it ended in an earlier life of the agent.
    pub(super) fn enter(
        &mut self,
        id: String,
        order: Result<Order, String>,
        ended: Option<OrderUpdate>,
        cancelled: bool,
    ) {
        self.forget();
        let mut update = OrderUpdate { id: id.clone(), ..OrderUpdate::default() };
        let mut end = |state: OrderState, reason: &str| {
            update.state = state.into();
            update.message = reason.chars().take(MAX_REASON_CHARS).collect();
            Stand::Ended
        };
        let stand = match (order, ended) {
            (_, Some(known)) => {
                update = known;
                Stand::Ended
            }
            (_, None) if cancelled => end(OrderState::Cancelled, &Failure::Cancelled.to_string()),
            (Err(reason), None) => end(OrderState::Failed, &reason),
            (Ok(_), None) if self.open() >= MAX_DATABASES_PER_AGENT => {
                end(OrderState::Failed, "too many orders wait on this node")
            }
            (Ok(order), None) => {
                update.state = OrderState::Taken.into();
                Stand::Waiting(order)
            }
        };
        self.arrivals += 1;
        let cancel = CancellationToken::new();
        let entry = Entry { arrival: self.arrivals, stand, update, cancel, unsaid: true, stale: false };
        self.entries.insert(id, entry);
    }

    /// The next order to carry out, when fewer than `at_once` are: the oldest of a database that has none running.
    pub(super) fn next(&mut self, at_once: usize) -> Option<(Order, CancellationToken)> {
        let running: Vec<&Order> = self
            .entries
            .values()
            .filter_map(|entry| match &entry.stand {
                Stand::Running { order, .. } => Some(order),
                _ => None,
            })
            .collect();
        if running.len() >= at_once || self.given_up {
            return None;
        }
        let waiting = self.entries.iter().filter_map(|(id, entry)| match &entry.stand {
            Stand::Waiting(order) if running.iter().all(|other| other.database != order.database) => {
                Some((entry.arrival, id.clone()))
            }
            _ => None,
        });
        let (_, id) = waiting.min()?;
        let entry = self.entries.get_mut(&id)?;
        let Stand::Waiting(order) = std::mem::replace(&mut entry.stand, Stand::Ended) else { return None };
        entry.stand = Stand::Running { order: order.clone(), since: Instant::now() };
        Some((order, entry.cancel.clone()))
    }

    /// Notes progress; true when it is to be said at once.
    pub(super) fn progress(&mut self, id: &str, phase: Phase, bytes: u64, total: u64) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let Stand::Running { since, .. } = entry.stand else { return false };
        let state = match phase {
            Phase::Fetching => OrderState::Fetching,
            Phase::Applying => OrderState::Applying,
        };
        let other = entry.update.state != i32::from(state);
        entry.update.state = state.into();
        (entry.update.bytes, entry.update.total_bytes) = (bytes, total);
        entry.update.elapsed_ms = millis(since);
        entry.unsaid |= other;
        entry.stale = true;
        other
    }

    /// What is to be said of an order that was carried out; `None` when it was given up because the agent ends.
    pub(super) fn judge(&mut self, id: &str, result: Result<Outcome, Failure>) -> Option<OrderUpdate> {
        let entry = self.entries.get(id)?;
        let Stand::Running { since, .. } = entry.stand else { return None };
        let mut update = OrderUpdate { elapsed_ms: millis(since), ..entry.update.clone() };
        match result {
            Ok(outcome) => {
                update.state = OrderState::Done.into();
                (update.bytes, update.total_bytes) = (outcome.bytes, outcome.bytes);
                update.reached = Some(position_to_wire(Some(outcome.reached)));
                update.new_txid = outcome.new_txid.map_or(0, |txid| txid.get());
                update.safety_txid = outcome.safety_txid.map_or(0, |txid| txid.get());
                update.kept = outcome.kept.map(|kept| kept.display().to_string()).unwrap_or_default();
            }
            Err(Failure::Cancelled) if self.given_up => return None,
            Err(failure) => {
                let state = match failure {
                    Failure::Cancelled => OrderState::Cancelled,
                    Failure::Failed(_) => OrderState::Failed,
                };
                update.state = state.into();
                update.message = failure.to_string().chars().take(MAX_REASON_CHARS).collect();
            }
        }
        Some(update)
    }

    /// An end that is on disk.
    pub(super) fn end(&mut self, ended: Ended) {
        if let Some(entry) = self.entries.get_mut(&ended.id) {
            (entry.stand, entry.update) = (Stand::Ended, ended.update);
            (entry.unsaid, entry.stale) = (true, false);
        }
    }

    /// The next thing to say; it counts as said.
    pub(super) fn unsaid(&mut self) -> Option<OrderUpdate> {
        let entry = self.entries.values_mut().find(|entry| entry.unsaid)?;
        (entry.unsaid, entry.stale) = (false, false);
        Some(entry.update.clone())
    }

    /// It was not said after all.
    pub(super) fn not_said(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.unsaid = true;
        }
    }

    /// Progress that was noted since the last beat is to be said.
    pub(super) fn refresh(&mut self) {
        for entry in self.entries.values_mut() {
            entry.unsaid |= std::mem::take(&mut entry.stale);
        }
    }

    /// True while an order runs.
    pub(super) fn is_busy(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry.stand, Stand::Running { .. }))
    }

    /// The agent ends: nothing is begun any more, what runs is cancelled and will be ordered again.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.entries.values().for_each(|entry| entry.cancel.cancel());
    }

    fn open(&self) -> usize {
        self.entries.values().filter(|entry| !matches!(entry.stand, Stand::Ended)).count()
    }

    fn forget(&mut self) {
        let mut ended: Vec<(u64, String)> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.stand, Stand::Ended) && !entry.unsaid)
            .map(|(id, entry)| (entry.arrival, id.clone()))
            .collect();
        ended.sort_unstable();
        for (_, id) in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            self.entries.remove(id);
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::Mode;
    use walhub_common::{Checksum, DatabaseName, Pos, Txid};

    fn until() -> Pos {
        Pos { txid: Txid::new(3).unwrap(), checksum: Checksum::EMPTY }
    }

    fn order(id: &str, database: &str) -> Order {
        Order {
            id: id.into(),
            database: DatabaseName::new(database).unwrap(),
            path: "/x".into(),
            until: until(),
            mode: Mode::InPlace,
            checks: Vec::new(),
            max_bytes_per_second: None,
        }
    }

    fn again(id: &str, cancel: bool) -> RestoreOrder {
        RestoreOrder { id: id.into(), cancel, ..RestoreOrder::default() }
    }

    fn said(book: &mut Book) -> Vec<(String, OrderState)> {
        std::iter::from_fn(|| book.unsaid()).map(|u| (u.id.clone(), u.state())).collect()
    }

    fn finish(book: &mut Book, id: &str, result: Result<Outcome, Failure>) {
        let update = book.judge(id, result).expect("it runs");
        book.end(Ended { id: id.into(), update });
    }

    #[test]
    fn one_order_of_a_database_runs_at_a_time_and_the_oldest_first() {
        let mut book = Book::default();
        for (id, database) in [("z", "a"), ("y", "a"), ("x", "b"), ("w", "c")] {
            book.enter(id.into(), Ok(order(id, database)), None, false);
        }
        assert_eq!(book.next(2).unwrap().0.id, "z");
        assert_eq!(book.next(2).unwrap().0.id, "x", "y has to wait for z");
        assert!(book.next(2).is_none());
        let done = Outcome { reached: until(), new_txid: None, safety_txid: None, bytes: 5, kept: None };
        finish(&mut book, "x", Ok(done));
        assert_eq!(book.next(2).unwrap().0.id, "w");
        finish(&mut book, "z", Err(Failure::Failed("no".into())));
        assert_eq!(book.next(2).unwrap().0.id, "y");
    }

    #[test]
    fn a_repetition_is_answered_with_the_last_word_and_starts_nothing() {
        let mut book = Book::default();
        book.enter("a".into(), Ok(order("a", "d")), None, false);
        assert_eq!(said(&mut book), [("a".into(), OrderState::Taken)]);
        book.next(1).unwrap();
        assert!(book.progress("a", Phase::Fetching, 1, 9));
        assert!(!book.progress("a", Phase::Fetching, 2, 9), "only bytes changed");
        assert_eq!(said(&mut book), [("a".into(), OrderState::Fetching)]);
        assert!(book.repeated(&again("a", false)));
        assert_eq!(said(&mut book), [("a".into(), OrderState::Fetching)]);
        let done = Outcome {
            reached: until(),
            new_txid: Txid::new(4),
            safety_txid: Txid::new(3),
            bytes: 9,
            kept: None,
        };
        finish(&mut book, "a", Ok(done));
        for _ in 0..2 {
            assert!(book.repeated(&again("a", false)));
            assert_eq!(said(&mut book), [("a".into(), OrderState::Done)]);
            assert!(book.next(1).is_none());
        }
        let known = OrderUpdate { id: "b".into(), state: OrderState::Done.into(), ..OrderUpdate::default() };
        book.enter("b".into(), Ok(order("b", "d")), Some(known), false);
        assert!(book.next(1).is_none(), "it ended in an earlier life");
        assert_eq!(said(&mut book), [("b".into(), OrderState::Done)]);
    }

    #[test]
    fn what_waits_is_cancelled_at_once_and_what_runs_says_itself() {
        let mut book = Book::default();
        book.enter("a".into(), Ok(order("a", "d")), None, false);
        book.enter("b".into(), Ok(order("b", "d")), None, false);
        book.enter("c".into(), Ok(order("c", "d")), None, true);
        let (_, cancel) = book.next(1).unwrap();
        said(&mut book);
        assert!(book.repeated(&again("a", true)) && book.repeated(&again("b", true)));
        assert!(cancel.is_cancelled());
        assert_eq!(said(&mut book), [("a".into(), OrderState::Taken), ("b".into(), OrderState::Cancelled)]);
        finish(&mut book, "a", Err(Failure::Cancelled));
        assert_eq!(said(&mut book), [("a".into(), OrderState::Cancelled)]);
        assert!(book.next(1).is_none());
    }

    #[test]
    fn an_agent_that_ends_leaves_its_orders_open() {
        let mut book = Book::default();
        book.enter("a".into(), Ok(order("a", "d")), None, false);
        let (_, cancel) = book.next(1).unwrap();
        book.give_up();
        assert!(cancel.is_cancelled());
        assert!(book.judge("a", Err(Failure::Cancelled)).is_none(), "the hub will order it again");
        book.enter("b".into(), Ok(order("b", "e")), None, false);
        assert!(book.next(9).is_none());
    }

    #[test]
    fn ends_are_forgotten_when_they_were_said_and_not_before() {
        let mut book = Book::default();
        for n in 0..KEPT + 50 {
            book.enter(format!("o{n:04}"), Err("no".into()), None, false);
        }
        assert_eq!(book.entries.len(), KEPT + 50);
        assert_eq!(said(&mut book).len(), KEPT + 50);
        book.enter("last".into(), Err("no".into()), None, false);
        assert_eq!(book.entries.len(), KEPT + 1);
        assert!(!book.entries.contains_key("o0000") && book.entries.contains_key("o0305"));
    }
}
