//! A log in which segments stand for others, or were copied: what a new index makes of it, and what a failing disk does.

use super::power_cut::append_when_there_is_room;
use super::*;
use crate::buffer::EveryDatabase;
use crate::buffer::log::probe::Step;
use crate::buffer::rewrite::Rewriter;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use walhub_common::limits::MAX_CHUNK_BYTES;

fn small(dir: &Path, probe: Probe) -> Options {
    let when_full = WhenFull::Squash;
    Options { file_bytes: 20_000, when_full, merger: Arc::new(Fold), probe, ..Options::new(dir, 300_000) }
}

/// Two databases of which nobody takes anything: `a` until it has been merged many times over, `b` a little.
async fn squashed(dir: &Path) -> DiskBuffer {
    let buffer = open(&small(dir, Probe::default()));
    for name in ["a", "b"] {
        buffer.register(&key(name), None, "/x").await.unwrap();
    }
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    for _ in 0..20 {
        append_next(&buffer, "b").await.unwrap();
    }
    for _ in 0..800 {
        append_next(&buffer, "a").await.unwrap();
    }
    buffer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_index_gives_the_same_segments() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = squashed(dir.path()).await;
    let all = |buffer: &DiskBuffer| {
        let held = |name: &str| buffer.list(buffer.find(&key(name)).unwrap().id, None, usize::MAX).unwrap();
        (held("a"), held("b"))
    };
    let before = all(&buffer);
    assert!(before.0.len() < 600 && before.1.len() == 20, "{} {}", before.0.len(), before.1.len());
    for name in ["a", "b"] {
        verify(&buffer, name);
    }
    assert!(buffer.usage().bytes <= 300_000);
    buffer.close().await.unwrap();
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    let buffer = open(&small(dir.path(), Probe::default()));
    assert_eq!(all(&buffer), before);
    // Without a word of who takes what, no room can be made.
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    for name in ["a", "b"] {
        verify(&buffer, name);
        append_next(&buffer, name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_pins_what_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = open(&Options { when_full: WhenFull::Block, ..small(dir.path(), Probe::default()) });
    for name in ["slow", "fast"] {
        buffer.register(&key(name), None, "/x").await.unwrap();
    }
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    let fast = buffer.find(&key("fast")).unwrap().id;
    for n in 0..1500 {
        if n % 100 == 0 {
            append_next(&buffer, "slow").await.unwrap();
        }
        let position = append_next(&buffer, "fast").await.unwrap();
        buffer.set_cursor(&lane(), fast, position.txid).unwrap();
        assert!(buffer.usage().bytes <= 300_000);
    }
    for _ in 0..2 {
        verify(&buffer, "slow");
        let slow = buffer.find(&key("slow")).unwrap().id;
        assert_eq!(buffer.list(slow, None, usize::MAX).unwrap().len(), 15, "each of its segments is here");
    }
    buffer.close().await.unwrap();
    let buffer = open(&small(dir.path(), Probe::default()));
    verify(&buffer, "slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_while_room_is_made_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    squashed(dir.path()).await.close().await.unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&failing);
    let probe = Probe::new(move |step| match step {
        Step::Write { .. } | Step::Create(_) if on.load(Ordering::SeqCst) => {
            Err(io::ErrorKind::StorageFull.into())
        }
        _ => Ok(()),
    });
    let buffer = open(&small(dir.path(), probe));
    buffer.trim(EveryDatabase::by(&[lane()])).await.unwrap();
    for round in 0..200 {
        failing.store(round % 10 == 9, Ordering::SeqCst);
        let appended = append_next(&buffer, "a").await;
        failing.store(false, Ordering::SeqCst);
        assert!(appended.is_ok() || round % 10 == 9, "{appended:?}");
    }
    for name in ["a", "b"] {
        verify(&buffer, name);
    }
    buffer.close().await.unwrap();
    let buffer = open(&small(dir.path(), Probe::default()));
    for name in ["a", "b"] {
        verify(&buffer, name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_of_several_chunks_that_fails_while_room_is_made_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&fails);
    let probe = Probe::new(move |step| match step {
        Step::Write { .. } if on.swap(false, Ordering::SeqCst) => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let buffer = open(&Options { probe, ..options(dir.path(), 20_000) });
    let id = buffer.register(&key("a"), None, "/a").await.unwrap().id;
    for _ in 0..3 {
        append_next(&buffer, "a").await.unwrap();
    }
    let meta = segment(None, 3, &[], 1).meta;
    for chunks_before in 0..3 {
        tokio::task::block_in_place(|| {
            let flusher = &buffer.inner.flusher;
            let mut rewriter = Rewriter::new(flusher);
            let mut sink = rewriter.segment(id, meta);
            // A full chunk goes when more comes.
            sink.write_all(&vec![7; chunks_before * MAX_CHUNK_BYTES + 1]).unwrap();
            let failures = flusher.failures();
            flusher.barrier(failures).unwrap();
            fails.store(true, Ordering::SeqCst);
            sink.write_all(&vec![7; MAX_CHUNK_BYTES]).unwrap();
            while flusher.failures() == failures {
                std::thread::yield_now();
            }
            let refused = sink.write_all(&vec![7; MAX_CHUNK_BYTES]);
            assert!(refused.is_err(), "a chunk behind one that is not in the log");
            assert!(matches!(sink.failure(), Some(BufferError::Io { .. })));
            drop(sink);
            assert!(rewriter.finish().is_err(), "not all of it is there");
        });
        append_next(&buffer, "a").await.unwrap();
    }
    let position = verify(&buffer, "a");
    buffer.close().await.unwrap();
    assert_eq!(verify(&open(&options(dir.path(), 20_000)), "a"), position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_file_without_a_start_does_not_keep_room_from_being_made() {
    let dir = tempfile::tempdir().unwrap();
    let own = small(dir.path(), Probe::default());
    let buffer = open(&own);
    buffer.register(&key("a"), Some(5), "/a").await.unwrap();
    append_next(&buffer, "a").await.unwrap();
    buffer.close().await.unwrap();
    drop(buffer);
    let newest = fs::read_dir(dir.path().join("log")).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    let blank = newest.with_file_name("0000000000000077.log");
    fs::write(&blank, [0; 3000]).unwrap();

    let buffer = open(&own);
    buffer.trim(EveryDatabase::by(&[])).await.unwrap();
    for _ in 0..200 {
        append_when_there_is_room(&buffer, "a").await;
    }
    verify(&buffer, "a");
    assert!(!blank.exists(), "nothing in it is needed");
}
