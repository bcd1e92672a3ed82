//! The gcs and abs destinations against a server each; `./tests/run` starts them.

use bytes::Bytes;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::Class;
use walhub_common::{DestinationName, Level, TxidRange};
use walhub_store::destinations::cloud::CloudDestination;
use walhub_store::destinations::config::{AbsConfig, GcsConfig, Secret};
use walhub_store::destinations::{
    Body, Destination, DestinationError, Fault, FileKey, ObjectPath, Put, PutMeta, contract,
};
use walhub_store::testutil;

fn name() -> DestinationName {
    DestinationName::new("offsite").unwrap()
}

fn gcs(config: &GcsConfig) -> CloudDestination {
    CloudDestination::gcs(name(), config).unwrap()
}

fn abs(config: &AbsConfig) -> CloudDestination {
    CloudDestination::abs(name(), config).unwrap()
}

fn key() -> FileKey {
    FileKey {
        database: "node/app.db".parse().unwrap(),
        level: Level::SNAPSHOT,
        range: TxidRange::from_raw(1, 16).unwrap(),
    }
}

async fn put(destination: &CloudDestination) -> Result<Put, DestinationError> {
    let meta = PutMeta { time_ms: 1_795_354_117_090, post: None };
    destination.put(&key(), Body::Bytes(Bytes::from_static(b"ltx")), meta, &CancellationToken::new()).await
}

async fn probe(destination: &CloudDestination) -> DestinationError {
    destination.probe(&CancellationToken::new()).await.expect_err("the probe must fail")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_gcs() {
    contract::run(Arc::new(gcs(&testutil::gcs_server("walhub")))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_azure() {
    contract::run(Arc::new(abs(&testutil::azure_server()))).await;
}

#[tokio::test]
async fn objects_lie_where_litestream_looks() {
    // Seen from the root of the bucket, below the prefix.
    let (mut google, mut azure) = (testutil::gcs_server("walhub"), testutil::azure_server());
    for destination in [gcs(&google), abs(&azure)] {
        assert_eq!(put(&destination).await.unwrap(), Put::Created);
    }
    let prefix = [std::mem::take(&mut google.prefix), std::mem::take(&mut azure.prefix)];
    for (destination, prefix) in [gcs(&google), abs(&azure)].into_iter().zip(prefix) {
        let folder = ObjectPath::new(prefix).unwrap();
        let listed = destination.list_objects(&folder, None, &CancellationToken::new()).await.unwrap();
        let paths: Vec<_> = listed.iter().map(|object| object.path.below(&folder).unwrap()).collect();
        assert_eq!(paths, ["node/app.db/ltx/9/0000000000000001-0000000000000010.ltx"]);
    }
}

#[tokio::test]
async fn a_missing_bucket_and_wrong_credentials_are_explained() {
    let nowhere = GcsConfig { bucket: "walhub-nowhere".into(), ..testutil::gcs_server("walhub") };
    let container = AbsConfig { bucket: "walhub-nowhere".into(), ..testutil::azure_server() };
    for destination in [gcs(&nowhere), abs(&container)] {
        let error = probe(&destination).await;
        assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
        assert!(error.to_string().contains("create the bucket"), "{error}");
    }
    let key = Some(Secret("d3Jvbmc=".into()));
    let error = probe(&abs(&AbsConfig { account_key: key, ..testutil::azure_server() })).await;
    assert!(matches!(error.fault, Fault::Denied(_)), "{error}");
    assert!(!error.to_string().contains("d3Jvbmc="), "{error}");
    assert_eq!(error.class(), Class::Permanent);
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_before_any_request() {
    let missing = Some("/nowhere/file".into());
    let google = GcsConfig { credentials_file: missing.clone(), ..offline_gcs("http://127.0.0.1:1".into()) };
    let error = CloudDestination::gcs(name(), &google).unwrap_err();
    assert!(error.to_string().contains("credentials-file"), "{error}");
    let azure = AbsConfig { ca_file: missing, ..offline_abs("http://127.0.0.1:1".into()) };
    let error = CloudDestination::abs(name(), &azure).unwrap_err();
    assert!(error.to_string().contains("/nowhere/file"), "{error}");
    let error = CloudDestination::gcs(name(), &GcsConfig::default()).unwrap_err();
    assert!(error.to_string().contains("bucket"), "{error}");
}

/// A service account that asks for no token.
fn open_account() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = r#"{"private_key": "x", "private_key_id": "x", "client_email": "x", "disable_oauth": true}"#;
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn offline_gcs(endpoint: String) -> GcsConfig {
    let (_, account) = open_account().keep().unwrap();
    GcsConfig {
        bucket: "walhub".into(),
        endpoint: Some(endpoint),
        credentials_file: Some(account),
        request_timeout: Some(Duration::from_millis(500)),
        ..GcsConfig::default()
    }
}

fn offline_abs(endpoint: String) -> AbsConfig {
    AbsConfig {
        bucket: "walhub".into(),
        endpoint: Some(endpoint),
        account_name: Some("walhub".into()),
        account_key: Some(Secret("c2VjcmV0".into())),
        request_timeout: Some(Duration::from_millis(500)),
        ..AbsConfig::default()
    }
}

fn both(endpoint: &str) -> [CloudDestination; 2] {
    [gcs(&offline_gcs(endpoint.to_owned())), abs(&offline_abs(endpoint.to_owned()))]
}

#[tokio::test]
async fn a_server_that_is_away_is_transient() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for destination in both(&format!("http://{unused}")) {
        let error = put(&destination).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Unavailable(_)), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_the_outcome_is_unknown() {
    // Accepts (the kernel does), never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for destination in both(&format!("http://{}", silent.local_addr().unwrap())) {
        let began = Instant::now();
        let error = put(&destination).await.unwrap_err();
        assert!(matches!(error.fault, Fault::TimedOut { .. }), "{error}");
        assert_eq!(error.class(), Class::Unknown);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

/// A server that answers everything with `answer`, one connection at a time.
fn canned(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 16 * 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_server_without_a_fence_is_refused() {
    let answer = "HTTP/1.1 201 Created\r\nETag: \"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for destination in both(&canned(answer)) {
        let error = probe(&destination).await;
        assert!(matches!(error.fault, Fault::NoFence(_)), "{error}");
    }
}

#[tokio::test]
async fn answers_of_a_server_in_trouble_have_their_class() {
    for (answer, class) in [
        ("HTTP/1.1 503 Busy\r\nContent-Length: 10\r\nConnection: close\r\n\r\nServerBusy", Class::Throttled),
        ("HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Class::Throttled),
        ("HTTP/1.1 500 Internal\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Class::Transient),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Class::Permanent),
        ("not http at all\r\n\r\n", Class::Unknown),
    ] {
        for destination in both(&canned(answer)) {
            let error = put(&destination).await.unwrap_err();
            assert_eq!(error.class(), class, "{answer:?}: {error}");
        }
    }
}
