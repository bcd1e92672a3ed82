//! The page index of a large file in the making, outside of memory: an unnamed temporary file, gone with its value.
//!
//! A database of 50 GB has an index of 140 MB. Pages come in order, so the index is only appended to and read once.

use crate::limits::MAX_KEPT_INDEX_BYTES;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const READ_BYTES: usize = 64 * 1024;

/// See the module doc.
#[derive(Debug)]
pub(super) struct IndexSpool {
    folder: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl IndexSpool {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), file: None, bytes: 0 }
    }

    /// Takes over what lies in `index` once that is large.
    pub(super) fn relieve(&mut self, index: &mut Vec<u8>) -> io::Result<()> {
        if index.len() < MAX_KEPT_INDEX_BYTES {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(unnamed(&self.folder)?),
        };
        file.write_all(index)?;
        self.bytes += index.len() as u64;
        index.clear();
        Ok(())
    }

    /// Gives everything that was taken over, in order, and how many bytes that was.
    pub(super) fn drain(self, mut give: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        let Some(mut file) = self.file else { return Ok(0) };
        file.seek(SeekFrom::Start(0))?;
        let mut piece = vec![0; READ_BYTES];
        let mut left = self.bytes;
        while left > 0 {
            let wanted = left.min(READ_BYTES as u64) as usize;
            file.read_exact(&mut piece[..wanted])?;
            give(&piece[..wanted])?;
            left -= wanted as u64;
        }
        Ok(self.bytes)
    }
}

/// A file that no name leads to: whatever happens to this process, it is gone afterwards.
fn unnamed(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("index-{:016x}.tmp", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
