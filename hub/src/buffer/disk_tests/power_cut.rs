//! The power goes at every kind of step.

use super::damaged_index::copy;
use super::*;
use crate::buffer::log::probe::Step;
use crate::buffer::squash::{MergeError, Opens};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

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
    cut_in_rounds(LARGE, 40, |round| 12 + round * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_while_room_is_made_loses_nothing_that_was_acknowledged() {
    cut_in_rounds(200_000, 15, |round| 700 + round * 107).await;
}

async fn cut_in_rounds(max_bytes: u64, rounds: u64, steps: impl Fn(u64) -> u64) {
    let options = |dir: &Path| Options {
        file_bytes: (max_bytes / 8).min(40_000),
        when_full: WhenFull::Squash,
        merger: Arc::new(Fold),
        ..Options::new(dir, max_bytes)
    };
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let acked = Arc::new(AtomicU64::new(0));
        let cut = PowerCut {
            from: from.clone(),
            to: to.clone(),
            synced: HashMap::new(),
            countdown: steps(round),
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
        let buffer = open(&Options { probe, ..options(&from) });
        buffer.register(&key("a"), Some(5), "/a").await.unwrap();
        buffer.trim(EveryDatabase::by(&[])).await.unwrap();
        while cut.lock().unwrap().taken.is_none() {
            let position = append_next(&buffer, "a").await.unwrap();
            acked.store(position.txid.get(), Ordering::SeqCst);
        }
        let at_the_cut = cut.lock().unwrap().taken.unwrap();
        let after = open(&options(&to));
        let position = verify(&after, "a");
        assert!(position >= at_the_cut, "round {round}: {position} of {at_the_cut}");
        after.trim(EveryDatabase::by(&[])).await.unwrap();
        append_when_there_is_room(&after, "a").await;
        after.close().await.unwrap();
        verify(&open(&options(&to)), "a");
    }
}

/// Merges, and stops before the second run.
#[derive(Debug)]
struct StopsAtTheSecond {
    runs: AtomicU64,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Merger for StopsAtTheSecond {
    fn merge(
        &self,
        segments: &[SegmentRef],
        whole: SegmentMeta,
        open: &Opens<'_>,
        out: &mut dyn std::io::Write,
    ) -> Result<(), MergeError> {
        if self.runs.fetch_add(1, Ordering::SeqCst) == 1 {
            // An end of the test lets it go on, too.
            let _ = self.go_on.lock().unwrap().recv();
        }
        Fold.merge(segments, whole, open, out)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_is_never_ahead_of_the_log_by_a_segment_that_stands_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    let (go_on, told) = mpsc::channel();
    let merger = Arc::new(StopsAtTheSecond { runs: AtomicU64::new(0), go_on: Mutex::new(told) });
    let squashing = |dir: &Path| Options {
        when_full: WhenFull::Squash,
        file_bytes: 40_000,
        ..Options::new(dir, 400_000)
    };
    let synced = Arc::new(Mutex::new(HashMap::new()));
    let seen = Arc::clone(&synced);
    let probe = Probe::new(move |step| {
        if let Step::Synced { path, end } = step {
            seen.lock().unwrap().insert(path.file_name().unwrap().to_owned(), end);
        }
        Ok(())
    });
    let options = Options { merger: merger.clone(), probe, ..squashing(&from) };
    let buffer = open(&options);
    let id = buffer.register(&key("a"), Some(5), "/a").await.unwrap().id;
    buffer.trim(EveryDatabase::by(&[])).await.unwrap();
    while buffer.usage().bytes < 200_000 {
        append_next(&buffer, "a").await.unwrap();
    }
    // The checkpoint of one flush is made safe by the next: a start reads nothing of the first files then.
    buffer.inner.index.move_segments().unwrap();
    buffer.inner.index.flush().unwrap();
    let filling = async {
        while merger.runs.load(Ordering::SeqCst) < 2 {
            append_when_there_is_room(&buffer, "a").await;
        }
    };
    let cutting = async {
        // Appends wait for room, so nobody asks for a sync; the index is moved and flushed as it is each second.
        let index = &buffer.inner.index;
        let oldest = || index.get(id, Txid::FIRST).unwrap();
        let alone = next(id, None).meta.range;
        while oldest().is_none_or(|segment| segment.meta.range == alone) {
            tokio::task::yield_now().await;
            index.move_segments().unwrap();
        }
        index.flush().unwrap();
        copy(&from, &to);
        for (name, end) in &*synced.lock().unwrap() {
            let log = fs::OpenOptions::new().write(true).open(to.join("log").join(name)).unwrap();
            log.set_len(*end).unwrap();
        }
        go_on.send(()).unwrap();
        buffer.find(&key("a")).unwrap().position.unwrap().txid.get()
    };
    let ((), acked) = futures_util::future::join(filling, cutting).await;

    let after = open(&Options { merger: Arc::new(Fold), ..squashing(&to) });
    assert!(verify(&after, "a") >= acked);
    after.trim(EveryDatabase::by(&[])).await.unwrap();
    for _ in 0..200 {
        append_when_there_is_room(&after, "a").await;
    }
    assert_eq!(after.list(id, None, 1).unwrap()[0].meta.range.min(), Txid::FIRST);
    verify(&after, "a");
}

/// Right after a start nothing can go before sled knows all that lies in a file: until then a full buffer refuses, as it
/// tells agents, which try again.
pub(super) async fn append_when_there_is_room(buffer: &DiskBuffer, name: &str) {
    let begin = Instant::now();
    while let Err(error) = append_next(buffer, name).await {
        assert!(matches!(error, BufferError::Full { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(60), "there is never room: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
