//! sled's folder gone, cut, old, or ahead of the log.

use super::*;
use std::fs::OpenOptions;

async fn filled(dir: &Path) -> Vec<(DatabaseId, SegmentRef)> {
    let buffer = open(&options(dir, 30_000));
    for name in ["a", "b"] {
        buffer.register(&key(name), None, "/x").await.unwrap();
        for _ in 0..30 {
            append_next(&buffer, name).await.unwrap();
        }
        let id = buffer.find(&key(name)).unwrap().id;
        buffer.set_cursor(&lane(), id, Txid::new(id.0 + 6).unwrap()).unwrap();
    }
    buffer.inner.index.move_segments().unwrap();
    let all = buffer.inner.index.all();
    assert_eq!(all.len(), 60);
    buffer.close().await.unwrap();
    all
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn an_index_that_is_gone_cut_old_or_garbage_is_rebuilt_equal() {
    let dir = tempfile::tempdir().unwrap();
    let (data, old, sled) = (dir.path().join("data"), dir.path().join("old"), dir.path().join("data/sled"));
    let buffer = open(&options(&data, 30_000));
    buffer.close().await.unwrap();
    copy(&sled, &old);
    let all = filled(&data).await;
    let damages: [&dyn Fn(); 5] = [
        &|| fs::remove_dir_all(&sled).unwrap(),
        &|| fs::write(sled.join("db"), &fs::read(sled.join("db")).unwrap()[..3000]).unwrap(),
        &|| fs::write(sled.join("conf"), b"garbage").unwrap(),
        &|| {
            fs::remove_dir_all(&sled).unwrap();
            copy(&old, &sled);
        },
        &|| {},
    ];
    for (kind, damage) in damages.iter().enumerate() {
        damage();
        let buffer = open(&options(&data, 30_000));
        assert_eq!(buffer.inner.index.all(), all, "damage {kind}");
        for name in ["a", "b"] {
            verify(&buffer, name);
        }
        buffer.close().await.unwrap();
    }
    // Cursors came back from the start of a log file: older, and there.
    let buffer = open(&options(&data, 30_000));
    let cursor = buffer.cursor(&lane(), buffer.find(&key("a")).unwrap().id);
    assert_eq!(cursor.map(Txid::get), Some(7));
}

#[tokio::test]
async fn an_index_ahead_of_the_log_is_cut_back() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let files = Files::open(&dir.path().join("log"), Probe::default()).unwrap();
    let newest = files.numbers().pop().unwrap();
    let length = fs::metadata(files.path(newest)).unwrap().len();
    let file = OpenOptions::new().write(true).open(files.path(newest)).unwrap();
    file.set_len(length - 1500).unwrap();
    let buffer = open(&options(dir.path(), 30_000));
    let held = buffer.inner.index.all();
    assert!(held.len() < 60);
    for name in ["a", "b"] {
        verify(&buffer, name);
        append_next(&buffer, name).await.unwrap();
        verify(&buffer, name);
    }
}
