//! What a job takes before it begins: bytes, requests, money, time, of each database and of all. Pure.
//!
//! Bounds from above: how many pages of a live database differ is known only when its node has compared them. Times are
//! those of idle machines, and of nodes that are there.

use super::model::{Mode, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use walhub_common::AgentName;
use walhub_proto::v1;
use walhub_store::restore::Estimate;

/// What something takes at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes the hub reads from where copies lie.
    pub bytes: u64,
    /// Requests for them, listings included.
    pub requests: u64,
    /// Millionths of a US dollar.
    pub micros: u64,
    /// Milliseconds.
    pub ms: u64,
}

/// How often the files of a plan are read: in place once for checksums, and once more for the pages, if all differ.
fn passes(mode: Mode) -> u64 {
    match mode {
        Mode::InPlace => 2,
        Mode::Replace => 1,
    }
}

impl Cost {
    /// Of a database whose restore into a file takes `whole`.
    pub(super) fn of(whole: Estimate, mode: Mode) -> Cost {
        let times = passes(mode);
        Cost {
            bytes: whole.bytes.saturating_mul(times),
            requests: whole.requests.saturating_mul(times),
            micros: whole.cost_micros.saturating_mul(times),
            ms: whole.time_ms.saturating_mul(times),
        }
    }

    /// On the wire.
    pub(super) fn wire(self) -> v1::JobCost {
        v1::JobCost { bytes: self.bytes, requests: self.requests, cost_micros: self.micros, time_ms: self.ms }
    }
}

/// How a job goes about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) mode: Mode,
    /// Databases at one time.
    pub(super) parallelism: u32,
    /// Bytes per second to one node, to all; 0 for no bound.
    pub(super) node_rate: u64,
    pub(super) total_rate: u64,
}

impl Pace {
    /// Bytes per second that one order may take; 0 for no bound.
    pub(super) fn share(self) -> u64 {
        match (self.node_rate, self.total_rate / u64::from(self.parallelism.max(1))) {
            (0, share) => share,
            (node, 0) => node,
            (node, share) => node.min(share),
        }
    }

    /// Of one database, in milliseconds: what its node may fetch counts as well.
    fn alone_ms(self, cost: Cost) -> u64 {
        let share = self.share();
        if share == 0 {
            return cost.ms;
        }
        let sent = u128::from(cost.bytes / passes(self.mode)) * 1000 / u128::from(share);
        cost.ms.max(u64::try_from(sent).unwrap_or(u64::MAX))
    }
}

/// Of all databases: one wave after the other, each as fast as its slowest node and the parallelism let it.
pub(super) fn total(targets: &[Target], pace: Pace) -> Cost {
    let mut total = Cost::default();
    let mut waves: BTreeMap<u32, Wave<'_>> = BTreeMap::new();
    for target in targets {
        let (cost, ms) = (target.cost, pace.alone_ms(target.cost));
        total.bytes = total.bytes.saturating_add(cost.bytes);
        total.requests = total.requests.saturating_add(cost.requests);
        total.micros = total.micros.saturating_add(cost.micros);
        let wave = waves.entry(target.wave).or_default();
        wave.sum_ms = wave.sum_ms.saturating_add(ms);
        // A bound per node is one for all its databases: they come one after another.
        let line = match (pace.node_rate > 0, &mut wave.last) {
            (true, Some((agent, line_ms))) if **agent == target.database.agent => {
                *line_ms = line_ms.saturating_add(ms);
                *line_ms
            }
            (_, last) => {
                *last = Some((&target.database.agent, ms));
                ms
            }
        };
        wave.longest_ms = wave.longest_ms.max(line);
    }
    let lanes = u64::from(pace.parallelism.max(1));
    let each = waves.values().map(|wave| wave.longest_ms.max(wave.sum_ms.div_ceil(lanes)));
    total.ms = each.fold(0, u64::saturating_add);
    total
}

/// Databases of a wave come sorted by agent.
#[derive(Default)]
struct Wave<'a> {
    sum_ms: u64,
    longest_ms: u64,
    last: Option<(&'a AgentName, u64)>,
}

#[cfg(test)]
mod tests {
    use super::super::model::Stays;
    use super::*;

    fn target(name: &str, wave: u32, bytes: u64, ms: u64) -> Target {
        let cost = Cost { bytes, requests: 12, micros: 7, ms };
        let (until, until_ms) = ((1, 1), 0);
        let stays = Stays::default();
        Target { database: name.parse().unwrap(), wave, until, until_ms, cost, stays }
    }

    #[test]
    fn waves_add_up_and_what_is_side_by_side_does_not() {
        let pace = Pace { mode: Mode::InPlace, parallelism: 2, node_rate: 0, total_rate: 0 };
        let targets = [
            target("a/1", 1, 100, 5_000),
            target("b/1", 2, 100, 1_000),
            target("c/1", 2, 100, 1_000),
            target("d/1", 2, 100, 2_000),
            target("d/2", 2, 100, 2_000),
        ];
        let found = total(&targets, pace);
        assert_eq!(found, Cost { bytes: 500, requests: 60, micros: 35, ms: 5_000 + 3_000 });
        assert_eq!(total(&targets, Pace { parallelism: 100, ..pace }).ms, 5_000 + 2_000);
        assert_eq!(total(&[], pace), Cost::default());
    }

    #[test]
    fn a_bound_on_bytes_is_what_a_slow_restore_waits_for() {
        let pace = Pace { mode: Mode::InPlace, parallelism: 4, node_rate: 1_000, total_rate: 0 };
        // Of 20,000 bytes that are read at most a half goes to the node.
        let one = [target("a/1", 1, 20_000, 5)];
        assert_eq!(total(&one, pace).ms, 10_000);
        assert_eq!(total(&one, Pace { mode: Mode::Replace, ..pace }).ms, 20_000);
        assert_eq!(total(&one, Pace { total_rate: 2_000, ..pace }).ms, 20_000, "a quarter of the total");
        let node = [target("a/1", 1, 20_000, 5), target("a/2", 1, 20_000, 5), target("b/1", 1, 20_000, 5)];
        assert_eq!(total(&node, pace).ms, 20_000, "databases of a node wait for each other");
        assert_eq!(total(&node, Pace { node_rate: 0, total_rate: 4_000, ..pace }).ms, 10_000);
    }

    #[test]
    fn in_place_reads_twice_at_most() {
        let whole = Estimate { requests: 11, bytes: 1_000, cost_micros: 5, time_ms: 3 };
        assert_eq!(Cost::of(whole, Mode::Replace), Cost { bytes: 1_000, requests: 11, micros: 5, ms: 3 });
        assert_eq!(Cost::of(whole, Mode::InPlace), Cost { bytes: 2_000, requests: 22, micros: 10, ms: 6 });
        let most = Estimate { requests: 1, bytes: u64::MAX, cost_micros: u64::MAX, time_ms: u64::MAX };
        assert_eq!(Cost::of(most, Mode::InPlace).bytes, u64::MAX);
    }
}
