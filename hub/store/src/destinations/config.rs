//! What a configuration says about one destination, as values: filled by the hub (from its file) or by hubctl (from a
//! URL), and turned into a [`DynDestination`].

use super::cloud::CloudDestination;
use super::file::{FileDestination, Memory};
use super::s3::S3Destination;
use super::{DestinationError, DynDestination};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use walhub_common::DestinationName;

/// One destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DestinationConfig {
    /// `type: file`.
    File(FileConfig),
    /// `type: s3`.
    S3(S3Config),
    /// `type: gcs`.
    Gcs(GcsConfig),
    /// `type: abs`.
    Abs(AbsConfig),
}

/// A local folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileConfig {
    /// `path`: absolute.
    pub path: PathBuf,
}

/// A bucket of Amazon S3 or of a server that speaks its protocol.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct S3Config {
    /// `bucket`.
    pub bucket: String,
    /// `path`: prefix of every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// `region`; without one the SDK's chain decides, or `us-east-1` with an endpoint.
    pub region: Option<String>,
    /// `endpoint`: `http://…` or `https://…` of a server that is not Amazon's.
    pub endpoint: Option<String>,
    /// `access-key-id` and `secret-access-key`; without them `credentials-file`, or the SDK's chain (environment, profile,
    /// instance role).
    pub keys: Option<S3Keys>,
    /// `credentials-file`: as `~/.aws/credentials`, profile `default`.
    pub credentials_file: Option<PathBuf>,
    /// `ca-file`: certificates (PEM) trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `sse` and `sse-kms-key-id`: encryption at the server.
    pub sse: Option<Sse>,
    /// `storage-class` of every object.
    pub storage_class: Option<String>,
    /// `object-lock`: every object is kept from deletion for a time.
    pub object_lock: Option<ObjectLock>,
    /// `force-path-style`: bucket in the path, not in the host name. `None`: yes with an endpoint, no without.
    pub force_path_style: Option<bool>,
    /// `checksums`. `None`: [`Checksums::WhenRequired`] with an endpoint, [`Checksums::WhenSupported`] without.
    pub checksums: Option<Checksums>,
    /// How long to wait for the answer to a request without a body worth mentioning. `None`: 30 s. Transfers get one
    /// second more per 64 KiB.
    pub request_timeout: Option<Duration>,
}

/// Static credentials. Their `Debug` text is safe to log.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Keys {
    /// `access-key-id`.
    pub access_key_id: String,
    /// `secret-access-key`.
    pub secret_access_key: String,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Keys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// Encryption at the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sse {
    /// `sse: aes256`: with keys of the store.
    Aes256,
    /// `sse: kms`: with a key of the key service; `None`: the bucket's own.
    Kms(Option<String>),
}

/// Retention of every object of a bucket with object lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectLock {
    /// `mode`.
    pub mode: LockMode,
    /// `days` after its put in which an object cannot be deleted.
    pub days: u32,
}

/// Who may lift a lock early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockMode {
    /// Whoever has a permission of its own.
    Governance,
    /// Nobody.
    Compliance,
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GcsConfig {
    /// `bucket`.
    pub bucket: String,
    /// `path`: prefix of every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// `endpoint`: `http://…` or `https://…` of a server that is not Google's.
    pub endpoint: Option<String>,
    /// `credentials-file`: key of a service account (JSON); without it the default chain (`GOOGLE_APPLICATION_CREDENTIALS`,
    /// what `gcloud` left, the machine's own account).
    pub credentials_file: Option<PathBuf>,
    /// `ca-file`: certificates (PEM) trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `storage-class` of every object.
    pub storage_class: Option<String>,
    /// See [`S3Config::request_timeout`].
    pub request_timeout: Option<Duration>,
}

/// A container of Azure Blob Storage.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AbsConfig {
    /// `bucket`: the container.
    pub bucket: String,
    /// `path`: prefix of every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// `endpoint`: of another service than `https://<account>.blob.core.windows.net`.
    pub endpoint: Option<String>,
    /// `account-name`; without it `AZURE_STORAGE_ACCOUNT_NAME`.
    pub account_name: Option<String>,
    /// `account-key`; without it the default chain (`AZURE_STORAGE_ACCOUNT_KEY`, `AZURE_CLIENT_ID` and its like, a
    /// workload's identity, the machine's own).
    pub account_key: Option<Secret>,
    /// `ca-file`: certificates (PEM) trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// `storage-class`: the access tier of every blob.
    pub storage_class: Option<String>,
    /// See [`S3Config::request_timeout`].
    pub request_timeout: Option<Duration>,
}

/// A text whose `Debug` form is safe to log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// When the SDK adds its own checksum to a request and verifies one in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksums {
    /// Only where the protocol demands it. Ceph radosgw 16 and Garage 2.5 refuse anything else.
    WhenRequired,
    /// Wherever the protocol allows it (the SDK's own default).
    WhenSupported,
}

impl DestinationConfig {
    /// `file`, `s3`, `gcs`, `abs`.
    pub fn kind(&self) -> &'static str {
        match self {
            DestinationConfig::File(_) => "file",
            DestinationConfig::S3(_) => "s3",
            DestinationConfig::Gcs(_) => "gcs",
            DestinationConfig::Abs(_) => "abs",
        }
    }

    /// Makes the destination. Sends no request to it ([`super::Destination::probe`] does); without static keys or a
    /// region the SDK may ask the machine's own metadata service.
    pub async fn build(&self, name: DestinationName) -> Result<DynDestination, DestinationError> {
        self.build_remembered(name, None).await
    }

    /// As [`DestinationConfig::build`]; a folder must be the one that `memory` knows.
    pub async fn build_remembered(
        &self,
        name: DestinationName,
        memory: Option<Arc<dyn Memory>>,
    ) -> Result<DynDestination, DestinationError> {
        match self {
            DestinationConfig::File(config) => {
                Ok(Arc::new(FileDestination::remembered(name, config, memory)))
            }
            DestinationConfig::S3(config) => Ok(Arc::new(S3Destination::build(name, config).await?)),
            DestinationConfig::Gcs(config) => Ok(Arc::new(CloudDestination::gcs(name, config)?)),
            DestinationConfig::Abs(config) => Ok(Arc::new(CloudDestination::abs(name, config)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let keys = S3Keys { access_key_id: "AKIA".into(), secret_access_key: "very-secret".into() };
        let config = DestinationConfig::S3(S3Config { keys: Some(keys), ..S3Config::default() });
        let text = format!("{config:?}");
        assert!(text.contains("AKIA") && !text.contains("very-secret"), "{text}");
    }
}
