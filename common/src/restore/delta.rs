//! Makes a database out of an older or damaged copy of it: only the pages that differ are needed.
//!
//! The copy is copied beside itself (on file systems that can, without moving a byte), that file is compared page by page
//! with the checksums of the point, gets the pages that differ, and takes the name of the copy when it is proven.
//!
//! Invariants
//! - The name holds the old copy or the whole new database, whatever fails and whenever the process dies.
//! - What is proven is the new file: its own pages are summed, and each page that comes is held against its checksum.
//! - Memory: one bit for each page, and the checksums of those that differ.

use super::frames::Frames;
use super::output::{Existing, Output};
use super::{Progress, Proof, Report, RestoreError};
use crate::{Checksum, PageSize, Pgno, Pos, Txid, TxidRange, ltx};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of the copy that are read at once.
const READ_BYTES: usize = 1 << 20;

/// A restore into a copy, under way. Dropping it at any moment leaves the copy as it was.
#[derive(Debug)]
pub struct Delta {
    output: Output,
    file: File,
    page_size: PageSize,
    commit: u32,
    /// Pages of the new database that lie in the copy, as far as it reaches.
    there: u32,
    /// Pages that were compared, and the lock page if they are beyond it.
    compared: u32,
    sum: Checksum,
    /// What is to come.
    missing: BTreeMap<u32, Checksum>,
    progress: Progress,
}

impl Delta {
    /// Prepares it for the copy at `path`, which must exist and must have no log or journal beside it. The database will
    /// have `commit` pages. A copy that a process has open is refused unless it is `only_read`: who reads it goes on reading
    /// what was there.
    pub fn create(
        path: &Path,
        page_size: PageSize,
        commit: u32,
        only_read: bool,
    ) -> Result<Delta, RestoreError> {
        let existing = if only_read { Existing::ReplacedWhileRead } else { Existing::Replaced };
        let output = Output::create(path, existing)?;
        let file = output.handle()?;
        let mut copy = File::open(path).map_err(RestoreError::io("read", path))?;
        io::copy(&mut copy, &mut &file).map_err(RestoreError::io("copy into", output.temp()))?;
        let bytes = file.metadata().map_err(RestoreError::io("look at", output.temp()))?.len();
        let whole = u32::try_from(bytes / u64::from(page_size.get())).unwrap_or(u32::MAX);
        Ok(Delta {
            output,
            file,
            page_size,
            commit,
            there: whole.min(commit),
            compared: 0,
            sum: Checksum::EMPTY,
            missing: BTreeMap::new(),
            progress: Progress::default(),
        })
    }

    /// Compares with the checksums of the next pages, in order, without the lock page. Blocks.
    pub fn compare(&mut self, sums: &[Checksum]) -> Result<(), RestoreError> {
        self.progress.bytes_in += 8 * sums.len() as u64;
        let size = self.page_size.bytes();
        let mut page = vec![0; READ_BYTES.max(size)];
        let mut sums = sums.iter().peekable();
        while sums.peek().is_some() {
            if self.compared + 1 == self.page_size.lock_page().get() {
                self.clear_lock_page()?;
            }
            let first = Pgno::new(self.compared + 1).expect("BUG: counted from 1");
            let until_lock = match first < self.page_size.lock_page() {
                true => self.page_size.lock_page().get() - first.get(),
                false => u32::MAX,
            };
            let most = (page.len() / size).min(sums.len()).min(until_lock as usize);
            let there = (self.there.saturating_sub(self.compared) as usize).min(most);
            let bytes = &mut page[..there * size];
            let read = self.file.read_exact_at(bytes, self.page_size.offset(first));
            read.map_err(RestoreError::io("read", self.output.temp()))?;
            for at in 0..most {
                let pgno = Pgno::new(self.compared + 1).expect("BUG: counted from 1");
                let Some(asked) = sums.next().copied() else { break };
                let equal = at < there && Checksum::of_page(pgno, &bytes[at * size..][..size]) == asked;
                if equal {
                    self.sum = self.sum.toggle(asked);
                } else {
                    self.missing.insert(pgno.get(), asked);
                }
                self.compared += 1;
            }
        }
        Ok(())
    }

    fn clear_lock_page(&mut self) -> Result<(), RestoreError> {
        let lock = self.page_size.lock_page();
        if lock.get() <= self.there {
            let zeros = vec![0; self.page_size.bytes()];
            let cleared = self.file.write_all_at(&zeros, self.page_size.offset(lock));
            cleared.map_err(RestoreError::io("write", self.output.temp()))?;
        }
        self.compared += 1;
        Ok(())
    }

    /// Pages that are still to come, ascending.
    pub fn missing(&self) -> Vec<RangeInclusive<u32>> {
        let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
        for page in self.missing.keys() {
            match runs.last_mut() {
                Some(run) if *run.end() + 1 == *page => *run = *run.start()..=*page,
                _ => runs.push(*page..=*page),
            }
        }
        runs
    }

    /// How many they are.
    pub fn pages_missing(&self) -> u64 {
        self.missing.len() as u64
    }

    /// Bytes that came so far, checksums included.
    pub fn bytes_in(&self) -> u64 {
        self.progress.bytes_in
    }

    /// Takes pages that came, in any order. Blocks.
    pub fn take(&mut self, frames: &Frames) -> Result<(), RestoreError> {
        let mut page = Vec::new();
        self.progress.bytes_in += frames.data.len() as u64;
        for (pgno, block) in frames.iter() {
            let name = || format!("page {pgno}");
            ltx::expand(block, self.page_size, &mut page)
                .map_err(|source| RestoreError::Input { name: name(), source })?;
            let found = Checksum::of_page(pgno, &page);
            match self.missing.remove(&pgno.get()) {
                Some(asked) if asked == found => {}
                Some(expected) => {
                    return Err(RestoreError::Mismatch { place: format!("in {}", name()), expected, found });
                }
                None => return Err(RestoreError::Abandoned),
            }
            let written = self.file.write_all_at(&page, self.page_size.offset(pgno));
            written.map_err(RestoreError::io("write", self.output.temp()))?;
            self.sum = self.sum.toggle(found);
            self.progress.pages_written += 1;
        }
        Ok(())
    }

    /// Proves the database to be the one of `position`, makes it durable and gives it the name of the copy. Blocks.
    pub fn finish(mut self, position: Pos, timestamp_ms: i64) -> Result<Report, RestoreError> {
        if let Some(pgno) = self.missing.keys().next() {
            return Err(RestoreError::MissingPage {
                name: format!("transaction {}", position.txid),
                pgno: *pgno,
            });
        }
        if self.sum != position.checksum {
            let place = format!("at transaction {}", position.txid);
            return Err(RestoreError::Mismatch { place, expected: position.checksum, found: self.sum });
        }
        let bytes = u64::from(self.commit) * u64::from(self.page_size.get());
        self.output.publish(bytes)?;
        Ok(Report {
            path: self.output.path().to_owned(),
            page_size: self.page_size,
            pages: self.commit,
            bytes,
            range: TxidRange::new(Txid::FIRST, position.txid).expect("BUG: nothing comes before the first"),
            timestamp_ms,
            checksum: self.sum,
            proof: Proof::Source,
            progress: self.progress,
        })
    }
}
