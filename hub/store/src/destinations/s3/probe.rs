//! Proof, before the first real put, that a bucket can be used and that its fence holds.

use super::S3Destination;
use super::fault::CallError;
use crate::destinations::Fault;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walhub_common::clock;

/// Folder of probe objects below the prefix: no agent can have this name, and no reader takes its objects for LTX files.
const FOLDER: &str = ".walhub-probe";
/// An upload that was begun this long ago and has not ended belongs to a process that died.
const ABANDONED_AFTER_MS: i64 = 24 * 60 * 60 * 1000;
/// Abandoned uploads that one probe removes.
const MAX_ABORTS: i32 = 100;

impl S3Destination {
    /// Creates, creates again (must be refused), reads, lists, removes.
    pub(super) async fn probe_bucket(&self, cancel: &CancellationToken) -> Result<(), Fault> {
        let object = self.names.below(&format!("{FOLDER}/{:016x}", rand::random::<u64>()));
        let result = self.probe_with(&object, cancel).await;
        let request = self.client.delete_object().bucket(&self.bucket).key(&object);
        if result.is_err() {
            // It may be there all the same: cancelled, or an unknown outcome. The first fault is the one to report.
            let _ = Box::pin(tokio::time::timeout(super::put::ABORT_TIMEOUT, request.send())).await;
            return result;
        }
        self.call(cancel, 0, request.send()).await.map_err(|error| match error.into_fault() {
            Fault::Denied(text) => Fault::Denied(format!("deleting a probe object: {text}")),
            fault => fault,
        })?;
        self.remove_abandoned_uploads(cancel).await;
        Ok(())
    }

    async fn probe_with(&self, object: &str, cancel: &CancellationToken) -> Result<(), Fault> {
        let first = Bytes::from(format!("first {object}"));
        self.probe_put(object, first.clone(), cancel).await.map_err(CallError::into_fault)?;
        match self.probe_put(object, Bytes::from(format!("other {object}")), cancel).await {
            Err(CallError::Exists) => {}
            Err(error) => return Err(error.into_fault()),
            Ok(()) => return Err(Fault::NoFence("a second put of one name was accepted".into())),
        }
        let Some(output) = self.get(object, Some("bytes=6-".into()), cancel).await? else {
            return Err(Fault::Corrupt("what was written does not come back".into()));
        };
        // Bounded: a probe object is a hundred bytes, and the server has just promised its length.
        let read = tokio::time::timeout(self.request_timeout, output.body.collect()).await;
        match read {
            Ok(Ok(bytes)) if bytes.clone().into_bytes() == first.slice(6..) => {}
            Ok(Ok(_)) => return Err(Fault::Corrupt("what was written does not come back".into())),
            Ok(Err(error)) => return Err(Fault::Interrupted(crate::destinations::error::chain(&error))),
            Err(_) => return Err(Fault::TimedOut { after: self.request_timeout }),
        }
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(object);
        let listed = self.call(cancel, 0, request.send()).await.map_err(CallError::into_fault)?;
        if listed.contents().iter().any(|found| found.key() == Some(object)) {
            return Ok(());
        }
        Err(Fault::Corrupt("what was written is not listed; walhub needs a store that lists at once".into()))
    }

    async fn probe_put(
        &self,
        object: &str,
        bytes: Bytes,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(object)
            .if_none_match("*")
            // Not the lock: what a probe leaves must go.
            .set_server_side_encryption(self.options.encryption())
            .set_ssekms_key_id(self.options.kms_key())
            .body(ByteStream::from(bytes));
        self.call(cancel, 0, request.send()).await.map(drop)
    }

    /// Gives back the space of uploads below our prefix whose process died. Best effort: not every server lists them.
    async fn remove_abandoned_uploads(&self, cancel: &CancellationToken) {
        let request = self
            .client
            .list_multipart_uploads()
            .bucket(&self.bucket)
            .prefix(self.names.below(""))
            .max_uploads(MAX_ABORTS);
        let Ok(listed) = self.call(cancel, 0, request.send()).await else { return };
        let limit = clock::now_ms() - ABANDONED_AFTER_MS;
        for upload in listed.uploads() {
            let begun = upload.initiated().and_then(|time| time.to_millis().ok());
            if let (Some(key), Some(id), Some(begun)) = (upload.key(), upload.upload_id(), begun)
                && begun < limit
                && !cancel.is_cancelled()
            {
                self.abort(key, id).await;
                tracing::info!(destination = %self.name, object = key, "removed an abandoned upload");
            }
        }
    }
}
