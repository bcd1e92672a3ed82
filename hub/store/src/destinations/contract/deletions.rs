//! Deleting files, and who has files here.

use super::{bytes, fresh_database, key, list, put, read, token};
use crate::destinations::{Destination, Fault, FileKey, Put};

/// More than one request deletes.
const MANY_FILES: u64 = 1_003;

pub(super) async fn run(destination: &dyn Destination) {
    what_was_deleted_is_gone_and_nothing_else(destination).await;
    what_is_not_there_is_deleted_with_success(destination).await;
    many_go_in_one_call(destination).await;
    a_database_is_listed_while_it_has_a_file(destination).await;
}

async fn delete(destination: &dyn Destination, keys: &[FileKey]) {
    destination.delete(keys, &token()).await.expect("deletes");
}

async fn what_was_deleted_is_gone_and_nothing_else(destination: &dyn Destination) {
    let database = fresh_database();
    let keys: Vec<_> = (1..=5).map(|n| key(&database, 0, n, n)).chain([key(&database, 9, 1, 5)]).collect();
    for (key, n) in keys.iter().zip(0..) {
        put(destination, key, &bytes(n, 300)).await.expect("puts");
    }
    delete(destination, &[keys[1].clone(), keys[3].clone()]).await;
    let left: Vec<_> =
        list(destination, &database, 0).await.iter().map(|file| file.range.min().get()).collect();
    assert_eq!(left, [1, 3, 5]);
    assert_eq!(list(destination, &database, 9).await.len(), 1);
    let Err(error) = destination.open(&keys[1], 0, &token()).await else { panic!("opened a deleted file") };
    assert!(matches!(error.fault, Fault::NotFound), "{error}");
    assert!(read(destination, &keys[2], 0).await == bytes(2, 300));
    // The name is free again.
    assert_eq!(put(destination, &keys[1], &bytes(77, 10)).await.expect("puts"), Put::Created);
    assert!(read(destination, &keys[1], 0).await == bytes(77, 10));
}

async fn what_is_not_there_is_deleted_with_success(destination: &dyn Destination) {
    let database = fresh_database();
    delete(destination, &[]).await;
    delete(destination, &[key(&database, 0, 1, 1), key(&database, 3, 1, 9)]).await;
    let there = key(&database, 0, 2, 2);
    put(destination, &there, &bytes(1, 10)).await.expect("puts");
    delete(destination, &[key(&database, 0, 1, 1), there.clone(), key(&database, 0, 3, 3)]).await;
    delete(destination, &[there]).await;
    assert!(list(destination, &database, 0).await.is_empty());
}

async fn many_go_in_one_call(destination: &dyn Destination) {
    let database = fresh_database();
    let there = [1, MANY_FILES / 2, MANY_FILES];
    for n in there {
        put(destination, &key(&database, 0, n, n), &bytes(n, 10)).await.expect("puts");
    }
    let all: Vec<_> = (1..=MANY_FILES).map(|n| key(&database, 0, n, n)).collect();
    delete(destination, &all).await;
    assert!(list(destination, &database, 0).await.is_empty());
}

async fn a_database_is_listed_while_it_has_a_file(destination: &dyn Destination) {
    // One has many files, so that whoever pages through all of them would need long; one has no raw files at all.
    let (first, second, third) = (fresh_database(), fresh_database(), fresh_database());
    for (key, n) in [key(&first, 0, 1, 1), key(&first, 0, 2, 2), key(&second, 9, 1, 1), key(&third, 1, 1, 1)]
        .iter()
        .zip(0..)
    {
        put(destination, key, &bytes(n, 10)).await.expect("puts");
    }
    let listed = async || destination.list_databases(&token()).await.expect("lists databases");
    let before = listed().await;
    assert!(before.is_sorted(), "{before:?}");
    for database in [&first, &second, &third] {
        assert_eq!(before.iter().filter(|listed| *listed == database).count(), 1, "{database}");
    }
    delete(destination, &[key(&second, 9, 1, 1)]).await;
    let after = listed().await;
    assert!(!after.contains(&second) && after.contains(&first) && after.contains(&third), "{after:?}");
}
