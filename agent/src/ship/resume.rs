//! What to do next so that hub and node agree: one pure decision, asked again after every step until it says
//! [`Step::Follow`].
//!
//! Every break ends here, whatever it was (a lost link, a restart of either side, a lost disk, a recycled WAL), so there
//! is one recovery and it is the way of every start. The function sees positions only; who acts on the answer is
//! `database::resume`.
//!
//! Invariants:
//! - two positions with one TXID and two checksums are a fork, and a fork is never overwritten;
//! - the cheapest step that keeps the most restore points comes first: resend, replay, then one delta, then a heal;
//! - the steps end: each one brings the positions together or finds a fork (tested by a model below).

use super::window::Coverage;
use crate::capture::Standing;
use walhub_common::{Pos, Txid};

/// Everything the decision depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Situation {
    /// Whether the page map still connects to the live WAL.
    pub standing: Standing,
    /// The WAL was read to its end since the hub named its position: nothing is left to replay.
    pub exhausted: bool,
    /// Where the page map stands.
    pub position: Option<Pos>,
    /// Where the hub stands once everything sent on this stream has arrived.
    pub hub: Option<Pos>,
    /// What the unacked segments in memory say about the hub's position.
    pub window: Coverage,
    /// What the segments spooled on this node's disk say about it.
    pub spool: Coverage,
}

/// The next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Both agree: send each new transaction.
    Follow,
    /// Send the segments in memory after the hub's position again.
    Resend,
    /// Send the spooled segments after the hub's position.
    Unspool,
    /// Read transactions from the WAL without sending them: the hub has them already, up to this position.
    Replay {
        /// The hub's position.
        until: Pos,
    },
    /// One segment with every page changed since (`None`: every page).
    Delta {
        /// The hub's position.
        since: Option<Pos>,
    },
    /// Fetch the checksums of the pages that the hub changed after a transaction and bring the page map there; a heal
    /// follows.
    RollForward {
        /// Last transaction of the page map.
        after: Option<Txid>,
        /// The hub's position.
        until: Pos,
    },
    /// Compare the live file with the page map and send the pages that differ.
    Heal,
    /// Two histories under one name: stop this database and tell the operator.
    Fork {
        /// What this node has at the transaction.
        ours: Pos,
        /// What the hub has there.
        hub: Pos,
    },
}

/// Decides the next step.
pub fn decide(s: &Situation) -> Step {
    let same_txid = s.position.zip(s.hub).filter(|(ours, hub)| ours.txid == hub.txid);
    if let Some((ours, hub)) = same_txid.filter(|(ours, hub)| ours != hub && s.standing != Standing::Fresh) {
        return Step::Fork { ours, hub };
    }
    for coverage in [s.window, s.spool] {
        if let (Coverage::Fork { ours }, Some(hub)) = (coverage, s.hub) {
            return Step::Fork { ours, hub };
        }
    }
    if s.window != Coverage::Resendable && s.spool == Coverage::Resendable {
        return Step::Unspool;
    }
    let Some(position) = s.position.filter(|_| s.standing != Standing::Fresh) else {
        return match s.hub {
            None => Step::Delta { since: None },
            Some(until) => Step::RollForward { after: None, until },
        };
    };
    let Some(hub) = s.hub else {
        return match s.window {
            Coverage::Resendable => Step::Resend,
            _ => Step::Delta { since: None },
        };
    };
    if hub.txid < position.txid {
        return match s.window {
            Coverage::Resendable => Step::Resend,
            _ => Step::Delta { since: Some(hub) },
        };
    }
    let ahead = hub.txid > position.txid;
    match (ahead, s.standing, s.exhausted) {
        (false, Standing::Aligned, _) => Step::Follow,
        (true, Standing::Aligned, false) => Step::Replay { until: hub },
        (true, _, _) => Step::RollForward { after: Some(position.txid), until: hub },
        (false, _, _) => Step::Heal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use walhub_common::Checksum;

    fn pos(txid: u64) -> Pos {
        fork(txid, 0)
    }

    /// The position at `txid` of another history.
    fn fork(txid: u64, history: u64) -> Pos {
        let checksum = (1 << 63) | (txid << 8) | history;
        Pos { txid: Txid::new(txid).unwrap(), checksum: Checksum::new(checksum).unwrap() }
    }

    fn situation(standing: Standing, position: Option<Pos>, hub: Option<Pos>) -> Situation {
        let (window, spool) = (Coverage::Nothing, Coverage::Nothing);
        Situation { standing, exhausted: false, position, hub, window, spool }
    }

    #[test]
    fn a_fresh_node_sends_a_snapshot_or_learns_from_the_hub() {
        assert_eq!(decide(&situation(Standing::Fresh, None, None)), Step::Delta { since: None });
        assert_eq!(
            decide(&situation(Standing::Fresh, None, Some(pos(7)))),
            Step::RollForward { after: None, until: pos(7) }
        );
    }

    #[test]
    fn agreement_is_txid_and_checksum() {
        let agreed = situation(Standing::Aligned, Some(pos(7)), Some(pos(7)));
        assert_eq!(decide(&agreed), Step::Follow);
        let forked = situation(Standing::Aligned, Some(pos(7)), Some(fork(7, 1)));
        assert_eq!(decide(&forked), Step::Fork { ours: pos(7), hub: fork(7, 1) });
        let forked = Situation { standing: Standing::Gap, ..forked };
        assert_eq!(decide(&forked), Step::Fork { ours: pos(7), hub: fork(7, 1) });
    }

    #[test]
    fn a_hub_behind_gets_the_segments_in_memory_or_one_delta() {
        for standing in [Standing::Aligned, Standing::Gap] {
            for hub in [None, Some(pos(3))] {
                let lacking = situation(standing, Some(pos(7)), hub);
                assert_eq!(decide(&lacking), Step::Delta { since: hub });
                let kept = Situation { window: Coverage::Resendable, ..lacking };
                assert_eq!(decide(&kept), Step::Resend);
            }
            let mut elsewhere = situation(standing, Some(pos(7)), Some(fork(3, 1)));
            elsewhere.window = Coverage::Fork { ours: pos(3) };
            assert_eq!(decide(&elsewhere), Step::Fork { ours: pos(3), hub: fork(3, 1) });
        }
    }

    #[test]
    fn what_was_spooled_goes_before_any_delta_or_heal() {
        for standing in [Standing::Aligned, Standing::Gap, Standing::Fresh] {
            // A crash may leave the page map behind the spool.
            for position in [3, 7, 9] {
                let position = (standing != Standing::Fresh).then(|| pos(position));
                let mut s = situation(standing, position, Some(pos(4)));
                s.spool = Coverage::Resendable;
                assert_eq!(decide(&s), Step::Unspool);
                s.spool = Coverage::Fork { ours: fork(4, 1) };
                assert_eq!(decide(&s), Step::Fork { ours: fork(4, 1), hub: pos(4) });
            }
        }
    }

    #[test]
    fn a_hub_ahead_is_caught_up_with_from_the_wal_and_then_from_the_hub() {
        let mut s = situation(Standing::Aligned, Some(pos(3)), Some(pos(7)));
        assert_eq!(decide(&s), Step::Replay { until: pos(7) });
        s.exhausted = true;
        assert_eq!(decide(&s), Step::RollForward { after: Txid::new(3), until: pos(7) });
        s.standing = Standing::Gap;
        s.exhausted = false;
        assert_eq!(decide(&s), Step::RollForward { after: Txid::new(3), until: pos(7) });
    }

    #[test]
    fn after_a_gap_equal_positions_are_not_enough() {
        assert_eq!(decide(&situation(Standing::Gap, Some(pos(7)), Some(pos(7)))), Step::Heal);
    }

    /// A node and a hub as numbers: what each step does to them, as `Capture` promises it.
    #[derive(Clone, Debug)]
    struct Model {
        s: Situation,
        /// Last transaction that the live file holds and that the WAL can still deliver one by one.
        wal_end: u64,
        /// The live file differs from the page map in a way the WAL does not tell.
        dirty: bool,
        /// First TXID that the window can resend.
        window_from: Option<u64>,
        /// TXIDs that are spooled.
        spool: Option<(u64, u64)>,
    }

    impl Model {
        fn coverage(&self) -> Coverage {
            let (Some(from), Some(position)) = (self.window_from, self.s.position) else {
                return Coverage::Nothing;
            };
            let hub = self.s.hub.map_or(0, |p| p.txid.get());
            match from <= hub + 1 && hub < position.txid.get() {
                true => Coverage::Resendable,
                false => Coverage::Nothing,
            }
        }

        fn spooled(&self) -> Coverage {
            let next = self.s.hub.map_or(0, |p| p.txid.get()) + 1;
            match self.spool {
                Some((from, to)) if from <= next && next <= to => Coverage::Resendable,
                _ => Coverage::Nothing,
            }
        }

        /// Applies a step; `true` when the database is stopped or followed.
        fn apply(&mut self, step: Step) -> bool {
            match step {
                Step::Follow | Step::Fork { .. } => return true,
                Step::Resend => self.s.hub = self.s.position,
                Step::Unspool => self.s.hub = self.spool.map(|(_, to)| pos(to)),
                Step::Replay { until } => {
                    let reached = self.wal_end.min(until.txid.get());
                    let from = self.s.position.unwrap().txid.get();
                    self.s.position = Some(pos(reached.max(from)));
                    self.s.exhausted = reached < until.txid.get();
                }
                Step::Delta { since } => {
                    let base =
                        self.s.position.map_or(0, |p| p.txid.get()).max(since.map_or(0, |p| p.txid.get()));
                    let txid = (base + u64::from(self.dirty)).max(1);
                    self.aligned_at(pos(txid));
                    self.s.hub = self.s.position;
                }
                Step::RollForward { until, .. } => {
                    self.s.position = Some(until);
                    self.s.standing = Standing::Gap;
                    self.dirty = true;
                }
                Step::Heal => {
                    let at = self.s.position.unwrap().txid.get() + u64::from(self.dirty);
                    let healed = if self.dirty { pos(at) } else { self.s.position.unwrap() };
                    self.aligned_at(healed);
                    self.s.hub = self.s.position;
                }
            }
            false
        }

        fn aligned_at(&mut self, position: Pos) {
            self.s.position = Some(position);
            self.s.standing = Standing::Aligned;
            self.dirty = false;
            self.window_from = None;
        }
    }

    fn any_standing() -> impl Strategy<Value = Standing> {
        prop_oneof![Just(Standing::Aligned), Just(Standing::Gap), Just(Standing::Fresh)]
    }

    proptest! {
        #[test]
        fn every_situation_ends_followed_or_forked_in_few_steps(
            standing in any_standing(),
            position in 1_u64..9,
            hub in 0_u64..12,
            history in prop_oneof![9 => Just(0_u64), 1 => Just(1_u64)],
            wal_ahead in 0_u64..5,
            window_from in proptest::option::of(1_u64..9),
            dirty: bool,
            spool in proptest::option::of((1_u64..9, 0_u64..5)),
        ) {
            let fresh = standing == Standing::Fresh;
            let mut model = Model {
                s: Situation {
                    standing,
                    exhausted: false,
                    position: (!fresh).then(|| pos(position)),
                    hub: (hub > 0).then(|| fork(hub, history)),
                    window: Coverage::Nothing,
                    spool: Coverage::Nothing,
                },
                wal_end: position + wal_ahead,
                dirty: dirty || standing == Standing::Gap,
                window_from: window_from.filter(|_| standing == Standing::Aligned),
                spool: spool.map(|(from, more)| (from, from + more)).filter(|(_, to)| *to <= position + wal_ahead),
            };
            let mut steps = Vec::new();
            loop {
                model.s.window = model.coverage();
                model.s.spool = model.spooled();
                let step = decide(&model.s);
                steps.push(step);
                prop_assert!(steps.len() <= 6, "{steps:?}");
                if model.apply(step) {
                    break;
                }
            }
            match steps.last().unwrap() {
                Step::Follow => {
                    prop_assert_eq!(model.s.position, model.s.hub);
                    prop_assert_eq!(model.s.standing, Standing::Aligned);
                }
                Step::Fork { .. } => prop_assert_eq!(history, 1),
                other => prop_assert!(false, "ended with {other:?}"),
            }
        }
    }
}
