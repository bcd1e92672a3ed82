//! A local folder (or a mounted disk, NFS share, …) in Litestream's layout:
//! `<path>/<agent>/<database>/ltx/<level>/<min>-<max>.ltx`, mtime = time of the newest transaction.
//!
//! The folder itself is made by [`Destination::probe`] and by nothing else: a put into a folder that is gone fails, for
//! more likely than not its disk is not mounted. Where a [`Memory`] tells which folder it must be, another one in its place is
//! refused in the same way ([`marker`]). A disk that hangs is given up on after a minute ([`patience`]); cancelling ends the
//! call at once, and the blocked thread finishes by itself.

mod atomic;
mod folders;
mod marker;
mod patience;
mod walk;

pub use marker::Memory;

use super::config::FileConfig;
use super::error::{Context, Operation, many};
use super::{
    Body, ByteStream, Destination, DestinationError, FileKey, Listed, ListedObject, ObjectPath, Put, PutMeta,
    PutMode,
};
use async_trait::async_trait;
use atomic::CreateError;
use bytes::Bytes;
use folders::Folders;
use futures_util::stream::{self, StreamExt};
use patience::{LIMIT, Patience, Pulse};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::{DatabaseKey, DestinationName, Level, clock};

const READ_BYTES: u64 = 1024 * 1024;

/// See the module doc.
#[derive(Debug)]
pub struct FileDestination {
    name: DestinationName,
    folders: Arc<Folders>,
    patience: Arc<Patience>,
}

impl FileDestination {
    /// Any folder will do. Touches nothing yet.
    pub fn new(name: DestinationName, config: &FileConfig) -> Self {
        Self::remembered(name, config, None)
    }

    /// The folder that `memory` knows, or learns of with the first probe. Touches nothing yet.
    pub fn remembered(name: DestinationName, config: &FileConfig, memory: Option<Arc<dyn Memory>>) -> Self {
        let folders = Arc::new(Folders::new(config.path.clone(), memory));
        Self { name, folders, patience: Arc::new(Patience::new(LIMIT)) }
    }

    /// With another limit for calls that hang.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.patience = Arc::new(Patience::new(limit));
        self
    }

    async fn blocking<T: Send + 'static>(
        &self,
        context: &Context,
        cancel: &CancellationToken,
        work: impl FnOnce(&Pulse) -> Result<T, DestinationError> + Send + 'static,
    ) -> Result<T, DestinationError> {
        self.patience.blocking(context, cancel, work).await
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
        let patience = self.patience.clone();
        let asked = context.clone();
        let opened = self.blocking(&asked, cancel, {
            move |_| match start(&path, window) {
                Ok((file, left)) => Ok(Reading { file, left, path, context, patience, cancel: None }),
                Err(error) => Err(folders.explain(&context, CreateError::Destination(path, error))),
            }
        });
        let reading = Reading { cancel: Some(cancel.clone()), ..opened.await? };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn remove(
        &self,
        context: Context,
        paths: Vec<PathBuf>,
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let folders = self.folders.clone();
        self.blocking(&context.clone(), cancel, move |pulse| folders.remove(&context, &paths, pulse)).await
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
        let (folders, key) = (self.folders.clone(), key.clone());
        self.blocking(&context.clone(), cancel, move |pulse| {
            folders.put(&key, &body, meta, pulse).map_err(|error| folders.explain(&context, error))
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
        self.blocking(&context.clone(), cancel, move |pulse| {
            folders.check().map_err(|fault| context.error(fault))?;
            match walk::list(&folder, level, pulse) {
                Ok(listed) => Ok(listed),
                Err(error) if error.kind() == io::ErrorKind::NotFound && folders.check().is_ok() => {
                    Ok(Vec::new())
                }
                Err(error) => Err(folders.explain(&context, CreateError::Destination(folder, error))),
            }
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
        self.blocking(&context.clone(), cancel, move |_| {
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
        let folders = self.folders.clone();
        self.blocking(&context.clone(), cancel, move |pulse| {
            folders.check().map_err(|fault| context.error(fault))?;
            walk::databases(folders.root(), pulse)
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
        let (folders, path) = (self.folders.clone(), path.clone());
        self.blocking(&context.clone(), cancel, move |pulse| {
            let put = folders.put_object(&path, &body, mode, clock::now_ms(), pulse);
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
        self.blocking(&context.clone(), cancel, move |pulse| {
            folders.check().map_err(|fault| context.error(fault))?;
            walk::objects(folders.root(), &folder, after.as_ref(), pulse)
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
        let folders = self.folders.clone();
        self.blocking(&context.clone(), cancel, move |pulse| folders.probe(&context, pulse)).await
    }
}

/// An open file on its way out.
struct Reading {
    file: File,
    /// Bytes of the window that have not been read.
    left: u64,
    path: PathBuf,
    context: Context,
    patience: Arc<Patience>,
    cancel: Option<CancellationToken>,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, DestinationError> {
        let (context, cancel) = (self.context.clone(), self.cancel.clone().unwrap_or_default());
        let patience = self.patience.clone();
        let piece = patience.blocking(&context, &cancel, move |_| {
            let mut bytes = Vec::new();
            match (&mut self.file).take(READ_BYTES.min(self.left)).read_to_end(&mut bytes) {
                Ok(0) => Ok(None),
                Ok(count) => {
                    self.left -= count as u64;
                    Ok(Some((Bytes::from(bytes), self)))
                }
                Err(error) => Err(self.context.io(&self.path, &error)),
            }
        });
        piece.await
    }
}

#[cfg(test)]
mod away_tests;
#[cfg(test)]
mod tests;
