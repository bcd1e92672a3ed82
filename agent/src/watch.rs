//! File events: one inotify instance for the whole agent, mapped to the letter boxes of the databases.
//!
//! Watched are the `-wal` file of every attached database (writes) and folders (files that come, go, or change their
//! permissions). Nothing is ever opened: an open and close of a database file would drop SQLite's locks of this process.
//!
//! Invariants:
//! - an event may be late or merged, never silently lost: an overflow of the kernel's queue wakes everybody;
//! - a watch ends with its guard; the table never holds more than the live guards.

use crate::ship::inbox::Inbox;
use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Suffixes of the files beside a database.
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

const EVENT_BUFFER: usize = 16 * 1024;
/// Least time between two looks into a queue that was read empty: an event after a pause passes at once, a steady stream
/// of them wakes nobody more often than this.
const PACE: Duration = Duration::from_millis(4);

/// Who wants to know.
#[derive(Clone, Debug)]
enum Listener {
    /// Writes of the `-wal` file of this database.
    Wal(Arc<Inbox>),
    /// Events of the folder that concern this database file.
    File(OsString, Arc<Inbox>),
    /// Any event of the folder.
    Folder(Arc<Notify>),
}

#[derive(Debug)]
struct Table {
    watches: Watches,
    listeners: HashMap<WatchDescriptor, Vec<(u64, Listener)>>,
    next_id: u64,
}

/// Sets watches. Clones share one inotify instance.
#[derive(Clone, Debug)]
pub struct Watcher {
    table: Arc<Mutex<Table>>,
}

/// Ends its watch when dropped.
#[derive(Debug)]
pub struct Guard {
    table: Arc<Mutex<Table>>,
    watch: WatchDescriptor,
    id: u64,
}

/// The reading side; run it once.
#[derive(Debug)]
pub struct Events {
    inotify: Inotify,
    table: Arc<Mutex<Table>>,
}

/// Opens the inotify instance.
pub fn open() -> io::Result<(Watcher, Events)> {
    let inotify = Inotify::init()?;
    let table = Table { watches: inotify.watches(), listeners: HashMap::new(), next_id: 0 };
    let table = Arc::new(Mutex::new(table));
    Ok((Watcher { table: table.clone() }, Events { inotify, table }))
}

impl Watcher {
    /// Posts `wal` to the inbox when the file is written. The caller looks at the file once after this returns: what
    /// happened before is not told.
    pub fn wal(&self, wal: &Path, inbox: Arc<Inbox>) -> io::Result<Guard> {
        self.add(wal, WatchMask::MODIFY, Listener::Wal(inbox))
    }

    /// Posts `files` to the inbox when a database file or one of its companions comes, goes or changes permissions.
    pub fn file(&self, path: &Path, inbox: Arc<Inbox>) -> io::Result<Guard> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.add(folder, folder_mask(), Listener::File(name.to_owned(), inbox))
    }

    /// Notifies when anything comes or goes in a folder.
    pub fn folder(&self, folder: &Path, changed: Arc<Notify>) -> io::Result<Guard> {
        self.add(folder, folder_mask(), Listener::Folder(changed))
    }

    fn add(&self, path: &Path, mask: WatchMask, listener: Listener) -> io::Result<Guard> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mut table = lock(&self.table);
        // One inode has one watch; MASK_ADD keeps what others asked for.
        let watch = table.watches.add(path, mask | WatchMask::MASK_ADD)?;
        table.next_id += 1;
        let id = table.next_id;
        table.listeners.entry(watch.clone()).or_default().push((id, listener));
        Ok(Guard { table: self.table.clone(), watch, id })
    }
}

fn folder_mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        let Some(listeners) = table.listeners.get_mut(&self.watch) else { return };
        listeners.retain(|(id, _)| *id != self.id);
        if listeners.is_empty() {
            table.listeners.remove(&self.watch);
            // Fails when the file is gone, and then the kernel has dropped the watch already.
            let _ = table.watches.remove(self.watch.clone());
        }
    }
}

impl Events {
    /// Reads events until the token is cancelled.
    pub async fn run(self, token: CancellationToken) -> io::Result<()> {
        let mut events = self.inotify.into_event_stream(vec![0; EVENT_BUFFER])?;
        let mut wake = Instant::now();
        loop {
            let event = match events.next().now_or_never() {
                Some(event) => event,
                // The queue is empty. Equal events become one while they wait in it.
                None => tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    event = async {
                        tokio::time::sleep_until(wake + PACE).await;
                        events.next().await
                    } => event,
                },
            };
            wake = Instant::now();
            match event {
                Some(event) => {
                    let event = event?;
                    let mut table = lock(&self.table);
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        tracing::debug!("file events overflowed; looking at every database");
                        table.listeners.values().flatten().for_each(|(_, l)| l.wake(None, true));
                        continue;
                    }
                    for (_, listener) in table.listeners.get(&event.wd).into_iter().flatten() {
                        listener.wake(event.name.as_deref(), false);
                    }
                    if event.mask.contains(EventMask::IGNORED) {
                        table.listeners.remove(&event.wd);
                    }
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

impl Listener {
    fn wake(&self, name: Option<&OsStr>, always: bool) {
        match self {
            Listener::Wal(inbox) => inbox.post(|m| m.wal = true),
            Listener::File(file, inbox) => {
                // An event without a name is about the folder itself.
                if always || name.is_none_or(|name| concerns(file, name)) {
                    inbox.post(|m| m.files = true);
                }
            }
            Listener::Folder(changed) => changed.notify_one(),
        }
    }
}

/// True for the database file itself and its companions.
fn concerns(file: &OsStr, name: &OsStr) -> bool {
    match name.as_encoded_bytes().strip_prefix(file.as_encoded_bytes()) {
        Some(rest) => rest.is_empty() || COMPANIONS.iter().any(|c| c.as_bytes() == rest),
        None => false,
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;
    use walhub_common::task::TaskGroup;

    async fn started() -> (Watcher, TaskGroup) {
        let (watcher, events) = open().unwrap();
        let group = TaskGroup::new("watch test");
        let token = group.token().clone();
        group.spawn(async move { events.run(token).await.unwrap() });
        (watcher, group)
    }

    async fn mail(inbox: &Inbox) -> crate::ship::inbox::Mail {
        tokio::time::timeout(Duration::from_secs(10), inbox.wait()).await.expect("no event came");
        inbox.take()
    }

    #[tokio::test]
    async fn a_write_to_the_wal_wakes_its_database_only() {
        let dir = tempfile::tempdir().unwrap();
        let (watcher, group) = started().await;
        let (a, b) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        for name in ["a.db-wal", "b.db-wal"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let _a = watcher.wal(&dir.path().join("a.db-wal"), a.clone()).unwrap();
        let _b = watcher.wal(&dir.path().join("b.db-wal"), b.clone()).unwrap();
        fs::write(dir.path().join("b.db-wal"), "frames").unwrap();
        assert!(mail(&b).await.wal);
        assert!(!a.take().wal);
        assert!(group.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_folder_tells_what_concerns_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (watcher, group) = started().await;
        let (inbox, changed) = (Arc::new(Inbox::default()), Arc::new(Notify::new()));
        let _file = watcher.file(&dir.path().join("app.db"), inbox.clone()).unwrap();
        let _folder = watcher.folder(dir.path(), changed.clone()).unwrap();
        fs::write(dir.path().join("other"), "").unwrap();
        tokio::time::timeout(Duration::from_secs(10), changed.notified()).await.unwrap();
        assert!(!inbox.take().files, "another file was created");
        fs::write(dir.path().join("app.db-wal"), "").unwrap();
        assert!(mail(&inbox).await.files);
        fs::write(dir.path().join("new"), "").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("app.db")).unwrap();
        assert!(mail(&inbox).await.files);
        assert!(group.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_dropped_guard_ends_its_watch_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (watcher, group) = started().await;
        let wal = dir.path().join("app.db-wal");
        fs::write(&wal, "").unwrap();
        let (first, second) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
        let guard = watcher.wal(&wal, first.clone()).unwrap();
        let _kept = watcher.wal(&wal, second.clone()).unwrap();
        drop(guard);
        fs::write(&wal, "frames").unwrap();
        assert!(mail(&second).await.wal);
        assert!(!first.take().wal);
        assert!(group.shutdown(Duration::from_secs(5)).await);
        assert_eq!(lock(&watcher.table).listeners.len(), 1);
    }

    #[test]
    fn companions_are_recognised() {
        let concerns = |name: &str| concerns(OsStr::new("app.db"), OsStr::new(name));
        for name in ["app.db", "app.db-wal", "app.db-shm", "app.db-journal"] {
            assert!(concerns(name), "{name}");
        }
        for name in ["app.dbx", "app", "app.db-wal2", "xapp.db"] {
            assert!(!concerns(name), "{name}");
        }
    }
}
