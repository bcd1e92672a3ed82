//! The temporary file, and the step that gives it its name.

use super::RestoreError;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What may happen to a file that has the output's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Existing {
    /// It is refused.
    Refused,
    /// It is replaced, unless a process has it open.
    Replaced,
    /// It is replaced; who has it open goes on reading what was there.
    ReplacedWhileRead,
}

impl From<bool> for Existing {
    fn from(overwrite: bool) -> Existing {
        if overwrite { Existing::Replaced } else { Existing::Refused }
    }
}

/// A locked temporary file beside the output. Dropping it removes the temporary file.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    temp: PathBuf,
    file: File,
    existing: Existing,
    /// The temporary file is no longer ours to remove.
    published: bool,
}

impl Output {
    /// Refuses what would be refused at the end anyway, makes the folder, opens and locks the temporary file.
    pub(super) fn create(path: &Path, existing: Existing) -> Result<Output, RestoreError> {
        let output = Self::open(path, existing)?;
        // What a killed restore left behind.
        output.clear()?;
        Ok(output)
    }

    /// As [`Output::create`], with what a killed restore left behind still in the temporary file.
    pub(super) fn open(path: &Path, existing: Existing) -> Result<Output, RestoreError> {
        check_target(path, existing)?;
        let folder = folder(path);
        fs::create_dir_all(folder).map_err(RestoreError::io("create the folder", folder))?;
        let temp = with_suffix(path, ".walhub-restore.tmp");
        let file = lock_temp(&temp)?;
        Ok(Output { path: path.to_owned(), temp, file, existing, published: false })
    }

    /// Empties the temporary file.
    pub(super) fn clear(&self) -> Result<(), RestoreError> {
        self.file.set_len(0).map_err(RestoreError::io("truncate", &self.temp))
    }

    /// Leaves the temporary file where it is.
    pub(super) fn keep(&mut self) {
        self.published = true;
    }

    /// The database file's final name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The temporary file's name.
    pub(super) fn temp(&self) -> &Path {
        &self.temp
    }

    /// A second handle on the temporary file.
    pub(super) fn handle(&self) -> Result<File, RestoreError> {
        self.file.try_clone().map_err(RestoreError::io("open", &self.temp))
    }

    /// Cuts the file to its length, makes it durable and gives it its name.
    pub(super) fn publish(&mut self, bytes: u64) -> Result<(), RestoreError> {
        self.file.set_len(bytes).map_err(RestoreError::io("truncate", &self.temp))?;
        self.file.sync_all().map_err(RestoreError::io("sync", &self.temp))?;
        check_target(&self.path, self.existing)?;
        if self.existing == Existing::Refused {
            self.link()?;
        } else {
            self.take_owner();
        }
        if !self.published {
            fs::rename(&self.temp, &self.path).map_err(RestoreError::io("rename to", &self.path))?;
            self.published = true;
        }
        let folder = folder(&self.path);
        File::open(folder).and_then(|f| f.sync_all()).map_err(RestoreError::io("sync the folder", folder))
    }

    /// Create-only: a link fails when somebody made the output meanwhile. Where links do not exist, the check just
    /// made has to do, and the caller renames.
    fn link(&mut self) -> Result<(), RestoreError> {
        match fs::hard_link(&self.temp, &self.path) {
            Ok(()) => {
                self.published = true;
                fs::remove_file(&self.temp).map_err(RestoreError::io("remove", &self.temp))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(RestoreError::Exists(self.path.clone()))
            }
            Err(_) => Ok(()),
        }
    }

    /// An application must be able to open what replaces its database. Best effort: only root may give files away.
    fn take_owner(&self) {
        let (Ok(old), Ok(new)) = (fs::metadata(&self.path), self.file.metadata()) else { return };
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            let _ = std::os::unix::fs::chown(&self.temp, Some(old.uid()), Some(old.gid()));
        }
        let _ = fs::set_permissions(&self.temp, old.permissions());
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Still locked: nobody else's file can be under this name.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Refuses what must not be replaced, and what SQLite would mix with the restored database.
pub(super) fn check_target(path: &Path, existing: Existing) -> Result<(), RestoreError> {
    if existing == Existing::Refused && exists(path)? {
        return Err(RestoreError::Exists(path.to_owned()));
    }
    for suffix in COMPANIONS {
        let companion = with_suffix(path, suffix);
        if exists(&companion)? {
            return Err(RestoreError::Companion(companion));
        }
    }
    let holder = (existing == Existing::Replaced).then(|| super::in_use::holder(path)).flatten();
    match holder {
        Some(process) => Err(RestoreError::InUse { path: path.to_owned(), process }),
        None => Ok(()),
    }
}

fn exists(path: &Path) -> Result<bool, RestoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RestoreError::io("look at", path)(error)),
    }
}

/// Opens the temporary file and takes its lock. Between the two, its former owner may have renamed or removed it; the
/// lock counts only while the name still leads to the locked file.
fn lock_temp(temp: &Path) -> Result<File, RestoreError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(temp)
            .map_err(RestoreError::io("create", temp))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RestoreError::Busy(temp.to_owned())),
            Err(TryLockError::Error(error)) => return Err(RestoreError::io("lock", temp)(error)),
        }
        let mine = file.metadata().map_err(RestoreError::io("look at", temp))?;
        match fs::metadata(temp) {
            Ok(named) if (named.dev(), named.ino()) == (mine.dev(), mine.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RestoreError::io("look at", temp)(error)),
        }
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
