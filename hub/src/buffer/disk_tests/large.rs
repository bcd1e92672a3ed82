//! Space: long logs, and what keeps a file.

use super::*;
use std::time::Duration;

#[tokio::test]
async fn an_unfinished_segment_keeps_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let buffer =
        DiskBuffer::open(Options { file_bytes: 8_000, ..Options::new(dir.path(), 100_000) }).unwrap();
    let slow = buffer.register(&key("slow"), None, "/x").await.unwrap().id;
    buffer.register(&key("fast"), None, "/x").await.unwrap();
    let made = segment(None, 1, &[700, 700, 700], 3);
    buffer.append(made.chunk(slow, 0)).await.unwrap();
    let fast = buffer.find(&key("fast")).unwrap().id;
    while append_next(&buffer, "fast").await.is_ok() {}
    buffer.set_cursor(&lane(), fast, buffer.find(&key("fast")).unwrap().position.unwrap().txid).unwrap();
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    assert_eq!(buffer.inner.files.oldest(), Some(1), "the first chunk lies there");
    buffer.abandon(slow).await.unwrap();
    // The writer hears of it behind what came before.
    while buffer.inner.flusher.oldest_open() == 1 {
        tokio::task::yield_now().await;
    }
    buffer.set_cursor(&lane(), fast, buffer.find(&key("fast")).unwrap().position.unwrap().txid).unwrap();
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    assert!(buffer.inner.files.oldest() > Some(1), "what was given up keeps nothing");
    made.append(&buffer, slow).await.unwrap();
    assert_eq!(bytes_of(&buffer, slow, &buffer.read(slow, None, 1).unwrap()[0]), made.bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_of_small_segments_opens_fast() {
    const DATABASES: u64 = 200;
    const EACH: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let buffer = open(&options(dir.path(), 64 << 20));
    let mut positions = Vec::new();
    for n in 0..DATABASES {
        positions.push((buffer.register(&key(&format!("d{n}")), None, "/x").await.unwrap().id, None));
    }
    for _ in 0..EACH / 10 {
        let mut waiting = Vec::new();
        for (id, position) in &mut positions {
            for _ in 0..10 {
                let max = position.map_or(1, |p: Pos| p.txid.get() + 1);
                let made = segment(*position, max, &[300], id.0);
                *position = made.position();
                waiting.push(buffer.append(made.chunk(*id, 0)));
            }
        }
        for appended in futures_util::future::join_all(waiting).await {
            appended.unwrap();
        }
    }
    buffer.close().await.unwrap();
    let started = std::time::Instant::now();
    let buffer = open(&options(dir.path(), 64 << 20));
    let elapsed = started.elapsed();
    assert_eq!(buffer.list(positions[7].0, None, usize::MAX).unwrap().len() as u64, EACH);
    assert!(buffer.databases().iter().all(|d| d.position.unwrap().txid.get() == EACH));
    assert!(elapsed < Duration::from_secs(5), "unoptimised, and yet {elapsed:?} is too long");
}
