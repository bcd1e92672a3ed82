//! One task per database: it owns the capture, sleeps until something happens, and talks to the hub about nothing but its
//! own database.
//!
//! ```text
//! absent ──files, poll──▶ attached ──link──▶ open at the hub ▸ resume steps ▸ follow ──refused, link lost──┐
//!    ▲                       │  ▲────────────────────────────────────────────────────────────────────────┘
//!    └──replaced, failed, fork, stop (detach)
//! ```
//!
//! Invariants:
//! - a database task waits for its own letter box only; a broken or slow database never holds another one up;
//! - blocking work runs in a blocking thread that owns the capture meanwhile; long work (snapshots, heals, attaches)
//!   takes a turn, so that it can never use up the threads that follow other databases;
//! - a database without a usable page map is taken hold of only when the hub can be asked, so that an unreachable hub
//!   does not make a WAL grow for nothing.
//!
//! Non-goals: how a WAL is read (`capture`), what the next step is (`ship::resume`).

mod calls;
mod desk;
mod drive;
mod fetch;
mod follow;
mod follower;
mod images;
mod pace;
mod replacing;
mod report;
mod rest;
mod sink;
mod snapshot;
mod spooling;
mod steps;
mod wal_limit;

pub use desk::{Ask, Call, Contact, Desk, Done, Refused};
pub use pace::RestorePoints;
pub use report::{DatabaseStatus, Heal, Level, Report, Snapshot, State};
pub use snapshot::PARTS_ABOVE;

use crate::capture::{Absent, AttachError, Capture, Options, Standing};
use crate::pulse::{Member, Pulse};
use crate::ship::inbox::{Inbox, Mail};
use crate::ship::session::Switchboard;
use crate::ship::window::{Budget, Window};
use crate::spool::{Room, Spool};
use crate::state_dir::StateDir;
use crate::watch::{Guard, Watcher};
use crate::watchdog;
use drive::{Driver, End};
use follower::Follower;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, Semaphore};
use tokio::time::Instant;
use walhub_common::backoff::Backoff;
use walhub_common::ltx::Compression;
use walhub_common::{AgentName, DatabaseName};

/// A fork is looked at again after this time, in case the operator has settled it.
const FORK_PAUSE: Duration = Duration::from_secs(60);
/// After an event of the folder: files often come in several steps.
const EVENT_PAUSE: Duration = Duration::from_millis(20);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What all database tasks of an agent share.
#[derive(Debug)]
pub struct Shared {
    /// Name in this node's certificate.
    pub agent: AgentName,
    /// The WAL is brought into the database after this many frames.
    pub checkpoint_frames: u32,
    /// How hard the pages of segments are compressed.
    pub compression: Compression,
    /// Time between two readings of a stream of commits.
    pub pace: Duration,
    /// Beats so often while somebody streams.
    pub pulse: Arc<Pulse>,
    /// What can be restored of a stream of commits.
    pub restore_points: RestorePoints,
    /// A WAL is kept under this: transactions that the hub does not take are spooled, then restore points given up.
    pub wal_limit: u64,
    /// Bytes of a database read per second for its first snapshot; `None`: as fast as it may.
    pub snapshot_rate: Option<u64>,
    /// Page bytes above which a first snapshot is sent in parts.
    pub parts_above: u64,
    /// The disk for what is spooled.
    pub spool_room: Arc<Room>,
    /// Time between slow polls.
    pub poll_interval: Duration,
    /// The link and the letter boxes.
    pub board: Arc<Switchboard>,
    /// Memory for unacked segments.
    pub budget: Arc<Budget>,
    /// File events.
    pub watcher: Watcher,
    /// Turns for work that may last as long as the network lets it: snapshots, deltas, heals.
    pub turns: Arc<Semaphore>,
    /// Turns for attaching.
    pub attaching: Arc<Semaphore>,
    /// State folder.
    pub state: Arc<StateDir>,
}

/// Tells one file from another under the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of the file that a path leads to now. Does not open it.
    fn of(path: &Path) -> io::Result<FileId> {
        let meta = std::fs::metadata(path)?;
        Ok(FileId { device: meta.dev(), inode: meta.ino() })
    }
}

/// A database to follow.
#[derive(Debug)]
pub struct Database {
    /// What all share.
    pub shared: Arc<Shared>,
    /// Name at the hub.
    pub name: DatabaseName,
    /// The file.
    pub path: PathBuf,
    /// Number on the wire, unique within the agent.
    pub handle: u32,
    /// Its letters.
    pub inbox: Arc<Inbox>,
    /// What it tells about itself.
    pub report: Arc<Report>,
    /// What others on this node ask of it.
    pub desk: Arc<Desk>,
}

/// A capture with its watch.
struct Attached {
    follower: Follower,
    id: FileId,
    wal_watch: WalWatch,
    /// Nobody else in this process opens the file.
    file: OwnedRwLockReadGuard<()>,
}

/// What says when to read a log: the watch on the `-wal` file, or the pulse while commits stream.
struct WalWatch {
    wal: PathBuf,
    guard: Option<Guard>,
    streams: Option<Member>,
}

impl WalWatch {
    /// Takes the watch off the file; nothing tells of writes any more.
    fn stop(&mut self) {
        self.guard = None;
        self.streams = None;
    }

    /// The pulse instead of the watch.
    fn stream(&mut self, pulse: &Arc<Pulse>) {
        self.guard = None;
        self.streams.get_or_insert_with(|| pulse.join());
    }

    /// Puts the watch on the file if it is not; what was written before is not told.
    fn start(&mut self, watcher: &Watcher, inbox: &Arc<Inbox>) -> Result<(), String> {
        self.streams = None;
        if self.guard.is_none() {
            let watch = watcher.wal(&self.wal, inbox.clone()).map_err(|e| {
                format!(
                    "its -wal file cannot be watched: {e}; raise fs.inotify.max_user_watches if that is the limit"
                )
            })?;
            self.guard = Some(watch);
        }
        Ok(())
    }
}

/// Why a file was not taken hold of.
enum NotNow {
    /// As it is, it cannot be followed.
    Absent(Absent),
    /// The hub must be asked first.
    NeedsHub,
    /// Something broke.
    Failed(String),
}

impl Database {
    /// Follows the file until the letter box says stop.
    pub async fn run(self) {
        let mut folder_watch = None;
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let Some(attached) = self.attached(&mut folder_watch, &mut retry).await else { break };
            tracing::debug!(database = %self.name, capture = ?attached.follower.capture, "attached");
            let since = Instant::now();
            let mut driver = Driver::new(&self, attached);
            let end = driver.run().await;
            driver.wal_watch.stop();
            if since.elapsed() > RETRY_MAX {
                retry.reset();
            }
            driver.detach().await;
            let pause = match end {
                End::Stop => break,
                End::Fork(text) => {
                    self.forked(&text);
                    FORK_PAUSE
                }
                End::Failed(text) => {
                    self.failed(&text);
                    retry.next_delay()
                }
                End::Adrift => RETRY_MIN,
                // The file is another one now: look at once.
                _ => Duration::ZERO,
            };
            if !self.pause(pause).await {
                break;
            }
        }
        self.report.enter(State::Stopped);
        self.refuse_calls();
    }

    /// Waits until the file can be followed; `None` when the task must stop.
    ///
    /// An attempt may itself cause events in the folder (SQLite makes and removes `-wal` and `-shm`), so attempts that
    /// events ask for come ever more rarely until something else than the last time is found.
    async fn attached(&self, folder_watch: &mut Option<Guard>, retry: &mut Backoff) -> Option<Attached> {
        let mut by_event = Backoff::new(EVENT_PAUSE, self.shared.poll_interval);
        loop {
            if folder_watch.is_none() {
                // Fails while the folder does not exist; the slow poll tries again.
                *folder_watch = self.shared.watcher.file(&self.path, self.inbox.clone()).ok();
            }
            if self.inbox.take().stop.is_some() {
                return None;
            }
            let pause = match self.try_attach().await {
                Ok(attached) => return Some(attached),
                Err(NotNow::NeedsHub) => {
                    self.report.enter(State::WaitingForHub);
                    self.until(|mail| mail.link && self.shared.board.link().is_some()).await?;
                    continue;
                }
                Err(NotNow::Absent(absent)) => {
                    let text = absent.to_string();
                    if self.report.trouble(State::Absent, &text, None) {
                        tracing::warn!(database = %self.name, path = %self.path.display(), reason = text, "cannot follow the database");
                        by_event.reset();
                    }
                    let mail = self.until(|mail| mail.files || mail.poll).await?;
                    if mail.files { by_event.next_delay() } else { Duration::ZERO }
                }
                Err(NotNow::Failed(text)) => {
                    self.failed(&text);
                    retry.next_delay()
                }
            };
            if !self.pause(pause).await {
                return None;
            }
        }
    }

    /// Waits for mail of a kind; `None` when the task must stop.
    async fn until(&self, wanted: impl Fn(&Mail) -> bool) -> Option<Mail> {
        loop {
            self.inbox.wait().await;
            let mail = self.inbox.take();
            if mail.stop.is_some() {
                return None;
            }
            self.refuse_calls();
            if wanted(&mail) {
                return Some(mail);
            }
        }
    }

    async fn try_attach(&self) -> Result<Attached, NotNow> {
        // Somebody may be putting another file in its place.
        let file = self.desk.file.clone().read_owned().await;
        let _turn = self.shared.attaching.acquire().await.expect("BUG: turns are never closed");
        let before = FileId::of(&self.path).ok();
        let linked = self.shared.board.link().is_some();
        let (shared, name, path) = (self.shared.clone(), self.name.clone(), self.path.clone());
        let attach = tokio::task::spawn_blocking(move || {
            let folder = shared
                .state
                .database(&name, &path)
                .map_err(|e| NotNow::Failed(format!("the state folder cannot be written: {e}")))?;
            match crate::restore::mend(&path) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(database = %name, path = %path.display(), "a restore died while it replaced this file: it is the old one")
                }
                Err(error) => {
                    tracing::warn!(database = %name, path = %path.display(), %error, "what a restore left beside the file stays")
                }
            }
            let options = Options {
                path,
                state_dir: folder.clone(),
                checkpoint_frames: shared.checkpoint_frames,
                compression: shared.compression,
                wal_limit_bytes: shared.wal_limit,
            };
            let attached = watchdog::watch(&name.as_str().into(), || Capture::attach(options));
            let capture = attached.map_err(|e| match e {
                AttachError::Absent(absent) => NotNow::Absent(absent),
                AttachError::Failed(e) => NotNow::Failed(e.to_string()),
            })?;
            if !linked && capture.standing() != Standing::Aligned {
                capture.detach().map_err(|e| NotNow::Failed(e.to_string()))?;
                return Err(NotNow::NeedsHub);
            }
            let spool = Spool::open(shared.state.disk(), &folder.join("spool"), shared.spool_room.clone());
            match spool {
                Ok(spool) => Ok(Follower { capture, window: Window::default(), spool }),
                Err(e) => Err(NotNow::Failed(format!("the spool cannot be read: {e}"))),
            }
        });
        let follower = match attach.await {
            Ok(attached) => attached?,
            Err(died) => return Err(NotNow::Failed(format!("a bug ended the attach: {died}"))),
        };
        let watched = self.watch_wal(before);
        match watched {
            Ok((id, wal_watch)) => Ok(Attached { follower, id, wal_watch, file }),
            Err(text) => {
                let _ = tokio::task::spawn_blocking(move || follower.let_go()).await;
                Err(NotNow::Failed(text))
            }
        }
    }

    /// The watch on the `-wal` file, when the file is still the one that was there before the attach.
    fn watch_wal(&self, before: Option<FileId>) -> Result<(FileId, WalWatch), String> {
        let id = FileId::of(&self.path).map_err(|e| format!("the file went away: {e}"))?;
        if before != Some(id) {
            return Err("the file was replaced while it was opened".into());
        }
        // SQLite follows links, and its files lie beside the real one.
        let mut wal = std::fs::canonicalize(&self.path).map_err(|e| e.to_string())?.into_os_string();
        wal.push("-wal");
        let mut watch = WalWatch { wal: wal.into(), guard: None, streams: None };
        watch.start(&self.shared.watcher, &self.inbox)?;
        Ok((id, watch))
    }

    fn failed(&self, text: &str) {
        if self.report.trouble(State::Failed, text, Some("it is tried again by itself")) {
            tracing::error!(database = %self.name, path = %self.path.display(), reason = text, "lost hold of the database; trying again");
        }
    }

    fn forked(&self, text: &str) {
        let hint = "nothing was overwritten; compare with `hubctl restore`, then either put that copy in place of this \
                    file, or give this file another `name:` to keep it as a history of its own";
        if self.report.trouble(State::Forked, text, Some(hint)) {
            tracing::error!(database = %self.name, path = %self.path.display(), reason = text, "this database and the hub hold two histories; not following it");
        }
    }

    /// Sleeps; false when the task must stop.
    async fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                () = self.inbox.wait() => if self.inbox.take().stop.is_some() { return false },
            }
            self.refuse_calls();
        }
    }

    /// Answers those who call while the database is not followed.
    fn refuse_calls(&self) {
        let status = self.report.status();
        let why = status.last_error.unwrap_or_else(|| "the hub must be reached first".into());
        let message = format!("{} is not followed now: {why}", self.name);
        self.desk.refuse(&Refused { code: "not-followed", message, what_to_do: status.what_to_do });
    }
}
