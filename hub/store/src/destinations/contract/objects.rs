//! Objects that are no LTX files.

use super::{ConcatBytes, LARGE_BYTES, bytes, list, token};
use crate::destinations::{
    Body, Destination, DestinationError, Fault, ListedObject, ObjectPath, Put, PutMode, object,
};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use std::ops::Range;
use walhub_common::backoff::Class;
use walhub_common::{AgentName, DatabaseKey, DatabaseName, clock};

/// More than one page.
const MANY_OBJECTS: usize = 1_005;
/// How far the destination's clock may be from ours.
const CLOCK_MS: i64 = 10 * 60 * 1000;

pub(super) async fn run(destination: &dyn Destination) {
    any_part_of_an_object_comes_back(destination).await;
    a_created_object_is_fenced(destination).await;
    a_replaced_object_is_the_newest(destination).await;
    large_objects_are_like_small_ones(destination).await;
    one_winner_of_a_race_for_an_object(destination).await;
    pages_are_sorted_and_complete(destination).await;
    objects_are_no_files(destination).await;
    deleted_objects_are_gone(destination).await;
    a_cancelled_call_does_nothing_to_objects(destination).await;
}

/// A folder that nobody else uses.
fn fresh_folder() -> ObjectPath {
    ObjectPath::new(format!("walhub/contract/{:016x}", rand::random::<u64>())).expect("a good path")
}

fn within(folder: &ObjectPath, rest: &str) -> ObjectPath {
    folder.join(rest).expect("a good path")
}

async fn put(
    destination: &dyn Destination,
    path: &ObjectPath,
    bytes: &Bytes,
    mode: PutMode,
) -> Result<Put, DestinationError> {
    destination.put_object(path, Body::Bytes(bytes.clone()), mode, &token()).await
}

async fn create(destination: &dyn Destination, path: &ObjectPath, bytes: &Bytes) -> Put {
    put(destination, path, bytes, PutMode::Create).await.expect("puts an object")
}

async fn read(destination: &dyn Destination, path: &ObjectPath, range: Range<u64>) -> Bytes {
    let stream = destination.open_object(path, range, &token()).await.expect("opens an object");
    stream.try_concat_bytes().await.freeze()
}

async fn read_end(destination: &dyn Destination, path: &ObjectPath, count: u64) -> Bytes {
    let stream =
        destination.open_object_end(path, count, &token()).await.expect("opens the end of an object");
    stream.try_concat_bytes().await.freeze()
}

async fn page(
    destination: &dyn Destination,
    folder: &ObjectPath,
    after: Option<&ObjectPath>,
) -> Vec<ListedObject> {
    destination.list_objects(folder, after, &token()).await.expect("lists objects")
}

async fn any_part_of_an_object_comes_back(destination: &dyn Destination) {
    let (path, content) = (within(&fresh_folder(), "a.pack"), bytes(1, 2_500_001));
    let (size, missing) = (content.len(), within(&fresh_folder(), "missing"));
    create(destination, &path, &content).await;
    for range in [0..1, 0..size, 1..2, 99..1_200_000, size - 1..size] {
        let part = read(destination, &path, range.start as u64..range.end as u64).await;
        assert!(part == content.slice(range.clone()), "{range:?}");
    }
    for start in [0, 1, size - 1] {
        assert!(
            read(destination, &path, start as u64..u64::MAX).await == content.slice(start..),
            "{start}.."
        );
    }
    let size = size as u64;
    assert!(read(destination, &path, size - 5..size + 5).await == content.slice(size as usize - 5..));
    for nothing in [0..0, 7..7, size..size, size..u64::MAX, size + 1..size + 9] {
        assert!(read(destination, &path, nothing.clone()).await.is_empty(), "{nothing:?}");
    }
    for count in [1, 2, 64 * 1024, size - 1, size, size + 1, u64::from(u32::MAX)] {
        let start = size.saturating_sub(count) as usize;
        assert!(read_end(destination, &path, count).await == content.slice(start..), "the last {count}");
    }
    assert!(read_end(destination, &path, 0).await.is_empty());
    let stream = destination.open_object(&path, 5..u64::MAX, &token()).await.expect("opens");
    assert_eq!(object::collect(stream, 10).await.expect("reads"), content.slice(5..15));
    // An object without bytes has parts as well.
    let empty = within(&fresh_folder(), "empty");
    create(destination, &empty, &Bytes::new()).await;
    assert!(read(destination, &empty, 0..u64::MAX).await.is_empty());
    assert!(read_end(destination, &empty, 9).await.is_empty());
    for error in [
        destination.open_object(&missing, 0..u64::MAX, &token()).await.err(),
        destination.open_object(&missing, 3..3, &token()).await.err(),
        destination.open_object(&missing, 3..9, &token()).await.err(),
        destination.open_object_end(&missing, 9, &token()).await.err(),
        destination.open_object_end(&missing, 0, &token()).await.err(),
    ] {
        let error = error.expect("a missing object is not opened");
        assert!(matches!(error.fault, Fault::NotFound), "{error}");
    }
}

async fn a_created_object_is_fenced(destination: &dyn Destination) {
    let (path, content) = (within(&fresh_folder(), "a/b/c.json"), bytes(1, 4_000));
    assert_eq!(create(destination, &path, &content).await, Put::Created);
    assert_eq!(create(destination, &path, &content).await, Put::AlreadyThere);
    for other in [bytes(2, 4_000), bytes(1, 3_999), Bytes::new()] {
        let error =
            put(destination, &path, &other, PutMode::Create).await.expect_err("other content is refused");
        assert!(matches!(error.fault, Fault::Conflict(_)), "{error}");
    }
    assert!(read(destination, &path, 0..u64::MAX).await == content);
}

async fn a_replaced_object_is_the_newest(destination: &dyn Destination) {
    let path = within(&fresh_folder(), "state.json");
    for (seed, size) in [(1, 100), (2, 100), (3, 5_000), (4, 0), (5, 10)] {
        let content = bytes(seed, size);
        assert_eq!(
            put(destination, &path, &content, PutMode::Replace).await.expect("replaces"),
            Put::Created
        );
        assert!(read(destination, &path, 0..u64::MAX).await == content, "{seed}");
    }
    // A create-only put is fenced by a replaced object too.
    let error = put(destination, &path, &bytes(6, 10), PutMode::Create).await.expect_err("refused");
    assert!(matches!(error.fault, Fault::Conflict(_)), "{error}");
    assert_eq!(create(destination, &path, &bytes(5, 10)).await, Put::AlreadyThere);
}

async fn large_objects_are_like_small_ones(destination: &dyn Destination) {
    let (path, content) = (within(&fresh_folder(), "large.pack"), bytes(3, LARGE_BYTES));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("body");
    std::fs::write(&file, &content).expect("writes the body");
    let put_file = async |mode| {
        destination.put_object(&path, Body::File(file.clone()), mode, &token()).await.expect("puts")
    };
    assert_eq!(put_file(PutMode::Create).await, Put::Created);
    assert_eq!(put_file(PutMode::Create).await, Put::AlreadyThere);
    assert!(read_end(destination, &path, 4_096).await == content.slice(LARGE_BYTES - 4_096..));
    let other = bytes(4, LARGE_BYTES + 5);
    std::fs::write(&file, &other).expect("writes another body");
    assert_eq!(put_file(PutMode::Replace).await, Put::Created);
    assert!(read(destination, &path, 0..u64::MAX).await == other);
}

async fn one_winner_of_a_race_for_an_object(destination: &dyn Destination) {
    let path = within(&fresh_folder(), "raced");
    let contents: Vec<_> = (0..8).map(|seed| bytes(seed, 3_000)).collect();
    let racing = contents.iter().map(|content| put(destination, &path, content, PutMode::Create));
    let mut winners = Vec::new();
    for (outcome, content) in join_all(racing).await.into_iter().zip(&contents) {
        match outcome {
            Ok(Put::Created) => winners.push(content),
            Err(error) if matches!(error.fault, Fault::Conflict(_)) || error.class() == Class::Transient => {}
            other => panic!("a racer got {other:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "racers that won");
    assert!(read(destination, &path, 0..u64::MAX).await == *winners[0]);
}

async fn pages_are_sorted_and_complete(destination: &dyn Destination) {
    let folder = fresh_folder();
    assert!(page(destination, &folder, None).await.is_empty(), "an unknown folder has no objects");
    // Names around the slash in the order of bytes; a neighbour whose name only begins alike.
    let mut paths: Vec<_> = ["a-1", "a.1", "a/1", "a/1-/x", "a/1/x", "a/10", "a0", "b/deep/er/1", "z"]
        .map(|rest| within(&folder, rest))
        .into_iter()
        .chain((0..MANY_OBJECTS).map(|n| within(&folder, &format!("many/{n:016x}.pack"))))
        .collect();
    paths.retain(|path| !["a/1/x", "a/1-/x"].contains(&path.below(&folder).expect("below")));
    paths.push(within(&folder, "a/2/x"));
    paths.push(within(&folder, "a/2-"));
    let neighbour = ObjectPath::new(format!("{folder}x/1")).expect("a good path");
    create(destination, &neighbour, &bytes(1, 7)).await;
    let content = bytes(1, 7);
    let putting = paths.iter().map(|path| {
        let content = content.clone();
        async move { create(destination, path, &content).await }
    });
    let puts: Vec<_> = stream::iter(putting).buffer_unordered(16).collect().await;
    assert_eq!(puts.len(), paths.len());
    paths.sort();
    let (mut listed, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = page(destination, &folder, after.as_ref()).await;
        let Some(last) = page.last() else { break };
        assert!(page.len() <= object::PAGE_ENTRIES, "{}", page.len());
        (after, pages) = (Some(last.path.clone()), pages + 1);
        listed.extend(page);
    }
    assert!(pages >= 2);
    assert!(listed.iter().map(|object| &object.path).eq(&paths), "every path once, in order");
    assert!(listed.iter().all(|object| object.size == 7));
    let now_ms = clock::now_ms();
    assert!(listed.iter().all(|object| (object.modified_ms - now_ms).abs() < CLOCK_MS), "{:?}", listed[0]);
    // From any place, also one that holds no object.
    for start in ["Z", "a", "a.0", "a/", "a/1", "a/2", "b/deep", "many", "many/00000000000003ec.pack", "zz"] {
        let Ok(start) = folder.join(start) else { continue };
        let expected: Vec<_> = paths.iter().filter(|path| **path > start).take(3).collect();
        let page = page(destination, &folder, Some(&start)).await;
        let found: Vec<_> = page.iter().map(|object| &object.path).take(3).collect();
        assert_eq!(found, expected, "after {start}");
    }
    assert_eq!(page(destination, &within(&folder, "a"), None).await.len(), 4);
}

async fn objects_are_no_files(destination: &dyn Destination) {
    // Even where an agent chose the names of our folders.
    let folder = fresh_folder();
    let agent = AgentName::new("walhub").expect("a good name");
    let database = DatabaseKey::new(agent, DatabaseName::new("contract").expect("a good name"));
    create(destination, &within(&folder, "0000000000000001-0000000000000001.ltx"), &bytes(1, 10)).await;
    for level in 0..=9 {
        assert!(list(destination, &database, level).await.is_empty());
    }
    let databases = destination.list_databases(&token()).await.expect("lists databases");
    assert!(!databases.contains(&database), "{databases:?}");
}

async fn deleted_objects_are_gone(destination: &dyn Destination) {
    let folder = fresh_folder();
    let paths: Vec<_> = ["1", "2", "3/4"].map(|rest| within(&folder, rest)).into();
    for path in &paths {
        create(destination, path, &bytes(1, 10)).await;
    }
    let missing = within(&folder, "missing/too");
    destination
        .delete_objects(&[paths[0].clone(), missing, paths[2].clone()], &token())
        .await
        .expect("deletes");
    destination.delete_objects(&paths[..1], &token()).await.expect("deletes again");
    let left: Vec<_> = page(destination, &folder, None).await.into_iter().map(|object| object.path).collect();
    assert_eq!(left, [paths[1].clone()]);
}

async fn a_cancelled_call_does_nothing_to_objects(destination: &dyn Destination) {
    let (folder, cancelled) = (fresh_folder(), token());
    let path = within(&folder, "a");
    cancelled.cancel();
    let body = Body::Bytes(bytes(1, 100));
    let errors = [
        destination.put_object(&path, body.clone(), PutMode::Create, &cancelled).await.err(),
        destination.put_object(&path, body, PutMode::Replace, &cancelled).await.err(),
        destination.open_object(&path, 0..9, &cancelled).await.err(),
        destination.open_object_end(&path, 9, &cancelled).await.err(),
        destination.list_objects(&folder, None, &cancelled).await.err(),
        destination.delete_objects(std::slice::from_ref(&path), &cancelled).await.err(),
    ];
    for error in errors {
        assert_eq!(error.expect("a cancelled call fails").class(), Class::Cancelled);
    }
    assert!(page(destination, &folder, None).await.is_empty());
}
