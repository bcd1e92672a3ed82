//! The whole buffer after crashes: power cuts at every kind of step, failing disks, damaged indexes, kill -9.

use super::*;
use crate::buffer::contract::{Made, bytes_of, segment};
use crate::buffer::log::probe::{Probe, Step};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use walhub_common::Pos;

const LARGE: u64 = 1 << 30;

fn options(dir: &Path, file_bytes: u64) -> Options {
    Options { file_bytes, ..Options::new(dir, LARGE) }
}

fn open(options: &Options) -> DiskBuffer {
    DiskBuffer::open(options.clone()).unwrap()
}

fn key(name: &str) -> DatabaseKey {
    format!("node/{name}").parse().unwrap()
}

fn lane() -> DestinationName {
    DestinationName::new("disk").unwrap()
}

/// The next segment of a database: anyone can make it again from the position before it.
fn next(id: DatabaseId, position: Option<Pos>) -> Made {
    let min = position.map_or(1, |p| p.txid.get() + 1);
    let sizes = [[300, 0, 0], [20, 500, 0], [5000, 70, 2000]][usize::try_from(min % 3).unwrap()];
    segment(position, min + min % 2, &sizes[..=usize::try_from(min % 3).unwrap()], id.0 * 1000 + min)
}

/// Every segment held is what was appended, without a hole, up to the position; gives the TXID of that.
fn verify(buffer: &DiskBuffer, name: &str) -> u64 {
    let registered = buffer.find(&key(name)).unwrap();
    let (mut position, mut made) = (None, HashMap::new());
    while position.map(|p: Pos| p.txid) < registered.position.map(|p| p.txid) {
        let segment = next(registered.id, position);
        position = segment.position();
        made.insert(segment.meta.range, segment);
    }
    assert_eq!(position, registered.position);
    let held = buffer.list(registered.id, None, usize::MAX).unwrap();
    for pair in held.windows(2) {
        assert!(pair[1].meta.range.follows(Some(pair[0].meta.range.max())), "a hole in {name}");
    }
    assert_eq!(held.last().map(|s| s.meta.range.max()), registered.position.map(|p| p.txid));
    for segment in &held {
        let made = &made[&segment.meta.range];
        assert_eq!(segment.meta, made.meta);
        assert_eq!(bytes_of(buffer, registered.id, segment), made.bytes());
    }
    position.map_or(0, |p| p.txid.get())
}

async fn append_next(buffer: &DiskBuffer, name: &str) -> Result<Pos, BufferError> {
    let registered = buffer.find(&key(name)).unwrap();
    let made = next(registered.id, registered.position);
    made.append(buffer, registered.id).await?;
    Ok(made.position().unwrap())
}

/// An image of the data folder as a power cut could leave it: of every log file, sectors behind the synced end are there
/// or not, each for itself.
struct PowerCut {
    from: PathBuf,
    to: PathBuf,
    synced: HashMap<PathBuf, u64>,
    countdown: u64,
    rng: StdRng,
    taken: Option<u64>,
    acked: Arc<AtomicU64>,
}

impl PowerCut {
    fn at(&mut self, step: Step<'_>) {
        if let Step::Synced { path, end } = step {
            self.synced.insert(path.to_owned(), end);
        }
        if self.taken.is_none() {
            self.countdown -= 1;
            if self.countdown == 0 {
                self.taken = Some(self.acked.load(Ordering::SeqCst));
                self.image();
            }
        }
    }

    fn image(&mut self) {
        fs::create_dir_all(self.to.join("log")).unwrap();
        for entry in fs::read_dir(self.from.join("log")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let synced = usize::try_from(self.synced.get(&path).copied().unwrap_or(0)).unwrap();
            for sector in (synced / 512 * 512..bytes.len()).step_by(512) {
                if self.rng.random() {
                    let end = (sector + 512).min(bytes.len());
                    bytes[sector.max(synced)..end].fill(0);
                }
            }
            // A name that was not synced may be missing, and then nothing in the file was acknowledged.
            if synced > 0 || self.rng.random() {
                fs::write(self.to.join("log").join(path.file_name().unwrap()), bytes).unwrap();
            }
        }
        self.sled();
    }

    /// sled's files: as they are, cut off, or gone.
    fn sled(&mut self) {
        let to = self.to.join("sled");
        let kind = self.rng.random_range(0..3);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(self.from.join("sled")).into_iter().flatten() {
            let path = entry.unwrap().path();
            let Ok(mut bytes) = fs::read(&path) else { continue };
            if kind == 1 {
                bytes.truncate(self.rng.random_range(0..=bytes.len()));
            }
            if kind < 2 {
                fs::write(to.join(path.file_name().unwrap()), bytes).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_at_any_step_loses_nothing_that_was_acknowledged() {
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let acked = Arc::new(AtomicU64::new(0));
        let cut = PowerCut {
            from: from.clone(),
            to: to.clone(),
            synced: HashMap::new(),
            countdown: 12 + round * 5,
            rng: StdRng::seed_from_u64(round),
            taken: None,
            acked: Arc::clone(&acked),
        };
        let cut = Arc::new(Mutex::new(cut));
        let seen = Arc::clone(&cut);
        let probe = Probe::new(move |step| {
            seen.lock().unwrap().at(step);
            Ok(())
        });
        let buffer = open(&Options { probe, ..options(&from, 40_000) });
        buffer.register(&key("a"), Some(5), "/a").await.unwrap();
        while cut.lock().unwrap().taken.is_none() {
            let position = append_next(&buffer, "a").await.unwrap();
            acked.store(position.txid.get(), Ordering::SeqCst);
        }
        let at_the_cut = cut.lock().unwrap().taken.unwrap();
        let after = open(&options(&to, 40_000));
        let position = verify(&after, "a");
        assert!(position >= at_the_cut, "round {round}: {position} of {at_the_cut}");
        append_next(&after, "a").await.unwrap();
        after.close().await.unwrap();
        verify(&open(&options(&to, 40_000)), "a");
    }
}

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

fn copy(from: &Path, to: &Path) {
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
}

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
    buffer.trim(&[lane()]).await.unwrap();
    assert_eq!(buffer.inner.files.oldest(), Some(1), "the first chunk lies there");
    buffer.abandon(slow).await.unwrap();
    // The writer hears of it behind what came before.
    while buffer.inner.flusher.oldest_open() == 1 {
        tokio::task::yield_now().await;
    }
    buffer.set_cursor(&lane(), fast, buffer.find(&key("fast")).unwrap().position.unwrap().txid).unwrap();
    buffer.trim(&[lane()]).await.unwrap();
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

const CHILD_FOLDER: &str = "WALHUB_TEST_BUFFER_FOLDER";
const CHILD_DATABASES: u64 = 8;

/// Not a test: the process that is killed. It appends, takes, trims, and says what was acknowledged.
#[test]
#[ignore = "started by the kill test"]
fn child() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let max_bytes = 3 << 20;
    let options = Options { file_bytes: 100_000, ..Options::new(folder, max_bytes) };
    let buffer = DiskBuffer::open(options).unwrap();
    let append = async |n: u64| {
        let name = format!("k{n}");
        let registered = buffer.register(&key(&name), None, "/x").await.unwrap();
        let id = registered.id;
        if let Some(position) = registered.position {
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
        }
        buffer.trim(&[lane()]).await.unwrap();
        loop {
            let position = append_next(&buffer, &name).await.unwrap();
            writeln!(io::stdout().lock(), "acked {n} {}", position.txid.get()).unwrap();
            buffer.set_cursor(&lane(), id, position.txid).unwrap();
            if position.txid.get() % 64 == 0 {
                buffer.trim(&[lane()]).await.unwrap();
            }
        }
    };
    runtime.block_on(futures_util::future::join_all((0..CHILD_DATABASES).map(append)));
}

#[test]
fn a_killed_hub_has_everything_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: HashMap<u64, u64> = HashMap::new();
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "buffer::disk::crash_tests::child", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after = rng.random_range(1..1500);
        let mut count = 0;
        for line in lines {
            // The last line may be cut off by the kill.
            let line = line.unwrap();
            let Some(rest) = line.strip_prefix("acked ") else { continue };
            let Some((n, txid)) = rest.split_once(' ') else { continue };
            let (Ok(n), Ok(txid)) = (n.parse(), txid.parse::<u64>()) else { continue };
            let best = acked.entry(n).or_default();
            *best = txid.max(*best);
            count += 1;
            if count == kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(count >= kill_after, "round {round}: the child ended by itself");
        let buffer = open(&Options { file_bytes: 100_000, ..Options::new(dir.path(), 3 << 20) });
        for (n, txid) in &acked {
            let position = verify(&buffer, &format!("k{n}"));
            assert!(position >= *txid, "round {round}: {position} of {txid}");
        }
    }
    assert_eq!(acked.len() as u64, CHILD_DATABASES);
}
