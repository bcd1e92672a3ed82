//! A folder for one test: removed when the test passes, kept and named when it fails.

use std::path::{Path, PathBuf};

/// The folder.
#[derive(Debug)]
pub struct Scratch {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// A fresh folder whose name starts with `name`.
    pub fn new(name: &str) -> Scratch {
        let dir =
            tempfile::Builder::new().prefix(&format!("walhub-{name}-")).tempdir().expect("scratch folder");
        let path = dir.path().to_path_buf();
        Scratch { dir: Some(dir), path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the test's folder is kept: {}", dir.keep().display());
        }
    }
}
