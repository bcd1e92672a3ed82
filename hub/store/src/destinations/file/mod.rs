//! A local folder (or a mounted disk, NFS share, …) in Litestream's layout:
//! `<path>/<agent>/<database>/ltx/<level>/<min>-<max>.ltx`, mtime = time of the newest transaction.
//!
//! The folder itself is made by [`Destination::probe`] and by nothing else: a put into a folder that is gone fails, for
//! more likely than not its disk is not mounted. Non-goal: a disk that hangs is not given up on; cancelling ends the
//! call, and the blocked thread finishes by itself.

mod atomic;
mod folders;
mod walk;

use super::config::FileConfig;
use super::error::{Context, Operation, many};
use super::{
    Body, ByteStream, Destination, DestinationError, Fault, FileKey, Listed, ListedObject, ObjectPath, Put,
    PutMeta, PutMode,
};
use async_trait::async_trait;
use atomic::CreateError;
use bytes::Bytes;
use folders::Folders;
use futures_util::stream::{self, StreamExt};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level, clock};

const READ_BYTES: u64 = 1024 * 1024;

/// See the module doc.
#[derive(Debug)]
pub struct FileDestination {
    name: DestinationName,
    folders: Arc<Folders>,
}

impl FileDestination {
    /// Touches nothing yet.
    pub fn new(name: DestinationName, config: &FileConfig) -> Self {
        Self { name, folders: Arc::new(Folders::new(config.path.clone())) }
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(&self.name, operation, subject)
    }

    /// The bytes of the file at `path` that `window` (of its length) picks.
    async fn read(
        &self,
        context: Context,
        path: PathBuf,
        window: impl FnOnce(u64) -> Range<u64> + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let folders = self.folders.clone();
        let opened = blocking(&context.clone(), cancel, {
            let context = context.clone();
            move || match start(&path, window) {
                Ok((file, left)) => Ok(Reading { file, left, path, context, cancel: None }),
                Err(error) => Err(folders.explain(&context, CreateError::Destination(path, error))),
            }
        })
        .await?;
        let reading = Reading { cancel: Some(cancel.clone()), ..opened };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn remove(
        &self,
        context: Context,
        paths: Vec<PathBuf>,
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let (folders, token) = (self.folders.clone(), cancel.clone());
        blocking(&context.clone(), cancel, move || folders.remove(&context, &paths, &token)).await
    }
}

/// Opens a file at the start of its window, with the bytes in there.
fn start(path: &std::path::Path, window: impl FnOnce(u64) -> Range<u64>) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let range = window(file.metadata()?.len());
    file.seek(SeekFrom::Start(range.start))?;
    Ok((file, range.end.saturating_sub(range.start)))
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
        self.folders.root().display().to_string()
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
        blocking(&context.clone(), cancel, move || match walk::list(&folder, level) {
            Ok(listed) => Ok(listed),
            Err(error) if error.kind() == io::ErrorKind::NotFound && folders.is_there() => Ok(Vec::new()),
            Err(error) => Err(folders.explain(&context, CreateError::Destination(folder, error))),
        })
        .await
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let context = self.context(Operation::Open, key);
        let (folders, path) = (self.folders.clone(), self.folders.path(key));
        blocking(&context.clone(), cancel, move || {
            let mut bytes = Vec::new();
            let read = start(&path, move |_| range).and_then(|(file, wanted)| {
                bytes.reserve_exact(wanted.min(file.metadata()?.len()) as usize);
                file.take(wanted).read_to_end(&mut bytes)
            });
            match read {
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
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, key);
        self.read(context, self.folders.path(key), move |_| offset..u64::MAX, cancel).await
    }

    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(keys));
        self.remove(context, keys.iter().map(|key| self.folders.path(key)).collect(), cancel).await
    }

    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError> {
        let context = self.context(Operation::List, "the databases");
        let (folders, token) = (self.folders.clone(), cancel.clone());
        blocking(&context.clone(), cancel, move || {
            walk::databases(folders.root(), &token)
                .map_err(|(path, error)| folders.explain(&context, CreateError::Destination(path, error)))
        })
        .await
    }

    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, path);
        let (folders, path, token) = (self.folders.clone(), path.clone(), cancel.clone());
        blocking(&context.clone(), cancel, move || {
            let put = folders.put_object(&path, &body, mode, clock::now_ms(), &token);
            put.map_err(|error| folders.explain(&context, error))
        })
        .await
    }

    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        self.read(context, self.folders.object(path), move |_| range, cancel).await
    }

    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        let end = move |length: u64| length.saturating_sub(bytes)..length;
        self.read(context, self.folders.object(path), end, cancel).await
    }

    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError> {
        let context = self.context(Operation::List, folder);
        let (folders, folder, after) = (self.folders.clone(), folder.clone(), after.cloned());
        let token = cancel.clone();
        blocking(&context.clone(), cancel, move || {
            if !folders.is_there() {
                return Err(context.error(folders.gone()));
            }
            walk::objects(folders.root(), &folder, after.as_ref(), &token)
                .map_err(|(path, error)| folders.explain(&context, CreateError::Destination(path, error)))
        })
        .await
    }

    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(paths));
        self.remove(context, paths.iter().map(|path| self.folders.object(path)).collect(), cancel).await
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
    /// Bytes of the window that have not been read.
    left: u64,
    path: PathBuf,
    context: Context,
    cancel: Option<CancellationToken>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, DestinationError> {
        let (context, cancel) = (self.context.clone(), self.cancel.clone().unwrap_or_default());
        blocking(&context, &cancel, move || {
            let mut bytes = Vec::new();
            match (&mut self.file).take(READ_BYTES.min(self.left)).read_to_end(&mut bytes) {
                Ok(0) => Ok(None),
                Ok(count) => {
                    self.left -= count as u64;
                    Ok(Some((Bytes::from(bytes), self)))
                }
                Err(error) => Err(self.context.io(&self.path, &error)),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests;
