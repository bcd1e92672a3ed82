//! The shared picture of which database lies where: lanes post what a destination holds, sessions post what an agent has
//! open, the status reads it, and whoever waits for `durable` is told.
//!
//! # Invariants
//! - What was told to a listener as durable is never told again, nor less than it: when a policy is raised, `durable` in
//!   the picture falls back to what is true now, and the listener hears of it again once it is beyond what it knows.
//! - What a destination holds counts only for databases that it serves; one that is taken out of service stops counting
//!   at once.
//! - Posting never blocks on a reader.
//!
//! Non-goal: it decides nothing; the rule is [`super::policy`].

use super::awaited::Awaited;
use super::meters::Meters;
use super::points::Points;
use super::roster::{LaneId, Roster, Terms};
use crate::buffer::{DatabaseId, Takers};
use crate::compact::Report;
use crate::mirror::MirrorReport;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use walhub_common::{DatabaseKey, DestinationName, Txid, TxidRange};

/// How a lane is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LaneHealth {
    /// The last operation succeeded.
    pub healthy: bool,
    /// The last error; empty when healthy.
    pub last_error: String,
    /// The last error in a word; empty when healthy.
    pub cause: &'static str,
    /// Attempts that failed since start, of the lane or of one database, by the same words.
    pub failures: BTreeMap<&'static str, u64>,
    /// Files put since start.
    pub puts: u64,
    /// Bytes put since start.
    pub put_bytes: u64,
    /// What the budget of requests makes of the sync interval: no flushes are closer than this.
    pub least_interval: Duration,
    /// The budget of requests is spent: nothing more is sent today.
    pub spent: bool,
}

/// What the board knows of one database.
#[derive(Clone, Debug)]
pub struct Row {
    /// What applies to it.
    pub terms: Arc<Terms>,
    held: BTreeMap<LaneId, Txid>,
    faults: BTreeMap<LaneId, String>,
    /// Newest transaction that satisfies the policy.
    pub durable: Option<Txid>,
    /// The agent has it open.
    pub open: bool,
    /// Last refusal since it was opened.
    pub refusal: String,
}

impl Row {
    fn new(terms: Arc<Terms>) -> Self {
        Self {
            terms,
            held: BTreeMap::new(),
            faults: BTreeMap::new(),
            durable: None,
            open: false,
            refusal: String::new(),
        }
    }

    /// Newest transaction the destination of `lane` holds without a hole before it.
    pub fn held(&self, lane: LaneId) -> Option<Txid> {
        self.held.get(&lane).copied()
    }

    /// Why the destination of `lane` does not take this database, when it does not.
    pub fn fault(&self, lane: LaneId) -> Option<&str> {
        self.faults.get(&lane).map(String::as_str)
    }

    /// What is missing for `txid` to be durable, for people; empty when nothing is.
    pub fn missing(&self, txid: Txid) -> String {
        self.terms.missing(|lane| self.held(lane), txid)
    }
}

struct Entry {
    key: DatabaseKey,
    row: Row,
    listener: Option<Arc<Inbox>>,
    /// Newest durable transaction that the listener knows of.
    told: Option<Txid>,
}

impl Entry {
    /// Counts anew, and tells the listener of more.
    fn count(&mut self, database: DatabaseId) {
        self.row.durable = self.row.terms.durable(|lane| self.row.held(lane));
        let Some(durable) = self.row.durable.filter(|durable| Some(*durable) > self.told) else { return };
        if let Some(listener) = &self.listener {
            self.told = Some(durable);
            lock(&listener.news).insert(database, durable);
            listener.bell.notify_one();
        }
    }
}

/// Durable positions on their way to one session: only the newest per database is kept.
#[derive(Debug, Default)]
pub struct Inbox {
    news: Mutex<HashMap<DatabaseId, Txid>>,
    bell: Notify,
}

impl Inbox {
    /// Waits for news. Cancel safe.
    pub async fn wait(&self) {
        loop {
            let rung = self.bell.notified();
            if !lock(&self.news).is_empty() {
                return;
            }
            rung.await;
        }
    }

    /// Takes all news.
    pub fn take(&self) -> HashMap<DatabaseId, Txid> {
        std::mem::take(&mut *lock(&self.news))
    }
}

/// The board.
pub struct Board {
    roster: watch::Sender<Arc<Roster>>,
    meters: Arc<Meters>,
    health: Mutex<BTreeMap<LaneId, LaneHealth>>,
    entries: Mutex<HashMap<DatabaseId, Entry>>,
    /// Counts changes of who serves what.
    awaited: Awaited,
    revision: AtomicU64,
    /// What compaction does.
    compaction: Arc<Report>,
    /// Where the hub itself is kept.
    mirror: MirrorReport,
    points: Arc<Points>,
    /// Rung whenever a destination holds more than before, or the roster changed.
    advanced: Notify,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("roster", &self.roster).finish_non_exhaustive()
    }
}

impl Board {
    /// An empty board over these destinations, which begin to count their requests.
    pub fn new(roster: Roster) -> Self {
        Self::with_meters(roster, Arc::default())
    }

    /// An empty board over these destinations.
    pub fn with_meters(roster: Roster, meters: Arc<Meters>) -> Self {
        Self {
            meters,
            roster: watch::Sender::new(Arc::new(roster)),
            health: Mutex::default(),
            entries: Mutex::default(),
            awaited: Awaited::default(),
            revision: AtomicU64::new(0),
            compaction: Arc::default(),
            mirror: MirrorReport::default(),
            points: Arc::default(),
            advanced: Notify::new(),
        }
    }

    /// The destinations in service and the rules, as of now.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    /// What compaction does.
    pub fn compaction(&self) -> &Arc<Report> {
        &self.compaction
    }

    /// Where the hub itself is kept.
    pub fn mirror(&self) -> &MirrorReport {
        &self.mirror
    }

    /// Restore points that somebody waits to bring back.
    pub fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// Restore points that destinations surely have.
    pub fn points(&self) -> &Arc<Points> {
        &self.points
    }

    /// Changes of the roster.
    pub fn roster_changes(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }

    /// Replaces the roster: every database is counted anew.
    pub fn apply(&self, roster: Roster) {
        let roster = Arc::new(roster);
        {
            let mut entries = lock(&self.entries);
            for (database, entry) in entries.iter_mut() {
                let terms = roster.terms(&entry.key).clone();
                entry.row.held.retain(|lane, _| terms.serves(*lane));
                entry.row.faults.retain(|lane, _| terms.serves(*lane));
                entry.row.terms = terms;
                entry.count(*database);
            }
            // Under the lock: an entry that is made from now on takes the new one.
            self.roster.send_replace(roster.clone());
            self.revision.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.health).retain(|lane, _| roster.place(*lane).is_some());
        self.points.retain(|lane| roster.place(lane).is_some());
        self.advanced.notify_one();
    }

    /// Requests of every place.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// How a lane is doing.
    pub fn health(&self, lane: LaneId) -> LaneHealth {
        lock(&self.health).get(&lane).cloned().unwrap_or_default()
    }

    /// One database.
    pub fn row(&self, database: DatabaseId, key: &DatabaseKey) -> Row {
        let entries = lock(&self.entries);
        match entries.get(&database) {
            Some(entry) => entry.row.clone(),
            None => Row::new(self.roster.borrow().terms(key).clone()),
        }
    }

    fn with<T>(&self, database: DatabaseId, key: &DatabaseKey, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = lock(&self.entries);
        let entry = entries.entry(database).or_insert_with(|| {
            self.revision.fetch_add(1, Ordering::Relaxed);
            let row = Row::new(self.roster.borrow().terms(key).clone());
            Entry { key: key.clone(), row, listener: None, told: None }
        });
        change(entry)
    }

    /// Lane `lane` holds `database` up to `txid`, without a hole; tells the session when more became durable.
    pub fn post_copy(&self, lane: LaneId, database: DatabaseId, key: &DatabaseKey, txid: Option<Txid>) {
        self.with(database, key, |entry| {
            match txid.filter(|_| entry.row.terms.serves(lane)) {
                Some(txid) => entry.row.held.insert(lane, txid),
                None => entry.row.held.remove(&lane),
            };
            entry.count(database);
        });
        self.advanced.notify_one();
    }

    /// Lane `lane` does (`Some`) or no longer does (`None`) refuse `database`, and why.
    pub fn post_fault(&self, lane: LaneId, database: DatabaseId, key: &DatabaseKey, fault: Option<String>) {
        self.with(database, key, |entry| match fault.filter(|_| entry.row.terms.serves(lane)) {
            Some(fault) => entry.row.faults.insert(lane, fault),
            None => entry.row.faults.remove(&lane),
        });
    }

    /// Changes what is known of a lane; nothing of one that is out of service.
    pub fn post_health(&self, lane: LaneId, change: impl FnOnce(&mut LaneHealth)) {
        let mut health = lock(&self.health);
        if self.roster.borrow().place(lane).is_some() {
            let health = health.entry(lane).or_default();
            let before = health.healthy;
            change(health);
            if health.healthy != before {
                self.revision.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A session has the database open; the newest durable transaction so far, the next ones go to `listener`.
    pub fn open(&self, database: DatabaseId, key: &DatabaseKey, listener: Arc<Inbox>) -> Option<Txid> {
        self.with(database, key, |entry| {
            entry.listener = Some(listener);
            entry.row.open = true;
            entry.row.refusal.clear();
            entry.told = entry.row.durable;
            entry.row.durable
        })
    }

    /// The session no longer has it open.
    pub fn close(&self, database: DatabaseId) {
        if let Some(entry) = lock(&self.entries).get_mut(&database) {
            entry.listener = None;
            entry.row.open = false;
        }
    }

    /// The session refused it.
    pub fn post_refusal(&self, database: DatabaseId, message: &str) {
        if let Some(entry) = lock(&self.entries).get_mut(&database) {
            message.clone_into(&mut entry.row.refusal);
        }
    }

    /// Waits until a destination holds more than before, or others serve; one waiter.
    pub async fn advanced(&self) {
        self.advanced.notified().await;
    }
}

impl Takers for Board {
    fn of(&self, database: DatabaseId) -> Arc<[DestinationName]> {
        lock(&self.entries)
            .get(&database)
            .map_or_else(|| Arc::new([]) as Arc<_>, |entry| entry.row.terms.cursors())
    }

    fn revision(&self) -> u64 {
        // Both only grow, so their sum is another one whenever one of them is.
        self.revision.load(Ordering::Relaxed).wrapping_add(self.awaited.revision())
    }

    fn kept(&self, database: DatabaseId) -> Vec<TxidRange> {
        let key = lock(&self.entries).get(&database).map(|entry| entry.key.clone());
        key.map(|key| self.awaited.buffered(&key)).unwrap_or_default()
    }

    fn give_up_kept(&self) {
        self.awaited.give_up_buffered();
    }

    fn answers(&self, name: &DestinationName) -> bool {
        let place = self.roster.borrow().places().iter().find(|place| place.entry.cursor == *name).cloned();
        place.is_some_and(|place| self.health(place.lane).healthy)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
