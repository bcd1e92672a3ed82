//! What a database task tells about itself: written by the task, read by `walhub-agent status` at any time.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use walhub_common::{DatabaseName, Txid, clock};

/// How safe a transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// On the hub's disk.
    #[default]
    Buffered,
    /// In as many destinations as the policy wants.
    Durable,
}

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
    /// The application has its checkpoints back for a while; nothing is captured.
    Paused,
    /// The hub takes nothing for now; tried again by itself.
    Refused,
    /// Two histories under one name; an operator decides.
    Forked,
    /// Something broke here; tried again by itself.
    Failed,
    /// Let go.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Absent => "absent",
            State::WaitingForHub => "waiting for hub",
            State::Offline => "offline",
            State::Opening => "opening",
            State::CatchingUp => "catching up",
            State::Following => "following",
            State::Paused => "paused",
            State::Refused => "refused",
            State::Forked => "forked",
            State::Failed => "failed",
            State::Stopped => "stopped",
        })
    }
}

/// How far an unfinished first snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Pages of which the hub holds a version.
    pub pages_done: u32,
    /// Pages of the database.
    pub pages: u32,
    /// Bytes sent for it since this program started.
    pub bytes_sent: u64,
}

/// A catch-up: one transaction with the pages that differed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heal {
    /// Pages sent; 0 when nothing differed.
    pub pages_changed: u32,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// When, Unix milliseconds.
    pub at_ms: i64,
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
    /// Bytes sent or spooled, and not acked.
    pub lag_bytes: u64,
    /// Bytes of the `-wal` file in use.
    pub wal_bytes: u64,
    /// Bytes of transactions, deltas and snapshots sent since start, repeats included.
    pub bytes_sent: u64,
    /// The last catch-up: what had to be sent so that hub and file agreed again; `null` when there was none since start.
    pub heal: Option<Heal>,
    /// Bytes spooled on this node's disk until the hub takes them.
    pub spool_bytes: u64,
    /// Restore points given up since start, because the hub was away too long; no data is lost with them.
    pub restore_points_lost: u64,
    /// A first snapshot that is being sent in parts; `null` when none is.
    pub snapshot: Option<Snapshot>,
    /// End of the pause, Unix milliseconds; `null` when it is not paused.
    pub paused_until_ms: Option<i64>,
    /// Why it is not followed, what broke last, or what is wrong around it.
    pub last_error: Option<String>,
    /// What to do about it.
    pub what_to_do: Option<String>,
}

#[derive(Debug)]
struct Facts {
    status: DatabaseStatus,
    /// Something around the database that is wrong in every state: what, and what to do.
    notice: Option<(String, String)>,
    waiting_since_ms: Option<i64>,
}

/// The shared sheet of one database.
#[derive(Debug)]
pub struct Report {
    facts: Mutex<Facts>,
    /// Woken when the hub holds more, or the state is another one.
    changed: Notify,
    bytes_sent: AtomicU64,
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
            bytes_sent: 0,
            heal: None,
            spool_bytes: 0,
            restore_points_lost: 0,
            snapshot: None,
            paused_until_ms: None,
            last_error: None,
            what_to_do: None,
        };
        Self {
            facts: Mutex::new(Facts { status, notice: None, waiting_since_ms: None }),
            changed: Notify::new(),
            bytes_sent: AtomicU64::new(0),
        }
    }

    /// The sheet as of now.
    pub fn status(&self) -> DatabaseStatus {
        let facts = self.lock();
        let mut status = facts.status.clone();
        if let Some((what, what_to_do)) = facts.notice.as_ref().filter(|_| status.last_error.is_none()) {
            (status.last_error, status.what_to_do) = (Some(what.clone()), Some(what_to_do.clone()));
        }
        status.lag_ms = facts
            .waiting_since_ms
            .map_or(0, |since| u64::try_from(clock::now_ms().saturating_sub(since)).unwrap_or(0));
        status.bytes_sent = self.bytes_sent.load(Ordering::Relaxed);
        status
    }

    /// Enters a state in which nothing is wrong.
    pub(super) fn enter(&self, state: State) {
        let mut facts = self.lock();
        facts.status.state = state;
        facts.status.paused_until_ms = None;
        if state == State::Following {
            facts.status.last_error = None;
            facts.status.what_to_do = None;
        }
    }

    /// Enters a pause.
    pub(super) fn pause(&self, until_ms: i64) {
        let mut facts = self.lock();
        facts.status.state = State::Paused;
        facts.status.paused_until_ms = Some(until_ms);
        facts.status.last_error = None;
        facts.status.what_to_do = Some("the pause ends by itself, or with `walhub-agent resume`".into());
    }

    /// Enters a state with its reason. True when that is news: the same trouble after another try is not.
    pub(super) fn trouble(&self, state: State, error: &str, hint: Option<&str>) -> bool {
        let mut facts = self.lock();
        let news = facts.status.last_error.as_deref() != Some(error);
        facts.status.state = state;
        facts.status.paused_until_ms = None;
        facts.status.last_error = Some(error.to_owned());
        facts.status.what_to_do = hint.map(str::to_owned);
        news
    }

    /// What is wrong around the database, whatever its task does; `None`: nothing is.
    pub(super) fn notice(&self, notice: Option<(String, String)>) {
        self.lock().notice = notice;
    }

    /// Where everything stands.
    pub(super) fn progress(&self, captured: Option<Txid>, wal_bytes: u64, lag_bytes: u64) {
        let mut facts = self.lock();
        facts.status.captured_txid = captured.map_or(0, Txid::get);
        facts.status.wal_bytes = wal_bytes;
        facts.status.lag_bytes = lag_bytes;
    }

    /// Bytes spooled.
    pub(super) fn spooled(&self, bytes: u64) {
        self.lock().status.spool_bytes = bytes;
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
        self.changed.notify_waiters();
    }

    /// The policy holds up to here.
    pub(super) fn durable(&self, txid: Option<Txid>) {
        self.lock().status.durable_txid = txid.map_or(0, Txid::get);
        self.changed.notify_waiters();
    }

    /// Waits until the hub holds a transaction at a level.
    pub async fn reached(&self, txid: Txid, level: Level) {
        loop {
            let changed = self.changed.notified();
            let status = self.lock().status.clone();
            let held = match level {
                Level::Buffered => status.buffered_txid,
                Level::Durable => status.durable_txid,
            };
            if held >= txid.get() {
                return;
            }
            changed.await;
        }
    }

    /// Bytes of a segment went out.
    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Hub and file agree again, after so many pages were sent.
    pub(super) fn healed(&self, pages_changed: u32, bytes_sent: u64) {
        self.lock().status.heal = Some(Heal { pages_changed, bytes_sent, at_ms: clock::now_ms() });
    }

    /// Counts transactions that can no longer be restored one by one.
    pub(super) fn lost(&self, restore_points: u64) {
        self.lock().status.restore_points_lost += restore_points;
    }

    /// A first snapshot came so far and sent so many bytes more; how many it has sent so far.
    pub(super) fn snapshot_sent(&self, more: Snapshot) -> u64 {
        let mut facts = self.lock();
        let before = facts.status.snapshot.map_or(0, |snapshot| snapshot.bytes_sent);
        let bytes_sent = before + more.bytes_sent;
        facts.status.snapshot = Some(Snapshot { bytes_sent, ..more });
        bytes_sent
    }

    /// No first snapshot is being sent any more.
    pub(super) fn snapshot_done(&self) {
        self.lock().status.snapshot = None;
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
