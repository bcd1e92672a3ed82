//! Storing an object: create-only or replacing, in one request or in parts.
//!
//! A name that is taken is settled by comparing: sizes, then the checksum we leave in the metadata of every object, and
//! where that is missing, the bytes themselves.

use super::fault::CallError;
use super::{CloudDestination, Kind, location};
use crate::destinations::bucket;
use crate::destinations::source::Source;
use crate::destinations::{Body, Fault, Put, PutMeta, PutMode};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetResult, MultipartUpload, ObjectStore, PutMultipartOptions,
    PutOptions,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::clock;

/// Bodies up to this size are one request; larger ones go in parts of at least this size.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of one upload; GCS's own bound is 10,000.
const MAX_PARTS: u64 = 9_000;
/// Bytes of parts on their way at the same time.
const MAX_BYTES_IN_FLIGHT: u64 = 32 * 1024 * 1024;
/// Patience with the clean-up after a failed upload.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Names of the metadata; Azure allows no hyphens.
struct Names {
    /// Litestream's own: RFC 3339 time of the newest transaction.
    timestamp: &'static str,
    /// Database checksum after the file.
    post: &'static str,
    /// CRC-64 of the stored bytes.
    content: &'static str,
}

fn names(kind: Kind) -> Names {
    match kind {
        Kind::Gcs => {
            Names { timestamp: "litestream-timestamp", post: "walhub-checksum", content: "walhub-content" }
        }
        Kind::Abs => {
            Names { timestamp: "litestreamtimestamp", post: "walhubchecksum", content: "walhubcontent" }
        }
    }
}

fn metadata(name: &'static str) -> Attribute {
    Attribute::Metadata(name.into())
}

impl CloudDestination {
    /// Stores a body, or (with [`PutMode::Create`]) finds it there. `meta`: of an LTX file.
    pub(super) async fn store(
        &self,
        object: &str,
        body: &Body,
        mode: PutMode,
        meta: Option<PutMeta>,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let object = location(object)?;
        let source = Source::of(body).await?;
        let digest = source.digest().await?;
        let attributes = self.attributes(&digest, meta);
        let stored = if source.size <= PART_BYTES {
            self.put_whole(&object, &source, mode, attributes, cancel).await
        // The client cannot fence the end of an upload; see the module doc.
        } else if mode == PutMode::Create && self.head(&object, cancel).await?.is_some() {
            Err(CallError::Exists)
        } else {
            match self.put_in_parts(&object, &source, attributes, cancel).await {
                Ok(()) if mode == PutMode::Create => {
                    return self.settle(&object, &source, &digest, cancel).await.map(|_| Put::Created);
                }
                done => done,
            }
        };
        match stored {
            Ok(()) => Ok(Put::Created),
            Err(CallError::Exists) => self.settle(&object, &source, &digest, cancel).await,
            Err(error) => Err(error.into_fault()),
        }
    }

    fn attributes(&self, digest: &str, meta: Option<PutMeta>) -> Attributes {
        let names = names(self.kind);
        let mut attributes = Attributes::new();
        attributes.insert(metadata(names.content), digest.to_owned().into());
        if let Some(meta) = meta {
            attributes.insert(metadata(names.timestamp), clock::format_ms(meta.time_ms).into());
            if let Some(post) = meta.post {
                attributes.insert(metadata(names.post), post.to_string().into());
            }
        }
        if let Some(class) = &self.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        attributes
    }

    async fn put_whole(
        &self,
        object: &Path,
        source: &Source<'_>,
        mode: PutMode,
        attributes: Attributes,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let bytes = source.piece(0, source.size).await.map_err(CallError::Fault)?;
        let mode = match mode {
            PutMode::Create => object_store::PutMode::Create,
            PutMode::Replace => object_store::PutMode::Overwrite,
        };
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        self.call(cancel, source.size, self.store.put_opts(object, bytes.into(), options)).await.map(drop)
    }

    async fn put_in_parts(
        &self,
        object: &Path,
        source: &Source<'_>,
        attributes: Attributes,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let mut upload = self.call(cancel, 0, self.store.put_multipart_opts(object, options)).await?;
        let done = self.send_parts(&mut *upload, source, cancel).await;
        if done.is_err() {
            // Best effort, also when we are being cancelled: the clouds drop what stays behind.
            let aborted = Box::pin(tokio::time::timeout(ABORT_TIMEOUT, upload.abort())).await;
            if !matches!(aborted, Ok(Ok(()))) {
                tracing::debug!(destination = %self.name, %object, "could not abort an upload");
            }
        }
        done
    }

    async fn send_parts(
        &self,
        upload: &mut dyn MultipartUpload,
        source: &Source<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let part_bytes = PART_BYTES.max(source.size.div_ceil(MAX_PARTS).next_multiple_of(1024 * 1024));
        let parallel = usize::try_from((MAX_BYTES_IN_FLIGHT / part_bytes).max(1)).unwrap_or(1);
        let mut offset = 0;
        while offset < source.size {
            // The order in which parts are asked for is their order in the object.
            let mut parts = Vec::with_capacity(parallel);
            while offset < source.size && parts.len() < parallel {
                let length = part_bytes.min(source.size - offset);
                let bytes = source.piece(offset, length).await.map_err(CallError::Fault)?;
                // The parts in flight share the line.
                parts.push(self.call(cancel, length * parallel as u64, upload.put_part(bytes.into())));
                offset += length;
            }
            stream::iter(parts).buffer_unordered(parallel).try_collect::<()>().await?;
        }
        // The server may have to join all of it before it answers.
        self.call(cancel, source.size / 16, upload.complete()).await.map(drop)
    }

    /// Facts of an object; `None` when there is none.
    pub(super) async fn head(
        &self,
        object: &Path,
        cancel: &CancellationToken,
    ) -> Result<Option<GetResult>, Fault> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.call(cancel, 0, self.store.get_opts(object, options)).await.map_err(CallError::into_fault)
        {
            Ok(result) => Ok(Some(result)),
            Err(Fault::NotFound) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn settle(
        &self,
        object: &Path,
        source: &Source<'_>,
        digest: &str,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let Some(existing) = self.head(object, cancel).await? else {
            return Err(Fault::Unavailable("the name was taken, then free again".into()));
        };
        let there = existing.meta.size;
        let theirs = existing.attributes.get(&metadata(names(self.kind).content)).map(AsRef::as_ref);
        match bucket::judge((there, theirs), (source.size, digest))? {
            Some(put) => Ok(put),
            None => self.compare(object, source, cancel).await,
        }
    }

    async fn compare(
        &self,
        object: &Path,
        source: &Source<'_>,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let context = self.context(crate::destinations::error::Operation::Put, object);
        let mut theirs =
            self.read(object.as_ref(), 0..u64::MAX, context, cancel).await.map_err(|error| error.fault)?;
        let mut offset = 0;
        while let Some(piece) = theirs.try_next().await.map_err(|error| error.fault)? {
            let length = piece.len() as u64;
            if length > source.size - offset || source.piece(offset, length).await? != piece {
                return Err(Fault::Conflict(format!("it differs within {length} bytes from byte {offset}")));
            }
            offset += length;
        }
        if offset == source.size {
            return Ok(Put::AlreadyThere);
        }
        Err(Fault::Interrupted(format!("the answer ended at byte {offset}")))
    }
}
