//! One part on its way in: bytes into a file, then one pass that verifies it and finds its pages.

use super::StagingError;
use super::catalog::Version;
use std::fs::{self, File};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use walhub_common::limits::{MAX_PART_BYTES, MAX_PART_FILE_BYTES};
use walhub_common::ltx::{Decoder, HEADER_BYTES, Header, LtxError};
use walhub_common::{Checksum, Pgno};

/// Prefix of files being received.
pub(super) const INCOMING: &str = "incoming-";

/// A part that is being received. Dropped, it is gone.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
    bytes: u64,
    used: Arc<AtomicU64>,
    max_used: u64,
    kept: bool,
}

/// What a part holds.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) header: Header,
    /// Newest versions of its pages, ascending. The part number is the one in its header.
    pub(super) pages: Vec<(Pgno, Version)>,
}

impl Incoming {
    pub(super) fn create(
        dir: &Path,
        number: u64,
        used: Arc<AtomicU64>,
        max_used: u64,
    ) -> Result<Incoming, StagingError> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{INCOMING}{number}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Incoming { file, path, bytes: 0, used, max_used, kept: false })
    }

    /// Takes the next bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StagingError> {
        let more = data.len() as u64;
        if self.bytes + more > MAX_PART_FILE_BYTES {
            return Err(StagingError::TooLarge(MAX_PART_FILE_BYTES));
        }
        let used = self.used.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        if used + more > self.max_used {
            return Err(StagingError::Full { used, max: self.max_used });
        }
        Ok(self.file.write_all(data)?)
    }

    /// Bytes taken.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Verifies the whole file.
    pub(super) fn contents(&mut self) -> Result<Contents, StagingError> {
        self.file.seek(SeekFrom::Start(0))?;
        contents(&self.file)
    }

    /// Syncs it and gives it its name.
    pub(super) fn keep(mut self, name: &Path) -> Result<(), StagingError> {
        self.file.sync_all()?;
        fs::rename(&self.path, name)?;
        if let Some(dir) = name.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.kept = true;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            self.used.fetch_sub(self.bytes, Ordering::Relaxed);
            // The next start sweeps up what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Verifies a part and finds its pages.
pub(super) fn contents(file: &File) -> Result<Contents, StagingError> {
    let corrupt = |e: LtxError| match e {
        LtxError::Io(e) => StagingError::Io(e),
        e => StagingError::Corrupt(e.to_string()),
    };
    let mut decoder = Decoder::new(BufReader::with_capacity(64 * 1024, file)).map_err(corrupt)?;
    let header = *decoder.header();
    let most = MAX_PART_BYTES.div_ceil(header.page_size.bytes());
    let mut pages = Vec::new();
    let mut page = Vec::new();
    let mut offset = HEADER_BYTES as u64;
    while let Some(pgno) = decoder.next_page(&mut page).map_err(corrupt)? {
        let Some(block) = decoder.block() else {
            return Err(StagingError::Corrupt("a page in the form of an LZ4 frame".into()));
        };
        if pages.len() == most {
            return Err(StagingError::Corrupt(format!("a part of more than {most} pages")));
        }
        let size = block.len() as u32;
        let version =
            Version { part: 0, offset: offset as u32 + 10, size, checksum: Checksum::of_page(pgno, &page) };
        offset += 10 + u64::from(size);
        pages.push((pgno, version));
    }
    decoder.finish().map_err(corrupt)?;
    let single = header.range.min() == header.range.max();
    if header.is_snapshot() || !single {
        return Err(StagingError::Corrupt(format!("its header covers {}", header.range)));
    }
    Ok(Contents { header, pages })
}
