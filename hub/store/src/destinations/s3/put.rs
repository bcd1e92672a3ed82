//! Storing an object: create-only, in one request or in parts.
//!
//! A name that is taken is settled by comparing: sizes, then the checksum we leave in the metadata of every object, and
//! where that is missing, the bytes themselves.

use super::S3Destination;
use super::fault::CallError;
use crate::destinations::bucket;
use crate::destinations::error::chain;
use crate::destinations::source::Source;
use crate::destinations::{Body, Fault, Put, PutMeta, PutMode};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::clock;

/// Bodies up to this size are one request; larger ones go in parts of at least this size.
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts of one upload; S3's own bound is 10,000.
const MAX_PARTS: u64 = 9_000;
/// Bytes of parts on their way at the same time.
const MAX_BYTES_IN_FLIGHT: u64 = 32 * 1024 * 1024;
/// Patience with the clean-up after a failed upload.
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Litestream's own: RFC 3339 time of the newest transaction.
const TIMESTAMP: &str = "litestream-timestamp";
/// Database checksum after the file.
const POST: &str = "walhub-checksum";
/// CRC-64 of the stored bytes.
const CONTENT: &str = "walhub-content";

impl S3Destination {
    /// Stores a body, or (with [`PutMode::Create`]) finds it there. `meta`: of an LTX file.
    pub(super) async fn store(
        &self,
        object: &str,
        body: &Body,
        mode: PutMode,
        meta: Option<PutMeta>,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let source = Source::of(body).await?;
        let digest = source.digest().await?;
        let mut metadata = HashMap::from([(CONTENT.to_owned(), digest.clone())]);
        if let Some(meta) = meta {
            metadata.insert(TIMESTAMP.to_owned(), clock::format_ms(meta.time_ms));
            metadata.extend(meta.post.map(|post| (POST.to_owned(), post.to_string())));
        }
        let stored = if source.size <= PART_BYTES {
            self.put_whole(object, &source, mode, metadata, cancel).await
        // Servers that ignore the condition when an upload completes are known; see the module doc.
        } else if mode == PutMode::Create && self.head(object, cancel).await?.is_some() {
            Err(CallError::Exists)
        } else {
            self.put_in_parts(object, &source, mode, metadata, cancel).await
        };
        match stored {
            Ok(()) => Ok(Put::Created),
            Err(CallError::Exists) => self.settle(object, &source, &digest, cancel).await,
            Err(error) => Err(error.into_fault()),
        }
    }

    async fn put_whole(
        &self,
        object: &str,
        source: &Source<'_>,
        mode: PutMode,
        metadata: HashMap<String, String>,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let bytes = source.piece(0, source.size).await.map_err(CallError::Fault)?;
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(object)
            .set_if_none_match(condition(mode))
            .set_metadata(Some(metadata))
            .set_server_side_encryption(self.options.encryption())
            .set_ssekms_key_id(self.options.kms_key())
            .set_storage_class(self.options.storage_class())
            .set_object_lock_mode(self.options.lock_mode())
            .set_object_lock_retain_until_date(self.options.locked_until(clock::now_ms()))
            // A put with a lock must carry a checksum.
            .set_checksum_algorithm(self.options.lock.map(|_| ChecksumAlgorithm::Crc32))
            .body(ByteStream::from(bytes));
        self.call(cancel, source.size, request.send()).await.map(drop)
    }

    async fn put_in_parts(
        &self,
        object: &str,
        source: &Source<'_>,
        mode: PutMode,
        metadata: HashMap<String, String>,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let request = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(object)
            .set_metadata(Some(metadata))
            .set_server_side_encryption(self.options.encryption())
            .set_ssekms_key_id(self.options.kms_key())
            .set_storage_class(self.options.storage_class())
            .set_object_lock_mode(self.options.lock_mode())
            .set_object_lock_retain_until_date(self.options.locked_until(clock::now_ms()));
        let created = self.call(cancel, 0, request.send()).await?;
        let Some(upload) = created.upload_id() else {
            return Err(CallError::Fault(Fault::Corrupt("the server gave an upload without a name".into())));
        };
        let done = self.send_parts(object, upload, source, mode, cancel).await;
        if done.is_err() {
            self.abort(object, upload).await;
        }
        done
    }

    async fn send_parts(
        &self,
        object: &str,
        upload: &str,
        source: &Source<'_>,
        mode: PutMode,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let part_bytes = part_bytes(source.size);
        let parallel = usize::try_from((MAX_BYTES_IN_FLIGHT / part_bytes).max(1)).unwrap_or(1);
        let offsets = (0..source.size).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX));
        let sending = offsets.zip(1..).map(|(offset, number)| async move {
            let length = part_bytes.min(source.size - offset);
            let bytes = source.piece(offset, length).await.map_err(CallError::Fault)?;
            let request = self
                .client
                .upload_part()
                .bucket(&self.bucket)
                .key(object)
                .upload_id(upload)
                .part_number(number)
                .body(ByteStream::from(bytes));
            // The parts in flight share the line.
            let sent = self.call(cancel, length * parallel as u64, request.send()).await?;
            Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
        });
        let parts: Vec<CompletedPart> = stream::iter(sending).buffered(parallel).try_collect().await?;
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(object)
            .upload_id(upload)
            .set_if_none_match(condition(mode))
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        // The server may have to join all of it before it answers.
        self.call(cancel, source.size / 16, request.send()).await.map(drop)
    }

    /// Gives back the space of an upload that will not be completed. Best effort, also when we are being cancelled: what
    /// stays behind is removed by a later probe.
    pub(super) async fn abort(&self, object: &str, upload: &str) {
        let request =
            self.client.abort_multipart_upload().bucket(&self.bucket).key(object).upload_id(upload).send();
        let failed = match Box::pin(tokio::time::timeout(ABORT_TIMEOUT, request)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(destination = %self.name, object, error = failed, "could not abort an upload");
    }

    /// Facts of an object; `None` when there is none.
    pub(super) async fn head(
        &self,
        object: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<HeadObjectOutput>, Fault> {
        let request = self.client.head_object().bucket(&self.bucket).key(object);
        match self.call(cancel, 0, request.send()).await.map_err(CallError::into_fault) {
            Ok(output) => Ok(Some(output)),
            Err(Fault::NotFound) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn settle(
        &self,
        object: &str,
        source: &Source<'_>,
        digest: &str,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let Some(existing) = self.head(object, cancel).await? else {
            return Err(Fault::Unavailable("the name was taken, then free again".into()));
        };
        let there = existing.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        let theirs = existing.metadata().and_then(|metadata| metadata.get(CONTENT)).map(String::as_str);
        match bucket::judge((there, theirs), (source.size, digest))? {
            Some(put) => Ok(put),
            None => self.compare(object, source, cancel).await,
        }
    }

    async fn compare(
        &self,
        object: &str,
        source: &Source<'_>,
        cancel: &CancellationToken,
    ) -> Result<Put, Fault> {
        let Some(mut output) = self.get(object, None, cancel).await? else {
            return Err(Fault::Corrupt("the object has no bytes".into()));
        };
        let mut offset = 0;
        loop {
            let piece = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Fault::Cancelled),
                piece = tokio::time::timeout(self.request_timeout, output.body.next()) => piece,
            };
            let theirs = match piece {
                Ok(Some(Ok(theirs))) => theirs,
                Ok(Some(Err(error))) => return Err(Fault::Interrupted(chain(&error))),
                Ok(None) if offset == source.size => return Ok(Put::AlreadyThere),
                Ok(None) => return Err(Fault::Interrupted(format!("the answer ended at byte {offset}"))),
                Err(_) => return Err(Fault::TimedOut { after: self.request_timeout }),
            };
            let length = theirs.len() as u64;
            if length > source.size - offset || source.piece(offset, length).await? != theirs {
                return Err(Fault::Conflict(format!("it differs within {length} bytes from byte {offset}")));
            }
            offset += length;
        }
    }
}

/// The fence: what `If-None-Match` a put carries.
fn condition(mode: PutMode) -> Option<String> {
    (mode == PutMode::Create).then(|| "*".to_owned())
}

/// Size of every part but the last: whole MiB, few enough parts.
fn part_bytes(size: u64) -> u64 {
    PART_BYTES.max(size.div_ceil(MAX_PARTS).next_multiple_of(1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_for_any_database() {
        assert_eq!(part_bytes(PART_BYTES + 1), PART_BYTES);
        for size in [1 << 30, 130 << 30, 4 << 40_u64] {
            let part = part_bytes(size);
            assert!(size.div_ceil(part) <= MAX_PARTS && part.is_multiple_of(1024 * 1024), "{size}");
        }
    }
}
