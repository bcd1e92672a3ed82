//! Start-up: finds the end of the log, cuts off what was never acknowledged, and reads the state back.

use super::file::{Files, LogFile, is_damage};
use super::head::{Head, decode_cursors};
use super::probe::{Probe, Step};
use super::record::Malformed;
use super::replay::{Oddities, Replay};
use super::scan::{Found, Scanner};
use super::snapshot::State;
use super::writer::Written;
use crate::buffer::BufferError;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How far an index had seen the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct Checkpoint {
    /// Which log.
    pub(in crate::buffer) log_id: u64,
    /// Which file.
    pub(in crate::buffer) file: u64,
    /// That file's salt.
    pub(in crate::buffer) salt: u64,
    /// Everything before this offset, and all files before, is indexed.
    pub(in crate::buffer) offset: u64,
}

/// A log that is ready to be continued in a new file.
#[derive(Debug)]
pub(in crate::buffer) struct Recovered {
    /// Which log.
    pub(in crate::buffer) log_id: u64,
    /// Number of the newest file, 0 when there is none.
    pub(in crate::buffer) last_number: u64,
    /// Where the log ends; `None` when it is empty.
    pub(in crate::buffer) end: Option<Checkpoint>,
    /// Databases, positions; the cursors are those of the newest file's start.
    pub(in crate::buffer) state: State,
    /// What an index has to do first.
    pub(in crate::buffer) index: IndexPlan,
}

/// Where an index stands against the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::buffer) struct IndexPlan {
    /// It is of no use: empty it.
    pub(in crate::buffer) rebuild: bool,
    /// Its cursors are newer than those of the log.
    pub(in crate::buffer) cursors_are_newer: bool,
}

/// Told what recovery finds: the plan, then every segment from the plan's start on, in log order.
pub(in crate::buffer) trait Indexer {
    /// The plan, before any segment.
    fn plan(&mut self, plan: IndexPlan) -> Result<(), BufferError>;
    /// A complete segment.
    fn segment(&mut self, written: Written) -> Result<(), BufferError>;
}

/// Reads the log in `files`. Afterwards all of it is on disk and its newest file ends with its last good record.
pub(in crate::buffer) fn recover(
    files: &Files,
    probe: &Probe,
    checkpoint: Option<Checkpoint>,
    indexer: &mut dyn Indexer,
) -> Result<Recovered, BufferError> {
    let io = |doing| move |source| BufferError::Io { doing, source };
    let numbers = files.numbers();
    let last_number = numbers.last().copied().unwrap_or(0);
    let Some(newest) = newest_readable(files, &numbers).map_err(io("open a log file"))? else {
        let index = IndexPlan { rebuild: true, cursors_are_newer: false };
        indexer.plan(index)?;
        let log_id = rand::random();
        return Ok(Recovered { log_id, last_number, end: None, state: State::default(), index });
    };
    let end = settle(files, probe, &newest).map_err(io("settle the end of the log"))?;
    let log_id = newest.header.log_id;
    let at_end = Checkpoint { log_id, file: newest.header.number, salt: newest.header.salt, offset: end };
    let base = newest_snapshot(files, &numbers).map_err(io("read a log file"))?;
    let checkpoint = usable(files, checkpoint, &at_end).map_err(io("open a log file"))?;
    let index = IndexPlan {
        rebuild: checkpoint.is_none(),
        cursors_are_newer: checkpoint.is_some_and(|c| c.file == at_end.file),
    };
    indexer.plan(index)?;
    let (state, oddities) = read_files(files, &numbers, checkpoint, base, &at_end, indexer)?;
    report(oddities);
    Ok(Recovered { log_id, last_number, end: Some(at_end), state, index })
}

/// Tells an index that was opened anew what lies between its checkpoint and `end`, while the log is being written
/// behind `end`.
pub(in crate::buffer) fn reindex(
    files: &Files,
    checkpoint: Option<Checkpoint>,
    end: Checkpoint,
    indexer: &mut dyn Indexer,
) -> Result<(), BufferError> {
    let io = |source| BufferError::Io { doing: "read a log file", source };
    let numbers: Vec<u64> = files.numbers().into_iter().filter(|n| *n <= end.file).collect();
    let checkpoint = usable(files, checkpoint, &end).map_err(io)?;
    indexer.plan(IndexPlan { rebuild: checkpoint.is_none(), cursors_are_newer: false })?;
    let oldest = numbers.first().copied().unwrap_or(0);
    let from = checkpoint.map_or(oldest, |c| c.file);
    let before: Vec<u64> = numbers.iter().copied().filter(|n| *n <= from).collect();
    let base = newest_snapshot(files, &before).map_err(io)?;
    read_files(files, &numbers, checkpoint, base, &end, indexer).map(drop)
}

/// Reads all files from the older of checkpoint and `base` on, up to `end`.
fn read_files(
    files: &Files,
    numbers: &[u64],
    checkpoint: Option<Checkpoint>,
    base: u64,
    end: &Checkpoint,
    indexer: &mut dyn Indexer,
) -> Result<(State, Oddities), BufferError> {
    let oldest = numbers.first().copied().unwrap_or(0);
    let start = checkpoint.map_or(oldest, |c| c.file).min(base);
    let mut replay = Replay::new(start, numbers.iter().copied());
    for number in numbers.iter().copied().filter(|n| *n >= start) {
        let file = readable(files, number);
        let file = file.map_err(|source| BufferError::Io { doing: "open a log file", source })?;
        let limit = if number == end.file { end.offset } else { u64::MAX };
        if let Some(file) = file {
            read_file(&file, limit, &mut replay, indexer)?;
        }
    }
    Ok(replay.finish())
}

fn readable(files: &Files, number: u64) -> io::Result<Option<Arc<LogFile>>> {
    match files.get(number) {
        Err(e) if is_damage(&e) => {
            let path = files.path(number);
            tracing::error!(path = %path.display(), error = %e, "a log file is damaged at its start and cannot be read");
            Ok(None)
        }
        file => file,
    }
}

fn newest_readable(files: &Files, numbers: &[u64]) -> io::Result<Option<Arc<LogFile>>> {
    for number in numbers.iter().rev() {
        if let Some(file) = readable(files, *number)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The newest file whose snapshot can be relied on; the oldest one when there is none.
fn newest_snapshot(files: &Files, numbers: &[u64]) -> io::Result<u64> {
    for number in numbers.iter().rev() {
        if let Some(file) = readable(files, *number)?
            && snapshot_is_whole(&file)?
        {
            return Ok(*number);
        }
    }
    Ok(numbers.first().copied().unwrap_or(0))
}

fn snapshot_is_whole(file: &LogFile) -> io::Result<bool> {
    let mut scanner = Scanner::new(file)?;
    while let Some(Found::Record(record)) = scanner.next()? {
        if let Head::SnapshotEnd { .. } = record.header.head {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A checkpoint is of use when it lies in this log and not past its end.
fn usable(files: &Files, checkpoint: Option<Checkpoint>, end: &Checkpoint) -> io::Result<Option<Checkpoint>> {
    let Some(at) = checkpoint else { return Ok(None) };
    if at.log_id != end.log_id || (at.file, at.offset) > (end.file, end.offset) {
        return Ok(None);
    }
    let file = readable(files, at.file)?;
    Ok(file.filter(|f| f.header.salt == at.salt).map(|_| at))
}

/// Finds the end of the newest file, cuts it there, and makes sure that what stays is on disk.
///
/// Behind the last offset known to be synced the first damage ends the log: a group is written in one go and nothing of
/// it was acknowledged before all of it was on disk. Damage before that offset hit acknowledged bytes; it is stepped over.
fn settle(files: &Files, probe: &Probe, file: &LogFile) -> io::Result<u64> {
    let floor = synced_floor(file)?;
    let mut scanner = Scanner::new(file)?;
    let mut end = scanner.offset();
    while let Some(found) = scanner.next()? {
        match found {
            Found::Record(record) => {
                let whole = scanner.payload(&record)?;
                if whole.is_err() && record.end() > floor {
                    break;
                }
                end = record.end();
            }
            Found::Damage { next, .. } if next > floor => break,
            Found::Damage { offset, next, reason } => damaged(file, offset, next, reason),
        }
    }
    if end == scanner.offset() && scanner.rest_is_blank()? {
        tracing::debug!(path = %file.path.display(), end, "the log ends clean");
    } else {
        tracing::info!(path = %file.path.display(), end, "cutting an unfinished group off the log");
    }
    let length = file.file.metadata()?.len();
    let writable = OpenOptions::new().write(true).open(&file.path)?;
    if length > end {
        files.truncate(file.header.number, &writable, end)?;
    }
    rewrite(file, &writable, floor.min(end), end)?;
    probe.at(Step::Sync(&file.path))?;
    writable.sync_all()?;
    probe.at(Step::Synced { path: &file.path, end })?;
    Ok(end)
}

/// The offset up to which the file was on disk when its newest record was written.
fn synced_floor(file: &LogFile) -> io::Result<u64> {
    let mut scanner = Scanner::new(file)?;
    let mut floor = scanner.offset();
    while let Some(found) = scanner.next()? {
        if let Found::Record(record) = found {
            floor = floor.max(record.header.synced);
            if let Head::SnapshotEnd { .. } = record.header.head {
                floor = floor.max(record.end());
            }
        }
    }
    Ok(floor)
}

/// Writes the bytes that may never have reached the disk once more. After a failed sync some kernels keep them in memory
/// marked as clean, and another sync alone would promise what the disk does not hold.
fn rewrite(file: &LogFile, writable: &std::fs::File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    let mut bytes = vec![0; 256 * 1024];
    while at < to {
        let count = usize::try_from((to - at).min(bytes.len() as u64)).expect("BUG: window over 4 GiB");
        file.file.read_exact_at(&mut bytes[..count], at)?;
        writable.write_all_at(&bytes[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

fn read_file(
    file: &LogFile,
    limit: u64,
    replay: &mut Replay,
    indexer: &mut dyn Indexer,
) -> Result<(), BufferError> {
    let io = |source| BufferError::Io { doing: "read a log file", source };
    let number = file.header.number;
    let mut scanner = Scanner::new(file).map_err(io)?;
    while scanner.offset() < limit {
        let record = match scanner.next().map_err(io)? {
            Some(Found::Record(record)) => record,
            // That of the newest file was reported when its end was looked for.
            Some(Found::Damage { .. }) if limit < u64::MAX => continue,
            Some(Found::Damage { offset, next, reason }) => {
                damaged(file, offset, next, reason);
                continue;
            }
            None => {
                if !scanner.rest_is_blank().map_err(io)? {
                    damaged(file, scanner.offset(), u64::MAX, Malformed("no record follows"));
                }
                break;
            }
        };
        if let Head::Cursors { .. } = record.header.head {
            // A damaged table only makes cursors older.
            if let Ok(entries) = scanner.payload(&record).map_err(io)?.and_then(decode_cursors) {
                replay.cursors(&record.header.head, entries);
            }
        }
        let at = (number, record.offset);
        let done = replay.apply(&record.header.head, record.header.payload.bytes, at);
        if let Some(written) = done
            && replay.holds(written.segment.place.first.0)
        {
            indexer.segment(written)?;
        }
    }
    Ok(())
}

fn damaged(file: &LogFile, offset: u64, next: u64, reason: Malformed) {
    let path = file.path.display();
    tracing::error!(%path, offset, next, %reason, "acknowledged bytes of the buffer are damaged");
}

fn report(oddities: Oddities) {
    if oddities != Oddities::default() {
        let Oddities { unknown_databases, gaps, incomplete } = oddities;
        tracing::error!(unknown_databases, gaps, incomplete, "damage to the buffer has lost segments");
    }
}

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;
