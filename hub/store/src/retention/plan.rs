//! The verdict on every file of one database at one destination.

use super::closure::{self, Edge};
use super::policy::{Period, Policy};
use crate::destinations::Listed;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use walhub_common::{Level, Txid};

/// Why a file stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// The database is on hold.
    Hold,
    /// A restore, or a copy to elsewhere, is reading the database.
    InUse,
    /// Somebody waits to restore the database, and it takes files of several destinations.
    Needs,
    /// Somebody waits to restore this transaction, and it ends there, or nearest before it.
    Awaited(Txid),
    /// It lies behind a hole of the listing, or nothing begins the history.
    Hole,
    /// It does not look like a file of a history: a snapshot that does not begin with the first transaction.
    Strange,
    /// The newest file of level 0.
    Newest,
    /// Younger than `retention`, or than `l0-retention` at level 0.
    Young,
    /// The snapshot that the oldest restore points within `retention` start from.
    Base,
    /// The newest snapshot of its day, week or month.
    Period(Period),
    /// Of level 0, and no compacted file stands in for it yet.
    Uncovered,
    /// It leads on from the oldest snapshot within `retention`.
    Leads,
    /// A file that stays needs it.
    Needed,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kept::Hold => "on hold",
            Kept::InUse => "being read",
            Kept::Needs => "a restore waits for files of several destinations",
            Kept::Awaited(txid) => return write!(f, "a restore of transaction {} waits for it", txid.get()),
            Kept::Hole => "behind a hole",
            Kept::Strange => "not a file of this history",
            Kept::Newest => "newest of level 0",
            Kept::Young => "young",
            Kept::Base => "oldest restore points start from it",
            Kept::Period(period) => return write!(f, "newest snapshot of its {period}"),
            Kept::Uncovered => "not compacted yet",
            Kept::Leads => "leads to restore points within retention",
            Kept::Needed => "needed by a file that stays",
        })
    }
}

/// Why a file goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Of level 0, older than `l0-retention`, and compacted files hold all its transactions.
    Compacted,
    /// All it leads to is older than `retention`; restores start from the snapshot of this transaction.
    Superseded(Txid),
    /// A snapshot older than `retention`, and than a younger one that is.
    Old,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dropped::Compacted => f.write_str("compacted files hold it"),
            Dropped::Superseded(txid) => {
                write!(f, "older than retention, the snapshot of {} stands in", txid.get())
            }
            Dropped::Old => f.write_str("snapshot older than retention"),
        }
    }
}

/// What keeps all files of a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shield {
    /// A hold.
    Hold,
    /// Somebody reads.
    InUse,
    /// Somebody waits to read, and nobody can say which files it takes.
    Needs,
}

/// The verdicts, by level and range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Files to delete.
    pub delete: Vec<(Listed, Dropped)>,
    /// Files that stay.
    pub keep: Vec<(Listed, Kept)>,
    /// With the same files, the plan stays the same until this time, Unix ms; `None`: for ever.
    pub next_ms: Option<i64>,
}

impl Plan {
    /// What to delete, in this order: the newest first. Whatever ends the deleting in the middle, each file that is left ends
    /// with a restore point if it did before.
    pub fn in_order(&self) -> Vec<&Listed> {
        let mut going: Vec<&Listed> = self.delete.iter().map(|(file, _)| file).collect();
        going.sort_by_key(|file| Reverse((file.range.max(), file.range.min())));
        going
    }

    /// True when something that may end at any time kept all files.
    pub fn is_shielded(&self) -> bool {
        self.keep.iter().any(|(_, reason)| matches!(reason, Kept::Hold | Kept::InUse | Kept::Needs))
    }

    /// Bytes that go.
    pub fn delete_bytes(&self) -> u64 {
        self.delete.iter().map(|(file, _)| file.size).fold(0, u64::saturating_add)
    }
}

/// The snapshot that the oldest restore points start from: every restore point after it may be younger than `retention`.
#[derive(Clone, Copy)]
struct Base {
    max: Txid,
    place: usize,
}

/// Judges `files`, which are all that the destination lists of one database, at `now_ms`. Each of `awaited`, or else the newest
/// restore point before it, stays reachable if it is.
pub fn plan(
    files: &[Listed],
    now_ms: i64,
    policy: &Policy,
    shield: Option<Shield>,
    awaited: &BTreeSet<Txid>,
) -> Plan {
    let mut files = files.to_vec();
    files.sort_by_key(|file| (file.level, file.range));
    files.dedup_by_key(|file| (file.level, file.range));
    let all = |reason| Plan {
        delete: Vec::new(),
        keep: files.iter().map(|file| (file.clone(), reason)).collect(),
        next_ms: None,
    };
    match shield {
        Some(Shield::Hold) => return all(Kept::Hold),
        Some(Shield::InUse) => return all(Kept::InUse),
        Some(Shield::Needs) => return all(Kept::Needs),
        None => {}
    }
    let edges: Vec<Edge> =
        files.iter().map(|file| Edge { min: file.range.min().get(), max: file.range.max().get() }).collect();
    let reachable = closure::reachable(&edges);
    let newest = (0..files.len()).filter(|&at| reachable[at]).map(|at| edges[at].max).max();
    let Some(newest) = newest else { return all(Kept::Hole) };

    let cutoff_ms = before(now_ms, policy.retention);
    let base = base(&files, cutoff_ms);
    let mut verdicts: Vec<Result<Kept, Dropped>> = (0..files.len())
        .map(|at| match files[at].level {
            _ if edges[at].max > newest => Ok(Kept::Hole),
            Level::SNAPSHOT => Ok(snapshot(&files[at], base, at, cutoff_ms)),
            Level::RAW => Ok(Kept::Uncovered),
            _ => compacted(&files[at], base),
        })
        .collect();
    periods(&files, policy, base, &mut verdicts);
    level_0(&files, before(now_ms, policy.l0_retention), base, &mut verdicts);
    for txid in awaited {
        wait_for(*txid, &edges, &reachable, &mut verdicts);
    }

    let kept: Vec<bool> = verdicts.iter().map(Result::is_ok).collect();
    for at in closure::close(&edges, &reachable, &kept) {
        verdicts[at] = Ok(Kept::Needed);
    }
    let mut plan = Plan { next_ms: next_ms(&files, now_ms, policy), ..Plan::default() };
    for (file, verdict) in files.into_iter().zip(verdicts) {
        match verdict {
            Ok(reason) => plan.keep.push((file, reason)),
            Err(reason) => plan.delete.push((file, reason)),
        }
    }
    plan
}

fn before(now_ms: i64, age: Duration) -> i64 {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

fn is_snapshot(file: &Listed) -> bool {
    file.level == Level::SNAPSHOT && file.range.min() == Txid::FIRST
}

/// A listing shows times that are those of the newest transaction, or later (an upload). So whatever a snapshot holds
/// that is listed as old, is old.
fn base(files: &[Listed], cutoff_ms: i64) -> Option<Base> {
    let old = files.iter().enumerate().filter(|(_, file)| is_snapshot(file) && file.time_ms <= cutoff_ms);
    let bases = old.map(|(place, file)| Base { max: file.range.max(), place });
    bases.max_by_key(|base| base.max)
}

/// A snapshot that is too old is left to [`periods`], which knows whether it is kept all the same.
fn snapshot(file: &Listed, base: Option<Base>, place: usize, cutoff_ms: i64) -> Kept {
    match base {
        _ if !is_snapshot(file) => Kept::Strange,
        Some(base) if base.place == place => Kept::Base,
        _ if file.time_ms > cutoff_ms => Kept::Young,
        _ => Kept::Leads,
    }
}

fn compacted(file: &Listed, base: Option<Base>) -> Result<Kept, Dropped> {
    match base {
        Some(base) if file.range.max() < base.max => Err(Dropped::Superseded(base.max)),
        _ => Ok(Kept::Leads),
    }
}

/// Old snapshots before the base go, unless they are the newest of a period.
fn periods(files: &[Listed], policy: &Policy, base: Option<Base>, verdicts: &mut [Result<Kept, Dropped>]) {
    let Some(base) = base else { return };
    // Sorted by range already: a later snapshot has a greater end.
    let snapshots: Vec<usize> = (0..files.len()).filter(|&at| is_snapshot(&files[at])).collect();
    let times: Vec<i64> = snapshots.iter().map(|&at| files[at].time_ms).collect();
    let periodic = policy.periodic(&times);
    for (place, &at) in snapshots.iter().enumerate() {
        if verdicts[at] == Ok(Kept::Leads) && files[at].range.max() < base.max {
            verdicts[at] = periodic.get(&place).map_or(Err(Dropped::Old), |period| Ok(Kept::Period(*period)));
        }
    }
}

/// Level 0: what the base or compacted files stand in for goes when it is old enough.
fn level_0(files: &[Listed], cutoff_ms: i64, base: Option<Base>, verdicts: &mut [Result<Kept, Dropped>]) {
    let levels = (0..files.len())
        .filter(|&at| {
            !matches!(files[at].level, Level::RAW | Level::SNAPSHOT) && verdicts[at] == Ok(Kept::Leads)
        })
        .map(|at| (files[at].range.min().get(), files[at].range.max().get()));
    let covered = runs(base.map(|base| (1, base.max.get())).into_iter().chain(levels).collect());
    let raw: Vec<usize> = (0..files.len()).filter(|&at| files[at].level == Level::RAW).collect();
    let newest = raw.iter().copied().max_by_key(|&at| (files[at].range.max(), files[at].range.min()));
    for at in raw {
        let (file, verdict) = (&files[at], &mut verdicts[at]);
        *verdict = match base {
            _ if *verdict == Ok(Kept::Hole) => continue,
            _ if Some(at) == newest => Ok(Kept::Newest),
            _ if file.time_ms > cutoff_ms => Ok(Kept::Young),
            Some(base) if file.range.max() < base.max => Err(Dropped::Superseded(base.max)),
            _ if within(&covered, file) => Err(Dropped::Compacted),
            _ => Ok(Kept::Uncovered),
        };
    }
}

/// Keeps a file that ends with the awaited point, or nearest before it, unless one stays already.
fn wait_for(txid: Txid, edges: &[Edge], reachable: &[bool], verdicts: &mut [Result<Kept, Dropped>]) {
    let led = |at: &usize| reachable[*at] && edges[*at].max <= txid.get();
    let Some(end) = (0..edges.len()).filter(led).map(|at| edges[at].max).max() else { return };
    let mut ending = (0..edges.len()).filter(|&at| reachable[at] && edges[at].max == end);
    if ending.clone().any(|at| verdicts[at].is_ok()) {
        return;
    }
    // The one that begins first needs the fewest others.
    let Some(first) = ending.next() else { return };
    let at = ending.fold(first, |best, at| if edges[at].min < edges[best].min { at } else { best });
    verdicts[at] = Ok(Kept::Awaited(txid));
}

/// Runs of transactions without a hole, ascending.
fn runs(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (min, max) in ranges {
        match runs.last_mut() {
            Some(run) if min <= run.1.saturating_add(1) => run.1 = run.1.max(max),
            _ => runs.push((min, max)),
        }
    }
    runs
}

fn within(runs: &[(u64, u64)], file: &Listed) -> bool {
    let (min, max) = (file.range.min().get(), file.range.max().get());
    let after = runs.partition_point(|run| run.0 <= min);
    after.checked_sub(1).is_some_and(|at| runs[at].1 >= max)
}

/// When the first of the files crosses a line of the policy.
fn next_ms(files: &[Listed], now_ms: i64, policy: &Policy) -> Option<i64> {
    let crosses = |file: &Listed| {
        let age = match file.level {
            Level::RAW => policy.l0_retention,
            Level::SNAPSHOT => policy.retention,
            _ => return None,
        };
        let at = file.time_ms.saturating_add(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        (at > now_ms).then_some(at)
    };
    files.iter().filter_map(crosses).min()
}
