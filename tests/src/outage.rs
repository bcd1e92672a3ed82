//! A folder that a destination writes to goes away and comes back.

use std::path::{Path, PathBuf};

/// A folder that is away: a file lies in its place, so that nobody can write there. It is back when this is dropped.
#[derive(Debug)]
pub struct Outage {
    folder: PathBuf,
    kept: PathBuf,
}

impl Outage {
    /// Takes a folder away.
    #[track_caller]
    pub fn of(folder: &Path) -> Outage {
        let kept = folder.with_extension("away");
        std::fs::rename(folder, &kept).expect("take the folder away");
        std::fs::write(folder, b"gone").expect("a file in its place");
        Outage { folder: folder.to_path_buf(), kept }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        std::fs::remove_file(&self.folder).expect("the file in its place");
        std::fs::rename(&self.kept, &self.folder).expect("bring the folder back");
    }
}
