//! What the kernel says of a process: CPU, memory, bytes it caused to be written to disk.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// One reading.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    /// Nanoseconds of CPU of each thread: what the clock ticks of `stat` say of an idle process is mostly rounding.
    threads: HashMap<String, u64>,
    written: u64,
    said: u64,
}

/// CPU time of all threads so far, and bytes sent to storage.
pub(crate) fn read(pid: u32) -> Result<Reading> {
    let mut threads = HashMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("read /proc task")? {
        let task = task?;
        // A thread may end meanwhile.
        let Ok(schedule) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let on_cpu = schedule.split_whitespace().next().context("parse schedstat")?.parse()?;
        threads.insert(task.file_name().to_string_lossy().into_owned(), on_cpu);
    }
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("read /proc io")?;
    let field = |name: &str| -> Result<u64> {
        let line = io.lines().find_map(|line| line.strip_prefix(name)).context("parse /proc io")?;
        Ok(line.trim().parse()?)
    };
    Ok(Reading { at: Instant::now(), threads, written: field("write_bytes: ")?, said: field("wchar: ")? })
}

/// Resident memory, bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

/// The most resident memory it ever had, bytes.
pub(crate) fn peak(pid: u32) -> Result<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read /proc status")?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .context("parse /proc status")?
        .trim()
        .trim_end_matches(" kB")
        .parse()?;
    Ok(kib * 1024)
}

impl Reading {
    /// Share of one core between two readings, percent.
    pub(crate) fn core_percent(&self, later: &Reading) -> f64 {
        100.0 * self.cpu(later).as_secs_f64() / (later.at - self.at).as_secs_f64()
    }

    /// Time between two readings.
    pub(crate) fn until(&self, later: &Reading) -> Duration {
        later.at - self.at
    }

    /// CPU between two readings.
    pub(crate) fn cpu(&self, later: &Reading) -> Duration {
        let spent = later.threads.iter().map(|(thread, ns)| ns - self.threads.get(thread).unwrap_or(&0));
        Duration::from_nanos(spent.sum())
    }

    /// Bytes written between two readings.
    pub(crate) fn written(&self, later: &Reading) -> u64 {
        later.written - self.written
    }

    /// Bytes given to `write` calls between two readings, whatever became of them.
    pub(crate) fn said(&self, later: &Reading) -> u64 {
        later.said - self.said
    }
}
