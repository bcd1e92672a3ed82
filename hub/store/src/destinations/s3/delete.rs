//! Deleting objects, many in one request.

use super::S3Destination;
use super::fault::{self, CallError};
use crate::destinations::Fault;
use crate::destinations::error::chain;
use crate::destinations::object::DELETE_BATCH;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use tokio_util::sync::CancellationToken;

impl S3Destination {
    /// Deletes objects; those that are not there are no fault.
    pub(super) async fn remove(&self, objects: Vec<String>, cancel: &CancellationToken) -> Result<(), Fault> {
        let mut refused = None;
        for batch in objects.chunks(DELETE_BATCH) {
            let mut delete = Delete::builder().quiet(true);
            for object in batch {
                delete = delete.objects(identifier(object)?);
            }
            let delete = delete.build().map_err(|error| Fault::Misconfigured(chain(&error)))?;
            let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
            let answer = self.call(cancel, 0, request.send()).await.map_err(CallError::into_fault)?;
            for error in answer.errors() {
                let (code, message) = (error.code().unwrap_or(""), error.message().unwrap_or(""));
                if code == "NoSuchKey" {
                    continue;
                }
                let text = format!("{}: {message}", error.key().unwrap_or("an object"));
                refused.get_or_insert_with(|| fault::of_deletion(code, &text));
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

fn identifier(object: &str) -> Result<ObjectIdentifier, Fault> {
    let identifier = ObjectIdentifier::builder().key(object).build();
    identifier.map_err(|error| Fault::Misconfigured(chain(&error)))
}
