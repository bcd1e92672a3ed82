//! Disks that are full, half full, or broken.

use super::*;
use crate::buffer::log::probe::Step;
use std::fs::OpenOptions;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Fails the steps that `fails` names while it is armed.
fn failing(
    armed: &Arc<AtomicU64>,
    fails: impl Fn(Step<'_>) -> Option<io::Error> + Send + Sync + 'static,
) -> Probe {
    let armed = Arc::clone(armed);
    Probe::new(move |step| match fails(step) {
        Some(error) if armed.load(Ordering::SeqCst) > 0 => Err(error),
        _ => Ok(()),
    })
}

async fn on_a_failing_disk(
    fails: impl Fn(Step<'_>) -> Option<io::Error> + Send + Sync + 'static,
    recovers: bool,
) {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU64::new(0));
    let buffer = open(&Options { probe: failing(&armed, fails), ..options(dir.path(), 20_000) });
    buffer.register(&key("a"), None, "/a").await.unwrap();
    let mut acked = 0;
    for _ in 0..5 {
        acked = append_next(&buffer, "a").await.unwrap().txid.get();
    }
    armed.store(1, Ordering::SeqCst);
    // Until a step that fails is reached: a new file is begun only now and then.
    let error = loop {
        match append_next(&buffer, "a").await {
            Ok(position) => acked = position.txid.get(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BufferError::Io { .. }), "{error}");
    // One behind another: the second fails with the first and not as out of order.
    let registered = buffer.find(&key("a")).unwrap();
    assert_eq!(registered.position.unwrap().txid.get(), acked);
    let first = next(registered.id, registered.position);
    let second = next(registered.id, first.position());
    let both = futures_util::future::join(
        first.append(&buffer, registered.id),
        second.append(&buffer, registered.id),
    )
    .await;
    assert!(matches!(both, (Err(BufferError::Io { .. }), Err(_))), "{both:?}");
    armed.store(0, Ordering::SeqCst);
    match append_next(&buffer, "a").await {
        Ok(position) if recovers => acked = position.txid.get(),
        Err(BufferError::Io { .. }) if !recovers => {}
        other => panic!("{other:?}"),
    }
    buffer.close().await.unwrap();
    let position = verify(&open(&options(dir.path(), 20_000)), "a");
    assert!(if recovers { position == acked } else { position >= acked }, "{position} of {acked}");
}

/// A disk that takes half of what is written before it is full.
fn half_written(step: Step<'_>) -> Option<io::Error> {
    let Step::Write { path, offset, bytes } = step else { return None };
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let garbage = vec![7; usize::try_from(bytes / 2).unwrap()];
    std::os::unix::fs::FileExt::write_all_at(&file, &garbage, offset).unwrap();
    Some(io::ErrorKind::StorageFull.into())
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers_when_space_returns() {
    let full_at: [fn(Step<'_>) -> bool; 4] = [
        |step| matches!(step, Step::Write { .. }),
        |step| matches!(step, Step::Sync(_)),
        |step| matches!(step, Step::Create(_)),
        |step| matches!(step, Step::Rename(_)),
    ];
    for full in full_at {
        on_a_failing_disk(move |step| full(step).then(|| io::ErrorKind::StorageFull.into()), true).await;
    }
}

#[tokio::test]
async fn a_half_written_group_is_cut_off_before_anything_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU64::new(0));
    let on = Arc::clone(&armed);
    let probe = Probe::new(move |step| match on.load(Ordering::SeqCst) {
        0 => Ok(()),
        _ => half_written(step).map_or(Ok(()), Err),
    });
    let buffer = open(&Options { probe, ..options(dir.path(), 1 << 20) });
    buffer.register(&key("a"), None, "/a").await.unwrap();
    append_next(&buffer, "a").await.unwrap();
    for _ in 0..3 {
        armed.store(1, Ordering::SeqCst);
        append_next(&buffer, "a").await.unwrap_err();
        armed.store(0, Ordering::SeqCst);
        append_next(&buffer, "a").await.unwrap();
    }
    let position = buffer.find(&key("a")).unwrap().position;
    drop(buffer);
    let buffer = open(&options(dir.path(), 1 << 20));
    verify(&buffer, "a");
    assert_eq!(buffer.find(&key("a")).unwrap().position, position);
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_taken_until_the_log_is_opened_anew() {
    on_a_failing_disk(|step| matches!(step, Step::Sync(_)).then(|| io::Error::other("EIO")), false).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_cut_back_takes_nothing_more() {
    let fails = |step: Step<'_>| match step {
        Step::Write { .. } => Some(io::ErrorKind::StorageFull.into()),
        Step::Truncate { .. } => Some(io::Error::other("EIO")),
        _ => None,
    };
    on_a_failing_disk(fails, false).await;
}

#[tokio::test]
async fn a_writer_that_panics_leaves_a_buffer_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU64::new(0));
    let on = Arc::clone(&armed);
    let probe = Probe::new(move |step| {
        let writes = matches!(step, Step::Write { .. });
        assert!(!writes || on.load(Ordering::SeqCst) == 0, "a bug, as the test wants it");
        Ok(())
    });
    let buffer = open(&Options { probe, ..options(dir.path(), 20_000) });
    buffer.register(&key("a"), None, "/a").await.unwrap();
    let acked = append_next(&buffer, "a").await.unwrap().txid.get();
    armed.store(1, Ordering::SeqCst);
    append_next(&buffer, "a").await.unwrap_err();
    // What the hub asks to know whether it must be started again.
    let begin = Instant::now();
    while !matches!(buffer.abandon(DatabaseId(u64::MAX)).await, Err(BufferError::Io { .. })) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it still seems to be up");
        tokio::task::yield_now().await;
    }
    let error = append_next(&buffer, "a").await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    buffer.close().await.unwrap();
    assert_eq!(verify(&open(&options(dir.path(), 20_000)), "a"), acked);
}

#[tokio::test]
async fn a_failed_registration_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU64::new(1));
    let fails = |step: Step<'_>| matches!(step, Step::Create(_)).then(|| io::ErrorKind::StorageFull.into());
    let buffer = open(&Options { probe: failing(&armed, fails), ..options(dir.path(), 20_000) });
    assert!(buffer.register(&key("a"), None, "/a").await.is_err());
    assert_eq!(buffer.find(&key("a")), None);
    armed.store(0, Ordering::SeqCst);
    let registered = buffer.register(&key("a"), None, "/a").await.unwrap();
    buffer.close().await.unwrap();
    assert_eq!(open(&options(dir.path(), 20_000)).find(&key("a")), Some(registered));
}

#[tokio::test]
async fn an_index_that_fails_while_running_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU64::new(0));
    let failures = Arc::new(AtomicU64::new(0));
    let (on, count) = (Arc::clone(&armed), Arc::clone(&failures));
    let probe = Probe::new(move |step| {
        if step != Step::FlushIndex || on.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        count.fetch_add(1, Ordering::SeqCst);
        Err(io::ErrorKind::StorageFull.into())
    });
    let buffer = open(&Options { probe, ..options(dir.path(), 30_000) });
    buffer.register(&key("a"), None, "/a").await.unwrap();
    armed.store(1, Ordering::SeqCst);
    while failures.load(Ordering::SeqCst) < 2 {
        append_next(&buffer, "a").await.unwrap();
    }
    armed.store(0, Ordering::SeqCst);
    let id = buffer.find(&key("a")).unwrap().id;
    // Until it is open again, reading may say that it is not.
    while buffer.inner.index.move_segments().is_err() || buffer.list(id, None, 1).is_err() {
        append_next(&buffer, "a").await.unwrap();
    }
    verify(&buffer, "a");
    buffer.close().await.unwrap();
    verify(&open(&options(dir.path(), 30_000)), "a");
    let folders: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        folders.iter().all(|f| !f.to_string_lossy().contains("broken")),
        "nothing was wrong with the files"
    );
}
