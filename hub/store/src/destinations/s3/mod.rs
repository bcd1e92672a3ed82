//! A bucket of Amazon S3, or of a server that speaks its protocol, in Litestream's layout:
//! `<prefix>/<agent>/<database>/<level %04x>/<min>-<max>.ltx`.
//!
//! - Create-only: every put carries `If-None-Match: *`. A 412 is settled by comparing (see [`put`]).
//! - Some servers ignore that header without an error: [`probe`] finds out, and refuses them.
//! - Some of the others ignore it when a multipart upload completes: two hubs that store one large file at the same
//!   moment are not told apart there. A look before the upload narrows that to the moment itself.
//! - The SDK's own retries are off: one call is one attempt per request, and the caller owns the schedule.
//! - Nothing here waits without a deadline.

mod client;
mod fault;
mod probe;
mod put;

use super::config::S3Config;
use super::error::{Context, Operation};
use super::{Body, Destination, DestinationError, Fault, FileKey, Listed, Put, PutMeta};
use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use fault::CallError;
use futures_util::stream::{self, BoxStream, StreamExt};
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
    prefix: String,
    endpoint: Option<String>,
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
            prefix: config.prefix.trim_matches('/').to_owned(),
            endpoint: config.endpoint.clone(),
            request_timeout: config.request_timeout.unwrap_or(client::REQUEST_TIMEOUT),
        })
    }

    fn context(&self, operation: Operation, subject: impl std::fmt::Display) -> Context {
        Context::new(&self.name, operation, subject)
    }

    fn prefixed(&self, rest: &str) -> String {
        if self.prefix.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.prefix) }
    }

    fn folder(&self, database: &DatabaseKey, level: Level) -> String {
        self.prefixed(&format!("{database}/{}/", name::s3_dir(level)))
    }

    fn object_key(&self, key: &FileKey) -> String {
        format!("{}{}", self.folder(&key.database, key.level), name::file_name(key.range))
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
        let after = self.request_timeout + client::transfer_time(bytes);
        // The SDK's futures are large; they do not belong inside every caller's.
        let request = Box::pin(tokio::time::timeout(after, request));
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(CallError::Fault(Fault::Cancelled)),
            answer = request => match answer {
                Ok(answer) => answer.map_err(|error| fault::explain(&error)),
                Err(_) => Err(CallError::Fault(Fault::TimedOut { after })),
            },
        }
    }

    /// Asks for the bytes `range` of an object; `None` when it has none there.
    async fn get(
        &self,
        object: &str,
        range: Option<String>,
        cancel: &CancellationToken,
    ) -> Result<Option<GetObjectOutput>, Fault> {
        let request = self.client.get_object().bucket(&self.bucket).key(object).set_range(range.clone());
        match self.call(cancel, 0, request.send()).await {
            Ok(output) if range.is_some() && output.content_range().is_none() => {
                Err(Fault::Rejected("the server ignores byte ranges".into()))
            }
            Ok(output) => Ok(Some(output)),
            Err(CallError::RangeNotSatisfiable) => Ok(None),
            Err(error) => Err(error.into_fault()),
        }
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
        format!("s3://{}/{}{at}", self.bucket, self.prefix)
    }

    async fn put(
        &self,
        key: &FileKey,
        body: Body,
        meta: PutMeta,
        cancel: &CancellationToken,
    ) -> Result<Put, DestinationError> {
        let context = self.context(Operation::Put, key);
        self.put_object(&self.object_key(key), &body, meta, cancel)
            .await
            .map_err(|fault| context.error(fault))
    }

    async fn list(
        &self,
        database: &DatabaseKey,
        level: Level,
        cancel: &CancellationToken,
    ) -> Result<Vec<Listed>, DestinationError> {
        let context = self.context(Operation::List, format_args!("{database} level {level}"));
        let folder = self.folder(database, level);
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let request =
                self.client.list_objects_v2().bucket(&self.bucket).prefix(&folder).set_start_after(after);
            let page = self
                .call(cancel, 0, request.send())
                .await
                .map_err(|error| context.error(error.into_fault()))?;
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&folder));
                let Some(range) = name.and_then(name::parse) else { continue };
                listed.push(Listed {
                    level,
                    range,
                    size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                    time_ms: object.last_modified().and_then(|time| time.to_millis().ok()).unwrap_or(0),
                });
            }
            if page.is_truncated() != Some(true) {
                break;
            }
            after = page.contents().last().and_then(|object| object.key()).map(str::to_owned);
            if after.is_none() {
                let text = "the server promises more names but sends none".to_owned();
                return Err(context.error(Fault::Corrupt(text)));
            }
        }
        listed.sort_unstable_by_key(|file| file.range);
        Ok(listed)
    }

    async fn read_start(
        &self,
        key: &FileKey,
        length: usize,
        cancel: &CancellationToken,
    ) -> Result<Bytes, DestinationError> {
        let context = self.context(Operation::Open, key);
        let range = format!("bytes=0-{}", length.max(1) - 1);
        let output = self.get(&self.object_key(key), Some(range), cancel).await;
        let Some(output) = output.map_err(|fault| context.error(fault))? else { return Ok(Bytes::new()) };
        let mut reading = Reading::new(output, context, cancel, self.request_timeout);
        let mut bytes = BytesMut::with_capacity(length);
        while let Some(piece) = reading.piece().await? {
            bytes.extend_from_slice(&piece);
        }
        bytes.truncate(length);
        Ok(bytes.freeze())
    }

    async fn open(
        &self,
        key: &FileKey,
        offset: u64,
        cancel: &CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, DestinationError>>, DestinationError> {
        let context = self.context(Operation::Open, key);
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        let output = self.get(&self.object_key(key), range, cancel).await;
        let Some(output) = output.map_err(|fault| context.error(fault))? else {
            return Ok(stream::empty().boxed());
        };
        let reading = Reading::new(output, context, cancel, self.request_timeout);
        let next = |mut reading: Reading| async { Ok(reading.piece().await?.map(|piece| (piece, reading))) };
        Ok(stream::try_unfold(reading, next).boxed())
    }

    async fn probe(&self, cancel: &CancellationToken) -> Result<(), DestinationError> {
        let context = self.context(Operation::Probe, self.location());
        self.probe_bucket(cancel).await.map_err(|fault| context.error(fault))
    }
}

/// An object's bytes on their way in.
struct Reading {
    output: GetObjectOutput,
    context: Context,
    cancel: CancellationToken,
    timeout: Duration,
}

impl Reading {
    fn new(output: GetObjectOutput, context: Context, cancel: &CancellationToken, timeout: Duration) -> Self {
        Self { output, context, cancel: cancel.clone(), timeout }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, DestinationError> {
        let fault = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Fault::Cancelled,
            piece = tokio::time::timeout(self.timeout, self.output.body.next()) => match piece {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(piece))) => return Ok(Some(piece)),
                Ok(Some(Err(error))) => Fault::Interrupted(fault::chain(&error)),
                Err(_) => Fault::TimedOut { after: self.timeout },
            },
        };
        Err(self.context.error(fault))
    }
}

/// Makes the bucket of a configuration, for tests; one that is there is fine.
#[cfg(any(test, feature = "testutil"))]
pub async fn create_bucket(config: &S3Config) -> Result<(), DestinationError> {
    let name = DestinationName::new("test").expect("BUG: a good name");
    let destination = S3Destination::build(name, config).await?;
    let request = destination.client.create_bucket().bucket(&destination.bucket);
    match destination.call(&CancellationToken::new(), 0, request.send()).await.map_err(CallError::into_fault)
    {
        Ok(_) => Ok(()),
        Err(Fault::Rejected(text)) if text.contains("BucketAlready") => Ok(()),
        Err(fault) => Err(destination.context(Operation::Build, "the bucket").error(fault)),
    }
}
