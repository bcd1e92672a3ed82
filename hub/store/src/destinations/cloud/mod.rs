//! A bucket of Google Cloud Storage (`gcs`) or a container of Azure Blob Storage (`abs`), in Litestream's layout:
//! `<prefix>/<agent>/<database>/ltx/<level>/<min>-<max>.ltx`.
//!
//! - Create-only: GCS puts carry `x-goog-if-generation-match: 0`, Azure's `If-None-Match: *` (which answers 409, not 412).
//!   A name that is taken is settled by comparing (see [`put`]).
//! - The client cannot make the end of an upload in parts conditional. So two hubs that store one large file at the same
//!   moment are not told apart there; a look before the upload, and one after it, narrow that to the moment itself.
//! - The client's own retries are off: one call is one attempt per request, and the caller owns the schedule.
//! - Nothing here waits without a deadline.
//! - Azure pages only by the marks it gives out: a page after any other place costs the pages before it as well, and the
//!   end of an object costs two requests.

mod client;
mod fault;
mod list;
mod probe;
mod put;
mod read;
mod remove;

use super::bucket::{self, Names};
use super::config::{AbsConfig, GcsConfig};
use super::error::{Context, Operation, many};
use super::object::collect;
use super::{
    Body, ByteStream, Destination, DestinationError, Fault, FileKey, Listed, ListedObject, ObjectPath, Put,
    PutMeta, PutMode,
};
use async_trait::async_trait;
use bytes::Bytes;
use fault::CallError;
use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, DestinationName, Level};

/// What both clients can do.
trait Store: ObjectStore + PaginatedListStore {}
impl<T: ObjectStore + PaginatedListStore> Store for T {}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Gcs,
    Abs,
}

/// See the module doc.
#[derive(Debug)]
pub struct CloudDestination {
    name: DestinationName,
    kind: Kind,
    store: Arc<dyn Store>,
    bucket: String,
    names: Names,
    endpoint: Option<String>,
    storage_class: Option<String>,
    request_timeout: Duration,
    /// Azure's marks by (folder, last path): where the next page begins.
    marks: Mutex<HashMap<(String, String), String>>,
}

impl CloudDestination {
    /// Google Cloud Storage. Sends nothing to the bucket yet.
    pub fn gcs(name: DestinationName, config: &GcsConfig) -> Result<Self, DestinationError> {
        let store = client::gcs(&name, config)?;
        Ok(Self {
            name,
            kind: Kind::Gcs,
            store: Arc::new(store),
            bucket: config.bucket.clone(),
            names: Names::new(&config.prefix, name::fs_dir),
            endpoint: config.endpoint.clone(),
            storage_class: config.storage_class.clone(),
            request_timeout: config.request_timeout.unwrap_or(bucket::REQUEST_TIMEOUT),
            marks: Mutex::default(),
        })
    }

    /// Azure Blob Storage. Sends nothing to the container yet.
    pub fn abs(name: DestinationName, config: &AbsConfig) -> Result<Self, DestinationError> {
        let store = client::abs(&name, config)?;
        Ok(Self {
            name,
            kind: Kind::Abs,
            store: Arc::new(store),
            bucket: config.bucket.clone(),
            names: Names::new(&config.prefix, name::fs_dir),
            endpoint: config.endpoint.clone(),
            storage_class: config.storage_class.clone(),
            request_timeout: config.request_timeout.unwrap_or(bucket::REQUEST_TIMEOUT),
            marks: Mutex::default(),
        })
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(&self.name, operation, subject)
    }

    /// Sends one request that moves `bytes` bytes, and waits at most as long as those may take.
    async fn call<T>(
        &self,
        cancel: &CancellationToken,
        bytes: u64,
        request: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, CallError> {
        let after = self.request_timeout + bucket::transfer_time(bytes);
        let answer = bucket::within(after, cancel, request).await.map_err(CallError::Fault)?;
        answer.map_err(|error| fault::explain(&error))
    }
}

/// The name of an object as the client wants it.
fn location(object: &str) -> Result<Path, Fault> {
    Path::parse(object).map_err(|error| Fault::Misconfigured(format!("{error}; correct `path`")))
}

#[async_trait]
impl Destination for CloudDestination {
    fn name(&self) -> &DestinationName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Gcs => "gcs",
            Kind::Abs => "abs",
        }
    }

    fn location(&self) -> String {
        let scheme = match self.kind {
            Kind::Gcs => "gs",
            Kind::Abs => "abs",
        };
        let at = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("{scheme}://{}/{}{at}", self.bucket, self.names.prefix())
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, key);
        let stored = self.store(&self.names.object(key), &body, PutMode::Create, Some(meta), cancel).await;
        stored.map_err(|fault| context.error(fault))
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let context = self.context(Operation::List, format_args!("{database} level {level}"));
        self.files(database, level, cancel).await.map_err(|fault| context.error(fault))
    }

    async fn list_all(
        &self,
        database: &DatabaseKey,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let context = self.context(Operation::List, database);
        self.all_files(database, cancel).await.map_err(|fault| context.error(fault))
    }

    async fn read_at(
        &self,
        key: &FileKey,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let context = self.context(Operation::Open, key);
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        collect(self.read(&self.names.object(key), range, context, cancel).await?, length).await
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, key);
        self.read(&self.names.object(key), offset..u64::MAX, context, cancel).await
    }

    async fn delete(&self, keys: &[FileKey], cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(keys));
        let objects = keys.iter().map(|key| self.names.object(key)).collect();
        self.remove(objects, cancel).await.map_err(|fault| context.error(fault))
    }

    async fn list_databases(&self, cancel: &CancellationToken) -> Result<Vec<DatabaseKey>, DestinationError> {
        let context = self.context(Operation::List, "the databases");
        self.databases(cancel).await.map_err(|fault| context.error(fault))
    }

    async fn put_object(
        &self,
        path: &ObjectPath,
        body: Body,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, path);
        let stored = self.store(&self.names.below(path.as_str()), &body, mode, None, cancel).await;
        stored.map_err(|fault| context.error(fault))
    }

    async fn open_object(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        self.read(&self.names.below(path.as_str()), range, context, cancel).await
    }

    async fn open_object_end(
        &self,
        path: &ObjectPath,
        bytes: u64,
        cancel: &CancellationToken,
    ) -> Result<ByteStream, DestinationError> {
        let context = self.context(Operation::Open, path);
        self.read_end(&self.names.below(path.as_str()), bytes, context, cancel).await
    }

    async fn list_objects(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        cancel: &CancellationToken,
    ) -> Result<Vec<ListedObject>, DestinationError> {
        let context = self.context(Operation::List, folder);
        self.objects(folder, after, cancel).await.map_err(|fault| context.error(fault))
    }

    async fn delete_objects(
        &self,
        paths: &[ObjectPath],
        cancel: &CancellationToken,
    ) -> Result<(), DestinationError> {
        let context = self.context(Operation::Delete, many(paths));
        let objects = paths.iter().map(|path| self.names.below(path.as_str())).collect();
        self.remove(objects, cancel).await.map_err(|fault| context.error(fault))
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Probe, self.location());
        self.probe_bucket(cancel).await.map_err(|fault| context.error(fault))
    }
}
