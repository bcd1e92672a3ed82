//! A progress bar: on a terminal, on stderr, and only for what takes longer than a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(1);
const SIZED: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const UNSIZED: &str = "{prefix} {spinner} {bytes} {bytes_per_sec}";

/// Gone when dropped.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

impl Bar {
    /// For `total` bytes; 0 when that is not known.
    pub(super) fn new(name: &str, total: u64) -> Bar {
        let (bar, template) = match total {
            0 => (ProgressBar::no_length(), UNSIZED),
            total => (ProgressBar::new(total), SIZED),
        };
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template).expect("BUG: a valid template");
        Bar { bar: bar.with_style(style).with_prefix(name.to_owned()), begun: Instant::now(), shown: false }
    }

    /// More bytes have come.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bar.inc(bytes as u64);
        if !self.shown && self.begun.elapsed() >= PATIENCE {
            self.shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr()); // hidden unless it is a terminal
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
