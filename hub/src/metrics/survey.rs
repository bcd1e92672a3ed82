//! One walk over all databases: what each destination lacks of them, and how many are how.

use crate::buffer::{Registered, WalBuffer};
use crate::copies::{Board, LaneId};
use crate::fleet::status::lags;
use std::collections::BTreeMap;
use walhub_common::AgentName;

/// Databases as one destination has them.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// How long each one lags, ms; 0 for those that lack nothing.
    pub(super) lags: Vec<u64>,
    /// Databases that lack something.
    pub(super) behind: u64,
    /// Databases that do not get on there.
    pub(super) stuck: u64,
}

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) databases: u64,
    pub(super) open: u64,
    pub(super) refused: u64,
    pub(super) not_durable: u64,
    /// Restore points that were given up.
    pub(super) given_up: u64,
    /// How many each agent has.
    pub(super) agents: BTreeMap<AgentName, u64>,
    pub(super) served: BTreeMap<LaneId, Served>,
}

/// Walks over all databases. Lags are looked up in the index, which may have to read from disk: blocking.
pub(super) fn survey(buffer: &dyn WalBuffer, board: &Board, now_ms: i64) -> Survey {
    let mut survey = Survey::default();
    for database in buffer.databases() {
        survey.count(&database, buffer, board, now_ms);
    }
    survey
}

impl Survey {
    fn count(&mut self, database: &Registered, buffer: &dyn WalBuffer, board: &Board, now_ms: i64) {
        let row = board.row(database.id, &database.key);
        self.databases += 1;
        self.open += u64::from(row.open);
        self.refused += u64::from(!row.refusal.is_empty());
        self.not_durable += u64::from(database.position.map(|position| position.txid) > row.durable);
        self.given_up += buffer.given_up(database.id).points;
        *self.agents.entry(database.key.agent.clone()).or_default() += 1;
        for (lane, lag) in lags(buffer, database, &row, now_ms) {
            let served = self.served.entry(lane).or_default();
            served.behind += u64::from(lag.is_some());
            served.stuck += u64::from(row.fault(lane).is_some());
            served.lags.push(lag.unwrap_or(0));
        }
    }
}

impl Served {
    /// The lag that so many of a hundred databases do not exceed, ms; 0 without databases.
    pub(super) fn percentile(&mut self, percent: usize) -> u64 {
        let Some(last) = self.lags.len().checked_sub(1) else { return 0 };
        let at = (self.lags.len() * percent).div_ceil(100).saturating_sub(1).min(last);
        *self.lags.select_nth_unstable(at).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_least_value_that_so_many_do_not_exceed() {
        let of =
            |lags: &[u64], percent| Served { lags: lags.to_vec(), ..Served::default() }.percentile(percent);
        assert_eq!(of(&[], 99), 0);
        assert_eq!(of(&[7], 99), 7);
        assert_eq!(of(&[7], 0), 7);
        let mut hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!((of(&hundred, 99), of(&hundred, 100), of(&hundred, 50)), (99, 100, 50));
        hundred.push(1000);
        assert_eq!((of(&hundred, 99), of(&hundred, 100)), (100, 1000));
    }
}
