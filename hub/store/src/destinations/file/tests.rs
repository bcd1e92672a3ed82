//! What only a folder can get wrong; the rest is in the contract.

use super::walk::unix_ms;
use super::*;
use crate::destinations::{Fault, contract};
use std::fs;
use std::path::Path;
use walhub_common::TxidRange;

fn destination(path: &Path) -> FileDestination {
    FileDestination::new(DestinationName::new("disk").unwrap(), &FileConfig { path: path.to_owned() })
}

fn key(min: u64) -> FileKey {
    FileKey {
        database: "node/app.db".parse().unwrap(),
        level: Level::RAW,
        range: TxidRange::from_raw(min, min).unwrap(),
    }
}

async fn put(destination: &FileDestination, min: u64) -> Result<Put, DestinationError> {
    let meta = PutMeta { time_ms: 1_795_354_117_090, post: None };
    destination.put(&key(min), Body::Bytes(Bytes::from_static(b"ltx")), meta, &CancellationToken::new()).await
}

fn tree(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            names.push(entry.path().strip_prefix(root).unwrap().display().to_string());
        }
    }
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds() {
    let folder = tempfile::tempdir().unwrap();
    contract::run(Arc::new(destination(&folder.path().join("made/by/the/probe")))).await;
    assert!(!tree(folder.path()).iter().any(|name| name.ends_with(".tmp")), "temporary files stay behind");
}

#[tokio::test]
async fn the_layout_is_litestreams() {
    let folder = tempfile::tempdir().unwrap();
    put(&destination(folder.path()), 10).await.unwrap();
    let file = "node/app.db/ltx/0/000000000000000a-000000000000000a.ltx";
    assert_eq!(tree(folder.path()), ["node", "node/app.db", "node/app.db/ltx", "node/app.db/ltx/0", file]);
    let modified = fs::metadata(folder.path().join(file)).unwrap().modified().unwrap();
    assert_eq!(unix_ms(modified), 1_795_354_117_090);
    let listed = destination(folder.path())
        .list(&key(1).database, Level::RAW, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(listed[0].time_ms, 1_795_354_117_090);
}

#[tokio::test]
async fn a_probe_leaves_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    destination(folder.path()).probe(&CancellationToken::new()).await.unwrap();
    assert!(tree(folder.path()).is_empty());
}

#[tokio::test]
async fn unknown_names_are_ignored_and_unfinished_files_removed() {
    let folder = tempfile::tempdir().unwrap();
    put(&destination(folder.path()), 1).await.unwrap();
    let level = folder.path().join("node/app.db/ltx/0");
    let stale = level.join("0000000000000002-0000000000000002.ltx.0123456789abcdef.tmp");
    fs::write(&stale, "half").unwrap();
    for name in
        ["notes.txt", "0000000000000003-0000000000000003.ltx.tmp", "0000000000000005-0000000000000004.ltx"]
    {
        fs::write(level.join(name), "x").unwrap();
    }
    fs::create_dir(level.join("0000000000000009-0000000000000009.ltx")).unwrap();
    // A new process: the first put into a folder cleans it.
    let again = destination(folder.path());
    let cancel = CancellationToken::new();
    assert_eq!(again.list(&key(1).database, Level::RAW, &cancel).await.unwrap().len(), 1);
    put(&again, 2).await.unwrap();
    assert!(!stale.exists());
    assert!(level.join("notes.txt").exists());
    assert_eq!(again.list(&key(1).database, Level::RAW, &cancel).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_folder_that_is_gone_is_not_made_again_by_a_put() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("disk");
    let destination = destination(&root);
    destination.probe(&CancellationToken::new()).await.unwrap();
    put(&destination, 1).await.unwrap();
    fs::remove_dir_all(&root).unwrap();
    let error = put(&destination, 2).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
    assert!(error.to_string().contains("is its disk mounted?"), "{error}");
    let error = destination.list(&key(1).database, Level::RAW, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Gone(_)), "{error}");
    assert!(!root.exists());
}

#[tokio::test]
async fn a_folder_removed_below_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let destination = destination(folder.path());
    put(&destination, 1).await.unwrap();
    fs::remove_dir_all(folder.path().join("node")).unwrap();
    assert_eq!(put(&destination, 2).await.unwrap(), Put::Created);
}

#[tokio::test]
async fn a_path_that_is_no_folder_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let cancel = CancellationToken::new();
    let error = destination(&file).probe(&cancel).await.unwrap_err();
    assert!(error.to_string().contains("cannot probe"), "{error}");
    let error = destination(Path::new("relative")).probe(&cancel).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Misconfigured(_)), "{error}");
}
