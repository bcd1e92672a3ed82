//! Real servers for tests.

use crate::destinations::config::{S3Config, S3Keys};
use std::env;

/// An empty place on the S3 server that `./tests/run` started: its own prefix in the bucket `bucket`.
///
/// Panics without a server: a test that needs one fails, it is never skipped.
pub fn s3_server(bucket: &str) -> S3Config {
    let value = |name: &str| {
        env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: this test needs a real S3 server; run it through ./tests/run")
        })
    };
    S3Config {
        bucket: bucket.to_owned(),
        prefix: format!("test-{:016x}", rand::random::<u64>()),
        endpoint: Some(value("WALHUB_TEST_S3_ENDPOINT")),
        keys: Some(S3Keys {
            access_key_id: value("WALHUB_TEST_S3_ACCESS_KEY"),
            secret_access_key: value("WALHUB_TEST_S3_SECRET_KEY"),
        }),
        ..S3Config::default()
    }
}

/// Makes the bucket of `config` unless it is there.
pub async fn create_bucket(config: &S3Config) {
    crate::destinations::s3::create_bucket(config).await.expect("the bucket can be made");
}
