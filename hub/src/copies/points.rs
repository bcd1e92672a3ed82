//! Restore points that destinations surely have: the newest few of each database at each of them, so that whoever wants to put a
//! compacted file knows whether anything there leads to its beginning, without asking.
//!
//! # Invariants
//! - What is noted as a restore point was listed as one, or was put behind one; what was deleted since is forgotten.
//! - Whoever puts a compacted file, deletes by a plan, or puts one file in another's place has a [`Turn`], of which there is one
//!   at a time per database and destination; and nothing is deleted by a plan whose listing is not younger than the last turn:
//!   it could take what leads to a file that it does not know of. (That nobody reads what goes is the [`crate::retain::Pins`]' part.)
//! - Bounded: [`KEPT`] points of level 0 and as many of higher levels per database and destination, only for those that do
//!   something. What is older is not denied: it is not known.

use super::roster::LaneId;
use crate::buffer::DatabaseId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use walhub_common::{DestinationName, Level, Txid, TxidRange};
use walhub_store::destinations::Listed;
use walhub_store::restore::{Listing, Reach};

/// Points kept of each sort.
const KEPT: usize = 24;

#[derive(Debug, Default)]
struct Site {
    /// Ends of files of level 0.
    raw: BTreeSet<Txid>,
    /// Ends of files of higher levels.
    compacted: BTreeSet<Txid>,
    /// All points from here on are noted; `None`: not even that is known.
    complete_from: Option<Txid>,
    /// Nothing lies there but what is noted.
    complete: bool,
    /// Counts the beginnings and the ends of turns.
    changes: u64,
    /// A turn is under way.
    busy: bool,
}

impl Site {
    fn note(&mut self, level: Level, txid: Txid) {
        let points = if level == Level::RAW { &mut self.raw } else { &mut self.compacted };
        points.insert(txid);
        while points.len() > KEPT {
            let Some(dropped) = points.pop_first() else { break };
            self.complete = false;
            self.complete_from = self.complete_from.max(Some(dropped.next()));
        }
    }

    /// Does a restore point lie where a file of `range` can be applied?
    fn leads(&self, range: TxidRange) -> Option<bool> {
        // The empty database, before transaction 1, is a point everywhere.
        let Some(before) = Txid::new(range.min().get() - 1) else { return Some(true) };
        let found = |points: &BTreeSet<Txid>| points.range(before..range.max()).next().is_some();
        if found(&self.raw) || found(&self.compacted) {
            return Some(true);
        }
        let known = self.complete || self.complete_from.is_some_and(|from| from <= before);
        known.then_some(false)
    }
}

type Sites = HashMap<(LaneId, DatabaseId), Site>;

/// See the module doc.
#[derive(Debug, Default)]
pub struct Points(Mutex<Sites>);

impl Points {
    fn sites(&self) -> MutexGuard<'_, Sites> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns that began or ended so far: asked before a listing, it says whether that is still true.
    pub fn changes(&self, lane: LaneId, database: DatabaseId) -> u64 {
        self.sites().get(&(lane, database)).map_or(0, |site| site.changes)
    }

    /// A whole listing of the database, begun after so many `changes`, replaces what was known up to its newest file; what was
    /// put behind that since stays. Nothing is learned from a listing that a turn has overtaken, or may.
    pub fn learn(&self, lane: LaneId, database: DatabaseId, changes: u64, files: &[Listed]) {
        self.replace((lane, database), files, |site| site.changes == changes && !site.busy);
    }

    fn replace(&self, at: (LaneId, DatabaseId), files: &[Listed], if_so: impl FnOnce(&Site) -> bool) {
        let mut learned = Site { complete: true, ..Site::default() };
        let points = restorable(files);
        for file in files.iter().filter(|file| points.contains(&file.range.max())) {
            learned.note(file.level, file.range.max());
        }
        let newest = files.iter().map(|file| file.range.max()).max();
        let mut sites = self.sites();
        let site = sites.entry(at).or_default();
        if !if_so(site) {
            return;
        }
        let behind = |points: &BTreeSet<Txid>| -> Vec<Txid> {
            points.iter().copied().filter(|point| Some(*point) > newest).collect()
        };
        for (level, points) in [(Level::RAW, behind(&site.raw)), (Level::SNAPSHOT, behind(&site.compacted))] {
            points.into_iter().for_each(|point| learned.note(level, point));
        }
        (learned.changes, learned.busy) = (site.changes, site.busy);
        *site = learned;
    }

    /// A file that ends with `txid` was put behind what the destination holds.
    pub fn reached(&self, lane: LaneId, database: DatabaseId, level: Level, txid: Txid) {
        let mut sites = self.sites();
        let site = sites.entry((lane, database)).or_default();
        if !site.complete && site.complete_from.is_none() {
            site.complete_from = Some(txid);
        }
        site.note(level, txid);
    }

    /// Can a file of `range` be applied to a restore point of this destination? `None`: that is not known.
    pub fn leads(&self, lane: LaneId, database: DatabaseId, range: TxidRange) -> Option<bool> {
        match self.sites().get(&(lane, database)) {
            Some(site) => site.leads(range),
            None => (range.min() == Txid::FIRST).then_some(true),
        }
    }

    /// Can a file of `range` be applied to a restore point that these files, which are all of a database, give?
    pub fn lead(files: &[Listed], range: TxidRange) -> bool {
        match Txid::new(range.min().get() - 1) {
            Some(before) => restorable(files).range(before..range.max()).next().is_some(),
            None => true,
        }
    }

    /// Nothing is known of what lies there any more.
    pub fn forget(&self, lane: LaneId, database: DatabaseId) {
        if let Some(site) = self.sites().get_mut(&(lane, database)) {
            (site.complete, site.complete_from) = (false, None);
            site.raw.clear();
            site.compacted.clear();
        }
    }

    /// Only these lanes are in service.
    pub(super) fn retain(&self, serves: impl Fn(LaneId) -> bool) {
        self.sites().retain(|(lane, _), _| serves(*lane));
    }

    /// Begins to put compacted files; `None` while somebody else has a turn.
    pub fn begin_put(self: &Arc<Self>, lane: LaneId, database: DatabaseId) -> Option<Turn> {
        self.begin((lane, database), |_| true)
    }

    /// Begins to delete by a plan whose listing was begun after so many `changes`; `None` when a turn began or ended since.
    pub fn begin_deleting(
        self: &Arc<Self>,
        lane: LaneId,
        database: DatabaseId,
        changes: u64,
    ) -> Option<Turn> {
        self.begin((lane, database), |site| site.changes == changes)
    }

    fn begin(self: &Arc<Self>, at: (LaneId, DatabaseId), if_so: impl FnOnce(&Site) -> bool) -> Option<Turn> {
        let mut sites = self.sites();
        let site = sites.entry(at).or_default();
        if site.busy || !if_so(site) {
            return None;
        }
        (site.busy, site.changes) = (true, site.changes + 1);
        Some(Turn { points: self.clone(), at })
    }
}

/// The restore points that these files alone give.
fn restorable(files: &[Listed]) -> BTreeSet<Txid> {
    let source = DestinationName::new("listed").expect("BUG: a good name");
    let listings = [Listing { source, files: files.to_vec() }];
    Reach::new(&listings, None).points().collect()
}

/// While it lives, nobody else puts compacted files of the database at the destination, or deletes.
#[derive(Debug)]
pub struct Turn {
    points: Arc<Points>,
    at: (LaneId, DatabaseId),
}

impl Turn {
    /// As [`Points::learn`], of a listing made, or true again, in this turn.
    pub fn learn(&self, files: &[Listed]) {
        self.points.replace(self.at, files, |_| true);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(site) = self.points.sites().get_mut(&self.at) {
            (site.busy, site.changes) = (false, site.changes + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(level: u8, min: u64, max: u64) -> Listed {
        Listed { level: Level::new(level).unwrap(), range: range(min, max), size: 1, time_ms: 0 }
    }

    fn range(min: u64, max: u64) -> TxidRange {
        TxidRange::from_raw(min, max).unwrap()
    }

    const DATABASE: DatabaseId = DatabaseId(1);

    #[test]
    fn a_step_across_the_beginning_of_a_file_leads_to_nothing_of_it() {
        let points = Points::default();
        assert_eq!(points.leads(0, DATABASE, range(1, 9)), Some(true));
        assert_eq!(points.leads(0, DATABASE, range(2, 9)), None);
        points.learn(0, DATABASE, 0, &[file(0, 1, 1), file(0, 2, 99), file(0, 100, 500)]);
        assert_eq!(points.leads(0, DATABASE, range(150, 200)), Some(false));
        assert_eq!(points.leads(0, DATABASE, range(90, 150)), Some(true), "99 lies in it");
        points.reached(0, DATABASE, Level::new(1).unwrap(), Txid::new(150).unwrap());
        assert_eq!(points.leads(0, DATABASE, range(151, 200)), Some(true));
        assert_eq!(points.leads(0, DATABASE, range(451, 500)), Some(false));
        assert_eq!(points.leads(0, DATABASE, range(451, 501)), Some(true));
        // What lies behind a hole is no point.
        points.learn(0, DATABASE, 0, &[file(0, 1, 1), file(0, 3, 99)]);
        assert_eq!(points.leads(0, DATABASE, range(50, 120)), Some(false));
    }

    #[test]
    fn deleting_and_putting_keep_out_of_each_others_way() {
        let points = Arc::new(Points::default());
        let before = points.changes(0, DATABASE);
        let put = points.begin_put(0, DATABASE).unwrap();
        let meanwhile = points.changes(0, DATABASE);
        assert!(
            points.begin_put(0, DATABASE).is_none()
                && points.begin_deleting(0, DATABASE, meanwhile).is_none()
        );
        assert!(points.begin_put(1, DATABASE).is_some(), "elsewhere");
        points.learn(0, DATABASE, meanwhile, &[file(0, 1, 1)]);
        assert_eq!(points.leads(0, DATABASE, range(2, 2)), None, "it may lack what is being put");
        drop(put);
        for plan in [before, meanwhile] {
            assert!(
                points.begin_deleting(0, DATABASE, plan).is_none(),
                "the plan may not know of what was put"
            );
            points.learn(0, DATABASE, plan, &[file(0, 1, 1)]);
            assert_eq!(points.leads(0, DATABASE, range(2, 2)), None);
        }
        let deleting = points.begin_deleting(0, DATABASE, points.changes(0, DATABASE)).unwrap();
        assert!(points.begin_put(0, DATABASE).is_none());
        deleting.learn(&[file(0, 1, 1)]);
        drop(deleting);
        assert_eq!(points.leads(0, DATABASE, range(2, 2)), Some(true));
        assert!(points.begin_put(0, DATABASE).is_some());
    }

    proptest! {
        /// Whatever is put, listed and forgotten: what is said to lead does, what is denied does not.
        #[test]
        fn what_is_said_is_true(
            steps in prop::collection::vec((1u64..9, 0u8..10, 0u8..12), 1..120),
            asked in prop::collection::vec((0u64..300, 0u64..40), 20),
        ) {
            let points = Points::default();
            let (mut files, mut held) = (Vec::new(), 0);
            for (count, level, event) in steps {
                let step = file(u8::from(level == 9), held + 1, held + count);
                held += count;
                files.push(step.clone());
                points.reached(0, DATABASE, step.level, step.range.max());
                match event {
                    0 => points.learn(0, DATABASE, 0, &files),
                    // A listing that is a moment old.
                    1 => points.learn(0, DATABASE, 0, &files[..files.len() - 1]),
                    2 => points.forget(0, DATABASE),
                    _ => {}
                }
            }
            for (min, more) in asked {
                let range = range(min + 1, min + 1 + more);
                let truth = min == 0 || files.iter().any(|f| (min..=min + more).contains(&f.range.max().get()));
                if let Some(said) = points.leads(0, DATABASE, range) {
                    prop_assert_eq!(said, truth, "{:?}", range);
                }
            }
        }
    }
}
