//! The folders of a file destination: making them, putting into them, removing from them. Blocking.

use super::atomic::{self, CreateError};
use super::marker::{Marker, Memory};
use super::patience::Pulse;
use crate::destinations::error::Context;
use crate::destinations::{Body, DestinationError, Fault, FileKey, ObjectPath, Put, PutMeta, PutMode};
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, Level};

/// Folders remembered as made durable; past this the memory starts over.
const MAX_READY_FOLDERS: usize = 65_536;

/// The folders of a destination; all blocking work is here.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    /// Those that are durable and free of stale files since this process started.
    ready: Mutex<HashSet<PathBuf>>,
    marker: Marker,
}

impl Folders {
    pub(super) fn new(root: PathBuf, memory: Option<Arc<dyn Memory>>) -> Self {
        let marker = Marker::new(root.clone(), memory);
        Self { root, ready: Mutex::new(HashSet::new()), marker }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Refuses a root that is gone, or another one than was remembered: its disk is not mounted, perhaps.
    pub(super) fn check(&self) -> Result<(), Fault> {
        self.marker.check()?;
        match self.root.is_dir() {
            true => Ok(()),
            false => {
                Err(Fault::Gone(format!("the folder {} is gone; is its disk mounted?", self.root.display())))
            }
        }
    }

    fn names(database: &DatabaseKey, level: Level) -> Vec<String> {
        let mut names = vec![database.agent.to_string(), database.name.to_string()];
        names.extend(name::fs_dir(level).split('/').map(str::to_owned));
        names
    }

    pub(super) fn of(&self, database: &DatabaseKey, level: Level) -> PathBuf {
        Self::names(database, level).iter().fold(self.root.clone(), |path, name| path.join(name))
    }

    /// Where an LTX file lies.
    pub(super) fn path(&self, key: &FileKey) -> PathBuf {
        self.of(&key.database, key.level).join(name::file_name(key.range))
    }

    /// Where an object lies.
    pub(super) fn object(&self, path: &ObjectPath) -> PathBuf {
        path.as_str().split('/').fold(self.root.clone(), |folder, part| folder.join(part))
    }

    pub(super) fn put(
        &self,
        key: &FileKey,
        body: &Body,
        meta: PutMeta,
        pulse: &Pulse,
    ) -> Result<Put, CreateError> {
        let names = Self::names(&key.database, key.level);
        let name = name::file_name(key.range);
        self.in_folder(&names, |folder| atomic::create(folder, &name, body, meta.time_ms, pulse))
    }

    pub(super) fn put_object(
        &self,
        path: &ObjectPath,
        body: &Body,
        mode: PutMode,
        now_ms: i64,
        pulse: &Pulse,
    ) -> Result<Put, CreateError> {
        let mut names: Vec<String> = path.as_str().split('/').map(str::to_owned).collect();
        let Some(name) = names.pop() else {
            return Err(CreateError::Destination(self.root.clone(), io::ErrorKind::InvalidFilename.into()));
        };
        self.in_folder(&names, |folder| match mode {
            PutMode::Create => atomic::create(folder, &name, body, now_ms, pulse),
            PutMode::Replace => atomic::replace(folder, &name, body, now_ms, pulse),
        })
    }

    /// Runs `work` in a folder that is ready.
    fn in_folder(
        &self,
        names: &[String],
        work: impl Fn(&Path) -> Result<Put, CreateError>,
    ) -> Result<Put, CreateError> {
        // A folder of the same name on another disk would do as well.
        self.check().map_err(CreateError::Away)?;
        let folder = self.prepare(names)?;
        match work(&folder) {
            // Somebody removed the folder that was ready: make it again, once.
            Err(CreateError::Destination(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                self.ready().remove(&folder);
                self.check().map_err(CreateError::Away)?;
                work(&self.prepare(names)?)
            }
            result => result,
        }
    }

    /// A folder below the root, made durable and cleaned of stale files the first time.
    fn prepare(&self, names: &[String]) -> Result<PathBuf, CreateError> {
        let folder = names.iter().fold(self.root.clone(), |path, name| path.join(name));
        if self.ready().contains(&folder) {
            return Ok(folder);
        }
        atomic::create_folders(&self.root, names)?;
        match atomic::remove_stale(&folder) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(folder = %folder.display(), removed, "removed unfinished files"),
            Err(error) => return Err(CreateError::Destination(folder, error)),
        }
        let mut ready = self.ready();
        if ready.len() >= MAX_READY_FOLDERS {
            ready.clear();
        }
        ready.insert(folder.clone());
        Ok(folder)
    }

    /// Removes files, durably. Goes on after one that is locked.
    pub(super) fn remove(
        &self,
        context: &Context,
        paths: &[PathBuf],
        pulse: &Pulse,
    ) -> Result<(), DestinationError> {
        self.check().map_err(|fault| context.error(fault))?;
        let (mut folders, mut locked) = (BTreeSet::new(), Vec::new());
        let mut failed = None;
        for path in paths {
            if pulse.beat() {
                failed = Some(context.error(Fault::Cancelled));
                break;
            }
            match fs::remove_file(path) {
                Ok(()) => folders.extend(path.parent()),
                // A part of the path may be no folder; then there is no such file either.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                // Permissions alone give EACCES: this is the immutable attribute, or the append-only one.
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => locked.push(path),
                Err(error) => {
                    failed = Some(context.io(path, &error));
                    break;
                }
            }
        }
        for folder in folders {
            match atomic::sync_folder(folder) {
                // It went with its last file, by somebody else's hand.
                Err(CreateError::Destination(_, error)) if error.kind() == ErrorKind::NotFound => {}
                result => result.map_err(|error| self.explain(context, error))?,
            }
        }
        match (failed, locked.as_slice()) {
            (Some(error), _) => Err(error),
            (None, []) => Ok(()),
            (None, [first, ..]) => {
                let text = format!(
                    "{} file(s) carry the immutable attribute, first {}",
                    locked.len(),
                    first.display()
                );
                Err(context.error(Fault::Locked(text)))
            }
        }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`super::Destination::probe`].
    pub(super) fn probe(&self, context: &Context, pulse: &Pulse) -> Result<(), DestinationError> {
        let explain = |error| self.explain(context, error);
        let at = |path: &Path, error| explain(CreateError::Destination(path.to_owned(), error));
        if !self.root.is_absolute() {
            let text = format!("{} is not an absolute path", self.root.display());
            return Err(context.error(Fault::Misconfigured(text)));
        }
        if self.marker.is_remembered() {
            self.check().map_err(|fault| context.error(fault))?;
        }
        fs::create_dir_all(&self.root).map_err(|error| at(&self.root, error))?;
        if let Some(parent) = self.root.parent() {
            // Not ours to write to, perhaps; then it was not made just now either.
            let _ = atomic::sync_folder(parent);
        }
        let name = format!("walhub-probe.{:016x}.tmp", rand::random::<u64>());
        let path = self.root.join(&name);
        let result = self.probe_with(&name, pulse);
        let removed = fs::remove_file(&path);
        result.map_err(explain)?;
        removed.map_err(|error| at(&path, error))?;
        self.marker.settle(pulse).map_err(explain)
    }

    /// Creates, lists, reads back, and insists that a second create of other content is refused.
    fn probe_with(&self, name: &str, pulse: &Pulse) -> Result<(), CreateError> {
        let path = self.root.join(name);
        let at = |error| CreateError::Destination(path.clone(), error);
        let (first, second) = (Bytes::from(format!("first {name}")), Bytes::from(format!("other {name}")));
        atomic::create(&self.root, name, &Body::Bytes(first.clone()), 0, pulse)?;
        let refused = atomic::create(&self.root, name, &Body::Bytes(second), 0, pulse);
        if !matches!(refused, Err(CreateError::Conflict(_))) {
            refused?;
            return Err(at(io::Error::other("this file system overwrites a file that must not be replaced")));
        }
        let listed = fs::read_dir(&self.root).map_err(at)?.flatten().any(|entry| entry.file_name() == name);
        if !listed || fs::read(&path).map_err(at)? != first {
            return Err(at(io::Error::other("what was written does not come back")));
        }
        Ok(())
    }

    /// What a failure means, and whether the whole disk is away.
    pub(super) fn explain(&self, context: &Context, error: CreateError) -> DestinationError {
        match error {
            CreateError::Destination(path, error) => {
                let away = if error.kind() == ErrorKind::NotFound { self.check().err() } else { None };
                away.map_or_else(|| context.io(&path, &error), |away| context.error(away))
            }
            CreateError::Away(fault) => context.error(fault),
            CreateError::Body(path, error) => {
                context.error(Fault::Body(format!("{}: {error}", path.display())))
            }
            CreateError::Conflict(how) => context.error(Fault::Conflict(how)),
            CreateError::Cancelled => context.error(Fault::Cancelled),
        }
    }
}
