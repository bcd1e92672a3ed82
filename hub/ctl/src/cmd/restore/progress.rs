//! Progress bars: on a terminal, on stderr, and only for what takes longer than a second.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(1);
const SIZED: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const UNSIZED: &str = "{prefix} {spinner} {bytes} {bytes_per_sec}";

/// All bars of this run.
#[derive(Debug)]
pub(crate) struct Progress {
    bars: MultiProgress,
    began: Instant,
    shown: AtomicBool,
}

/// The bar of one database; gone when dropped.
#[derive(Debug)]
pub(crate) struct Bar<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn new() -> Progress {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Progress { bars, began: Instant::now(), shown: AtomicBool::new(false) }
    }

    /// A bar for a restore of `total` bytes; 0 when that is not known.
    pub(crate) fn bar(&self, database: &str, total: u64) -> Bar<'_> {
        let (bar, template) = match total {
            0 => (ProgressBar::no_length(), UNSIZED),
            total => (ProgressBar::new(total), SIZED),
        };
        let style = ProgressStyle::with_template(template).expect("BUG: bad template");
        let bar = self.bars.add(bar.with_style(style).with_prefix(database.to_owned()));
        Bar { progress: self, bar }
    }

    /// Runs something that prints, between two drawings of the bars.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }
}

impl Bar<'_> {
    /// More bytes have come.
    pub(crate) fn add(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
        let progress = self.progress;
        if progress.began.elapsed() >= PATIENCE && !progress.shown.swap(true, Ordering::Relaxed) {
            progress.bars.set_draw_target(ProgressDrawTarget::stderr()); // hidden unless it is a terminal
        }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
