//! What every object is stored with: encryption, storage class, lock.

use crate::destinations::config::{LockMode, ObjectLock, S3Config, Sse};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[derive(Clone, Debug)]
pub(super) struct Options {
    sse: Option<Sse>,
    storage_class: Option<String>,
    /// `object-lock`.
    pub(super) lock: Option<ObjectLock>,
}

impl Options {
    pub(super) fn new(config: &S3Config) -> Self {
        Self {
            sse: config.sse.clone(),
            storage_class: config.storage_class.clone(),
            lock: config.object_lock,
        }
    }

    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        Some(match self.sse.as_ref()? {
            Sse::Aes256 => ServerSideEncryption::Aes256,
            Sse::Kms(_) => ServerSideEncryption::AwsKms,
        })
    }

    pub(super) fn kms_key(&self) -> Option<String> {
        match &self.sse {
            Some(Sse::Kms(key)) => key.clone(),
            _ => None,
        }
    }

    pub(super) fn storage_class(&self) -> Option<StorageClass> {
        self.storage_class.as_deref().map(StorageClass::from)
    }

    pub(super) fn lock_mode(&self) -> Option<ObjectLockMode> {
        Some(match self.lock?.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        })
    }

    /// Until when an object stored now is locked.
    pub(super) fn locked_until(&self, now_ms: i64) -> Option<DateTime> {
        Some(DateTime::from_millis(now_ms.saturating_add(i64::from(self.lock?.days) * DAY_MS)))
    }
}
