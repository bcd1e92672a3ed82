//! What a database task tells about itself: written by the task, read by `walhub-agent status` at any time.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::{DatabaseName, Txid, clock};

/// What a database task is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not looked at yet.
    #[default]
    Starting,
    /// The file cannot be followed as it is; picked up when that changes.
    Absent,
    /// The hub must be asked before the file is taken hold of.
    WaitingForHub,
    /// Followed on this node; the hub cannot be reached.
    Offline,
    /// The hub was asked for its position.
    Opening,
    /// Bringing the hub and this node to the same position.
    CatchingUp,
    /// Every transaction is sent as it commits.
    Following,
    /// The hub takes nothing for now; tried again by itself.
    Refused,
    /// Two histories under one name; an operator decides.
    Forked,
    /// Something broke here; tried again by itself.
    Failed,
    /// Let go.
    Stopped,
}

/// One database, as `status --json` prints it. TXIDs are 0 when there is none yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Name at the hub.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What its task is doing.
    pub state: State,
    /// Newest transaction read from the database.
    pub captured_txid: u64,
    /// Newest transaction that the hub has on its disk.
    pub buffered_txid: u64,
    /// Newest transaction with enough copies.
    pub durable_txid: u64,
    /// Age of the oldest transaction that the hub does not have, milliseconds; 0 when it has all.
    pub lag_ms: u64,
    /// Bytes sent and not acked.
    pub lag_bytes: u64,
    /// Bytes of the `-wal` file in use.
    pub wal_bytes: u64,
    /// Restore points given up since start, because the hub was away too long; no data is lost with them.
    pub lost_restore_points: u64,
    /// Why it is not followed, or what broke last.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

#[derive(Debug)]
struct Facts {
    status: DatabaseStatus,
    waiting_since_ms: Option<i64>,
}

/// The shared sheet of one database.
#[derive(Debug)]
pub struct Report {
    facts: Mutex<Facts>,
}

impl Report {
    /// An empty sheet.
    pub fn new(name: &DatabaseName, path: PathBuf) -> Self {
        let status = DatabaseStatus {
            name: name.to_string(),
            path,
            state: State::Starting,
            captured_txid: 0,
            buffered_txid: 0,
            durable_txid: 0,
            lag_ms: 0,
            lag_bytes: 0,
            wal_bytes: 0,
            lost_restore_points: 0,
            error: None,
            hint: None,
        };
        Self { facts: Mutex::new(Facts { status, waiting_since_ms: None }) }
    }

    /// The sheet as of now.
    pub fn status(&self) -> DatabaseStatus {
        let facts = self.lock();
        let mut status = facts.status.clone();
        status.lag_ms = facts
            .waiting_since_ms
            .map_or(0, |since| u64::try_from(clock::now_ms().saturating_sub(since)).unwrap_or(0));
        status
    }

    /// Enters a state in which nothing is wrong.
    pub(super) fn enter(&self, state: State) {
        let mut facts = self.lock();
        facts.status.state = state;
        if state == State::Following {
            facts.status.error = None;
            facts.status.hint = None;
        }
    }

    /// Enters a state with its reason. True when that is news: the same trouble after another try is not.
    pub(super) fn trouble(&self, state: State, error: &str, hint: Option<&str>) -> bool {
        let mut facts = self.lock();
        let news = facts.status.error.as_deref() != Some(error);
        facts.status.state = state;
        facts.status.error = Some(error.to_owned());
        facts.status.hint = hint.map(str::to_owned);
        news
    }

    /// Where everything stands.
    pub(super) fn progress(&self, captured: Option<Txid>, wal_bytes: u64, lag_bytes: u64) {
        let mut facts = self.lock();
        facts.status.captured_txid = captured.map_or(0, Txid::get);
        facts.status.wal_bytes = wal_bytes;
        facts.status.lag_bytes = lag_bytes;
    }

    /// Since when the oldest transaction waits for the hub; `None` when none does.
    pub(super) fn waiting_since(&self, since_ms: Option<i64>) {
        self.lock().waiting_since_ms = since_ms;
    }

    /// As [`Report::waiting_since`] now, unless one waits already.
    pub(super) fn waiting(&self) {
        self.lock().waiting_since_ms.get_or_insert_with(clock::now_ms);
    }

    /// The hub holds this much.
    pub(super) fn buffered(&self, txid: Option<Txid>) {
        self.lock().status.buffered_txid = txid.map_or(0, Txid::get);
    }

    /// The policy holds up to here.
    pub(super) fn durable(&self, txid: Option<Txid>) {
        self.lock().status.durable_txid = txid.map_or(0, Txid::get);
    }

    /// Counts transactions that can no longer be restored one by one.
    pub(super) fn lost(&self, restore_points: u64) {
        self.lock().status.lost_restore_points += restore_points;
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
