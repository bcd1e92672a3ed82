//! Page → newest staged version: a file of fixed records, one per page, read and written in runs.
//!
//! ```text
//! record = checksum u64 (0: no version), part u32, offset of the LZ4 block u32, its size u32, 0 u32    big-endian, 24 bytes
//! record 0 = magic, page size
//! ```
//!
//! Its bytes are not trusted: whoever reads a page through it compares the page with the checksum, and the checksums of all
//! pages with what the node said. A crash while one part's records are written is repaired by writing them again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use walhub_common::stretch::STRETCH_PAGES;
use walhub_common::{Checksum, PageSize, Pgno};

const RECORD: usize = 24;
const MAGIC: &[u8; 8] = b"WHSTAGE1";
/// Records read or written at once.
pub(super) const RUN: usize = 4096;

/// Where the newest version of a page lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) part: u32,
    pub(super) offset: u32,
    pub(super) size: u32,
    pub(super) checksum: Checksum,
}

/// The file.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    page_size: PageSize,
}

impl Catalog {
    /// An empty one.
    pub(super) fn create(path: &Path, page_size: PageSize) -> io::Result<Catalog> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut head = [0; RECORD];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&page_size.get().to_be_bytes());
        file.write_all_at(&head, 0)?;
        Ok(Catalog { file, page_size })
    }

    /// One that is there; `None` when it is not one of ours.
    pub(super) fn open(path: &Path) -> io::Result<Option<Catalog>> {
        let file = match File::options().read(true).write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut head = [0; RECORD];
        if read_full(&file, &mut head, 0)? < RECORD || head[..8] != *MAGIC {
            return Ok(None);
        }
        let page_size = PageSize::new(word(&head, 8));
        Ok(page_size.map(|page_size| Catalog { file, page_size }))
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Records of `count` pages from `first` on; fewer at the end of the file.
    pub(super) fn read(&self, first: Pgno, count: usize) -> io::Result<Vec<Option<Version>>> {
        let mut bytes = vec![0; count * RECORD];
        let found = read_full(&self.file, &mut bytes, u64::from(first.get()) * RECORD as u64)?;
        bytes.truncate(found - found % RECORD);
        Ok(bytes.chunks_exact(RECORD).map(decode).collect())
    }

    /// Records of the pages of a stretch; fewer at the end of the file.
    pub(super) fn stretch(&self, number: u32) -> io::Result<Vec<Option<Version>>> {
        let first = number.checked_mul(STRETCH_PAGES).and_then(|n| Pgno::new(n.checked_add(1)?));
        first.map_or(Ok(Vec::new()), |first| self.read(first, STRETCH_PAGES as usize))
    }

    /// Writes records of ascending pages; calls `replaced` for each record that was there.
    pub(super) fn write(
        &self,
        pages: &[(Pgno, Version)],
        mut replaced: impl FnMut(Version),
    ) -> io::Result<()> {
        let follows = |a: &(Pgno, Version), b: &(Pgno, Version)| a.0.get() + 1 == b.0.get();
        for run in pages.chunk_by(follows) {
            for run in run.chunks(RUN) {
                let first = run[0].0;
                self.read(first, run.len())?.into_iter().flatten().for_each(&mut replaced);
                let mut bytes = Vec::with_capacity(run.len() * RECORD);
                for (_, version) in run {
                    bytes.extend_from_slice(&version.checksum.get().to_be_bytes());
                    bytes.extend_from_slice(&version.part.to_be_bytes());
                    bytes.extend_from_slice(&version.offset.to_be_bytes());
                    bytes.extend_from_slice(&version.size.to_be_bytes());
                    bytes.extend_from_slice(&[0; 4]);
                }
                self.file.write_all_at(&bytes, u64::from(first.get()) * RECORD as u64)?;
            }
        }
        Ok(())
    }

    /// On disk when it returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn decode(record: &[u8]) -> Option<Version> {
    let sum = u64::from_be_bytes(record[..8].try_into().expect("BUG: 8 bytes"));
    Some(Version {
        checksum: Checksum::new(sum)?,
        part: word(record, 8),
        offset: word(record, 12),
        size: word(record, 16),
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("BUG: 4 bytes"))
}

/// As many bytes as there are.
fn read_full(file: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
