//! How a file comes into being in a folder: complete and durable under its name, or not at all. Blocking.
//!
//! Temporary file in the same folder ▸ bytes ▸ mtime ▸ fsync ▸ rename that refuses to replace ▸ fsync of the folder.
//! A temporary file is locked while it is written, so that [`remove_stale`] never takes one that is in use, and its
//! name ends in `.tmp`, which no reader of LTX files (ours or Litestream's) takes for one.

use super::patience::Pulse;
use crate::destinations::{Body, Fault, Put};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const BUFFER_BYTES: usize = 256 * 1024;
/// A large file is synced as it grows: one sync at its end would be a long time without a sign of life.
const SYNC_BYTES: usize = 32 << 20;
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Each round lost needs another thread's [`remove_stale`] to pass within microseconds.
const MAX_LOCK_ATTEMPTS: usize = 100;

/// Why no file was created.
#[derive(Debug)]
pub(super) enum CreateError {
    /// The folder or the file in it.
    Destination(PathBuf, io::Error),
    /// The local file that is to be copied.
    Body(PathBuf, io::Error),
    /// Another file has the name.
    Conflict(String),
    /// The root of the destination is gone, or another one.
    Away(Fault),
    /// Nobody waits for it any more.
    Cancelled,
}

/// Creates `folder/name` (the folder must exist) or finds it there with equal content. Durable when it returns.
pub(super) fn create(
    folder: &Path,
    name: &str,
    body: &Body,
    mtime_ms: i64,
    pulse: &Pulse,
) -> Result<Put, CreateError> {
    let path = folder.join(name);
    if path.try_exists().map_err(|e| CreateError::Destination(path.clone(), e))? {
        return settle(folder, &path, body, pulse);
    }
    let temporary = Temporary::filled(folder, name, body, mtime_ms, pulse)?;
    match publish(&temporary.path, &path) {
        Ok(()) => sync_folder(folder).map(|()| Put::Created),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => settle(folder, &path, body, pulse),
        Err(error) => Err(CreateError::Destination(path, error)),
    }
}

/// Creates `folder/name` (the folder must exist), or puts it in the place of the file that is there. Durable when it
/// returns.
pub(super) fn replace(
    folder: &Path,
    name: &str,
    body: &Body,
    mtime_ms: i64,
    pulse: &Pulse,
) -> Result<Put, CreateError> {
    let path = folder.join(name);
    let temporary = Temporary::filled(folder, name, body, mtime_ms, pulse)?;
    fs::rename(&temporary.path, &path).map_err(|error| CreateError::Destination(path, error))?;
    sync_folder(folder).map(|()| Put::Created)
}

/// Makes an entry durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), CreateError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| CreateError::Destination(folder.to_owned(), error))
}

/// Creates the folders `names` below one another under `root`, each durable in its parent. `root` must exist.
pub(super) fn create_folders(root: &Path, names: &[String]) -> Result<PathBuf, CreateError> {
    let mut folder = root.to_owned();
    for name in names {
        let parent = folder.clone();
        folder.push(name);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            // Synced all the same: whoever made it may have died before its own fsync.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(CreateError::Destination(folder, error)),
        }
        sync_folder(&parent)?;
    }
    Ok(folder)
}

/// Removes temporary files that a process left behind when it died. Those in use are locked and stay.
pub(super) fn remove_stale(folder: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !is_temporary(&entry.file_name()) || !entry.file_type()?.is_file() {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// True for names this module gives to temporary files: `<name>.<16 hex>.tmp`.
pub(super) fn is_temporary(name: &OsStr) -> bool {
    let parts = name
        .to_str()
        .and_then(|name| name.strip_suffix(TEMPORARY_SUFFIX))
        .and_then(|name| name.rsplit_once('.'));
    parts.is_some_and(|(_, random)| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A locked temporary file, which disappears with this value unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// One with the bytes and the time of the file to be, synced.
    fn filled(
        folder: &Path,
        name: &str,
        body: &Body,
        mtime_ms: i64,
        pulse: &Pulse,
    ) -> Result<Self, CreateError> {
        let temporary = Self::new(folder, name)?;
        let at = |error| CreateError::Destination(temporary.path.clone(), error);
        copy(body, &temporary, pulse)?;
        temporary.file.set_modified(system_time(mtime_ms)).map_err(at)?;
        temporary.file.sync_all().map_err(at)?;
        Ok(temporary)
    }

    fn new(folder: &Path, name: &str) -> Result<Self, CreateError> {
        for _ in 0..MAX_LOCK_ATTEMPTS {
            let path = folder.join(format!("{name}.{:016x}{TEMPORARY_SUFFIX}", rand::random::<u64>()));
            let at = |error| CreateError::Destination(path.clone(), error);
            let file = File::create_new(&path).map_err(at)?;
            // Some network file systems have no locks; then nothing is ever taken for stale either.
            let _ = file.lock();
            // Between its creation and its lock somebody's `remove_stale` may have taken it for stale. Once it is
            // locked and still has its name, nobody will.
            if is_named(&file, &path).map_err(at)? {
                return Ok(Self { path, file });
            }
        }
        let text = "temporary files vanish as soon as they are created; does something clean this folder?";
        Err(CreateError::Destination(folder.to_owned(), io::Error::other(text)))
    }
}

/// True while `path` leads to `file`.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and that is no fault.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives `temporary` the name `path` unless that is taken (`AlreadyExists`).
fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE).map_err(io::Error::from) {
        // NFS and some others cannot rename without replacing, but they can link.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            fs::hard_link(temporary, path)
        }
        result => result,
    }
}

/// What to say about a file that is there already. An equal one is synced: its maker may have died before its fsync.
fn settle(folder: &Path, path: &Path, body: &Body, pulse: &Pulse) -> Result<Put, CreateError> {
    let at = |error| CreateError::Destination(path.to_owned(), error);
    let mut existing = File::open(path).map_err(at)?;
    let (there, ours) = (existing.metadata().map_err(at)?.len(), size(body)?);
    if there != ours {
        return Err(CreateError::Conflict(format!("it has {there} bytes, ours {ours}")));
    }
    let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut offset = 0;
    for_each_piece(body, &mut right, pulse, |piece| {
        let left = &mut left[..piece.len()];
        existing.read_exact(left).map_err(at)?;
        if let Some(differs) = left.iter().zip(piece).position(|(a, b)| a != b) {
            return Err(CreateError::Conflict(format!("it differs at byte {}", offset + differs)));
        }
        offset += piece.len();
        Ok(())
    })?;
    existing.sync_all().map_err(at)?;
    sync_folder(folder)?;
    Ok(Put::AlreadyThere)
}

fn copy(body: &Body, temporary: &Temporary, pulse: &Pulse) -> Result<(), CreateError> {
    let mut buffer = vec![0; if matches!(body, Body::File(_)) { BUFFER_BYTES } else { 0 }];
    let at = |error| CreateError::Destination(temporary.path.clone(), error);
    let mut unsynced = 0;
    for_each_piece(body, &mut buffer, pulse, |piece| {
        (&temporary.file).write_all(piece).map_err(at)?;
        unsynced += piece.len();
        if unsynced >= SYNC_BYTES {
            temporary.file.sync_data().map_err(at)?;
            unsynced = 0;
        }
        Ok(())
    })
}

fn size(body: &Body) -> Result<u64, CreateError> {
    match body {
        Body::Bytes(bytes) => Ok(bytes.len() as u64),
        Body::File(path) => {
            fs::metadata(path).map(|m| m.len()).map_err(|e| CreateError::Body(path.clone(), e))
        }
    }
}

/// Hands out the body in pieces of at most [`BUFFER_BYTES`], and stops when cancelled.
fn for_each_piece(
    body: &Body,
    buffer: &mut [u8],
    pulse: &Pulse,
    mut take: impl FnMut(&[u8]) -> Result<(), CreateError>,
) -> Result<(), CreateError> {
    let mut take = |piece: &[u8]| if pulse.beat() { Err(CreateError::Cancelled) } else { take(piece) };
    match body {
        Body::Bytes(bytes) => bytes.chunks(BUFFER_BYTES).try_for_each(take),
        Body::File(path) => {
            let at = |error| CreateError::Body(path.clone(), error);
            let mut file = File::open(path).map_err(at)?;
            loop {
                match file.read(buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => take(&buffer[..count])?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(at(error)),
                }
            }
        }
    }
}

fn system_time(ms: i64) -> SystemTime {
    let distance = Duration::from_millis(ms.unsigned_abs());
    if ms < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_with_its_time_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let body = Body::Bytes(Bytes::from_static(b"hello"));
        let put = create(folder.path(), "a", &body, 1_795_354_117_090, &Pulse::idle()).unwrap();
        assert_eq!(put, Put::Created);
        assert_eq!(names(folder.path()), ["a"]);
        let modified = fs::metadata(folder.path().join("a")).unwrap().modified().unwrap();
        assert_eq!(modified, system_time(1_795_354_117_090));
    }

    #[test]
    fn publishing_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "old").unwrap();
        fs::write(&new, "new").unwrap();
        assert_eq!(publish(&new, &old).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&old).unwrap(), b"old");
    }

    #[test]
    fn a_body_that_vanished_is_not_the_destinations_fault() {
        let folder = tempfile::tempdir().unwrap();
        let body = Body::File(folder.path().join("missing"));
        let error = create(folder.path(), "a", &body, 0, &Pulse::idle()).unwrap_err();
        assert!(matches!(error, CreateError::Body(..)), "{error:?}");
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn stale_temporaries_go_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let in_use = Temporary::new(folder.path(), "a.ltx").unwrap();
        fs::write(folder.path().join("a.ltx.0123456789abcdef.tmp"), "half").unwrap();
        fs::write(folder.path().join("notes.tmp"), "not ours").unwrap();
        assert_eq!(remove_stale(folder.path()).unwrap(), 1);
        assert_eq!(names(folder.path()).len(), 2);
        drop(in_use);
        assert_eq!(names(folder.path()), ["notes.tmp"]);
    }

    /// Lanes put into one folder side by side, and each may find it unprepared.
    #[test]
    fn cleaning_never_takes_the_file_of_a_put_that_just_began() {
        let folder = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let cleaning = scope.spawn(|| {
                let mut rounds = 0_u64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    remove_stale(folder.path()).unwrap();
                    rounds += 1;
                }
                rounds
            });
            for n in 0..3_000 {
                let temporary = Temporary::new(folder.path(), "a.ltx").unwrap();
                publish(&temporary.path, &folder.path().join("a.ltx"))
                    .unwrap_or_else(|error| panic!("file {n} was taken away: {error}"));
                fs::remove_file(folder.path().join("a.ltx")).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(cleaning.join().unwrap() > 0);
        });
    }
}
