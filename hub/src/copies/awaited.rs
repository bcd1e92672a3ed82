//! Restore points that somebody still waits to bring back: as long as one is awaited, nothing takes it away.
//!
//! Whoever needs a point ([`Awaited::wait`]) while it reads the database (`crate::retain::Pin`) finds it there until the [`Wait`]
//! is dropped. Destinations keep what leads to it, or to their newest point before it; where that is not the point itself, the
//! buffer keeps what leads on from there, and merges nothing across it.
//!
//! Invariants: what is awaited is known before anything may delete (jobs are read from disk first); a buffer that would have to
//! refuse agents otherwise gives its part up, loudly: replication comes before a restore that waits.
//!
//! Non-goals: nothing lies on disk here, whoever waits remembers why; a destination that is lost with its points.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use walhub_common::{DatabaseKey, Txid, TxidRange};

/// A point, and what it takes to reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// The point.
    pub txid: Txid,
    /// The buffer leads to it from this transaction on; `None` when destinations lead there alone.
    pub buffered_from: Option<Txid>,
    /// No destination and the buffer together lead there, only several destinations: all files of the database stay.
    pub everything: bool,
}

/// What is awaited of one database.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// The points, and who waits for each, for people; the newest who asked.
    pub points: BTreeMap<Txid, Arc<str>>,
    /// All files of the database stay.
    pub everything: bool,
}

#[derive(Debug)]
struct Entry {
    need: Need,
    by: Arc<str>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<DatabaseKey, BTreeMap<u64, Entry>>,
    tickets: u64,
    revision: u64,
}

/// All of them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Awaited(Arc<Mutex<Inner>>);

/// Somebody waits for a point as long as this lives.
#[derive(Debug)]
pub struct Wait {
    awaited: Awaited,
    database: DatabaseKey,
    ticket: u64,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut inner = self.awaited.lock();
        inner.revision += 1;
        if let Some(entries) = inner.entries.get_mut(&self.database) {
            entries.remove(&self.ticket);
            if entries.is_empty() {
                inner.entries.remove(&self.database);
            }
        }
    }
}

impl Awaited {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `need` is awaited; `by` says by whom, for people.
    pub fn wait(&self, database: &DatabaseKey, need: Need, by: &Arc<str>) -> Wait {
        let mut inner = self.lock();
        (inner.tickets, inner.revision) = (inner.tickets + 1, inner.revision + 1);
        let ticket = inner.tickets;
        let entries = inner.entries.entry(database.clone()).or_default();
        entries.insert(ticket, Entry { need, by: by.clone() });
        Wait { awaited: self.clone(), database: database.clone(), ticket }
    }

    /// What destinations have to keep of a database.
    pub fn of(&self, database: &DatabaseKey) -> Needs {
        let inner = self.lock();
        let mut needs = Needs::default();
        for entry in inner.entries.get(database).into_iter().flat_map(BTreeMap::values) {
            needs.points.insert(entry.need.txid, entry.by.clone());
            needs.everything |= entry.need.everything;
        }
        needs
    }

    /// What the buffer has to keep of a database: runs of transactions, each up to an awaited point.
    pub fn buffered(&self, database: &DatabaseKey) -> Vec<TxidRange> {
        let inner = self.lock();
        let entries = inner.entries.get(database).into_iter().flat_map(BTreeMap::values);
        let run = |entry: &Entry| TxidRange::new(entry.need.buffered_from?, entry.need.txid);
        entries.filter_map(run).collect()
    }

    /// The buffer keeps nothing for anybody any more: it needs the room. How many points may be lost by that.
    pub fn give_up_buffered(&self) -> usize {
        let mut inner = self.lock();
        inner.revision += 1;
        let mut points = 0;
        for (database, entries) in &mut inner.entries {
            for entry in entries.values_mut() {
                if entry.need.buffered_from.take().is_some() {
                    points += 1;
                    tracing::warn!(
                        %database, txid = entry.need.txid.get(), by = &*entry.by,
                        "the buffer is full: a point that is still to be restored is kept there no longer"
                    );
                }
            }
        }
        points
    }

    /// Another number whenever an answer may have changed.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_is_kept_until_nobody_waits() {
        let awaited = Awaited::default();
        let (a, b): (DatabaseKey, DatabaseKey) = ("n/a".parse().unwrap(), "n/b".parse().unwrap());
        let txid = |n| Txid::new(n).unwrap();
        let need = |n, from| Need { txid: txid(n), buffered_from: from, everything: false };
        let by: Arc<str> = "job 7".into();
        let one = awaited.wait(&a, need(9, Some(txid(4))), &by);
        let same = awaited.wait(&a, need(9, None), &by);
        let whole = awaited.wait(&b, Need { everything: true, ..need(3, None) }, &by);
        assert_eq!(awaited.of(&a).points, [(txid(9), by.clone())].into());
        assert!(!awaited.of(&a).everything && awaited.of(&b).everything);
        assert_eq!(awaited.buffered(&a), [TxidRange::from_raw(4, 9).unwrap()]);
        assert!(awaited.buffered(&b).is_empty());
        let before = awaited.revision();
        drop(one);
        assert!(awaited.revision() != before && awaited.buffered(&a).is_empty());
        assert_eq!(awaited.of(&a).points.len(), 1, "somebody else waits");
        drop((same, whole));
        assert_eq!(awaited.of(&a), Needs::default());
        assert!(awaited.lock().entries.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_full_buffer_gives_its_part_up_and_destinations_keep_theirs() {
        let awaited = Awaited::default();
        let a: DatabaseKey = "n/a".parse().unwrap();
        let (txid, from) = (Txid::new(9).unwrap(), Txid::new(4));
        let need = Need { txid, buffered_from: from, everything: false };
        let _wait = awaited.wait(&a, need, &"job 7".into());
        assert_eq!((awaited.give_up_buffered(), awaited.give_up_buffered()), (1, 0));
        assert!(awaited.buffered(&a).is_empty());
        assert_eq!(awaited.of(&a).points.len(), 1);
    }
}
