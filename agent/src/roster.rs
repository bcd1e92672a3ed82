//! The databases that are followed right now: scans the sources, starts a task for each new file, ends the tasks of files
//! that went away.
//!
//! Invariants:
//! - one task per name; a name is given to another file only after its old task has let go;
//! - a file listed with `path:` keeps its task while it is missing, a file found in a folder does not.

use crate::database::{Contact, Database, DatabaseStatus, Desk, Refused, Report, Shared};
use crate::discover::{Fault, Found, Scan, Source, scan};
use crate::ship::inbox::Inbox;
use crate::watch::Guard;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseName;
use walhub_common::config::did_you_mean;
use walhub_common::task::TaskGroup;

/// Files often come in flocks: one scan for all that come within this time.
const SETTLE: Duration = Duration::from_millis(50);
/// Folders are walked without a reason after this many slow polls, in case an event was missed.
const POLLS_PER_WALK: u32 = 12;

/// What others may know of the roster.
#[derive(Debug, Default)]
pub struct Public {
    inner: Mutex<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    contacts: BTreeMap<DatabaseName, Contact>,
    faults: BTreeSet<Fault>,
}

impl Public {
    /// Every database, by name.
    pub fn databases(&self) -> Vec<DatabaseStatus> {
        self.lock().contacts.values().map(|contact| contact.report.status()).collect()
    }

    /// The database with this name, or whose file this is.
    pub fn find(&self, wanted: &str) -> Result<Contact, Refused> {
        let listing = self.lock();
        let by_name = DatabaseName::new(wanted).ok().and_then(|name| listing.contacts.get(&name));
        let found = by_name
            .or_else(|| listing.contacts.values().find(|contact| contact.path.as_os_str() == wanted))
            .cloned();
        found.ok_or_else(|| {
            let near = did_you_mean(wanted, listing.contacts.keys().map(DatabaseName::as_str));
            let message = format!("no database {wanted:?} is followed{}", near.unwrap_or_default());
            Refused::new("unknown-database", message, "`walhub-agent status` lists them")
        })
    }

    /// What is not followed, and why.
    pub fn faults(&self) -> Vec<Fault> {
        self.lock().faults.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listing> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Running {
    path: PathBuf,
    handle: u32,
    inbox: Arc<Inbox>,
    task: JoinHandle<()>,
}

/// Owner of the database tasks.
#[derive(Debug)]
pub struct Roster {
    sources: Vec<Source>,
    shared: Arc<Shared>,
    public: Arc<Public>,
    tasks: TaskGroup,
    running: BTreeMap<DatabaseName, Running>,
    /// Told to stop; their names are free when their tasks have ended.
    leaving: BTreeMap<DatabaseName, Running>,
    folders: BTreeMap<PathBuf, Guard>,
    changed: Arc<Notify>,
    next_handle: u32,
}

impl Roster {
    /// A roster that starts tasks in `tasks` when it runs.
    pub fn new(sources: Vec<Source>, shared: Arc<Shared>, public: Arc<Public>, tasks: TaskGroup) -> Self {
        Self {
            sources,
            shared,
            public,
            tasks,
            running: BTreeMap::new(),
            leaving: BTreeMap::new(),
            folders: BTreeMap::new(),
            changed: Arc::new(Notify::new()),
            next_handle: 1,
        }
    }

    /// Keeps the tasks in step with the files, and gives the slow poll its beat; at the end lets every database go.
    pub async fn run(mut self, token: CancellationToken) {
        let mut beat =
            tokio::time::interval_at(Instant::now() + self.shared.poll_interval, self.shared.poll_interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut polls = 0;
        self.walk().await;
        loop {
            let due = tokio::select! {
                () = token.cancelled() => break,
                () = self.changed.notified() => {
                    tokio::select! {
                        () = token.cancelled() => break,
                        () = tokio::time::sleep(SETTLE) => {}
                    }
                    true
                }
                _ = beat.tick() => {
                    self.shared.board.post_all(|mail| mail.poll = true);
                    polls += 1;
                    let rewalk = polls % POLLS_PER_WALK == 0 || !self.public.lock().faults.is_empty();
                    (rewalk && self.has_folders()) || self.running.values().any(|r| r.task.is_finished())
                }
            };
            if due {
                self.walk().await;
            }
        }
        for running in self.running.values() {
            running.inbox.stop();
        }
        let leaving = std::mem::take(&mut self.leaving);
        for (name, running) in std::mem::take(&mut self.running).into_iter().chain(leaving) {
            end(&self.shared, &self.public, &name, running).await;
        }
    }

    fn has_folders(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Folder { .. }))
    }

    /// One scan, and what follows from it.
    async fn walk(&mut self) {
        // A task in `running` that ended was ended by a bug; the file gets a new one.
        for tasks in [&mut self.leaving, &mut self.running] {
            for (name, ended) in tasks.extract_if(.., |_, running| running.task.is_finished()) {
                end(&self.shared, &self.public, &name, ended).await;
            }
        }
        let (sources, state) = (self.sources.clone(), self.shared.state.clone());
        let walked = tokio::task::spawn_blocking(move || scan(&sources, &|name| state.path_of(name))).await;
        let Ok(scan) = walked else { return };
        self.watch_folders(&scan);
        let gone: Vec<DatabaseName> = self
            .running
            .iter()
            .filter(|(name, running)| scan.found.get(*name).is_none_or(|found| found.path != running.path))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                tracing::info!(database = %name, path = %running.path.display(), "no longer followed");
                running.inbox.stop();
                self.leaving.insert(name, running);
            }
        }
        for fault in scan.faults.difference(&self.public.lock().faults) {
            tracing::warn!(path = %fault.path.display(), reason = fault.reason, "not followed");
        }
        self.public.lock().faults = scan.faults;
        for found in scan.found.into_values() {
            if !self.running.contains_key(&found.name) && !self.leaving.contains_key(&found.name) {
                self.start(found);
            }
        }
    }

    /// Watches come before the next scan, so that nothing appears between them unseen.
    fn watch_folders(&mut self, scan: &Scan) {
        self.folders.retain(|folder, _| scan.folders.contains(folder));
        for folder in &scan.folders {
            if self.folders.contains_key(folder) {
                continue;
            }
            // A folder that cannot be watched is a fault of the scan already, or is walked by the slow poll.
            if let Ok(guard) = self.shared.watcher.folder(folder, self.changed.clone()) {
                self.folders.insert(folder.clone(), guard);
                self.changed.notify_one();
            }
        }
    }

    fn start(&mut self, found: Found) {
        let Found { name, path, .. } = found;
        let handle = self.next_handle;
        self.next_handle = self.next_handle.checked_add(1).expect("BUG: more databases than numbers");
        let inbox = Arc::new(Inbox::default());
        let report = Arc::new(Report::new(&name, path.clone()));
        self.shared.board.register(handle, inbox.clone());
        let desk = Arc::new(Desk::default());
        let contact = Contact {
            name: name.clone(),
            path: path.clone(),
            report: report.clone(),
            inbox: inbox.clone(),
            desk: desk.clone(),
        };
        self.public.lock().contacts.insert(name.clone(), contact);
        tracing::info!(database = %name, path = %path.display(), "following");
        let database = Database {
            shared: self.shared.clone(),
            name: name.clone(),
            path: path.clone(),
            handle,
            inbox: inbox.clone(),
            report,
            desk,
        };
        let changed = self.changed.clone();
        let task = self.tasks.spawn(async move {
            database.run().await;
            // Its name may be wanted by another file.
            changed.notify_one();
        });
        self.running.insert(name, Running { path, handle, inbox, task });
    }
}

/// Waits for a task and frees its name.
async fn end(shared: &Shared, public: &Public, name: &DatabaseName, running: Running) {
    if let Err(died) = running.task.await {
        tracing::error!(database = %name, error = %died, "a bug ended a database task");
    }
    shared.board.unregister(running.handle);
    public.lock().contacts.remove(name);
}
