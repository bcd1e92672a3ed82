//! What the kernel says of a process: CPU, memory, bytes it caused to be written to disk.

use anyhow::{Context, Result};
use std::fs;
use std::time::{Duration, Instant};

/// One reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    cpu: Duration,
    written: u64,
}

/// CPU time of all threads so far, and bytes sent to storage.
pub(crate) fn read(pid: u32) -> Result<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read /proc stat")?;
    // The command name may hold spaces: the fields begin after its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')').context("parse /proc stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("read /proc io")?;
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "))
        .context("parse /proc io")?
        .trim()
        .parse()?;
    // USER_HZ is 100 on every Linux that matters.
    Ok(Reading { at: Instant::now(), cpu: Duration::from_millis(ticks * 10), written })
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
        100.0 * (later.cpu - self.cpu).as_secs_f64() / (later.at - self.at).as_secs_f64()
    }

    /// CPU between two readings.
    pub(crate) fn cpu(&self, later: &Reading) -> Duration {
        later.cpu - self.cpu
    }

    /// Bytes written between two readings.
    pub(crate) fn written(&self, later: &Reading) -> u64 {
        later.written - self.written
    }
}
