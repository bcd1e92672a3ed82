//! The agent's state folder: one agent at a time, the incarnation number, one folder per database.
//!
//! ```text
//! agent.lock            held by the running agent
//! epoch                 raised and synced by every start; proves that this is not an older image of the node
//! agent.sock            where `walhub-agent status` asks
//! databases/NAME/path   which file NAME stands for, so that names stay with their files
//! databases/NAME/restore scratch files of a restore; removed by every start
//! databases/NAME/…      the capture's own files
//! ```

use crate::disk::{self, Disk};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use walhub_common::DatabaseName;
use walhub_common::folder_lock::{FolderLock, Freed};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Two agents.
    #[error("another walhub-agent runs on the state folder {}; stop it, or give this one its own `state-dir`", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("the state folder {} cannot be used: {source}; check its owner and mode, and that the disk is not full", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The epoch file is damaged.
    #[error("{} does not hold a number; restore it, or remove it to start as a node without state", path.display())]
    Epoch {
        /// The file.
        path: PathBuf,
    },
}

/// The folder, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    epoch: AtomicU64,
    disk: Arc<dyn Disk>,
    lock: FolderLock,
}

impl StateDir {
    /// Creates what is missing, takes the lock, raises the epoch and syncs it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        Self::open_on(path, disk::real())
    }

    /// As [`StateDir::open`], on a disk of the caller's.
    pub fn open_on(path: &Path, disk: Arc<dyn Disk>) -> Result<Self, StateDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io { path, source }
        };
        create_private(path).map_err(io(path))?;
        let lock_path = path.join("agent.lock");
        let lock = FolderLock::take(&lock_path).map_err(io(&lock_path))?;
        let lock = lock.ok_or_else(|| StateDirError::Taken { path: path.to_owned() })?;
        forget_restores(path);
        let epoch_path = path.join("epoch");
        let epoch = match fs::read_to_string(&epoch_path) {
            Ok(text) => {
                let stored: u64 = text
                    .trim()
                    .parse()
                    .ok()
                    .filter(|n| *n < u64::MAX)
                    .ok_or_else(|| StateDirError::Epoch { path: epoch_path.clone() })?;
                disk::replace(&*disk, path, "epoch", &(stored + 1).to_string()).map_err(io(&epoch_path))?;
                stored + 1
            }
            // The first welcome of the hub names it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(io(&epoch_path)(e)),
        };
        Ok(Self { path: path.to_owned(), epoch: AtomicU64::new(epoch), disk, lock })
    }

    /// Tells when nobody of this process uses the folder any more.
    pub fn freed(&self) -> Freed {
        self.lock.freed()
    }

    /// Incarnation of this start; 0 while the node has none.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Stores the epoch that the hub named.
    pub fn adopt_epoch(&self, epoch: u64) -> io::Result<()> {
        disk::replace(&*self.disk, &self.path, "epoch", &epoch.to_string())?;
        self.epoch.store(epoch, Ordering::Release);
        Ok(())
    }

    /// Where `walhub-agent status` asks.
    pub fn socket(&self) -> PathBuf {
        socket_path(&self.path)
    }

    /// Where state is written.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// The folder of one database; created when missing, with a note which file it stands for.
    pub fn database(&self, name: &DatabaseName, path: &Path) -> io::Result<PathBuf> {
        let folder = self.folder_of(name);
        create_private(&folder)?;
        if self.path_of(name).as_deref() != Some(path) {
            disk::replace(&*self.disk, &folder, "path", &path.to_string_lossy())?;
        }
        Ok(folder)
    }

    /// The folder of one database, whether it is there or not.
    pub fn folder_of(&self, name: &DatabaseName) -> PathBuf {
        self.path.join("databases").join(name.as_str())
    }

    /// Which file a name stood for when it was last followed.
    pub fn path_of(&self, name: &DatabaseName) -> Option<PathBuf> {
        recorded_path(&self.path, name)
    }
}

/// As [`StateDir::path_of`], for a process that does not own the folder.
pub fn recorded_path(state_dir: &Path, name: &DatabaseName) -> Option<PathBuf> {
    let note = state_dir.join("databases").join(name.as_str()).join("path");
    fs::read_to_string(note).ok().map(PathBuf::from)
}

/// Where the agent of a state folder listens for `walhub-agent status`.
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// What a restore of a killed agent left behind may be as large as a database.
fn forget_restores(path: &Path) {
    for folder in fs::read_dir(path.join("databases")).into_iter().flatten().flatten() {
        // There is none nearly always.
        let _ = fs::remove_dir_all(folder.path().join("restore"));
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_raises_the_epoch_once_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.epoch(), 0);
        state.adopt_epoch(5).unwrap();
        assert_eq!(state.epoch(), 5);
        drop(state);
        assert_eq!(StateDir::open(dir.path()).unwrap().epoch(), 6);
        assert_eq!(StateDir::open(dir.path()).unwrap().epoch(), 7);
        fs::write(dir.path().join("epoch"), "many").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateDirError::Epoch { .. })));
    }

    #[test]
    fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("another walhub-agent"), "{refused}");
        drop(first);
        assert!(StateDir::open(dir.path()).is_ok());
    }

    #[test]
    fn a_name_remembers_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let name = DatabaseName::new("app.db").unwrap();
        assert_eq!(state.path_of(&name), None);
        state.database(&name, Path::new("/data/app.db")).unwrap();
        assert_eq!(state.path_of(&name), Some("/data/app.db".into()));
        state.database(&name, Path::new("/elsewhere/app.db")).unwrap();
        assert_eq!(state.path_of(&name), Some("/elsewhere/app.db".into()));
    }
}
