//! The clients, made from a configuration: on our own TLS stack, without retries of their own.

use crate::destinations::bucket::CONNECT_TIMEOUT;
use crate::destinations::config::{AbsConfig, GcsConfig};
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, Fault};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{Certificate, ClientOptions, RetryConfig};
use std::path::Path;
use walhub_common::{DestinationName, tls};

/// Without a credentials file: `GOOGLE_APPLICATION_CREDENTIALS`, what `gcloud` left, the machine's own account.
pub(super) fn gcs(
    name: &DestinationName,
    config: &GcsConfig,
) -> Result<GoogleCloudStorage, DestinationError> {
    let fault = fault(name);
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket(name, &config.bucket, "bucket")?)
        .with_retry(no_retry())
        .with_client_options(options(name, config.endpoint.as_deref(), config.ca_file.as_deref())?);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    if let Some(file) = &config.credentials_file {
        // A service account's key and what `gcloud` leaves behind are both files of this kind.
        builder = builder.with_service_account_path(file.display().to_string());
    }
    builder.build().map_err(|error| fault(format!("{error}; correct `credentials-file`")))
}

/// Without an account key: `AZURE_STORAGE_*` and `AZURE_*` of the environment, a workload's identity, the machine's own.
pub(super) fn abs(name: &DestinationName, config: &AbsConfig) -> Result<MicrosoftAzure, DestinationError> {
    let fault = fault(name);
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(bucket(name, &config.bucket, "bucket")?)
        .with_retry(no_retry())
        .with_client_options(options(name, config.endpoint.as_deref(), config.ca_file.as_deref())?);
    if let Some(endpoint) = &config.endpoint {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let plain = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(plain);
    }
    if let Some(account) = &config.account_name {
        builder = builder.with_account(account);
    }
    if let Some(key) = &config.account_key {
        builder = builder.with_access_key(&key.0);
    }
    builder.build().map_err(|error| fault(format!("{error}; correct `account-name` or `account-key`")))
}

fn fault(name: &DestinationName) -> impl Fn(String) -> DestinationError {
    let context = Context::new(name, Operation::Build, "the client");
    move |text| context.error(Fault::Misconfigured(text))
}

fn bucket<'a>(name: &DestinationName, bucket: &'a str, key: &str) -> Result<&'a str, DestinationError> {
    if bucket.is_empty() { Err(fault(name)(format!("no bucket is given; set `{key}`"))) } else { Ok(bucket) }
}

fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn options(
    name: &DestinationName,
    endpoint: Option<&str>,
    ca_file: Option<&Path>,
) -> Result<ClientOptions, DestinationError> {
    // The client takes the process's TLS stack, and panics without one.
    tls::install_provider();
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut options = ClientOptions::new()
        .with_allow_http(plain)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled();
    if let Some(file) = ca_file {
        let text =
            |error: &dyn std::fmt::Display| fault(name)(format!("`ca-file` {}: {error}", file.display()));
        let pem = std::fs::read(file).map_err(|error| text(&error))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| text(&error))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}
