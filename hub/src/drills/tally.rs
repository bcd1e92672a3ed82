//! Drills counted since the hub began. Results by copy, which outlive it, are in the [ledger](super::ledger).

use super::model::{Drill, Verdict};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use walhub_common::DestinationName;

/// Sums over the drills of one destination that ended alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// How many.
    pub drills: u64,
    /// Time they took, ms.
    pub elapsed_ms: u64,
    /// Bytes read from the destination.
    pub bytes: u64,
    /// Objects that were made anew.
    pub repairs: u64,
}

/// Sums by destination and by the word of the verdict.
pub type Sums = BTreeMap<(DestinationName, &'static str), Sum>;

/// See the module doc.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Sums>);

impl Tally {
    /// A drill has ended.
    pub(super) fn count(&self, drill: &Drill) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (drill.copy.destination.clone(), drill.verdict.as_str());
        let sum = sums.entry(key).or_default();
        sum.drills += 1;
        sum.elapsed_ms += drill.elapsed_ms;
        sum.bytes += drill.bytes;
        // What is said of a drill that did not come right may be why an object could not be repaired.
        if drill.verdict == Verdict::Repaired {
            sum.repairs += drill.repairs.len() as u64;
        }
    }

    /// All of them.
    pub(super) fn sums(&self) -> Sums {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
