//! The suite that every destination must pass, against its real server. Each case takes a database of its own, so that
//! cases may run side by side and again in the same place.

mod deletions;
mod objects;

use super::{Body, Destination, DestinationError, DynDestination, Fault, FileKey, Listed, Put, PutMeta};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio_util::sync::CancellationToken;
use walhub_common::backoff::Class;
use walhub_common::{AgentName, Checksum, DatabaseKey, DatabaseName, Level, TxidRange};

/// Above every limit at which a destination may change its way of storing.
const LARGE_BYTES: usize = 20 * 1024 * 1024 + 1;
/// More than one page of any listing.
const MANY_FILES: u64 = 1_005;
const TIME_MS: i64 = 1_795_354_117_090;

/// Runs every case. Panics, with the case in the message, where the destination breaks the contract.
pub async fn run(destination: DynDestination) {
    let destination = &*destination;
    probe_leaves_nothing(destination).await;
    what_was_put_comes_back(destination).await;
    sizes_around_the_limits(destination).await;
    an_equal_file_is_success_and_another_is_a_conflict(destination).await;
    large_files_come_from_disk(destination).await;
    one_winner_of_a_race(destination).await;
    equal_racers_all_succeed(destination).await;
    listings_are_sorted_and_separate(destination).await;
    listings_have_no_end_in_the_middle(destination).await;
    what_is_missing_is_said_to_be_missing(destination).await;
    a_cancelled_call_does_nothing(destination).await;
    cancelling_in_the_middle_leaves_nothing_half(destination).await;
    deletions::run(destination).await;
    objects::run(destination).await;
}

fn token() -> CancellationToken {
    CancellationToken::new()
}

/// A database that nobody else uses.
pub fn fresh_database() -> DatabaseKey {
    let name = |text: String| DatabaseName::new(text).expect("a good name");
    DatabaseKey::new(
        AgentName::new("contract").expect("a good name"),
        name(format!("{:016x}.db", rand::random::<u64>())),
    )
}

fn key(database: &DatabaseKey, level: u8, min: u64, max: u64) -> FileKey {
    FileKey {
        database: database.clone(),
        level: Level::new(level).expect("a level"),
        range: TxidRange::from_raw(min, max).expect("a range"),
    }
}

fn meta() -> PutMeta {
    PutMeta { time_ms: TIME_MS, post: Checksum::new(0x8000_0000_0000_1234) }
}

fn bytes(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

async fn put(destination: &dyn Destination, key: &FileKey, bytes: &Bytes) -> Result<Put, DestinationError> {
    destination.put(key, Body::Bytes(bytes.clone()), meta(), &token()).await
}

async fn read(destination: &dyn Destination, key: &FileKey, offset: u64) -> Bytes {
    let stream = destination.open(key, offset, &token()).await.expect("opens");
    let all: BytesMut = stream.try_concat_bytes().await;
    all.freeze()
}

trait ConcatBytes {
    async fn try_concat_bytes(self) -> BytesMut;
}

impl<S: futures_util::Stream<Item = Result<Bytes, DestinationError>> + Unpin> ConcatBytes for S {
    async fn try_concat_bytes(mut self) -> BytesMut {
        let mut all = BytesMut::new();
        while let Some(piece) = self.try_next().await.expect("reads to the end") {
            all.extend_from_slice(&piece);
        }
        all
    }
}

async fn list(destination: &dyn Destination, database: &DatabaseKey, level: u8) -> Vec<Listed> {
    let level = Level::new(level).expect("a level");
    let listed = destination.list(database, level, &token()).await.expect("lists");
    let mut all = destination.list_all(database, &token()).await.expect("lists all levels");
    assert!(all.is_sorted_by_key(|file| (file.level, file.range)), "{all:?}");
    all.retain(|file| file.level == level);
    assert_eq!(all, listed, "the level among all");
    listed
}

async fn probe_leaves_nothing(destination: &dyn Destination) {
    destination.probe(&token()).await.expect("the probe passes");
    destination.probe(&token()).await.expect("the probe passes again");
}

async fn what_was_put_comes_back(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(1, 3_000_001));
    let key = key(&database, 0, 1, 7);
    assert_eq!(put(destination, &key, &content).await.expect("puts"), Put::Created);
    for offset in [0, 1, 99, 2_999_999, 3_000_000] {
        assert!(read(destination, &key, offset as u64).await == content.slice(offset..), "from {offset}");
    }
    for behind in [3_000_001, 3_000_002, u64::from(u32::MAX)] {
        assert!(read(destination, &key, behind).await.is_empty(), "from {behind}");
    }
    let start = destination.read_start(&key, 100, &token()).await.expect("reads the start");
    assert_eq!(start, content.slice(..100));
    let all = destination.read_start(&key, 4_000_000, &token()).await.expect("reads past the end");
    assert!(all == content);
    for (range, expected) in
        [(7..9, 7..9), (2_999_990..4_000_000, 2_999_990..3_000_001), (1..2_000_000, 1..2_000_000)]
    {
        let part = destination.read_at(&key, range, &token()).await.expect("reads a part");
        assert!(part == content.slice(expected.clone()), "{expected:?}");
    }
}

async fn sizes_around_the_limits(destination: &dyn Destination) {
    let database = fresh_database();
    const MIB: usize = 1024 * 1024;
    for (min, size) in (1..).zip([0, 1, MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB]) {
        let (key, content) = (key(&database, 0, min, min), bytes(min, size));
        assert_eq!(put(destination, &key, &content).await.expect("puts"), Put::Created, "{size}");
        assert!(read(destination, &key, 0).await == content, "{size}");
        assert_eq!(put(destination, &key, &content).await.expect("puts again"), Put::AlreadyThere, "{size}");
    }
    let sizes: Vec<_> = list(destination, &database, 0).await.iter().map(|file| file.size as usize).collect();
    assert_eq!(sizes, [0, 1, MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB]);
}

async fn an_equal_file_is_success_and_another_is_a_conflict(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(1, 5_000));
    let key = key(&database, 0, 1, 1);
    assert_eq!(put(destination, &key, &content).await.expect("puts"), Put::Created);
    assert_eq!(put(destination, &key, &content).await.expect("puts again"), Put::AlreadyThere);
    for other in [bytes(2, 5_000), bytes(1, 4_999), bytes(1, 5_001), Bytes::new()] {
        let error = put(destination, &key, &other).await.expect_err("another content is refused");
        assert!(matches!(error.fault, Fault::Conflict(_)), "{error}");
        assert_eq!(error.class(), Class::Permanent);
        assert!(error.to_string().contains(destination.name().as_str()), "{error}");
    }
    assert!(read(destination, &key, 0).await == content, "the first content stays");
    assert_eq!(list(destination, &database, 0).await.len(), 1);
}

async fn large_files_come_from_disk(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(3, LARGE_BYTES));
    let key = key(&database, 9, 1, 40);
    let folder = tempfile::tempdir().expect("a folder");
    let (path, other) = (folder.path().join("body"), folder.path().join("other"));
    std::fs::write(&path, &content).expect("writes the body");
    let mut changed = content.to_vec();
    changed[LARGE_BYTES / 2] ^= 1;
    std::fs::write(&other, &changed).expect("writes the other body");
    let put = async |path: &std::path::Path| {
        destination.put(&key, Body::File(path.to_owned()), meta(), &token()).await
    };
    assert_eq!(put(&path).await.expect("puts"), Put::Created);
    assert_eq!(put(&path).await.expect("puts again"), Put::AlreadyThere);
    let error = put(&other).await.expect_err("one changed bit is a conflict");
    assert!(matches!(error.fault, Fault::Conflict(_)), "{error}");
    assert!(path.exists(), "the body is not taken away");
    assert!(read(destination, &key, 0).await == content);
    let error = put(&folder.path().join("missing")).await.expect_err("a missing body");
    assert!(matches!(error.fault, Fault::Body(_)), "{error}");
}

async fn one_winner_of_a_race(destination: &dyn Destination) {
    let database = fresh_database();
    let key = key(&database, 0, 1, 1);
    let contents: Vec<_> = (0..16).map(|seed| bytes(seed, 10_000)).collect();
    let outcomes = join_all(contents.iter().map(|content| put(destination, &key, content))).await;
    let mut winners = Vec::new();
    for (outcome, content) in outcomes.into_iter().zip(&contents) {
        match outcome {
            Ok(Put::Created) => winners.push(content),
            Err(error) if matches!(error.fault, Fault::Conflict(_)) => {}
            // A server may ask one of two that meet to try again.
            Err(error) if error.class() == Class::Transient => {}
            other => panic!("a racer got {other:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "racers that won");
    assert!(read(destination, &key, 0).await == *winners[0], "the winner's content lies there");
}

async fn equal_racers_all_succeed(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(9, 10_000));
    let key = key(&database, 0, 1, 1);
    let outcomes = join_all((0..8).map(|_| put(destination, &key, &content))).await;
    let created = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Put::Created))).count();
    assert_eq!(created, 1, "{outcomes:?}");
    for outcome in outcomes {
        assert!(outcome.as_ref().err().is_none_or(|error| error.class() == Class::Transient), "{outcome:?}");
    }
}

async fn listings_are_sorted_and_separate(destination: &dyn Destination) {
    let (database, neighbour) = (fresh_database(), fresh_database());
    // The same name, but for one more letter: no prefix may run over into it.
    let longer = DatabaseName::new(format!("{}x", database.name)).expect("a good name");
    let longer = DatabaseKey::new(database.agent.clone(), longer);
    assert!(list(destination, &database, 0).await.is_empty(), "an unknown database has no files");
    for (database, level, min, max) in [
        (&database, 0, 16, 16),
        (&database, 0, 2, 15),
        (&database, 0, 1, 1),
        (&database, 0, 2, 9),
        (&database, 1, 1, 16),
        (&longer, 0, 3, 3),
        (&neighbour, 0, 4, 4),
    ] {
        put(destination, &key(database, level, min, max), &bytes(min, 200)).await.expect("puts");
    }
    let listed = list(destination, &database, 0).await;
    let ranges: Vec<_> = listed.iter().map(|file| (file.range.min().get(), file.range.max().get())).collect();
    assert_eq!(ranges, [(1, 1), (2, 9), (2, 15), (16, 16)]);
    assert!(listed.iter().all(|file| file.level == Level::RAW && file.size == 200));
    assert_eq!(list(destination, &database, 1).await.len(), 1);
    assert!(list(destination, &database, 9).await.is_empty());
}

async fn listings_have_no_end_in_the_middle(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(1, 100));
    let putting = (1..=MANY_FILES).map(|n| {
        let (key, content) = (key(&database, 0, n, n), content.clone());
        async move { put(destination, &key, &content).await.expect("puts") }
    });
    let puts: Vec<_> = stream::iter(putting).buffer_unordered(16).collect().await;
    assert_eq!(puts.len() as u64, MANY_FILES);
    let listed = list(destination, &database, 0).await;
    assert_eq!(listed.len() as u64, MANY_FILES);
    assert!(listed.iter().zip(1..).all(|(file, n)| file.range.min().get() == n));
}

async fn what_is_missing_is_said_to_be_missing(destination: &dyn Destination) {
    let key = key(&fresh_database(), 0, 1, 1);
    let Err(error) = destination.open(&key, 0, &token()).await else { panic!("opened what is not there") };
    assert!(matches!(error.fault, Fault::NotFound), "{error}");
    let error = destination.read_start(&key, 100, &token()).await.expect_err("nothing to read");
    assert!(matches!(error.fault, Fault::NotFound), "{error}");
}

async fn a_cancelled_call_does_nothing(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(1, 100));
    let (key, cancelled) = (key(&database, 0, 1, 1), token());
    cancelled.cancel();
    let errors = [
        destination.put(&key, Body::Bytes(content), meta(), &cancelled).await.err(),
        destination.list(&database, Level::RAW, &cancelled).await.err(),
        destination.open(&key, 0, &cancelled).await.err(),
        destination.read_start(&key, 100, &cancelled).await.err(),
        destination.probe(&cancelled).await.err(),
        destination.delete(std::slice::from_ref(&key), &cancelled).await.err(),
        destination.list_databases(&cancelled).await.err(),
    ];
    for error in errors {
        assert_eq!(error.expect("a cancelled call fails").class(), Class::Cancelled);
    }
    assert!(list(destination, &database, 0).await.is_empty());
}

async fn cancelling_in_the_middle_leaves_nothing_half(destination: &dyn Destination) {
    let (database, content) = (fresh_database(), bytes(4, LARGE_BYTES));
    for number in 1..=8_u64 {
        let (key, cancel) = (key(&database, 0, number, number), token());
        let putting = destination.put(&key, Body::Bytes(content.clone()), meta(), &cancel);
        let cancelling = async {
            tokio::time::sleep(std::time::Duration::from_millis(number * number * 3)).await;
            cancel.cancel();
        };
        let (outcome, ()) = tokio::join!(putting, cancelling);
        if let Err(error) = outcome {
            assert_eq!(error.class(), Class::Cancelled, "{error}");
        }
        // Whatever happened, a second attempt finds a clean place or the whole file.
        put(destination, &key, &content).await.expect("puts after a cancelled attempt");
        assert!(read(destination, &key, 0).await == content);
    }
    assert!(list(destination, &database, 0).await.iter().all(|file| file.size == LARGE_BYTES as u64));
}
