//! Drills on the page: sums of this run of the hub by destination, and how each copy stands by its last drill.

use super::names::*;
use super::page::{Page, Value, seconds, time};
use crate::buffer::WalBuffer;
use crate::copies::Roster;
use crate::drills::{Copy, Drill, Drills, Sum, Verdict};
use std::collections::BTreeMap;
use walhub_common::DestinationName;

/// The words of verdicts of drills that have ended.
const VERDICTS: [Verdict; 4] = [Verdict::Passed, Verdict::Repaired, Verdict::Failed, Verdict::Undone];

/// Copies of one destination, by their drills.
#[derive(Debug, Default)]
struct Stand {
    copies: u64,
    failing: u64,
    last_ms: i64,
    success_ms: i64,
}

/// True when the copy cannot be relied on; a drill that could not be made says nothing.
fn fails(drill: &Drill) -> bool {
    matches!(drill.verdict, Verdict::Failed | Verdict::Repairing)
}

fn succeeded(drill: &Drill) -> bool {
    matches!(drill.verdict, Verdict::Passed | Verdict::Repaired)
}

/// Adds them, of copies that are in service.
pub(super) fn collect(page: &mut Page, drills: &Drills, roster: &Roster, buffer: &dyn WalBuffer) {
    if let Some(interval) = drills.interval() {
        page.add(&DRILL_INTERVAL, &[], Value::Real(interval.as_secs_f64()));
    }
    let sums = drills.sums();
    let mut stands: BTreeMap<&DestinationName, Stand> = BTreeMap::new();
    for place in roster.places() {
        stands.entry(place.name()).or_default();
        let mut all = Sum::default();
        for verdict in VERDICTS {
            let key = (place.name().clone(), verdict.as_str());
            let sum = sums.get(&key).copied().unwrap_or_default();
            page.add(&DRILLS, &[place.name().as_str(), verdict.as_str()], sum.drills);
            all.elapsed_ms += sum.elapsed_ms;
            all.bytes += sum.bytes;
            all.repairs += sum.repairs;
        }
        page.add(&DRILL_SECONDS, &[place.name().as_str()], seconds(all.elapsed_ms));
        page.add(&DRILL_BYTES, &[place.name().as_str()], all.bytes);
        page.add(&REPAIRS, &[place.name().as_str()], all.repairs);
    }
    let mut named = 0;
    drills.visit(|Copy { database, destination }, history| {
        let Some(last) = history.back() else { return };
        let served = roster.terms(database).places.iter().any(|place| place.name() == destination);
        let known = served && buffer.find(database).is_some();
        let Some(stand) = stands.get_mut(destination).filter(|_| known) else { return };
        // What could not be tried since does not make good what failed before.
        let decided = history.iter().rev().find(|drill| drill.verdict != Verdict::Undone);
        stand.copies += 1;
        stand.last_ms = stand.last_ms.max(last.began_ms);
        let success = history.iter().rev().find(|drill| succeeded(drill)).map_or(0, |drill| drill.began_ms);
        stand.success_ms = stand.success_ms.max(success);
        if decided.is_some_and(fails) {
            stand.failing += 1;
            if named < MOST_FAILING {
                named += 1;
                let labels = [database.agent.as_str(), database.name.as_str(), destination.as_str()];
                page.add(&DRILL_FAILING, &labels, true);
            }
        }
    });
    for (name, stand) in stands {
        page.add(&DRILL_COPIES, &[name.as_str()], stand.copies);
        page.add(&DRILL_COPIES_FAILING, &[name.as_str()], stand.failing);
        for (family, ms) in [(&DRILL_LAST, stand.last_ms), (&DRILL_LAST_SUCCESS, stand.success_ms)] {
            if ms > 0 {
                page.add(family, &[name.as_str()], time(ms));
            }
        }
    }
}
