//! Drills on the page: sums of this run of the hub by destination, and how each copy stands by its last drill.

use super::names::*;
use super::page::{Page, Value, seconds, time};
use crate::buffer::WalBuffer;
use crate::copies::Roster;
use crate::drills::{Copy, Drill, Drills, Sum, Verdict};
use std::collections::{BTreeMap, VecDeque};
use walhub_common::DestinationName;

/// The words of verdicts of drills that have ended.
const VERDICTS: [Verdict; 4] = [Verdict::Passed, Verdict::Repaired, Verdict::Failed, Verdict::Undone];

/// True when the copy cannot be relied on.
fn fails(drill: &Drill) -> bool {
    matches!(drill.verdict, Verdict::Failed | Verdict::Repairing)
}

fn succeeded(drill: &Drill) -> bool {
    matches!(drill.verdict, Verdict::Passed | Verdict::Repaired)
}

/// Copies of one destination, by their drills.
#[derive(Debug, Default)]
struct Stand {
    copies: u64,
    failing: u64,
    last_ms: i64,
    success_ms: i64,
}

/// Copies of all destinations, and those that fail, by name.
#[derive(Debug, Default)]
struct Stands {
    of: BTreeMap<DestinationName, Stand>,
    failing: Vec<Copy>,
}

impl Stands {
    /// Sees what is kept of a copy, oldest first.
    fn see(&mut self, copy: &Copy, history: &VecDeque<Drill>) {
        let Some(last) = history.back() else { return };
        let stand = self.of.entry(copy.destination.clone()).or_default();
        stand.copies += 1;
        stand.last_ms = stand.last_ms.max(last.began_ms);
        let success = history.iter().rev().find(|drill| succeeded(drill));
        stand.success_ms = stand.success_ms.max(success.map_or(0, |drill| drill.began_ms));
        // What could not be tried since does not make good what failed before.
        let decided = history.iter().rev().find(|drill| drill.verdict != Verdict::Undone);
        if decided.is_some_and(fails) {
            stand.failing += 1;
            if self.failing.len() < MOST_FAILING {
                self.failing.push(copy.clone());
            }
        }
    }

    fn show(&self, page: &mut Page) {
        for (name, stand) in &self.of {
            page.add(&DRILL_COPIES, &[name.as_str()], stand.copies);
            page.add(&DRILL_COPIES_FAILING, &[name.as_str()], stand.failing);
            for (family, ms) in [(&DRILL_LAST, stand.last_ms), (&DRILL_LAST_SUCCESS, stand.success_ms)] {
                if ms > 0 {
                    page.add(family, &[name.as_str()], time(ms));
                }
            }
        }
        for Copy { database, destination } in &self.failing {
            let labels = [database.agent.as_str(), database.name.as_str(), destination.as_str()];
            page.add(&DRILL_FAILING, &labels, true);
        }
    }
}

/// Adds them, of copies that are in service.
pub(super) fn collect(page: &mut Page, drills: &Drills, roster: &Roster, buffer: &dyn WalBuffer) {
    if let Some(interval) = drills.interval() {
        page.add(&DRILL_INTERVAL, &[], Value::Real(interval.as_secs_f64()));
    }
    let sums = drills.sums();
    let mut stands = Stands::default();
    for place in roster.places() {
        let name = place.name();
        let mut all = Sum::default();
        for verdict in VERDICTS {
            let sum = sums.get(&(name.clone(), verdict.as_str())).copied().unwrap_or_default();
            page.add(&DRILLS, &[name.as_str(), verdict.as_str()], sum.drills);
            all.elapsed_ms += sum.elapsed_ms;
            all.bytes += sum.bytes;
            all.repairs += sum.repairs;
        }
        page.add(&DRILL_SECONDS, &[name.as_str()], seconds(all.elapsed_ms));
        page.add(&DRILL_BYTES, &[name.as_str()], all.bytes);
        page.add(&REPAIRS, &[name.as_str()], all.repairs);
        stands.of.insert(name.clone(), Stand::default());
    }
    drills.visit(|copy, history| {
        let served =
            roster.terms(&copy.database).places.iter().any(|place| *place.name() == copy.destination);
        if served && buffer.find(&copy.database).is_some() {
            stands.see(copy, history);
        }
    });
    stands.show(page);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(database: usize, verdicts: &[Verdict]) -> (Copy, VecDeque<Drill>) {
        let text = format!(
            "{{\"database\": \"node/{database}.db\", \"destination\": \"far\", \"began_ms\": 0, \"elapsed_ms\": 1, \
             \"verdict\": \"passed\"}}"
        );
        let drill: Drill = serde_json::from_str(&text).unwrap();
        let drills = verdicts.iter().zip(1000..).map(|(verdict, began_ms)| Drill {
            verdict: *verdict,
            began_ms,
            ..drill.clone()
        });
        (drill.copy.clone(), drills.collect())
    }

    fn shown(histories: &[(Copy, VecDeque<Drill>)]) -> String {
        let (mut stands, mut page) = (Stands::default(), Page::default());
        histories.iter().for_each(|(copy, history)| stands.see(copy, history));
        stands.show(&mut page);
        page.text().unwrap()
    }

    #[test]
    fn a_fleet_that_fails_is_counted_and_a_hundred_are_named() {
        let all: Vec<_> = (0..10_000).map(|at| history(at, &[Verdict::Passed, Verdict::Failed])).collect();
        let text = shown(&all);
        assert!(text.contains("\nwalhub_drill_copies_failing{destination=\"far\"} 10000\n"), "{text}");
        let named = text.lines().filter(|line| line.starts_with("walhub_drill_failing{")).count();
        assert_eq!(named, MOST_FAILING);
        assert!(
            text.contains("walhub_drill_failing{agent=\"node\",database=\"7.db\",destination=\"far\"} 1\n")
        );
    }

    #[test]
    fn a_failure_stands_until_a_drill_passes() {
        use Verdict::{Failed, Passed, Repaired, Repairing, Undone};
        for (verdicts, fails, success) in [
            (&[Passed][..], false, Some("1.0")),
            (&[Passed, Failed], true, Some("1.0")),
            (&[Failed, Undone, Undone], true, None),
            (&[Failed, Undone, Passed], false, Some("1.002")),
            (&[Failed, Repairing], true, None),
            (&[Failed, Repaired], false, Some("1.001")),
            (&[Undone], false, None),
        ] {
            let text = shown(&[history(1, verdicts)]);
            let value = |name: &str| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix(&format!("{name}{{destination=\"far\"}} ")));
                line.map(str::to_owned)
            };
            assert_eq!(text.contains("\nwalhub_drill_failing{"), fails, "{verdicts:?}");
            assert_eq!(
                value("walhub_drill_copies_failing"),
                Some(u64::from(fails).to_string()),
                "{verdicts:?}"
            );
            assert_eq!(
                value("walhub_drill_last_success_timestamp_seconds").as_deref(),
                success,
                "{verdicts:?}"
            );
        }
    }
}
