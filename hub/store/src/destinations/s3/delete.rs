//! Deleting objects, many in one request.
//!
//! Where objects are locked, the bucket has versions, and a plain deletion would only hide an object: there each is asked
//! for its version and its lock first, and the version itself is deleted.

use super::S3Destination;
use super::fault::{self, CallError};
use crate::destinations::Fault;
use crate::destinations::error::chain;
use crate::destinations::object::DELETE_BATCH;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ObjectLockLegalHoldStatus};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use walhub_common::clock;

/// Objects asked for their locks at the same time.
const PARALLEL_LOOKS: usize = 8;

/// An object, and the version of it that is to go.
type Doomed = (String, Option<String>);

impl S3Destination {
    /// Deletes objects; those that are not there are no fault.
    pub(super) async fn remove(&self, objects: Vec<String>, cancel: &CancellationToken) -> Result<(), Fault> {
        let (doomed, locked) = match self.options.lock {
            Some(_) => self.unlocked(objects, cancel).await?,
            None => (objects.into_iter().map(|object| (object, None)).collect(), None),
        };
        let mut refused = locked.map(Fault::Locked);
        for batch in doomed.chunks(DELETE_BATCH) {
            let answer = self.remove_batch(batch, cancel).await?;
            refused = refused.or(answer);
        }
        refused.map_or(Ok(()), Err)
    }

    /// One request; `Some`: why not all of them went.
    async fn remove_batch(
        &self,
        batch: &[Doomed],
        cancel: &CancellationToken,
    ) -> Result<Option<Fault>, Fault> {
        let unusable = |error: &(dyn std::error::Error + 'static)| Fault::Misconfigured(chain(error));
        let mut delete = Delete::builder().quiet(true);
        for (object, version) in batch {
            let identifier = ObjectIdentifier::builder().key(object).set_version_id(version.clone()).build();
            delete = delete.objects(identifier.map_err(|error| unusable(&error))?);
        }
        let delete = delete.build().map_err(|error| unusable(&error))?;
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete);
        let answer = self.call(cancel, 0, request.send()).await.map_err(CallError::into_fault)?;
        let mut refused = None;
        for error in answer.errors() {
            let (code, message) = (error.code().unwrap_or(""), error.message().unwrap_or(""));
            if code == "NoSuchKey" {
                continue;
            }
            let text = format!("{}: {message}", error.key().unwrap_or("an object"));
            refused.get_or_insert_with(|| match code {
                // Between our look and the deletion the lock was set.
                "AccessDenied" if self.options.lock.is_some() => Fault::Locked(text),
                code => fault::of_deletion(code, &text),
            });
        }
        Ok(refused)
    }

    /// Those that may be deleted, with their versions, and what is to be said of the others.
    async fn unlocked(
        &self,
        objects: Vec<String>,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Doomed>, Option<String>), Fault> {
        let looks = objects.into_iter().map(|object| async move {
            let found = self.head(&object, cancel).await?;
            Ok::<_, Fault>((object, found))
        });
        let looks: Vec<_> = stream::iter(looks).buffered(PARALLEL_LOOKS).try_collect().await?;
        let (mut doomed, mut locked) = (Vec::new(), None);
        for (object, found) in looks {
            let Some(found) = found else { continue };
            match lock_of(&found, clock::now_ms()) {
                Some(lock) => {
                    locked.get_or_insert_with(|| format!("{object} {lock}"));
                }
                None => doomed.push((object, found.version_id)),
            }
        }
        Ok((doomed, locked))
    }
}

/// What keeps an object from being deleted.
fn lock_of(found: &HeadObjectOutput, now_ms: i64) -> Option<String> {
    if found.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On) {
        return Some("is under legal hold".to_owned());
    }
    let until = found.object_lock_retain_until_date()?.to_millis().ok()?;
    (until > now_ms).then(|| format!("is locked until {}", clock::format_ms(until)))
}
