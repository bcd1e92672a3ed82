//! Every write the agent makes to its own state goes through a [`Disk`], so that tests can cut the power at any of them.
//!
//! A caller may rely on this and no more: bytes are safe after [`DiskFile::sync`], a name (created, renamed, removed) after
//! [`Disk::sync_folder`] of its folder. Reading needs no seam and uses `std::fs`.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// A file that is being written, from some place to its end.
pub trait DiskFile: Write + Send {
    /// Returns when every byte written so far would survive a power cut.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operations that change state.
pub trait Disk: Send + Sync + fmt::Debug {
    /// An empty file of this name, whatever was there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file, cut to `length` bytes; writing goes on there.
    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Gives a file another name in the same folder, in place of what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; none there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when every change of names in the folder would survive a power cut.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The machine's own file systems.
pub fn real() -> Arc<dyn Disk> {
    Arc::new(Real)
}

#[derive(Debug)]
struct Real;

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Disk for Real {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(length)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

/// Replaces a small file so that after a power cut it holds the old or the new text.
pub fn replace(disk: &dyn Disk, folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = disk.create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync()?;
    disk.rename(&temporary, &folder.join(name))?;
    disk.sync_folder(folder)
}
