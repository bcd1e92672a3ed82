//! Pages out of part files, each compared with its checksum.

use super::StagingError;
use super::area::part_path;
use super::catalog::Version;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use walhub_common::limits::MAX_PART_FILE_BYTES;
use walhub_common::{Checksum, PageSize, Pgno, ltx};

/// Part files open at once. Pages of the first pass lie in part after part; what was sent again lies in few.
const OPEN_PARTS: usize = 16;

/// Reads pages of one folder of parts. Memory: two pages and a few open files.
#[derive(Debug)]
pub(super) struct Pages {
    dir: PathBuf,
    page_size: PageSize,
    /// Open part files, the least recently opened first.
    open: VecDeque<(u32, File)>,
    block: Vec<u8>,
    page: Vec<u8>,
}

/// One page in both its forms.
#[derive(Debug)]
pub(super) struct Read<'a> {
    /// The LZ4 block.
    pub(super) block: &'a [u8],
    /// The page.
    pub(super) page: &'a [u8],
}

impl Pages {
    pub(super) fn of(dir: &Path, page_size: PageSize) -> Pages {
        Pages { dir: dir.to_owned(), page_size, open: VecDeque::new(), block: Vec::new(), page: Vec::new() }
    }

    /// The page that lies where `version` says. [`StagingError::Corrupt`] when it is not that page.
    pub(super) fn read(&mut self, pgno: Pgno, version: &Version) -> Result<Read<'_>, StagingError> {
        if u64::from(version.size) > MAX_PART_FILE_BYTES {
            return Err(StagingError::Corrupt("the catalog is damaged".into()));
        }
        self.block.resize(version.size as usize, 0);
        let at = self.opened(version.part)?;
        self.open[at].1.read_exact_at(&mut self.block, version.offset.into()).map_err(|e| {
            match e.kind() {
                io::ErrorKind::UnexpectedEof => StagingError::Corrupt("a part is shorter than it was".into()),
                _ => StagingError::Io(e),
            }
        })?;
        let damaged = || StagingError::Corrupt(format!("page {pgno} was damaged on the hub's disk"));
        ltx::expand(&self.block, self.page_size, &mut self.page).map_err(|_| damaged())?;
        if Checksum::of_page(pgno, &self.page) != version.checksum {
            return Err(damaged());
        }
        Ok(Read { block: &self.block, page: &self.page })
    }

    /// Where an open part stands.
    fn opened(&mut self, part: u32) -> io::Result<usize> {
        if let Some(at) = self.open.iter().position(|(number, _)| *number == part) {
            return Ok(at);
        }
        let file = File::open(part_path(&self.dir, part))?;
        if self.open.len() == OPEN_PARTS {
            self.open.pop_front();
        }
        self.open.push_back((part, file));
        Ok(self.open.len() - 1)
    }
}
