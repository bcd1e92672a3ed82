//! The keys of `type: s3`, `gcs` and `abs`.

use std::ops::RangeInclusive;
use std::time::Duration;
use walhub_common::config::{Section, value};
use walhub_store::destinations::config::{
    AbsConfig, Checksums, DestinationConfig, GcsConfig, LockMode, ObjectLock, S3Config, S3Keys, Secret, Sse,
};

const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// A century: what is locked longer was a slip of the finger.
const LOCK_DAYS: RangeInclusive<u32> = 1..=36_500;

#[derive(Clone, Copy)]
enum SseWord {
    Aes256,
    Kms,
}

/// What all of them have.
struct Common {
    bucket: Option<String>,
    prefix: String,
    endpoint: Option<String>,
    request_timeout: Option<Duration>,
    storage_class: Option<String>,
    ca_file: Option<std::path::PathBuf>,
}

fn common(item: &mut Section<'_>) -> Common {
    let bucket = item.required("bucket", value::string);
    let prefix = item.or("path", String::new(), value::string);
    let endpoint = item.optional("endpoint", |text| match text.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not an address such as https://s3.example:9000")),
    });
    Common {
        bucket,
        prefix: prefix.trim_matches('/').to_owned(),
        endpoint,
        request_timeout: item.optional("request-timeout", value::duration_in(REQUEST_TIMEOUT)),
        storage_class: item.optional("storage-class", value::string),
        ca_file: item.optional("ca-file", value::path),
    }
}

pub(super) fn s3(item: &mut Section<'_>) -> Option<DestinationConfig> {
    let Common { bucket, prefix, endpoint, request_timeout, storage_class, ca_file } = common(item);
    let region = item.optional("region", value::string);
    let force_path_style = item.optional("force-path-style", value::bool);
    let kinds = [("when-required", Checksums::WhenRequired), ("when-supported", Checksums::WhenSupported)];
    let checksums = item.optional("checksums", value::one_of(&kinds));
    let keys = keys(item);
    let credentials_file = item.optional("credentials-file", value::path);
    if keys.is_some() && credentials_file.is_some() {
        item.fault_at("credentials-file", "is of no use beside access-key-id; remove one of them");
    }
    let (sse, object_lock) = (sse(item), object_lock(item));
    Some(DestinationConfig::S3(S3Config {
        bucket: bucket?,
        prefix,
        region,
        endpoint,
        keys,
        credentials_file,
        ca_file,
        sse,
        storage_class,
        object_lock,
        force_path_style,
        checksums,
        request_timeout,
    }))
}

fn keys(item: &mut Section<'_>) -> Option<S3Keys> {
    let id = item.optional("access-key-id", value::string);
    let secret = item.optional("secret-access-key", value::string);
    match (id, secret) {
        (Some(access_key_id), Some(secret_access_key)) => Some(S3Keys { access_key_id, secret_access_key }),
        (None, None) => None,
        (Some(_), None) => {
            item.fault("has an access-key-id and no secret-access-key");
            None
        }
        (None, Some(_)) => {
            item.fault("has a secret-access-key and no access-key-id");
            None
        }
    }
}

fn sse(item: &mut Section<'_>) -> Option<Sse> {
    let word = item.optional("sse", value::one_of(&[("aes256", SseWord::Aes256), ("kms", SseWord::Kms)]));
    let key = item.optional("sse-kms-key-id", value::string);
    match (word, key) {
        (None, None) => None,
        (Some(SseWord::Aes256), None) => Some(Sse::Aes256),
        (Some(SseWord::Kms) | None, key) => Some(Sse::Kms(key)),
        (Some(SseWord::Aes256), Some(_)) => {
            item.fault_at("sse-kms-key-id", "is of no use with `sse: aes256`; write `sse: kms`");
            None
        }
    }
}

fn object_lock(item: &mut Section<'_>) -> Option<ObjectLock> {
    let mut section = item.optional_section("object-lock")?;
    let modes = [("governance", LockMode::Governance), ("compliance", LockMode::Compliance)];
    let mode = section.required("mode", value::one_of(&modes));
    let days = section.required("days", value::int_in(LOCK_DAYS));
    section.finish();
    Some(ObjectLock { mode: mode?, days: days? })
}

pub(super) fn gcs(item: &mut Section<'_>) -> Option<DestinationConfig> {
    let Common { bucket, prefix, endpoint, request_timeout, storage_class, ca_file } = common(item);
    let credentials_file = item.optional("credentials-file", value::path);
    Some(DestinationConfig::Gcs(GcsConfig {
        bucket: bucket?,
        prefix,
        endpoint,
        credentials_file,
        ca_file,
        storage_class,
        request_timeout,
    }))
}

pub(super) fn abs(item: &mut Section<'_>) -> Option<DestinationConfig> {
    let Common { bucket, prefix, endpoint, request_timeout, storage_class, ca_file } = common(item);
    let account_name = item.optional("account-name", value::string);
    let account_key = item.optional("account-key", value::string).map(Secret);
    if account_key.is_some() && account_name.is_none() {
        item.fault("has an account-key and no account-name");
    }
    Some(DestinationConfig::Abs(AbsConfig {
        bucket: bucket?,
        prefix,
        endpoint,
        account_name,
        account_key,
        ca_file,
        storage_class,
        request_timeout,
    }))
}
