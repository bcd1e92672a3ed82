//! Jobs that have not ended, as the hub's mirror keeps them and a rebuilt hub finds them again.
//!
//! Invariants: a job never goes on by itself after its hub was lost: it comes back paused and without orders, for the operator
//! may have paused or cancelled it after the mirror was made; what was being cancelled goes on being cancelled. Orders keep
//! their ids, so a node that carried one out says so instead of doing it again.
//!
//! Non-goal: jobs that have ended.

use super::journal::{ENDING, FOLDER, line, parse};
use super::model::{Job, JobId, Phase, Record, Stand};
use crate::durable;
use bytes::Bytes;
use std::fs;
use std::io;
use std::path::Path;
use walhub_common::clock;

/// Most bytes that all jobs together take in a mirror: some 60,000 databases. The newest jobs come first.
const MAX_BYTES: usize = 16 << 20;

/// A job that has not ended, as lines of its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobCopy {
    /// Which.
    pub id: JobId,
    /// What it is, its wave and where it stands.
    pub head: Bytes,
    /// Databases that are at their end; while it is being cancelled also those that were ordered.
    pub stands: Bytes,
}

/// What a rebuilt hub makes of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revived {
    /// Which.
    pub id: JobId,
    /// Who began it.
    pub operator: String,
    /// Its databases.
    pub databases: usize,
    /// Those that were at their end.
    pub ended: usize,
    /// It was being cancelled, and still is; else it waits for a word.
    pub cancelling: bool,
    record: Vec<u8>,
}

/// Copies of those jobs that have not ended, by id.
pub(super) fn copies<'a>(jobs: impl Iterator<Item = &'a Job>) -> io::Result<Vec<JobCopy>> {
    let mut open: Vec<&Job> = jobs.filter(|job| !job.phase.is_end()).collect();
    open.sort_by_key(|job| std::cmp::Reverse((job.spec.started_ms, job.spec.id.clone())));
    let (mut copies, mut bytes) = (Vec::new(), 0);
    for job in open {
        let copy = copy(job)?;
        let length = copy.head.len() + copy.stands.len();
        if bytes + length > MAX_BYTES {
            tracing::warn!(
                job = %copy.id, bytes = length,
                "there is no room for a job in the hub's mirror: it would be lost with the hub's disk"
            );
            continue;
        }
        bytes += length;
        copies.push(copy);
    }
    copies.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(copies)
}

fn copy(job: &Job) -> io::Result<JobCopy> {
    let spec = Box::new(job.spec.clone());
    let mut head = line(&Record::Begun { spec, targets: job.targets.clone() })?;
    head.extend(line(&Record::Wave(job.wave))?);
    let (phase, reason, forgiven) = (job.phase, job.reason.clone(), job.forgiven);
    head.extend(line(&Record::Phase { phase, reason, forgiven, at_ms: job.spec.started_ms })?);
    let mut stands = Vec::new();
    for (target, stand) in job.stands.iter().enumerate() {
        let kept = match stand {
            Stand::Pending => false,
            // Ordered again when it is resumed; to be told that it is cancelled otherwise.
            Stand::Ordered { .. } => job.phase == Phase::Cancelling,
            Stand::Done(_) | Stand::Failed { .. } | Stand::Cancelled { .. } => true,
        };
        if kept {
            stands.extend(line(&Record::Stand { target, stand: stand.clone() })?);
        }
    }
    Ok(JobCopy { id: job.spec.id.clone(), head: head.into(), stands: stands.into() })
}

/// What becomes of a copy from a mirror that was made at `mirrored_ms`, or why it is none.
pub fn revive(copy: &JobCopy, mirrored_ms: i64) -> Result<Revived, String> {
    let mut record = [&copy.head[..], &copy.stands[..]].concat();
    let (mut job, length) = parse(&record)?;
    if length != record.len() as u64 || job.spec.id != copy.id {
        return Err("its record is cut, or another job's".to_owned());
    }
    if job.phase.is_end() {
        return Err("it has ended".to_owned());
    }
    if job.phase == Phase::Running {
        let reason = format!(
            "its hub was lost; this is how the job stood at {}: resume it or cancel it",
            clock::format_ms(mirrored_ms)
        );
        let paused =
            Record::Phase { phase: Phase::Paused, reason, forgiven: job.forgiven, at_ms: mirrored_ms };
        record.extend(line(&paused).map_err(|error| error.to_string())?);
        job.apply(&paused);
    }
    Ok(Revived {
        id: copy.id.clone(),
        operator: job.spec.operator.clone(),
        databases: job.targets.len(),
        ended: job.stands.iter().filter(|stand| stand.is_end()).count(),
        cancelling: job.phase == Phase::Cancelling,
        record,
    })
}

/// Writes revived jobs into the folder of the hub that takes the lost one's place. Durable when it returns. Blocking.
pub fn restore(data_dir: &Path, jobs: &[Revived]) -> io::Result<()> {
    let dir = data_dir.join(FOLDER);
    fs::create_dir_all(&dir)?;
    fs::File::open(data_dir)?.sync_all()?;
    jobs.iter().try_for_each(|job| durable::replace(&dir, &format!("{}.{ENDING}", job.id), &job.record))
}
