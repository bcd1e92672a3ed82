//! The file that a database is written into: its room is reserved first, and long runs of pages go past the page cache.
//!
//! Copying into the page cache costs a restore several times the CPU time of expanding and summing the pages, and pushes out
//! what the machine's applications read; nobody reads the file again soon. Where the file system cannot write past its cache,
//! or the run is short or not aligned, it is written as usual: the kernel keeps both views of a file the same.
//!
//! Non-goals: what is durable when (the caller syncs).

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs of at least so many bytes are written past the page cache: a shorter one takes the disk longer than the copy takes.
pub(super) const LONG_BYTES: usize = 64 * 1024;
/// What every block device is content with, for the memory, the length and the place in the file.
const ALIGNMENT: usize = 4096;

/// See the module doc.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    /// The same file, past the page cache.
    direct: Option<File>,
    refused: AtomicBool,
}

impl ImageFile {
    /// Gives `file`, which lies at `path`, its length and its room on the disk, so that a disk that is too small is found
    /// before anything is read.
    pub(super) fn new(file: File, path: &Path, bytes: u64) -> io::Result<ImageFile> {
        file.set_len(bytes)?;
        reserve(&file, bytes)?;
        let direct = open_direct(&file, path).ok().flatten();
        Ok(ImageFile { file, direct, refused: AtomicBool::new(false) })
    }

    /// Writes all of `bytes` from byte `offset` on.
    pub(super) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.past_cache(bytes, offset) {
            match direct.write_all_at(bytes, offset) {
                // This file system wants more than a page's alignment, or cannot do it at all.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        self.file.write_all_at(bytes, offset)
    }

    fn past_cache(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let aligned = bytes.as_ptr().align_offset(ALIGNMENT) == 0
            && bytes.len().is_multiple_of(ALIGNMENT)
            && offset.is_multiple_of(ALIGNMENT as u64);
        let fit = aligned && bytes.len() >= LONG_BYTES && !self.refused.load(Ordering::Relaxed);
        self.direct.as_ref().filter(|_| fit)
    }

    /// Gives back the room of `bytes` bytes from `offset` on, which nobody has written yet, where the file system can do that.
    pub(super) fn give_back(&self, offset: u64, bytes: u64) {
        let _ = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes);
    }

    /// Returns when all that was written before lies on the disk.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Where room cannot be reserved, a full disk is found while writing.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    loop {
        return match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::INTR) => continue,
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
}

fn open_direct(file: &File, path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let direct = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let (mine, named) = (file.metadata()?, direct.metadata()?);
    // Somebody may have put another file there.
    Ok(((mine.dev(), mine.ino()) == (named.dev(), named.ino())).then_some(direct))
}

/// Memory that can be written past the page cache.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    pub(super) fn new(len: usize) -> AlignedBuffer {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        AlignedBuffer { bytes, start, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn whatever_the_place_and_the_length_the_bytes_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        let total = 1_000_000;
        let image = ImageFile::new(file, &path, total as u64).unwrap();
        let mut expected = vec![0; total];
        let mut buffer = AlignedBuffer::new(256 * 1024);
        assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        // Long and short, aligned and not, over what the other way has written.
        let pieces = [
            (0, 0, 65_536),
            (4096, 0, 131_072),
            (5000, 0, 70_000),
            (131_072, 0, 4096),
            (131_072, 1, 65_536),
            (262_144, 0, 262_144),
            (262_145, 0, 65_536),
            (999_000, 0, 1000),
        ];
        for (number, (offset, from, len)) in pieces.into_iter().enumerate() {
            buffer.bytes_mut().fill(number as u8 + 1);
            image.write_all_at(&buffer.bytes()[from..][..len], offset as u64).unwrap();
            expected[offset..][..len].fill(number as u8 + 1);
            assert!(fs::read(&path).unwrap() == expected, "piece {number}");
        }
        image.sync_data().unwrap();
    }

    #[test]
    fn another_file_of_that_name_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        fs::rename(&path, folder.path().join("mine")).unwrap();
        fs::write(&path, "other").unwrap();
        let image = ImageFile::new(file, &path, 65_536).unwrap();
        let mut buffer = AlignedBuffer::new(65_536);
        buffer.bytes_mut().fill(7);
        image.write_all_at(buffer.bytes(), 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert!(fs::read(folder.path().join("mine")).unwrap() == buffer.bytes());
    }
}
