//! Drills on disk: a file with a line for each, so that the schedule and the results outlive the hub.
//!
//! Bounds: [`KEPT`] drills of a copy, fewer when there are so many copies that they would be more than [`MOST`] together; the
//! file is written anew when it is twice as long as what it must say. A line that cannot be read is left out, with a warning:
//! what it said is found out again.

use super::model::{Copy, Drill, Verdict};
use super::schedule::Known;
use crate::durable;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const FILE: &str = "drills.jsonl";
/// Drills kept of each copy.
const KEPT: usize = 16;
/// Drills kept of all copies, but for the last one of each.
const MOST: usize = 50_000;
/// Copies remembered.
const MOST_COPIES: usize = 100_000;
/// Lines that lie there for nothing before the file is written anew.
const IDLE_LINES: usize = 1000;

/// See the module doc.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    drills: BTreeMap<Copy, VecDeque<Drill>>,
    /// In memory.
    count: usize,
    /// In the file.
    lines: usize,
}

impl Ledger {
    /// What lies in `data_dir`. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let mut ledger = Self { dir: data_dir.to_owned(), drills: BTreeMap::new(), count: 0, lines: 0 };
        let bytes = match fs::read(ledger.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ledger),
            Err(error) => return Err(error),
        };
        let mut unread = 0;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Drill>(line) {
                Ok(drill) => ledger.keep(drill),
                Err(_) => unread += 1,
            }
            ledger.lines += 1;
        }
        if unread > 0 {
            tracing::warn!(lines = unread, file = %ledger.path().display(), "results of drills cannot be read");
        }
        // What is added begins a line of its own.
        if unread > 0 || bytes.last().is_some_and(|last| *last != b'\n') {
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Adds a drill. Durable when it returns; after an error it is known until the hub ends. Blocking.
    pub fn add(&mut self, drill: Drill) -> io::Result<()> {
        let mut line = serde_json::to_vec(&drill)?;
        line.push(b'\n');
        self.keep(drill);
        self.lines += 1;
        if self.lines > 2 * self.count + IDLE_LINES {
            return self.rewrite();
        }
        let mut file = OpenOptions::new().create(true).append(true).open(self.path())?;
        file.write_all(&line)?;
        file.sync_data()
    }

    fn keep(&mut self, drill: Drill) {
        if !self.drills.contains_key(&drill.copy) && self.drills.len() >= MOST_COPIES {
            let oldest = self.drills.iter().min_by_key(|(_, drills)| drills.back().map(|last| last.began_ms));
            if let Some(copy) = oldest.map(|(copy, _)| copy.clone()) {
                self.count -= self.drills.remove(&copy).map_or(0, |drills| drills.len());
            }
        }
        let kept = (MOST / self.drills.len().max(1)).clamp(1, KEPT);
        let drills = self.drills.entry(drill.copy.clone()).or_default();
        if drills.back().is_some_and(|last| last.verdict == Verdict::Repairing) {
            // Nobody knows what became of it: it is still to be settled.
            if drill.verdict == Verdict::Undone {
                return;
            }
            // The end of a repair takes the place of its beginning.
            drills.pop_back();
            self.count -= 1;
        }
        drills.push_back(drill);
        self.count += 1;
        while drills.len() > kept {
            drills.pop_front();
            self.count -= 1;
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for drill in self.drills.values().flatten() {
            serde_json::to_writer(&mut bytes, drill)?;
            bytes.push(b'\n');
        }
        durable::replace(&self.dir, FILE, &bytes)?;
        self.lines = self.count;
        Ok(())
    }

    /// The last drill of a copy.
    pub fn last(&self, copy: &Copy) -> Option<&Drill> {
        self.drills.get(copy)?.back()
    }

    /// Drills by copy, oldest first.
    pub fn all(&self) -> impl Iterator<Item = (&Copy, &VecDeque<Drill>)> {
        self.drills.iter()
    }

    /// When the newest drill of all began.
    pub(super) fn newest_ms(&self) -> Option<i64> {
        self.drills.values().filter_map(|drills| drills.back()).map(|drill| drill.began_ms).max()
    }

    /// Copies of which a repair was broken off.
    pub(super) fn unsettled(&self) -> Vec<Copy> {
        let last = |drills: &VecDeque<Drill>| drills.back().map(|drill| drill.verdict);
        let begun = self.drills.iter().filter(|(_, drills)| last(drills) == Some(Verdict::Repairing));
        begun.map(|(copy, _)| copy.clone()).collect()
    }

    /// What the schedule wants to know.
    pub(super) fn known(&self, copy: &Copy) -> Option<Known> {
        let unsettled = |drill: &Drill| drill.verdict == Verdict::Repairing;
        self.last(copy).map(|drill| Known { last_ms: drill.began_ms, unsettled: unsettled(drill) })
    }
}

/// The ledger of a running hub. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Book(Arc<Mutex<Ledger>>);

impl Book {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Durable when it returns; a disk that fails is told.
    pub(super) async fn add(&self, drill: Drill) {
        let book = self.clone();
        let added = tokio::task::spawn_blocking(move || book.open().add(drill)).await;
        if let Err(error) = added.map_err(io::Error::other).flatten() {
            tracing::error!(%error, "the result of a drill cannot be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(database: usize, began_ms: i64, verdict: Verdict) -> Drill {
        let copy = Copy {
            database: format!("node/{database}.db").parse().unwrap(),
            destination: "near".parse().unwrap(),
        };
        Drill { verdict, message: format!("no {began_ms}"), ..Drill::begin(copy, began_ms) }
    }

    #[test]
    fn results_outlive_the_hub_and_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        for at in 0..1200 {
            ledger.add(drill(at % 3, at as i64, Verdict::Passed)).unwrap();
        }
        let before: Vec<Drill> = ledger.all().flat_map(|(_, drills)| drills.clone()).collect();
        assert_eq!(before.len(), 3 * KEPT);
        let lines = fs::read_to_string(dir.path().join(FILE)).unwrap().lines().count();
        assert!(lines <= 2 * 3 * KEPT + IDLE_LINES, "{lines}");
        let ledger = Ledger::open(dir.path()).unwrap();
        let after: Vec<Drill> = ledger.all().flat_map(|(_, drills)| drills.clone()).collect();
        assert_eq!(before, after);
        assert_eq!(ledger.newest_ms(), Some(1199));
        assert_eq!(ledger.last(&drill(1, 0, Verdict::Passed).copy).unwrap().began_ms, 1198);
    }

    #[test]
    fn a_torn_line_is_left_out_and_what_follows_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.add(drill(1, 1, Verdict::Failed)).unwrap();
        ledger.add(drill(2, 2, Verdict::Passed)).unwrap();
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let mut ledger = Ledger::open(dir.path()).unwrap();
            ledger.add(drill(3, 3, Verdict::Passed)).unwrap();
            let ledger = Ledger::open(dir.path()).unwrap();
            assert_eq!(ledger.last(&drill(3, 0, Verdict::Passed).copy).unwrap().began_ms, 3, "cut at {cut}");
        }
    }

    #[test]
    fn a_repair_under_way_is_known_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.add(drill(1, 1, Verdict::Repairing)).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        let copy = drill(1, 0, Verdict::Passed).copy;
        assert!(ledger.known(&copy).unwrap().unsettled);
        ledger.add(drill(1, 2, Verdict::Undone)).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        assert!(ledger.known(&copy).unwrap().unsettled, "nobody knows what became of it");
        ledger.add(drill(1, 1, Verdict::Repaired)).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert!(!ledger.known(&copy).unwrap().unsettled);
        assert_eq!(ledger.all().map(|(_, drills)| drills.len()).sum::<usize>(), 1);
    }
}
