//! One process at a time on a folder, and the moment at which the folder is free again as an event.
//!
//! Invariants:
//! - whoever may still write into the folder keeps the lock (in an `Arc`): it is free when nobody is left, not when somebody
//!   said so;
//! - it is free at that moment even if a child process that was just started still has the descriptor.
//!
//! Non-goals: readers, and locks of single files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// A held lock. Dropping it frees the folder.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    freed: CancellationToken,
}

/// Tells when a lock is free. It does not hold it.
#[derive(Clone, Debug)]
pub struct Freed(CancellationToken);

impl Freed {
    /// Waits until the lock is free. Cancel-safe.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

impl FolderLock {
    /// Takes the lock that `file` stands for, making the file when it is missing. `None` when somebody has it.
    pub fn take(file: &Path) -> io::Result<Option<FolderLock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, freed: CancellationToken::new() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Tells when it is free.
    pub fn freed(&self) -> Freed {
        Freed(self.freed.clone())
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing would leave it to a child process that has not yet begun its own program. It cannot fail on a lock that is
        // held, and closing comes right after it.
        let _ = self.file.unlock();
        self.freed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn the_lock_is_free_when_the_last_holder_is_gone_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lock");
        let lock = Arc::new(FolderLock::take(&file).unwrap().unwrap());
        let (freed, holder) = (lock.freed(), lock.clone());
        drop(lock);
        assert!(FolderLock::take(&file).unwrap().is_none(), "somebody holds it");
        assert!(tokio::time::timeout(Duration::from_millis(1), freed.wait()).await.is_err());
        let thread = std::thread::spawn(move || drop(holder));
        freed.wait().await;
        assert!(FolderLock::take(&file).unwrap().is_some(), "free means free");
        thread.join().unwrap();
    }

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lock");
        let lock = FolderLock::take(&file).unwrap().unwrap();
        // What a child process has between its beginning and its own program.
        let copy = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(FolderLock::take(&file).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(FolderLock::take(Path::new("/nonexistent/lock")).is_err());
    }
}
