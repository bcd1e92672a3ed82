//! Real servers for tests.

use crate::destinations::config::{AbsConfig, GcsConfig, S3Config, S3Keys, Secret};
use crate::pack::{self, Footer, format};
use std::env;

/// An empty place on the S3 server that `./tests/run` started: its own prefix in the bucket `bucket`.
///
/// Panics without a server: a test that needs one fails, it is never skipped.
pub fn s3_server(bucket: &str) -> S3Config {
    S3Config {
        bucket: bucket.to_owned(),
        prefix: fresh_prefix(),
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

/// Fuzz target: the reader of packs, on the bytes as they are and as an index under a right checksum, so that the rules
/// behind it are reached as well. Panics when it breaks a promise.
pub fn fuzz_pack(data: &[u8]) {
    if let Ok(footer) = Footer::parse(data) {
        let end = footer.index_offset + footer.index_bytes;
        read_index(&footer, data.get(footer.index_offset as usize..end as usize).unwrap_or_default());
    }
    if let Some((&[files, high, low], index)) = data.split_first_chunk() {
        let offset = 8 + u64::from(u16::from_be_bytes([high, low]));
        if let Ok(footer) = Footer::parse(&format::encode_footer(offset, files.into(), index)) {
            read_index(&footer, index);
        }
    }
}

fn read_index(footer: &Footer, index: &[u8]) {
    let Ok(entries) = pack::parse_index(footer, index) else { return };
    assert_eq!(entries.len(), footer.files as usize);
    let mut offset = 8;
    for entry in &entries {
        assert_eq!(u64::from(entry.offset), offset);
        assert!(entry.length > 0 && u64::from(entry.length) <= format::MAX_FILE_BYTES);
        offset += u64::from(entry.length);
    }
    assert_eq!(offset, footer.index_offset, "files end where the index begins");
    assert!(entries.is_sorted_by(|a, b| a.key.database < b.key.database));
}

/// An empty place on the stand-in for Google Cloud Storage that `./tests/run` started, in a bucket that exists.
pub fn gcs_server(bucket: &str) -> GcsConfig {
    GcsConfig {
        bucket: bucket.to_owned(),
        prefix: fresh_prefix(),
        endpoint: Some(value("WALHUB_TEST_GCS_ENDPOINT")),
        credentials_file: Some(value("WALHUB_TEST_GCS_CREDENTIALS").into()),
        ..GcsConfig::default()
    }
}

/// An empty place in the container of the Azure emulator that `./tests/run` started.
pub fn azure_server() -> AbsConfig {
    AbsConfig {
        bucket: "walhub".to_owned(),
        prefix: fresh_prefix(),
        endpoint: Some(value("WALHUB_TEST_AZURE_ENDPOINT")),
        account_name: Some(value("WALHUB_TEST_AZURE_ACCOUNT")),
        account_key: Some(Secret(value("WALHUB_TEST_AZURE_KEY"))),
        ..AbsConfig::default()
    }
}

fn fresh_prefix() -> String {
    format!("test-{:016x}", rand::random::<u64>())
}

fn value(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs a real server; run it through ./tests/run")
    })
}
