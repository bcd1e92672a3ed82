//! The shared picture of which database lies where: lanes post what a destination holds, sessions post what an agent has
//! open, the status reads it, and whoever waits for `durable` is told.
//!
//! Invariants: a durable position that was told is never taken back to its listener; posting never blocks on a reader.
//! Non-goal: it decides nothing; the rule is [`super::policy`].

use super::policy::{Policy, Site};
use crate::buffer::DatabaseId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use walhub_common::Txid;

/// A destination as the status shows it; fixed at start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LaneFacts {
    /// Name and what the policy counts.
    pub site: Site,
    /// `file`, `s3`.
    pub kind: &'static str,
    /// Path or bucket, no secrets.
    pub location: String,
    /// Pause between two flushes.
    pub sync_interval: Duration,
}

/// How a lane is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LaneHealth {
    /// The last operation succeeded.
    pub healthy: bool,
    /// The last error; empty when healthy.
    pub last_error: String,
    /// Files put since start.
    pub puts: u64,
    /// Bytes put since start.
    pub put_bytes: u64,
}

/// What the board knows of one database.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// Newest transaction each destination holds without a hole before it.
    pub held: Vec<Option<Txid>>,
    /// Why a destination does not take this database, where it does not.
    pub faults: Vec<Option<String>>,
    /// Newest transaction that satisfies the policy.
    pub durable: Option<Txid>,
    /// The agent has it open.
    pub open: bool,
    /// Last refusal since it was opened.
    pub refusal: String,
}

#[derive(Default)]
struct Entry {
    row: Row,
    listener: Option<Arc<Inbox>>,
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
    policy: Policy,
    lanes: Vec<LaneFacts>,
    sites: Vec<Site>,
    health: Mutex<Vec<LaneHealth>>,
    entries: Mutex<HashMap<DatabaseId, Entry>>,
    /// Rung whenever a destination holds more than before.
    advanced: Notify,
}

impl Board {
    /// An empty board for these lanes.
    pub fn new(policy: Policy, lanes: Vec<LaneFacts>) -> Self {
        let health = lanes.iter().map(|_| LaneHealth::default()).collect();
        let sites = lanes.iter().map(|lane| lane.site.clone()).collect();
        Self {
            policy,
            lanes,
            sites,
            health: Mutex::new(health),
            entries: Mutex::default(),
            advanced: Notify::new(),
        }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The lanes, in the order of the configuration.
    pub fn lanes(&self) -> &[LaneFacts] {
        &self.lanes
    }

    /// What the policy counts, in the order of the lanes.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// How the lanes are doing, in their order.
    pub fn health(&self) -> Vec<LaneHealth> {
        lock(&self.health).clone()
    }

    /// One database.
    pub fn row(&self, database: DatabaseId) -> Row {
        let entries = lock(&self.entries);
        match entries.get(&database) {
            Some(entry) => entry.row.clone(),
            None => self.blank(),
        }
    }

    fn blank(&self) -> Row {
        Row { held: vec![None; self.lanes.len()], faults: vec![None; self.lanes.len()], ..Row::default() }
    }

    fn with<T>(&self, database: DatabaseId, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = lock(&self.entries);
        let entry = entries.entry(database).or_insert_with(|| Entry { row: self.blank(), listener: None });
        change(entry)
    }

    /// Lane `lane` holds `database` up to `txid`, without a hole; tells the session when more became durable.
    pub fn post_copy(&self, lane: usize, database: DatabaseId, txid: Option<Txid>) {
        self.with(database, |entry| {
            entry.row.held[lane] = txid;
            let durable = self.policy.durable(&self.sites, &entry.row.held);
            let more = durable > entry.row.durable;
            entry.row.durable = durable;
            if let (true, Some(listener), Some(durable)) = (more, &entry.listener, durable) {
                lock(&listener.news).insert(database, durable);
                listener.bell.notify_one();
            }
        });
        self.advanced.notify_one();
    }

    /// Lane `lane` does (`Some`) or no longer does (`None`) refuse `database`, and why.
    pub fn post_fault(&self, lane: usize, database: DatabaseId, fault: Option<String>) {
        self.with(database, |entry| entry.row.faults[lane] = fault);
    }

    /// Changes what is known of a lane.
    pub fn post_health(&self, lane: usize, change: impl FnOnce(&mut LaneHealth)) {
        change(&mut lock(&self.health)[lane]);
    }

    /// A session has the database open; the newest durable transaction so far, the next ones go to `listener`.
    pub fn open(&self, database: DatabaseId, listener: Arc<Inbox>) -> Option<Txid> {
        self.with(database, |entry| {
            entry.listener = Some(listener);
            entry.row.open = true;
            entry.row.refusal.clear();
            entry.row.durable
        })
    }

    /// The session no longer has it open.
    pub fn close(&self, database: DatabaseId) {
        self.with(database, |entry| {
            entry.listener = None;
            entry.row.open = false;
        });
    }

    /// The session refused it.
    pub fn post_refusal(&self, database: DatabaseId, message: &str) {
        self.with(database, |entry| message.clone_into(&mut entry.row.refusal));
    }

    /// Waits until a destination holds more than before; one waiter.
    pub async fn advanced(&self) {
        self.advanced.notified().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let lane = |name: &str, media: &str| LaneFacts {
            site: Site { name: name.into(), media: media.into(), offsite: false },
            kind: "file",
            location: String::new(),
            sync_interval: Duration::from_secs(1),
        };
        let policy = Policy { copies: 3, media: 1, offsite: 0 };
        Board::new(policy, vec![lane("a", "disk"), lane("b", "disk")])
    }

    #[tokio::test]
    async fn a_listener_hears_of_durable_transactions_only_and_only_the_newest() {
        let board = board();
        let (db, inbox) = (DatabaseId(1), Arc::new(Inbox::default()));
        assert_eq!(board.open(db, inbox.clone()), None);
        board.post_copy(0, db, Txid::new(5));
        assert!(inbox.take().is_empty());
        board.post_copy(1, db, Txid::new(3));
        board.post_copy(1, db, Txid::new(4));
        inbox.wait().await;
        assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [(db, Txid::new(4).unwrap())]);
        board.close(db);
        board.post_copy(1, db, Txid::new(5));
        assert!(inbox.take().is_empty());
        assert_eq!(board.open(db, inbox), Txid::new(5));
    }

    #[test]
    fn a_copy_that_shrank_shows_and_is_no_news() {
        let board = board();
        let (db, inbox) = (DatabaseId(1), Arc::new(Inbox::default()));
        board.open(db, inbox.clone());
        board.post_copy(0, db, Txid::new(5));
        board.post_copy(1, db, Txid::new(5));
        inbox.take();
        board.post_copy(1, db, None);
        assert!(inbox.take().is_empty());
        assert_eq!(board.row(db).durable, None);
        assert_eq!(board.row(db).held, [Txid::new(5), None]);
    }
}
