//! Small files of the data folder that are replaced as a whole, so that a crash leaves the old or the new one; and files that are
//! not to last at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces `dir/name` by `bytes`. Durable when it returns. Blocking.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temp = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temp, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// A file that goes with its value, if it is there.
#[derive(Debug)]
pub(crate) struct Temp(PathBuf);

impl Temp {
    /// At this path. Makes nothing.
    pub(crate) fn new(path: PathBuf) -> Temp {
        Temp(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary file");
        }
    }
}
