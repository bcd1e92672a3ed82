//! The SDK's client, made from a configuration: on our own TLS stack, without retries of its own.

use crate::destinations::bucket::CONNECT_TIMEOUT;
use crate::destinations::config::{Checksums, S3Config};
use crate::destinations::error::{Context, Operation};
use crate::destinations::{DestinationError, Fault};
use aws_config::profile::ProfileFileCredentialsProvider;
#[expect(deprecated, reason = "see `profile`")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use std::path::Path;
use std::time::Duration;
use walhub_common::DestinationName;

/// A transfer that stands still this long has broken.
const STALLED_AFTER: Duration = Duration::from_secs(20);
/// Where servers that know no regions sign.
const DEFAULT_REGION: &str = "us-east-1";

/// Makes the client. Without static keys or a region this asks the SDK's chain.
pub(super) async fn build(name: &DestinationName, config: &S3Config) -> Result<Client, DestinationError> {
    let fault = |text: &str| {
        Context::new(name, Operation::Build, "the client").error(Fault::Misconfigured(text.to_owned()))
    };
    if config.bucket.is_empty() {
        return Err(fault("no bucket is given; set `bucket`"));
    }
    let scheme =
        config.endpoint.as_deref().map(|endpoint| endpoint.split_once("://").map(|(scheme, _)| scheme));
    if !matches!(scheme, None | Some(Some("http" | "https"))) {
        return Err(fault("`endpoint` must begin with http:// or https://"));
    }
    let http = |plain| http_client(plain, config.ca_file.as_deref()).map_err(|text| fault(&text));
    let base = sdk_config(config, scheme == Some(Some("http")), http).await?;
    if base.region().is_none() {
        return Err(fault("no region is known; set `region`"));
    }
    let custom = config.endpoint.is_some();
    let checksums =
        config.checksums.unwrap_or(if custom { Checksums::WhenRequired } else { Checksums::WhenSupported });
    let mut builder = aws_sdk_s3::config::Builder::from(&base)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled().grace_period(STALLED_AFTER).build(),
        )
        .force_path_style(config.force_path_style.unwrap_or(custom));
    builder = match checksums {
        Checksums::WhenRequired => builder
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired),
        Checksums::WhenSupported => builder
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            .response_checksum_validation(ResponseChecksumValidation::WhenSupported),
    };
    Ok(Client::from_conf(builder.build()))
}

/// Region, credentials, endpoint and HTTP client.
async fn sdk_config(
    config: &S3Config,
    plain: bool,
    http: impl Fn(bool) -> Result<SharedHttpClient, DestinationError>,
) -> Result<SdkConfig, DestinationError> {
    let region =
        config.region.clone().or_else(|| config.endpoint.as_ref().map(|_| DEFAULT_REGION.to_owned()));
    let static_keys = config.keys.as_ref().map(|keys| {
        Credentials::new(&keys.access_key_id, &keys.secret_access_key, None, None, "walhub configuration")
    });
    // The chain of credentials may itself need TLS, whatever the bucket speaks.
    let http = http(plain && (static_keys.is_some() || config.credentials_file.is_some()))?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    if let Some(endpoint) = &config.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(keys) = static_keys {
        loader = loader.credentials_provider(SharedCredentialsProvider::new(keys));
    } else if let Some(file) = &config.credentials_file {
        loader = loader.credentials_provider(SharedCredentialsProvider::new(profile(file, http)));
    }
    Ok(Box::pin(loader.load()).await)
}

/// The keys in a file such as `~/.aws/credentials`; read when they are first needed.
#[expect(
    deprecated,
    reason = "the type's new home is no dependency of ours, and only its name is deprecated"
)]
fn profile(file: &Path, http: SharedHttpClient) -> ProfileFileCredentialsProvider {
    let files = ProfileFiles::builder().with_file(ProfileFileKind::Credentials, file).build();
    let base = ProviderConfig::without_region().with_http_client(http);
    ProfileFileCredentialsProvider::builder()
        .configure(&base)
        .profile_files(files)
        .profile_name("default")
        .build()
}

fn http_client(plain: bool, ca_file: Option<&Path>) -> Result<SharedHttpClient, String> {
    let builder = aws_smithy_http_client::Builder::new();
    if plain {
        return Ok(builder.build_http());
    }
    let builder = builder.tls_provider(Provider::Rustls(CryptoMode::Ring));
    let Some(file) = ca_file else { return Ok(builder.build_https()) };
    let text = |error: &dyn std::fmt::Display| format!("`ca-file` {}: {error}", file.display());
    let pem = std::fs::read(file).map_err(|error| text(&error))?;
    // The SDK panics on bytes that are no certificates.
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(text(&"it holds no certificate"));
    }
    let trust = TrustStore::empty().with_native_roots(true).with_pem_certificate(pem);
    let context = TlsContext::builder().with_trust_store(trust).build().map_err(|error| text(&error))?;
    Ok(builder.tls_context(context).build_https())
}
