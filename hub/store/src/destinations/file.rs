//! A local folder (or a mounted disk, NFS share, …) in Litestream's layout:
//! `<path>/<agent>/<database>/ltx/<level>/<min>-<max>.ltx`, mtime = time of the newest transaction.
//!
//! The folder itself is made by [`Destination::probe`] and by nothing else: a put into a folder that is gone fails, for
//! more likely than not its disk is not mounted. Non-goal: a disk that hangs is not given up on; cancelling ends the
//! call, and the blocked thread finishes by itself.

use super::atomic::{self, CreateError};
use super::config::FileConfig;
use super::error::{Context, Operation};
use super::{Body, Destination, DestinationError, Fault, FileKey, Listed, Put, PutMeta};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, DestinationName, Level};

const READ_BYTES: usize = 1024 * 1024;
/// Folders remembered as made durable; past this the memory starts over.
const MAX_READY_FOLDERS: usize = 65_536;

/// See the module doc.
#[derive(Debug)]
pub struct FileDestination {
    name: DestinationName,
    folders: Arc<Folders>,
}

impl FileDestination {
    /// Touches nothing yet.
    pub fn new(name: DestinationName, config: &FileConfig) -> Self {
        let folders = Folders { root: config.path.clone(), ready: Mutex::new(HashSet::new()) };
        Self { name, folders: Arc::new(folders) }
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(&self.name, operation, subject)
    }
}

#[async_trait]
impl Destination for FileDestination {
    fn name(&self) -> &DestinationName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn location(&self) -> String {
        self.folders.root.display().to_string()
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, key);
        let (folders, key, token) = (self.folders.clone(), key.clone(), cancel.clone());
        blocking(&context.clone(), cancel, move || {
            folders.put(&key, &body, meta, &token).map_err(|error| folders.explain(&context, error))
        })
        .await
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let context = self.context(Operation::List, format_args!("{database} level {level}"));
        let (folders, folder) = (self.folders.clone(), self.folders.of(database, level));
        blocking(&context.clone(), cancel, move || match list(&folder, level) {
            Ok(listed) => Ok(listed),
            Err(error) if error.kind() == io::ErrorKind::NotFound && folders.root.is_dir() => Ok(Vec::new()),
            Err(error) => Err(folders.explain(&context, CreateError::Destination(folder, error))),
        })
        .await
    }

    async fn read_start(
        &self,
        key: &FileKey,
        length: usize,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let context = self.context(Operation::Open, key);
        let (folders, path) = (self.folders.clone(), self.folders.path(key));
        blocking(&context.clone(), cancel, move || {
            let mut bytes = Vec::with_capacity(length);
            match File::open(&path).and_then(|file| file.take(length as u64).read_to_end(&mut bytes)) {
                Ok(_) => Ok(Bytes::from(bytes)),
                Err(error) => Err(folders.explain(&context, CreateError::Destination(path, error))),
            }
        })
        .await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        let context = self.context(Operation::Open, key);
        let (folders, path) = (self.folders.clone(), self.folders.path(key));
        let opened = blocking(&context.clone(), cancel, {
            let context = context.clone();
            move || {
                let seek = |mut file: File| file.seek(SeekFrom::Start(offset)).map(|_| file);
                match File::open(&path).and_then(seek) {
                    Ok(file) => Ok(Reading { file, path, context, cancel: None }),
                    Err(error) => Err(folders.explain(&context, CreateError::Destination(path, error))),
                }
            }
        })
        .await?;
        let reading = Reading { cancel: Some(cancel.clone()), ..opened };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Probe, self.location());
        let (folders, token) = (self.folders.clone(), cancel.clone());
        blocking(&context.clone(), cancel, move || folders.probe(&context, &token)).await
    }
}

/// Runs `work` where it may block. When cancelled meanwhile, the work goes on alone and its result is dropped.
async fn blocking<T: Send + 'static>(
    context: &Context,
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T, DestinationError> + Send + 'static,
) -> Result<T, DestinationError> {
    if cancel.is_cancelled() {
        return Err(context.error(Fault::Cancelled));
    }
    tokio::select! {
        biased;
        result = tokio::task::spawn_blocking(work) => match result {
            Ok(result) => result,
            Err(error) => Err(context.error(Fault::Unavailable(format!("the worker thread ended: {error}")))),
        },
        () = cancel.cancelled() => Err(context.error(Fault::Cancelled)),
    }
}

/// An open file on its way out.
struct Reading {
    file: File,
    path: PathBuf,
    context: Context,
    cancel: Option<CancellationToken>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, DestinationError> {
        let (context, cancel) = (self.context.clone(), self.cancel.clone().unwrap_or_default());
        blocking(&context, &cancel, move || {
            let mut bytes = Vec::with_capacity(READ_BYTES);
            match (&mut self.file).take(READ_BYTES as u64).read_to_end(&mut bytes) {
                Ok(0) => Ok(None),
                Ok(_) => Ok(Some((Bytes::from(bytes), self))),
                Err(error) => Err(self.context.io(&self.path, &error)),
            }
        })
        .await
    }
}

/// The folders of a destination; all blocking work is here.
#[derive(Debug)]
struct Folders {
    root: PathBuf,
    /// Those that are durable and free of stale files since this process started.
    ready: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    fn names(database: &DatabaseKey, level: Level) -> Vec<String> {
        let mut names = vec![database.agent.to_string(), database.name.to_string()];
        names.extend(name::fs_dir(level).split('/').map(str::to_owned));
        names
    }

    fn of(&self, database: &DatabaseKey, level: Level) -> PathBuf {
        Self::names(database, level).iter().fold(self.root.clone(), |path, name| path.join(name))
    }

    fn path(&self, key: &FileKey) -> PathBuf {
        self.of(&key.database, key.level).join(name::file_name(key.range))
    }

    fn put(
        &self,
        key: &FileKey,
        body: &Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, CreateError> {
        let folder = self.prepare(key)?;
        let name = name::file_name(key.range);
        match atomic::create(&folder, &name, body, meta.time_ms, cancel) {
            // Somebody removed the folder that was ready: make it again, once.
            Err(CreateError::Destination(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                self.ready().remove(&folder);
                atomic::create(&self.prepare(key)?, &name, body, meta.time_ms, cancel)
            }
            result => result,
        }
    }

    /// The folder of a file, made durable and cleaned of stale files the first time.
    fn prepare(&self, key: &FileKey) -> Result<PathBuf, CreateError> {
        let folder = self.of(&key.database, key.level);
        if self.ready().contains(&folder) {
            return Ok(folder);
        }
        atomic::create_folders(&self.root, &Self::names(&key.database, key.level))?;
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

    fn ready(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probe(&self, context: &Context, cancel: &CancellationToken) -> Result<(), DestinationError> {
        let explain = |error| self.explain(context, error);
        let at = |path: &Path, error| explain(CreateError::Destination(path.to_owned(), error));
        if !self.root.is_absolute() {
            let text = format!("{} is not an absolute path", self.root.display());
            return Err(context.error(Fault::Misconfigured(text)));
        }
        fs::create_dir_all(&self.root).map_err(|error| at(&self.root, error))?;
        if let Some(parent) = self.root.parent() {
            // Not ours to write to, perhaps; then it was not made just now either.
            let _ = atomic::sync_folder(parent);
        }
        let name = format!("walhub-probe.{:016x}.tmp", rand::random::<u64>());
        let path = self.root.join(&name);
        let result = self.probe_with(&name, cancel);
        let removed = fs::remove_file(&path);
        result.map_err(explain)?;
        removed.map_err(|error| at(&path, error))
    }

    /// Creates, lists, reads back, and insists that a second create of other content is refused.
    fn probe_with(&self, name: &str, cancel: &CancellationToken) -> Result<(), CreateError> {
        let path = self.root.join(name);
        let at = |error| CreateError::Destination(path.clone(), error);
        let (first, second) = (Bytes::from(format!("first {name}")), Bytes::from(format!("other {name}")));
        atomic::create(&self.root, name, &Body::Bytes(first.clone()), 0, cancel)?;
        let refused = atomic::create(&self.root, name, &Body::Bytes(second), 0, cancel);
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

    fn explain(&self, context: &Context, error: CreateError) -> DestinationError {
        match error {
            CreateError::Destination(_, error)
                if error.kind() == io::ErrorKind::NotFound && !self.root.is_dir() =>
            {
                let text = format!("the folder {} is gone; is its disk mounted?", self.root.display());
                context.error(Fault::Unavailable(text))
            }
            CreateError::Destination(path, error) => context.io(&path, &error),
            CreateError::Body(path, error) => {
                context.error(Fault::Body(format!("{}: {error}", path.display())))
            }
            CreateError::Conflict(how) => context.error(Fault::Conflict(how)),
            CreateError::Cancelled => context.error(Fault::Cancelled),
        }
    }
}

fn list(folder: &Path, level: Level) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Some(range) = entry.file_name().to_str().and_then(name::parse) else { continue };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_file() {
            listed.push(Listed {
                level,
                range,
                size: metadata.len(),
                time_ms: unix_ms(metadata.modified()?),
            });
        }
    }
    listed.sort_unstable_by_key(|file| file.range);
    Ok(listed)
}

fn unix_ms(time: SystemTime) -> i64 {
    let ms = |distance: std::time::Duration| i64::try_from(distance.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
