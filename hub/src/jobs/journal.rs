//! Jobs on disk: a file for each, a line for each record.
//!
//! Invariants: a record is synced before its effect; a line that was cut by a crash is not there, and nothing was done
//! because of it; a file that cannot be understood is moved aside, loudly, and the others go on.
//!
//! The same lines are what a mirror keeps of a job ([`super::copy`]).
//!
//! The buffer's index is no place for them: what its flush acknowledges may be gone after a power cut.

use super::model::{Job, JobId, Record};
use crate::durable;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) const FOLDER: &str = "jobs";
pub(super) const ENDING: &str = "jsonl";

/// The folder of jobs.
#[derive(Debug)]
pub struct Journals {
    dir: PathBuf,
    found: BTreeMap<JobId, (Job, Journal)>,
}

/// The file of one job, open at its end.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Bytes that are whole records, synced.
    length: u64,
}

impl Journals {
    /// The folder in `data_dir`, made when missing, and every job in it. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Journals> {
        let dir = data_dir.join(FOLDER);
        fs::create_dir_all(&dir)?;
        File::open(data_dir)?.sync_all()?;
        let mut journals = Journals { dir, found: BTreeMap::new() };
        journals.load()?;
        Ok(journals)
    }

    fn path(&self, id: &JobId) -> PathBuf {
        self.dir.join(format!("{id}.{ENDING}"))
    }

    /// Every job that was found, with its file.
    pub(super) fn take(&mut self) -> BTreeMap<JobId, (Job, Journal)> {
        std::mem::take(&mut self.found)
    }

    fn load(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().and_then(|ending| ending.to_str()) != Some(ENDING) {
                continue;
            }
            match parse(&fs::read(&path)?) {
                Ok((job, length)) => {
                    let file = OpenOptions::new().append(true).open(&path)?;
                    file.set_len(length)?;
                    self.found.insert(job.spec.id.clone(), (job, Journal { file, length }));
                }
                Err(reason) => {
                    let aside = path.with_extension("damaged");
                    fs::rename(&path, &aside)?;
                    tracing::error!(
                        path = %path.display(), moved_to = %aside.display(), reason,
                        "the record of a job is damaged: it is not carried on"
                    );
                }
            }
        }
        Ok(())
    }

    /// A new job's file. Durable when it returns. Blocking.
    pub(super) fn create(&self, id: &JobId, first: &Record) -> io::Result<Journal> {
        let bytes = line(first)?;
        durable::replace(&self.dir, &format!("{id}.{ENDING}"), &bytes)?;
        let file = OpenOptions::new().append(true).open(self.path(id))?;
        Ok(Journal { file, length: bytes.len() as u64 })
    }

    /// Forgets a job. Blocking.
    pub(super) fn remove(&self, id: &JobId) -> io::Result<()> {
        fs::remove_file(self.path(id))
    }
}

impl Journal {
    /// Adds records. Durable when it returns; after an error none of them is there. Blocking.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend(line(record)?);
        }
        // What an earlier failure left behind goes first.
        self.file.set_len(self.length)?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

pub(super) fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(record)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A job and the length of its whole records, or why it is none.
pub(super) fn parse(bytes: &[u8]) -> Result<(Job, u64), String> {
    let (mut job, mut length): (Option<Job>, u64) = (None, 0);
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if line.last() != Some(&b'\n') {
            break;
        }
        let fault = |reason: &str| Err(format!("line {}: {reason}", number + 1));
        let record: Record = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(error) => return fault(&error.to_string()),
        };
        job = match job {
            None => match Job::begin(record) {
                Some(begun) => Some(begun),
                None => return fault("no beginning"),
            },
            Some(mut job) => match job.apply(&record) {
                true => Some(job),
                false => return fault("a record of another job"),
            },
        };
        length += line.len() as u64;
    }
    job.map(|job| (job, length)).ok_or_else(|| "it is empty".to_owned())
}
