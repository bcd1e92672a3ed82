//! Plans against the planner of restores: histories with every level, late uploads and holes, judged again and again
//! while time passes and deletions fail.

use super::plan::{Dropped, Kept, Plan, Shield, plan};
use super::policy::{Period, Policy};
use crate::destinations::Listed;
use crate::restore::inventory::Listing;
use crate::restore::plan::{PlanError, exactly, latest};
use crate::restore::reach::Reach;
use crate::restore::source::SourceName;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use walhub_common::{Level, Txid, TxidRange};

const SECOND: i64 = 1_000;
const NOBODY: BTreeSet<Txid> = BTreeSet::new();

fn file(level: u8, min: u64, max: u64, time_s: i64) -> Listed {
    let range = TxidRange::from_raw(min, max).unwrap();
    Listed { level: Level::new(level).unwrap(), range, size: 100, time_ms: time_s * SECOND }
}

fn policy(retention_s: u64, l0_s: u64) -> Policy {
    Policy {
        retention: Duration::from_secs(retention_s),
        l0_retention: Duration::from_secs(l0_s),
        ..Policy::default()
    }
}

fn listing(files: &[Listed]) -> Vec<Listing> {
    vec![Listing { source: SourceName::new("here").unwrap(), files: files.to_vec() }]
}

fn points(files: &[Listed]) -> BTreeSet<u64> {
    let listings = listing(files);
    Reach::new(&listings, None).points().map(Txid::get).collect()
}

/// Level, first and last transaction of files.
type Names = Vec<(u8, u64, u64)>;

fn names(plan: &Plan) -> (Names, Names) {
    let name = |file: &Listed| (file.level.get(), file.range.min().get(), file.range.max().get());
    (plan.delete.iter().map(|(f, _)| name(f)).collect(), plan.keep.iter().map(|(f, _)| name(f)).collect())
}

/// A database at one destination, with the truth about its transactions.
struct World {
    rng: StdRng,
    now_s: i64,
    /// When each transaction happened; they count from 1.
    times: Vec<i64>,
    files: Vec<Listed>,
    /// Ends of the windows that each level has published.
    published: BTreeMap<u8, u64>,
    /// Uploads are listed up to so many seconds late.
    delay_s: i64,
    /// Transactions that no file will ever hold: the destination has a hole.
    put: u64,
}

const WINDOWS: [(u8, i64); 3] = [(1, 30), (2, 300), (3, 3600)];

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let delay_s = [0, 0, 5, 400][rng.random_range(0..4)];
        World {
            rng,
            now_s: 1_000_000,
            times: Vec::new(),
            files: Vec::new(),
            published: BTreeMap::new(),
            delay_s,
            put: 0,
        }
    }

    fn listed(&mut self, level: u8, min: u64, max: u64) {
        let late = self.rng.random_range(0..=self.delay_s);
        let time = self.times[max as usize - 1] + late;
        if !self
            .files
            .iter()
            .any(|f| (f.level.get(), f.range.min().get(), f.range.max().get()) == (level, min, max))
        {
            self.files.push(file(level, min, max, time));
        }
    }

    /// Time passes; transactions happen, are put, are compacted.
    fn step(&mut self) {
        self.now_s += [1, 7, 40, 400, 4_000, 90_000][self.rng.random_range(0..6)];
        for _ in 0..self.rng.random_range(0..20) {
            let earliest = self.times.last().copied().unwrap_or(self.now_s - 5).max(self.now_s - 60);
            let time = self.rng.random_range(earliest..=self.now_s.max(earliest));
            self.times.push(time);
        }
        let newest = self.times.len() as u64;
        if newest > self.put && self.rng.random_bool(0.05) {
            // Brought up to date by a snapshot: nothing of it lies on level 0.
            self.listed(9, 1, newest);
            self.put = newest;
        }
        while self.put < newest {
            let end = self.rng.random_range(self.put + 1..=newest);
            let begin = self.put + 1;
            if end > begin && self.rng.random_bool(0.3) {
                // As Litestream takes over from it.
                self.listed(0, begin, end - 1);
                self.listed(0, end, end);
            } else {
                self.listed(0, begin, end);
            }
            self.put = end;
        }
        for (level, seconds) in WINDOWS {
            if !self.rng.random_bool(0.8) {
                continue;
            }
            loop {
                let done = self.published.get(&level).copied().unwrap_or(0);
                let Some(&first) = self.times.get(done as usize) else { break };
                let end_s = first - first.rem_euclid(seconds) + seconds;
                if end_s > self.now_s {
                    break;
                }
                let last = self.times.iter().take_while(|time| **time < end_s).count() as u64;
                self.listed(level, done + 1, last);
                self.published.insert(level, last);
            }
        }
        self.rest(newest);
        if newest > 0 && self.rng.random_bool(0.2) {
            let end = self.rng.random_range(1..=newest);
            if end == newest || self.rng.random_bool(0.5) {
                self.listed(9, 1, newest);
            }
        }
    }

    /// The newest file of level 0 gives way to one of its last transaction, where higher levels hold all of it.
    fn rest(&mut self, newest: u64) {
        let range = |file: &Listed| (file.range.min().get(), file.range.max().get());
        let last = |file: &&Listed| file.level == Level::RAW && range(file).1 == newest;
        let Some((min, max)) = self.files.iter().find(last).map(range).filter(|(min, max)| min < max) else {
            return;
        };
        let mut above: Vec<(u64, u64)> =
            self.files.iter().filter(|file| file.level != Level::RAW).map(range).collect();
        above.sort_unstable();
        let held = above
            .iter()
            .fold(min - 1, |held, (from, to)| if *from <= held + 1 { held.max(*to) } else { held });
        if held == max && self.rng.random_bool(0.5) {
            self.files.retain(|file| file.level != Level::RAW || range(file) != (min, max));
            self.listed(0, max, max);
        }
    }

    /// Restore points that `policy` promises to keep, of those that can be restored now. By the true times.
    fn promised(&self, policy: &Policy) -> BTreeSet<u64> {
        let now = self.now_s;
        let before = |age: Duration| now - age.as_secs() as i64;
        let (fine, coarse) = (before(policy.l0_retention), before(policy.retention));
        let reachable = points(&self.files);
        let mut promised: BTreeSet<u64> = reachable.last().copied().into_iter().collect();
        for file in &self.files {
            let end = file.range.max().get();
            let line = if file.level == Level::RAW { fine } else { coarse };
            if self.times[end as usize - 1] > line && reachable.contains(&end) {
                promised.insert(end);
            }
        }
        promised
    }
}

fn without(files: &[Listed], gone: &[Listed]) -> Vec<Listed> {
    files.iter().filter(|file| !gone.contains(file)).cloned().collect()
}

#[test]
fn whatever_is_deleted_the_newest_state_and_every_promised_restore_point_stay() {
    for seed in 0..600 {
        let mut world = World::new(seed);
        let policy = Policy {
            keep_daily: world.rng.random_range(0..3),
            keep_weekly: world.rng.random_range(0..2),
            ..policy([100, 5_000, 100_000][seed as usize % 3], [0, 10, 300][seed as usize / 3 % 3])
        };
        let mut waits = BTreeSet::new();
        for round in 0..25 {
            world.step();
            if world.rng.random_bool(0.05) && !world.files.is_empty() {
                // A file is lost: there may be a hole now.
                let lost = world.rng.random_range(0..world.files.len());
                world.files.remove(lost);
            }
            let at = format!("seed {seed} round {round}");
            let mut promised = world.promised(&policy);
            // Somebody begins to wait for a point, and waits through some rounds.
            match world.rng.random_range(0..10) {
                0 => waits.clear(),
                1 | 2 => waits.extend(Txid::new(world.rng.random_range(0..=world.times.len() as u64))),
                _ => {}
            }
            let there = points(&world.files);
            promised.extend(waits.iter().filter_map(|txid| there.range(..=txid.get()).next_back()));
            let verdict = plan(&world.files, world.now_s * SECOND, &policy, None, &waits);
            assert_eq!(verdict.delete.len() + verdict.keep.len(), world.files.len(), "{at}");
            let gone: Vec<Listed> = verdict.delete.iter().map(|(file, _)| file.clone()).collect();
            // All of them, or only some, in any order.
            let some: Vec<Listed> = gone.iter().filter(|_| world.rng.random_bool(0.5)).cloned().collect();
            for gone in [&gone, &some] {
                let left = without(&world.files, gone);
                let listings = listing(&left);
                let reach = Reach::new(&listings, None);
                for &point in &promised {
                    let chain = exactly(&reach, Txid::new(point).unwrap());
                    assert!(chain.is_ok(), "{at}: {point} of {promised:?}\n{verdict:#?}");
                }
                let was_listed = listing(&world.files);
                let was = latest(&Reach::new(&was_listed, None)).map(|plan| plan.reached);
                let is = latest(&reach).map(|plan| plan.reached);
                match (was, is) {
                    (Err(PlanError::Hole { after, .. }), Err(PlanError::Hole { after: now, .. })) => {
                        assert_eq!(after, now, "{at}");
                    }
                    (was, is) => assert_eq!(was, is, "{at}"),
                }
                let raw = |files: &[Listed]| files.iter().any(|file| file.level == Level::RAW);
                assert_eq!(raw(&left), raw(&world.files), "{at}: one file of level 0 stays");
            }
            // Cut off after any of them: what is left ends with a restore point, if it did before.
            let mut order = verdict.in_order();
            order.truncate(world.rng.random_range(0..=order.len()));
            let first: Vec<Listed> = order.into_iter().cloned().collect();
            let (before, left) = (points(&world.files), without(&world.files, &first));
            let after = points(&left);
            for file in &left {
                let end = file.range.max().get();
                assert!(after.contains(&end) || !before.contains(&end), "{at}: {file:?}\n{verdict:#?}");
            }
            let applied = if world.rng.random_bool(0.7) { gone } else { some };
            world.files = without(&world.files, &applied);
        }
    }
}

#[test]
fn a_plan_is_finished_when_it_was_applied_and_stays_the_same_until_it_says_so() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        let policy = policy(5_000, 60);
        for _ in 0..20 {
            world.step();
            let now_ms = world.now_s * SECOND;
            let first = plan(&world.files, now_ms, &policy, None, &NOBODY);
            let left: Vec<Listed> = first.keep.iter().map(|(file, _)| file.clone()).collect();
            let second = plan(&left, now_ms, &policy, None, &NOBODY);
            assert!(second.delete.is_empty(), "seed {seed}: {second:#?}");
            let last_ms = second.next_ms.map_or(now_ms + 1_000_000_000, |next| next - 1);
            assert!(plan(&left, last_ms, &policy, None, &NOBODY).delete.is_empty(), "seed {seed}");
            world.files = left;
        }
    }
}

#[test]
fn old_files_do_go() {
    // A day with a snapshot every six hours, compacted; retention of twelve.
    let hour = 3600;
    let mut files = vec![file(0, 1, 1, 0)];
    for h in 1..=24 {
        let txid = h as u64 * 10;
        files.push(file(0, txid - 8, txid + 1, h * hour));
        files.push(file(1, txid - 8, txid + 1, h * hour));
        if h % 6 == 0 {
            files.push(file(9, 1, txid + 1, h * hour));
        }
    }
    let plan = plan(&files, 24 * hour * SECOND + 1, &policy(12 * 3600, 300), None, &NOBODY);
    let (deleted, kept) = names(&plan);
    let expected: Vec<_> = [(9, 1, 121), (9, 1, 181), (9, 1, 241)].into();
    assert_eq!(kept.iter().filter(|f| f.0 == 9).copied().collect::<Vec<_>>(), expected);
    assert_eq!(kept.iter().filter(|f| f.0 == 0).copied().collect::<Vec<_>>(), [(0, 232, 241)]);
    assert_eq!(kept.iter().filter(|f| f.0 == 1).map(|f| f.2).collect::<Vec<_>>()[0], 121);
    assert_eq!(kept.iter().filter(|f| f.0 == 1).count(), 13);
    assert_eq!(deleted.len() + kept.len(), files.len());
    assert!(plan.delete.contains(&(file(9, 1, 61, 6 * hour), Dropped::Old)));
    assert!(plan.keep.contains(&(file(9, 1, 121, 12 * hour), Kept::Base)));
}

#[test]
fn level_0_waits_for_a_compacted_file_that_is_listed() {
    let now = 10_000 * SECOND;
    let raw = [file(0, 1, 1, 10), file(0, 2, 5, 20), file(0, 6, 6, 30)];
    assert!(plan(&raw, now, &policy(100, 5), None, &NOBODY).delete.is_empty());
    let half = [&raw[..], &[file(1, 1, 3, 15)]].concat();
    assert_eq!(names(&plan(&half, now, &policy(100_000, 5), None, &NOBODY)).0, [(0, 1, 1)]);
    let both = [&half[..], &[file(1, 4, 5, 20)]].concat();
    assert_eq!(names(&plan(&both, now, &policy(100_000, 5), None, &NOBODY)).0, [(0, 1, 1), (0, 2, 5)]);
    // A snapshot within retention is no compacted file: the points inside it would be lost.
    let snapshot = [&raw[..], &[file(9, 1, 6, 30)]].concat();
    assert!(plan(&snapshot, now, &policy(100_000, 5), None, &NOBODY).delete.is_empty());
    assert_eq!(names(&plan(&snapshot, now, &policy(100, 5), None, &NOBODY)).0, [(0, 1, 1), (0, 2, 5)]);
}

#[test]
fn a_young_file_keeps_those_that_lead_to_it() {
    let raw = [(1, 0), (2, 1), (3, 2), (4, 50), (5, 51)].map(|(txid, time)| file(0, txid, txid, time));
    let files = [&raw[..], &[file(1, 1, 5, 51)]].concat();
    let plan = plan(&files, 52 * SECOND, &policy(1_000, 10), None, &NOBODY);
    assert!(plan.delete.is_empty(), "{plan:#?}");
    assert!(plan.keep.contains(&(file(0, 2, 2, 1), Kept::Needed)), "{plan:#?}");
}

#[test]
fn what_a_restore_waits_for_stays_with_all_that_leads_there_until_nobody_waits() {
    let old = [file(9, 1, 5, 0), file(0, 6, 6, 1), file(0, 7, 7, 2), file(0, 8, 8, 3)];
    let files = [&old[..], &[file(9, 1, 20, 10), file(0, 20, 20, 10)]].concat();
    let (now, policy) = (1_000_000 * SECOND, policy(1, 1));
    let awaited = |txid| BTreeSet::from([Txid::new(txid).unwrap()]);
    let seventh = plan(&files, now, &policy, None, &awaited(7));
    assert_eq!(names(&seventh).0, [(0, 8, 8)]);
    assert!(seventh.keep.contains(&(file(0, 7, 7, 2), Kept::Awaited(Txid::new(7).unwrap()))), "{seventh:#?}");
    assert!(seventh.keep.contains(&(file(0, 6, 6, 1), Kept::Needed)), "{seventh:#?}");
    // Where it is no restore point, what leads nearest to it stays.
    assert!(plan(&files, now, &policy, None, &awaited(15)).delete.is_empty());
    assert_eq!(
        plan(&files, now, &policy, None, &awaited(20)).delete.len(),
        4,
        "what stays anyway leads there"
    );
    assert_eq!(plan(&files, now, &policy, None, &NOBODY).delete.len(), 4);
}

#[test]
fn nothing_goes_while_it_is_held_or_read_or_has_no_beginning() {
    let files = [file(9, 1, 5, 0), file(9, 1, 9, 10), file(0, 3, 3, 0), file(0, 9, 9, 10)];
    let now = 1_000_000 * SECOND;
    assert_eq!(plan(&files, now, &policy(1, 1), None, &NOBODY).delete.len(), 2);
    for (shield, reason) in
        [(Shield::Hold, Kept::Hold), (Shield::InUse, Kept::InUse), (Shield::Needs, Kept::Needs)]
    {
        let plan = plan(&files, now, &policy(1, 1), Some(shield), &NOBODY);
        assert!(plan.delete.is_empty() && plan.keep.iter().all(|(_, why)| *why == reason));
    }
    let headless = [file(0, 3, 3, 0), file(1, 2, 7, 0), file(0, 9, 9, 10)];
    assert!(
        plan(&headless, now, &policy(1, 1), None, &NOBODY).keep.iter().all(|(_, why)| *why == Kept::Hole)
    );
    let torn = [file(9, 1, 5, 0), file(0, 2, 2, 0), file(0, 8, 8, 0), file(1, 7, 8, 0), file(9, 2, 4, 0)];
    let plan = plan(&torn, now, &policy(1, 1), None, &NOBODY);
    assert_eq!(names(&plan).0, [(0, 2, 2)]);
    assert!(plan.keep.contains(&(file(9, 2, 4, 0), Kept::Strange)));
}

#[test]
fn snapshots_of_days_weeks_and_months_stay() {
    let day = 86_400;
    let files: Vec<Listed> = (1..=100).map(|n| file(9, 1, n as u64, n * day)).collect();
    let policy = Policy { keep_daily: 3, keep_weekly: 3, keep_monthly: 3, ..policy(day as u64, 1) };
    let plan = plan(&files, 100 * day * SECOND, &policy, None, &NOBODY);
    let kept = |reason| {
        plan.keep
            .iter()
            .filter(|(_, why)| *why == reason)
            .map(|(f, _)| f.range.max().get())
            .collect::<Vec<_>>()
    };
    assert_eq!((kept(Kept::Young), kept(Kept::Base)), (vec![100], vec![99]));
    assert_eq!(kept(Kept::Period(Period::Day)), [98]);
    // 10 April 1970 was a Friday; Sundays before it: the 5th (day 94) and 29 March (day 87).
    assert_eq!(kept(Kept::Period(Period::Week)), [87, 94]);
    // The ends of March (day 89) and February (day 58).
    assert_eq!(kept(Kept::Period(Period::Month)), [58, 89]);
}

#[test]
fn a_hundred_thousand_files_are_judged_at_once() {
    let mut files: Vec<Listed> = (1..=90_000).map(|n| file(0, n, n, n as i64)).collect();
    files.extend((0..3_000).map(|n| file(1, n * 30 + 1, n * 30 + 30, (n * 30 + 30) as i64)));
    let plan = plan(&files, 90_000 * SECOND, &policy(1_000_000, 300), None, &NOBODY);
    assert_eq!(plan.delete.len(), 90_000 - 300);
}
