//! A running hub takes a changed configuration: destinations come and go, policies and selectors change, and nobody who
//! is not concerned notices.
//!
//! # Invariants
//! - A file with a fault, or with a destination that cannot even be made, changes nothing; all faults are reported. Nor does
//!   one that would leave the packs of a place behind.
//! - Lanes of destinations that stay as they are run on without a pause.
//! - A place keeps its lane and its cursors through renames and changes; a new place is listed before anything counts.
//! - One reload at a time, and none is left half done because whoever asked went away.
//!
//! - [`diff`]: what changes, as a value.
//!
//! Non-goals: back-filling, which is what lanes do anyway; keys that take a restart, which are named.

mod diff;

pub use diff::{Diff, Fate, diff};

use crate::config::{Config, DestinationEntry, Layout};
use crate::copies::{Board, FolderIds, LaneId, Meters, Place, Roster, Rules};
use crate::drills;
use crate::fanout::{Fanout, Trust};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use walhub_common::config::Faults;
use walhub_common::task::TaskGroup;
use walhub_store::destinations::limited::Limited;
use walhub_store::destinations::{DestinationError, DynDestination};
use walhub_store::pack;

/// How long current puts of a lane that ends may take.
const PUTS_DEADLINE: Duration = Duration::from_secs(5);

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file.
    #[error("{0}")]
    Faults(Faults),
    /// A destination that cannot even be made, or whose packs its new layout does not see.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The scratch folder of drills.
    #[error("drills: scratch: cannot make {}: {source}", path.display())]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The hub is shutting down, or a bug.
    #[error("the hub does not reload: {0}")]
    Ended(String),
}

struct State {
    config: Config,
    next_lane: LaneId,
}

struct Inner {
    board: Arc<Board>,
    fanout: Arc<Fanout>,
    folders: Arc<FolderIds>,
    drills: drills::Current,
    state: Mutex<State>,
    /// See [`Reloader::skeleton`].
    skeleton: std::sync::Mutex<Arc<str>>,
}

/// Handle on the reloading part of a running hub.
#[derive(Clone)]
pub struct Reloader {
    inner: Arc<Inner>,
    tasks: TaskGroup,
}

/// Makes the destination of an entry, within its limits and with its layout; a folder must be the one that `folders` know.
/// Sends nothing.
pub async fn make(
    entry: &DestinationEntry,
    meters: &Meters,
    folders: Option<&Arc<FolderIds>>,
) -> Result<DynDestination, DestinationError> {
    let memory = folders.map(|folders| folders.of(&entry.cursor));
    let destination = entry.config.build_remembered(entry.name.clone(), memory).await?;
    let limited = Limited::new(destination, entry.limits.rates, meters.of(&entry.cursor));
    Ok(entry.layout.over(Arc::new(limited)))
}

/// The roster of a start: lanes are numbered in the order of the configuration.
pub fn first_roster(config: &Config, destinations: Vec<DynDestination>) -> Roster {
    let places = config.destinations.iter().zip(destinations).enumerate();
    let place = |(lane, (entry, destination)): (LaneId, (&DestinationEntry, DynDestination))| {
        Arc::new(Place { lane, entry: entry.clone(), destination })
    };
    Roster::new(places.map(place).collect(), rules(config))
}

fn rules(config: &Config) -> Rules {
    Rules::new(config.databases.clone(), config.policy)
}

impl Reloader {
    /// Over the parts of a hub that runs by `config`, its board with the [`first_roster`].
    pub fn new(
        config: Config,
        board: Arc<Board>,
        fanout: Arc<Fanout>,
        folders: Arc<FolderIds>,
        drills: drills::Current,
    ) -> Self {
        let state = Mutex::new(State { next_lane: config.destinations.len(), config: config.clone() });
        let skeleton = std::sync::Mutex::new(config.skeleton);
        let inner = Inner { board, fanout, folders, drills, state, skeleton };
        Self { inner: Arc::new(inner), tasks: TaskGroup::new("reload") }
    }

    /// The configuration in force, without its secrets.
    pub fn skeleton(&self) -> Arc<str> {
        self.inner.skeleton.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again and applies it; with `dry_run` it only says what would change. Runs to its end even when it is
    /// not awaited.
    pub async fn reload(&self, dry_run: bool) -> Result<Diff, ReloadError> {
        if self.tasks.token().is_cancelled() {
            return Err(ReloadError::Ended("it is shutting down".to_owned()));
        }
        let inner = self.inner.clone();
        let done = self.tasks.spawn(async move { inner.reload(dry_run).await });
        let result = done.await.unwrap_or_else(|error| Err(ReloadError::Ended(error.to_string())));
        match &result {
            Ok(diff) if !dry_run => {
                for change in &diff.changes {
                    tracing::info!(%change, "reloaded");
                }
                if !diff.needs_restart.is_empty() {
                    tracing::warn!(keys = diff.needs_restart.join(", "), "these changes take a restart");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the configuration was not reloaded, nothing changed"),
        }
        result
    }

    /// Reloads whenever a signal asks for it, until there are no more signals or the hub goes down.
    pub async fn follow(&self, mut signals: mpsc::Receiver<()>) {
        loop {
            tokio::select! {
                () = self.tasks.token().cancelled() => return,
                signal = signals.recv() => match signal {
                    // The outcome is in the log.
                    Some(()) => drop(self.reload(false).await),
                    None => return,
                }
            }
        }
    }

    /// Takes no more reloads and waits for the one under way.
    pub async fn shutdown(&self, deadline: Duration) {
        self.tasks.shutdown(deadline).await;
    }
}

impl Inner {
    async fn reload(&self, dry_run: bool) -> Result<Diff, ReloadError> {
        let mut state = self.state.lock().await;
        let path = state.config.path.clone();
        let read = tokio::task::spawn_blocking(move || Config::read(&path)).await;
        let new =
            read.map_err(|error| ReloadError::Ended(error.to_string()))?.map_err(ReloadError::Faults)?;
        let diff = diff(&state.config, &new);
        if dry_run {
            return Ok(diff);
        }
        let before = self.board.roster();
        let mut next_lane = state.next_lane;
        let (mut places, mut opened, mut closed) = (Vec::new(), Vec::new(), Vec::new());
        for (entry, fate) in new.destinations.iter().zip(&diff.fates) {
            let (lane, trust) = match fate {
                Fate::Kept { old } => {
                    places.push(before.places()[*old].clone());
                    continue;
                }
                Fate::Changed { old } => (before.places()[*old].lane, Trust::Cursors),
                Fate::Added => (next_lane, Trust::Listings),
            };
            match fate {
                Fate::Added => next_lane += 1,
                _ => closed.push(lane),
            }
            let destination = make(entry, self.board.meters(), Some(&self.folders)).await?;
            if let Some(old) = fate.old()
                && (before.places()[old].entry.layout, entry.layout) == (Layout::Packed, Layout::Litestream)
            {
                pack::refuse(&destination, &CancellationToken::new()).await?;
            }
            let place = Arc::new(Place { lane, entry: entry.clone(), destination });
            opened.push((place.clone(), trust));
            places.push(place);
        }
        let path = new.drills.scratch_folder(&state.config.data_dir);
        if let Err(source) = tokio::fs::create_dir_all(&path).await {
            return Err(ReloadError::Scratch { path, source });
        }
        closed.extend(diff.removed.iter().map(|old| before.places()[*old].lane));
        // From here on nothing can fail. What counts changes at once; lanes that stay hear of it by themselves.
        self.board.apply(Roster::new(places, rules(&new)));
        self.drills.replace(new.drills.clone());
        self.fanout.close(&closed, PUTS_DEADLINE).await;
        for (place, trust) in opened {
            self.fanout.open(place, trust);
        }
        *self.skeleton.lock().unwrap_or_else(PoisonError::into_inner) = new.skeleton.clone();
        *state = State { config: diff.settle(&state.config, new), next_lane };
        Ok(diff)
    }
}
