//! A bucket of Amazon S3, or of a server that speaks its protocol, in Litestream's layout:
//! `<prefix>/<agent>/<database>/<level %04x>/<min>-<max>.ltx`.
//!
//! - Create-only: every put carries `If-None-Match: *`. A 412 is settled by comparing (see [`put`]).
//! - Some servers ignore that header without an error: [`probe`] finds out, and refuses them.
//! - Some of the others ignore it when a multipart upload completes: two hubs that store one large file at the same
//!   moment are not told apart there. A look before the upload narrows that to the moment itself.
//! - The SDK's own retries are off: one call is one attempt per request, and the caller owns the schedule.
//! - With `object-lock` a deletion removes the object itself, which its lock may forbid; without, it is the store's own
//!   plain deletion (in a bucket with versions: a delete marker).
//! - Nothing here waits without a deadline.

mod client;
mod delete;
mod fault;
mod list;
mod options;
mod probe;
mod put;
mod read;

use super::bucket::{self, Names};
use super::config::S3Config;
use super::error::{Context, Operation, many};
use super::object::collect;
use super::{
    Body, ByteStream, Destination, DestinationError, FileKey, Listed, ListedObject, ObjectPath, Put, PutMeta,
    PutMode,
};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use bytes::Bytes;
use fault::CallError;
use std::ops::Range;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::name;
use walhub_common::{DatabaseKey, DestinationName, Level};

/// See the module doc.
#[derive(Debug)]
pub struct S3Destination {
    name: DestinationName,
    client: Client,
    bucket: String,
    names: Names,
    endpoint: Option<String>,
    options: options::Options,
    request_timeout: Duration,
}

impl S3Destination {
    /// Makes the client; sends nothing to the bucket yet.
    pub async fn build(name: DestinationName, config: &S3Config) -> Result<Self, DestinationError> {
        let client = client::build(&name, config).await?;
        Ok(Self {
            name,
            client,
            bucket: config.bucket.clone(),
            names: Names::new(&config.prefix, name::s3_dir),
            endpoint: config.endpoint.clone(),
            options: options::Options::new(config),
            request_timeout: config.request_timeout.unwrap_or(bucket::REQUEST_TIMEOUT),
        })
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(&self.name, operation, subject)
    }

    /// Sends one request that moves `bytes` bytes, and waits at most as long as those may take.
    async fn call<T, E>(
        &self,
        cancel: &CancellationToken,
        bytes: u64,
        request: impl Future<Output = Result<T, fault::SdkError<E>>>,
    ) -> Result<T, CallError>
    where
        E: fault::ServiceFault,
    {
        let after = self.request_timeout + bucket::transfer_time(bytes);
        let answer = bucket::within(after, cancel, request).await.map_err(CallError::Fault)?;
        answer.map_err(|error| fault::explain(&error))
    }
}

#[async_trait]
impl Destination for S3Destination {
    fn name(&self) -> &DestinationName {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "s3"
    }

    fn location(&self) -> String {
        let at = self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        format!("s3://{}/{}{at}", self.bucket, self.names.prefix())
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, key);
        let object = self.names.object(key);
        let stored = self.store(&object, &body, PutMode::Create, Some(meta), cancel).await;
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

/// Makes the bucket of a configuration, for tests; one that is there is fine.
#[cfg(any(test, feature = "testutil"))]
pub async fn create_bucket(config: &S3Config) -> Result<(), DestinationError> {
    let name = DestinationName::new("test").expect("BUG: a good name");
    let destination = S3Destination::build(name, config).await?;
    let request = destination
        .client
        .create_bucket()
        .bucket(&destination.bucket)
        .set_object_lock_enabled_for_bucket(config.object_lock.map(|_| true));
    match destination.call(&CancellationToken::new(), 0, request.send()).await.map_err(CallError::into_fault)
    {
        Ok(_) => Ok(()),
        Err(super::Fault::Rejected(text)) if text.contains("BucketAlready") => Ok(()),
        Err(fault) => Err(destination.context(Operation::Build, "the bucket").error(fault)),
    }
}
