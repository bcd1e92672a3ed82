//! Parts → one snapshot: the newest version of each page, in the order of the pages, as the bytes of an LTX file.
//!
//! The bytes are made while they are read, and are the same each time: the parts are the only copy on the hub's disk.

use super::StagingError;
use super::catalog::{Catalog, RUN, Version};
use super::pages::Pages;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use walhub_common::ltx::{Encoder, Header, LtxError, Provenance};
use walhub_common::stretch::{self, StretchHash, StretchHasher};
use walhub_common::{Checksum, PageSize, Pgno, TxidRange};

/// What the parts together are, as the node says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// Transactions, from 1.
    pub range: TxidRange,
    /// Database checksum.
    pub post: Checksum,
    /// The part that completes it; its header says how many pages the database has.
    pub last_part: u32,
    /// Agent time, Unix ms.
    pub agent_time_ms: i64,
}

/// The bytes of the snapshot. Every page is compared with its checksum, and all of them with the node's: a reader that
/// ends without an error has read what the node sent. Memory: a run of the catalog and two pages.
#[derive(Debug)]
pub(super) struct Snapshot {
    catalog: Catalog,
    pages: Pages,
    page_size: PageSize,
    commit: u32,
    post: Checksum,
    sum: Checksum,
    /// The page that comes next.
    next: u32,
    /// Versions of the pages from `next` on.
    run: VecDeque<Option<Version>>,
    /// `None` after the last page.
    encoder: Option<Encoder<Sink>>,
    made: Sink,
    /// Bytes of `made` that were handed out.
    given: usize,
    hasher: Option<StretchHasher>,
    hashes: Vec<StretchHash>,
}

/// Where the encoder writes and the reader takes from.
#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Snapshot {
    /// Over the parts in `dir`, of a database of `commit` pages.
    pub(super) fn open(
        dir: &Path,
        catalog: Catalog,
        seal: &Seal,
        commit: u32,
    ) -> Result<Snapshot, StagingError> {
        let page_size = catalog.page_size();
        let header = Header {
            page_size,
            commit,
            range: seal.range,
            timestamp_ms: seal.agent_time_ms,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre: None, post: seal.post }),
        };
        let made = Sink::default();
        let mut encoder = Encoder::new(made.clone(), header).map_err(encoding)?;
        encoder.spool_index(dir);
        Ok(Snapshot {
            catalog,
            pages: Pages::of(dir, page_size),
            page_size,
            commit,
            post: seal.post,
            sum: Checksum::EMPTY,
            next: 1,
            run: VecDeque::new(),
            encoder: Some(encoder),
            made,
            given: 0,
            hasher: None,
            hashes: Vec::new(),
        })
    }

    /// Reads everything; its length in bytes and the hashes of its stretches. Given up when `stop` says so.
    pub(super) fn verify(mut self, stop: impl Fn() -> bool) -> Result<(u64, Vec<StretchHash>), StagingError> {
        self.hasher = Some(StretchHasher::default());
        let mut bytes = 0;
        while self.encoder.is_some() {
            self.step()?;
            let mut made = self.made.bytes();
            bytes += made.len() as u64;
            made.clear();
            if self.next.is_multiple_of(stretch::STRETCH_PAGES) && stop() {
                return Err(StagingError::GivenUp);
            }
        }
        Ok((bytes, self.hashes))
    }

    /// Makes the bytes of the next page, or the end.
    fn step(&mut self) -> Result<(), StagingError> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        if self.next > self.commit {
            self.end_of_stretch();
            if self.sum != self.post {
                return Err(StagingError::Corrupt(format!(
                    "the staged pages give database checksum {}, the node says {}",
                    self.sum, self.post
                )));
            }
            encoder.finish().map_err(encoding)?;
            return Ok(());
        }
        let pgno = Pgno::new(self.next).expect("BUG: from 1");
        if self.run.is_empty() {
            let count = RUN.min((self.commit - self.next) as usize + 1);
            let mut versions = self.catalog.read(pgno, count)?;
            versions.resize(count, None);
            self.run = versions.into();
        }
        if (self.next - 1).is_multiple_of(stretch::STRETCH_PAGES) && self.next > 1 {
            self.end_of_stretch();
        }
        self.next += 1;
        let version = self.run.pop_front().flatten();
        if pgno != self.page_size.lock_page() {
            let version =
                version.ok_or_else(|| StagingError::Corrupt(format!("page {pgno} was never sent")))?;
            let read = self.pages.read(pgno, &version)?;
            self.sum = self.sum.toggle(version.checksum);
            if let Some(hasher) = &mut self.hasher {
                hasher.page(pgno, read.page);
            }
            encoder.page_lz4(pgno, read.block, read.page).map_err(encoding)?;
        }
        self.encoder = Some(encoder);
        Ok(())
    }

    fn end_of_stretch(&mut self) {
        if let Some(hasher) = &mut self.hasher
            && self.hashes.len() < stretch::MAX_STRETCHES as usize
        {
            self.hashes.push(hasher.take());
        }
    }
}

impl Read for Snapshot {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut made = self.made.bytes();
            let ready = &made[self.given..];
            if !ready.is_empty() {
                let taken = ready.len().min(out.len());
                out[..taken].copy_from_slice(&ready[..taken]);
                self.given += taken;
                return Ok(taken);
            }
            made.clear();
            self.given = 0;
            drop(made);
            if self.encoder.is_none() {
                return Ok(0);
            }
            self.step().map_err(io::Error::other)?;
        }
    }
}

fn encoding(error: LtxError) -> StagingError {
    match error {
        LtxError::Io(e) => StagingError::Io(e),
        e => StagingError::Corrupt(e.to_string()),
    }
}
