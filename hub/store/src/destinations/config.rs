//! What a configuration says about one destination, as values: filled by the hub (from its file) or by hubctl (from a
//! URL), and turned into a [`DynDestination`].

use super::file::FileDestination;
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
    /// `access-key-id` and `secret-access-key`; without them the SDK's chain (environment, profile, instance role).
    pub keys: Option<S3Keys>,
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

/// When the SDK adds its own checksum to a request and verifies one in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksums {
    /// Only where the protocol demands it. Ceph radosgw 16 and Garage 2.5 refuse anything else.
    WhenRequired,
    /// Wherever the protocol allows it (the SDK's own default).
    WhenSupported,
}

impl DestinationConfig {
    /// `file`, `s3`.
    pub fn kind(&self) -> &'static str {
        match self {
            DestinationConfig::File(_) => "file",
            DestinationConfig::S3(_) => "s3",
        }
    }

    /// Makes the destination. Sends no request to it ([`super::Destination::probe`] does); without static keys or a
    /// region the SDK may ask the machine's own metadata service.
    pub async fn build(&self, name: DestinationName) -> Result<DynDestination, DestinationError> {
        match self {
            DestinationConfig::File(config) => Ok(Arc::new(FileDestination::new(name, config))),
            DestinationConfig::S3(config) => Ok(Arc::new(S3Destination::build(name, config).await?)),
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
