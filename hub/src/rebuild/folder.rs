//! The data folder that a hub is rebuilt in: empty before, whole after, and never taken for whole in between.

use super::report::DatabaseReport;
use crate::buffer::disk::{DiskBuffer, Options, lock_folder};
use crate::buffer::{BufferError, WalBuffer};
use crate::config::{BufferConfig, Config};
use crate::durable;
use crate::fleet::{Epochs, LabelBook};
use crate::jobs::{self, Revived};
use crate::mirror::{HubId, HubState, Ledger};
use crate::retain::Holds;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Stands in the folder while it is not whole.
const MARKER: &str = "rebuild.unfinished";
/// What every file system of its own has, and the lock that whoever looks into a data folder takes.
const NO_MATTER: [&str; 2] = ["lost+found", "lock"];
/// Registrations on their way: one sync covers many.
const AT_ONCE: usize = 256;
/// Entries that are named when a folder is not empty.
const NAMED: usize = 5;

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is something in it.
    #[error(
        "{} is not empty ({there}): a hub is rebuilt in an empty data folder only; if that hub is lost for good, move the \
         folder away first", .path.display()
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// Some of what is there.
        there: String,
    },
    /// A rebuild broke off.
    #[error(
        "{} holds a hub that is half rebuilt: run `walhub-hub rebuild` again, it begins anew", .0.display()
    )]
    Unfinished(PathBuf),
    /// A file.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The buffer.
    #[error("the buffer in {}: {source}", .path.display())]
    Buffer {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: BufferError,
    },
}

/// Refuses a folder that a rebuild has left half-written.
pub fn refuse_unfinished(data_dir: &Path) -> Result<(), FolderError> {
    match data_dir.join(MARKER).try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(FolderError::Unfinished(data_dir.to_owned())),
        Err(source) => Err(FolderError::Io { path: data_dir.to_owned(), source }),
    }
}

/// Names of what is in the folder; none when it does not exist.
fn entries(data_dir: &Path) -> io::Result<Vec<String>> {
    let listed = match fs::read_dir(data_dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in listed {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !NO_MATTER.contains(&name.as_str()));
    names.sort();
    Ok(names)
}

/// Refuses a folder that is not empty, unless all in it was left by a rebuild that broke off. Changes nothing.
pub(super) fn check(data_dir: &Path) -> Result<(), FolderError> {
    let io = |source| FolderError::Io { path: data_dir.to_owned(), source };
    let names = entries(data_dir).map_err(io)?;
    if names.is_empty() || names.iter().any(|name| name == MARKER) {
        return Ok(());
    }
    let more = if names.len() > NAMED { ", …" } else { "" };
    let there = format!("{}{more}", names[..names.len().min(NAMED)].join(", "));
    Err(FolderError::NotEmpty { path: data_dir.to_owned(), there })
}

/// Makes the hub in its folder, and gives its id. Durable when it returns.
pub(super) async fn write(
    config: &Config,
    state: &HubState,
    databases: &[DatabaseReport],
    revived: &[Revived],
) -> Result<HubId, FolderError> {
    let path = config.data_dir.clone();
    let BufferConfig { max_bytes, .. } = config.buffer;
    let (buffer, lock) = {
        let path = path.clone();
        blocking(move || {
            let buffer = |source| FolderError::Buffer { path: path.clone(), source };
            let lock = Arc::new(lock_folder(&path).map_err(buffer)?);
            begin(&path)?;
            let options = Options { lock: Some(lock.clone()), ..Options::new(&path, max_bytes) };
            Ok((DiskBuffer::open(options).map_err(buffer)?, lock))
        })
        .await?
    };
    let registered = async {
        stream::iter(databases.iter().map(|database| register(&buffer, database)).collect::<Vec<_>>())
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        buffer.close().await
    };
    registered.await.map_err(|source| FolderError::Buffer { path: path.clone(), source })?;
    let (state, revived) = (state.clone(), revived.to_vec());
    blocking(move || {
        let io = |source| FolderError::Io { path: path.clone(), source };
        Epochs::restore(&path, &state.agents).map_err(io)?;
        Holds::restore(&path, &state.holds).map_err(io)?;
        LabelBook::restore(&path, &state.labels).map_err(io)?;
        jobs::restore(&path, &revived).map_err(io)?;
        let hub = Ledger::create(&path, Some(&state.id)).map_err(io)?.id().clone();
        finish(&path).map_err(io)?;
        drop(lock);
        Ok(hub)
    })
    .await
}

async fn register(buffer: &DiskBuffer, database: &DatabaseReport) -> Result<(), BufferError> {
    let mirrored = &database.mirrored;
    let registered = buffer.register(&mirrored.key, Some(mirrored.lineage), &mirrored.path).await?;
    if let Some((position, time_ms)) = database.position {
        buffer.adopt(registered.id, position, time_ms).await?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, FolderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(FolderError::Io { path: PathBuf::new(), source: io::Error::other(error) }),
    }
}

/// Marks the folder, and empties it of what an attempt before has left.
fn begin(data_dir: &Path) -> Result<(), FolderError> {
    check(data_dir)?;
    let io = |source| FolderError::Io { path: data_dir.to_owned(), source };
    durable::replace(data_dir, MARKER, b"").map_err(io)?;
    for name in entries(data_dir).map_err(io)? {
        let path = data_dir.join(&name);
        if name == MARKER {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(io)?;
    }
    Ok(())
}

fn finish(data_dir: &Path) -> io::Result<()> {
    fs::remove_file(data_dir.join(MARKER))?;
    fs::File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_folder_is_taken_or_one_that_was_left_half_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        check(&path).unwrap();
        fs::create_dir_all(path.join(NO_MATTER[0])).unwrap();
        fs::write(path.join(NO_MATTER[1]), b"").unwrap();
        check(&path).unwrap();
        for n in 0..7 {
            fs::write(path.join(format!("f{n}")), b"").unwrap();
        }
        let error = check(&path).unwrap_err().to_string();
        assert!(error.contains("f0, f1, f2, f3, f4, …") && error.contains("not empty"), "{error}");
        refuse_unfinished(&path).unwrap();
        fs::write(path.join(MARKER), b"").unwrap();
        assert!(matches!(refuse_unfinished(&path), Err(FolderError::Unfinished(_))));
        begin(&path).unwrap();
        assert_eq!(entries(&path).unwrap(), [MARKER]);
        finish(&path).unwrap();
        refuse_unfinished(&path).unwrap();
    }
}
