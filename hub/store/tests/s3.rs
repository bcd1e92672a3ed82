//! The s3 destination against a real server; `./tests/run` starts it.

use bytes::Bytes;
use futures_util::TryStreamExt;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::Class;
use walhub_common::{DatabaseKey, DestinationName, Level, PageSize, Pgno, TxidRange, clock, ltx};
use walhub_store::destinations::config::{LockMode, ObjectLock, S3Config, S3Keys, Sse};
use walhub_store::destinations::s3::S3Destination;
use walhub_store::destinations::{
    Body, Destination, DestinationError, Fault, FileKey, Put, PutMeta, contract,
};
use walhub_store::restore::{self, DestinationSource, DynSource, Piece, Target};
use walhub_store::testutil;

const BUCKET: &str = "walhub-store";

fn name() -> DestinationName {
    DestinationName::new("offsite").unwrap()
}

async fn place() -> S3Config {
    let config = testutil::s3_server(BUCKET);
    testutil::create_bucket(&config).await;
    config
}

async fn destination(config: &S3Config) -> S3Destination {
    S3Destination::build(name(), config).await.unwrap()
}

fn key() -> FileKey {
    FileKey {
        database: "node/app.db".parse().unwrap(),
        level: Level::SNAPSHOT,
        range: TxidRange::from_raw(1, 16).unwrap(),
    }
}

async fn put(destination: &S3Destination) -> Result<Put, DestinationError> {
    let meta = PutMeta { time_ms: 1_795_354_117_090, post: None };
    destination.put(&key(), Body::Bytes(Bytes::from_static(b"ltx")), meta, &CancellationToken::new()).await
}

async fn probe(config: &S3Config) -> DestinationError {
    destination(config).await.probe(&CancellationToken::new()).await.expect_err("the probe must fail")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds() {
    contract::run(Arc::new(destination(&place().await).await)).await;
}

#[tokio::test]
async fn a_whole_bucket_may_be_the_place() {
    let mut config = place().await;
    config.bucket = format!("walhub-{:08x}", rand::random::<u32>());
    config.prefix = String::new();
    testutil::create_bucket(&config).await;
    let (destination, cancel) = (destination(&config).await, CancellationToken::new());
    destination.probe(&cancel).await.unwrap();
    assert_eq!(put(&destination).await.unwrap(), Put::Created);
    assert_eq!(put(&destination).await.unwrap(), Put::AlreadyThere);
    assert_eq!(destination.list(&key().database, Level::SNAPSHOT, &cancel).await.unwrap().len(), 1);
    assert_eq!(destination.read_start(&key(), 2, &cancel).await.unwrap(), "lt");
}

#[tokio::test]
async fn objects_lie_where_litestream_looks_with_its_metadata() {
    let config = place().await;
    put(&destination(&config).await).await.unwrap();
    let keys = config.keys.clone().unwrap();
    let raw = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::config::Builder::new()
            .behavior_version_latest()
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .endpoint_url(config.endpoint.clone().unwrap())
            .force_path_style(true)
            .credentials_provider(aws_credential_types::Credentials::new(
                keys.access_key_id,
                keys.secret_access_key,
                None,
                None,
                "test",
            ))
            .build(),
    );
    let object = format!("{}/node/app.db/0009/0000000000000001-0000000000000010.ltx", config.prefix);
    let head = raw.head_object().bucket(BUCKET).key(&object).send().await.unwrap();
    assert_eq!(head.metadata().unwrap()["litestream-timestamp"], "2026-11-22T13:28:37.09Z");
    // Somebody else's object without our checksum is compared byte by byte.
    for (content, equal) in [(b"ltx", true), (b"LTX", false)] {
        raw.put_object().bucket(BUCKET).key(&object).body(content.to_vec().into()).send().await.unwrap();
        let again = put(&destination(&config).await).await;
        match (equal, again) {
            (true, Ok(Put::AlreadyThere)) => {}
            (false, Err(error)) if matches!(error.fault, Fault::Conflict(_)) => {}
            (_, again) => panic!("{again:?}"),
        }
    }
    // Names that are no LTX files, and the probe's own, are not listed; a probe leaves nothing.
    let folder = object.rsplit_once('/').unwrap().0;
    raw.put_object().bucket(BUCKET).key(format!("{folder}/notes.txt")).send().await.unwrap();
    let destination = destination(&config).await;
    let cancel = CancellationToken::new();
    destination.probe(&cancel).await.unwrap();
    assert_eq!(destination.list(&key().database, Level::SNAPSHOT, &cancel).await.unwrap().len(), 1);
    let all =
        raw.list_objects_v2().bucket(BUCKET).prefix(format!("{}/", config.prefix)).send().await.unwrap();
    assert_eq!(all.contents().len(), 2, "{all:?}");
}

#[tokio::test]
async fn wrong_credentials_and_a_missing_bucket_are_explained() {
    let mut config = place().await;
    config.bucket = "walhub-no-such-bucket".into();
    let error = probe(&config).await;
    assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
    assert!(error.to_string().contains("create the bucket"), "{error}");
    config.bucket = BUCKET.into();
    config.keys.as_mut().unwrap().secret_access_key = "wrong".into();
    let error = probe(&config).await;
    assert!(matches!(error.fault, Fault::Denied(_)), "{error}");
    assert_eq!(error.class(), Class::Permanent);
}

#[tokio::test]
async fn a_server_that_is_away_is_transient() {
    let mut config = testutil::s3_server(BUCKET);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.endpoint = Some(format!("http://{unused}"));
    let error = put(&destination(&config).await).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unavailable(_)), "{error}");
    config.endpoint = Some("http://no-such-host.invalid".into());
    let error = put(&destination(&config).await).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_locked_object_is_not_deleted_not_even_hidden() {
    let mut config = testutil::s3_server("walhub-locked");
    config.object_lock = Some(ObjectLock { mode: LockMode::Governance, days: 1 });
    testutil::create_bucket(&config).await;
    let (locked, cancel) = (destination(&config).await, CancellationToken::new());
    // This server forgets its fence in a bucket with versions (Amazon's does not); the probe notices, and leaves nothing
    // behind that would be locked.
    let refused = locked.probe(&cancel).await.unwrap_err();
    assert!(matches!(refused.fault, Fault::NoFence(_)), "{refused}");
    assert_eq!(put(&locked).await.unwrap(), Put::Created);
    let free = S3Config { object_lock: None, ..config.clone() };
    let other = FileKey { range: TxidRange::from_raw(17, 17).unwrap(), ..key() };
    let meta = PutMeta { time_ms: 0, post: None };
    let unlocked = destination(&free).await;
    unlocked.put(&other, Body::Bytes(Bytes::from_static(b"free")), meta, &cancel).await.unwrap();
    let missing = FileKey { range: TxidRange::from_raw(18, 18).unwrap(), ..key() };
    let error = locked.delete(&[key(), other, missing], &cancel).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Locked(_)), "{error}");
    assert_eq!(error.class(), Class::Permanent);
    assert!(error.to_string().contains("is locked until"), "{error}");
    let listed = locked.list(&key().database, Level::SNAPSHOT, &cancel).await.unwrap();
    assert_eq!(listed.iter().map(|file| file.range).collect::<Vec<_>>(), [key().range], "the others went");
    assert_eq!(locked.read_start(&key(), 9, &cancel).await.unwrap(), "ltx");
}

#[tokio::test]
async fn encryption_and_storage_class_are_accepted() {
    let config = S3Config { sse: Some(Sse::Aes256), storage_class: Some("STANDARD".into()), ..place().await };
    let destination = destination(&config).await;
    destination.probe(&CancellationToken::new()).await.unwrap();
    assert_eq!(put(&destination).await.unwrap(), Put::Created);
    assert_eq!(destination.read_start(&key(), 9, &CancellationToken::new()).await.unwrap(), "ltx");
}

#[tokio::test]
async fn keys_may_lie_in_a_file() {
    let mut config = place().await;
    let keys = config.keys.take().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    config.credentials_file = Some(file.clone());
    let write = |secret: &str| {
        let id = &keys.access_key_id;
        std::fs::write(
            &file,
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"),
        )
        .unwrap();
    };
    write("wrong");
    let error = probe(&config).await;
    assert!(matches!(error.fault, Fault::Denied(_)), "{error}");
    write(&keys.secret_access_key);
    destination(&config).await.probe(&CancellationToken::new()).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    let error = probe(&config).await;
    assert!(matches!(error.fault, Fault::Denied(_)), "{error}");
    assert!(error.to_string().contains("no credentials"), "{error}");
}

#[tokio::test]
async fn a_ca_file_without_certificates_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let config = S3Config { ca_file: Some(file.clone()), ..offline("https://127.0.0.1:1".into()) };
    for content in [None, Some("no certificate")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let error = S3Destination::build(name(), &config).await.unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
    }
}

fn offline(endpoint: String) -> S3Config {
    let keys = S3Keys { access_key_id: "AKIA".into(), secret_access_key: "secret".into() };
    S3Config { bucket: BUCKET.into(), endpoint: Some(endpoint), keys: Some(keys), ..S3Config::default() }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_the_outcome_is_unknown() {
    // Accepts (the kernel does), never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = offline(format!("http://{}", silent.local_addr().unwrap()));
    config.request_timeout = Some(Duration::from_millis(300));
    let began = Instant::now();
    let error = put(&destination(&config).await).await.unwrap_err();
    assert!(matches!(error.fault, Fault::TimedOut { .. }), "{error}");
    assert_eq!(error.class(), Class::Unknown);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn cancelling_ends_a_call_that_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = offline(format!("http://{}", silent.local_addr().unwrap()));
    let (destination, cancel) = (destination(&config).await, CancellationToken::new());
    let meta = PutMeta { time_ms: 0, post: None };
    let key = key();
    let putting = destination.put(&key, Body::Bytes(Bytes::new()), meta, &cancel);
    let (outcome, ()) = tokio::join!(putting, async {
        tokio::task::yield_now().await;
        cancel.cancel();
    });
    assert_eq!(outcome.unwrap_err().class(), Class::Cancelled);
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
    // As Garage and others do: every put is accepted, whatever its condition.
    let config =
        offline(canned("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    let error = probe(&config).await;
    assert!(matches!(error.fault, Fault::NoFence(_)), "{error}");
    assert_eq!(error.class(), Class::Permanent);
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}

#[tokio::test]
async fn answers_of_a_server_in_trouble_have_their_class() {
    for (answer, class) in [
        (
            "HTTP/1.1 503 Slow Down\r\nContent-Length: 87\r\nConnection: close\r\n\r\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>\n",
            Class::Throttled,
        ),
        ("HTTP/1.1 500 Internal\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Class::Transient),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
            Class::Transient,
        ),
        ("not http at all\r\n\r\n", Class::Unknown),
    ] {
        let error = put(&destination(&offline(canned(answer))).await).await.unwrap_err();
        assert_eq!(error.class(), class, "{answer:?}: {error}");
    }
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_before_any_request() {
    let no_bucket = S3Config { bucket: String::new(), ..offline("http://127.0.0.1:1".into()) };
    let no_scheme = offline("127.0.0.1:9000".into());
    for (config, word) in [(no_bucket, "bucket"), (no_scheme, "endpoint")] {
        let error = S3Destination::build(name(), &config).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Misconfigured(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// A file of one page, stamped with `time_ms`.
fn ltx(range: TxidRange, time_ms: i64) -> Bytes {
    let header = ltx::Header {
        page_size: PageSize::new(4096).unwrap(),
        commit: 1,
        range,
        timestamp_ms: time_ms,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0; 2],
        node_id: 0,
        provenance: None,
    };
    let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
    encoder.page(Pgno::FIRST, &[range.max().get() as u8; 4096]).unwrap();
    encoder.finish().unwrap().0.into()
}

#[tokio::test]
async fn a_late_upload_is_restored_by_the_time_of_its_transactions() {
    let config = place().await;
    let database: DatabaseKey = "node/late.db".parse().unwrap();
    let destination = Arc::new(destination(&config).await);
    let cancel = CancellationToken::new();
    // An hour of history, uploaded just now: every LastModified is later than every time asked for.
    let start_ms = clock::now_ms() - 3_600_000;
    let time_ms = |n: u64| start_ms + n as i64 * 60_000;
    for n in 1..=20 {
        let range = TxidRange::from_raw(n, n).unwrap();
        let key = FileKey { database: database.clone(), level: Level::RAW, range };
        let meta = PutMeta { time_ms: time_ms(n), post: None };
        destination.put(&key, Body::Bytes(ltx(range, time_ms(n))), meta, &cancel).await.unwrap();
    }
    let sources: [DynSource; 1] = [Arc::new(DestinationSource(destination))];
    for (asked_ms, reached) in [(time_ms(1), 1), (time_ms(7) + 1, 7), (time_ms(14) - 1, 13), (i64::MAX, 20)] {
        let target = Target::TimestampMs(asked_ms);
        let prepared = restore::prepare(&sources, &database, None, target, &cancel).await.unwrap();
        assert_eq!(prepared.plan.reached.get(), reached);
        assert_eq!(prepared.header.unwrap().timestamp_ms, time_ms(reached));
        let pieces = restore::fetch(&sources, &database, &prepared.plan, &cancel);
        let pieces: Vec<Piece> = pieces.try_collect().await.unwrap();
        let starts = pieces.iter().filter(|piece| matches!(piece, Piece::Start(_))).count();
        assert_eq!(starts as u64, reached);
    }
    let target = Target::TimestampMs(time_ms(1) - 1);
    let error = restore::prepare(&sources, &database, None, target, &cancel).await.unwrap_err();
    assert!(error.to_string().contains("nothing is as old as"), "{error}");
}
