//! Listings of a folder tree. Blocking.

use super::atomic;
use super::patience::Pulse;
use crate::destinations::object::PAGE_ENTRIES;
use crate::destinations::{Listed, ListedObject, ObjectPath};
use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use walhub_common::ltx::name;
use walhub_common::{AgentName, DatabaseKey, DatabaseName, Level};

/// What could not be read.
type WalkError = (PathBuf, io::Error);

/// The LTX files in the folder of one level, sorted.
pub(super) fn list(folder: &Path, level: Level, pulse: &Pulse) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if pulse.beat() {
            return Err(ErrorKind::Interrupted.into());
        }
        let Some(range) = entry.file_name().to_str().and_then(name::parse) else { continue };
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_file() {
            listed.push(Listed {
                level,
                range,
                size: metadata.len(),
                time_ms: unix_ms(metadata.modified()?),
            });
        }
    }
    listed.sort_unstable_by_key(|file| file.range);
    Ok(listed)
}

pub(super) fn unix_ms(time: SystemTime) -> i64 {
    let ms = |distance: std::time::Duration| i64::try_from(distance.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

/// One page of the objects below `folder`: see [`crate::destinations::Destination::list_objects`]. A folder that is not
/// there has none.
pub(super) fn objects(
    root: &Path,
    folder: &ObjectPath,
    after: Option<&ObjectPath>,
    pulse: &Pulse,
) -> Result<Vec<ListedObject>, WalkError> {
    let mut page = BTreeMap::new();
    let mut folders = vec![folder.clone()];
    while let Some(folder) = folders.pop() {
        if pulse.beat() {
            return Err((root.to_owned(), ErrorKind::Interrupted.into()));
        }
        for (name, entry) in entries(&root.join(folder.as_str()))? {
            // A name that no object can have is not ours.
            let Ok(path) = folder.join(&name) else { continue };
            let at = |error| (entry.path(), error);
            if entry.file_type().map_err(at)?.is_dir() {
                // Its paths begin with its name and a slash: they lie before `after` together, or it is among them.
                let begin = format!("{path}/");
                if after.is_none_or(|after| *after.as_str() < *begin || after.below(&path).is_some()) {
                    folders.push(path);
                }
                continue;
            }
            if atomic::is_temporary(entry.file_name().as_os_str())
                || after.is_some_and(|after| path <= *after)
            {
                continue;
            }
            page.insert(path, entry);
            if page.len() > PAGE_ENTRIES {
                page.pop_last();
            }
        }
    }
    let mut listed = Vec::with_capacity(page.len());
    for (path, entry) in page {
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => listed.push(ListedObject {
                path,
                size: metadata.len(),
                modified_ms: unix_ms(metadata.modified().map_err(|error| (entry.path(), error))?),
            }),
            Ok(_) => {}
            // Removed since its folder was read.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err((entry.path(), error)),
        }
    }
    Ok(listed)
}

/// The databases that have an LTX file, sorted.
pub(super) fn databases(root: &Path, pulse: &Pulse) -> Result<Vec<DatabaseKey>, WalkError> {
    // A root that is gone is an error; any folder below it may go at any time.
    fs::read_dir(root).map_err(|error| (root.to_owned(), error))?;
    let mut databases = Vec::new();
    for (agent, agent_folder) in entries(root)? {
        let Ok(agent) = AgentName::new(agent) else { continue };
        for (database, folder) in entries(&agent_folder.path())? {
            if pulse.beat() {
                return Err((root.to_owned(), ErrorKind::Interrupted.into()));
            }
            let Ok(database) = DatabaseName::new(database) else { continue };
            if has_files(&folder.path())? {
                databases.push(DatabaseKey::new(agent.clone(), database));
            }
        }
    }
    databases.sort_unstable();
    Ok(databases)
}

/// True when a database's folder holds an LTX file of any level.
fn has_files(folder: &Path) -> Result<bool, WalkError> {
    for level in 0..=9 {
        let Some(level) = Level::new(level) else { continue };
        let folder = folder.join(name::fs_dir(level));
        if entries(&folder)?.iter().any(|(file, _)| name::parse(file).is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The entries of a folder with printable names; none when it is no folder, or is gone.
fn entries(folder: &Path) -> Result<Vec<(String, DirEntry)>, WalkError> {
    let at = |error| (folder.to_owned(), error);
    let reading = match fs::read_dir(folder) {
        Ok(reading) => reading,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(at(error)),
    };
    let mut entries = Vec::new();
    for entry in reading {
        let entry = entry.map_err(at)?;
        if let Ok(name) = entry.file_name().into_string() {
            entries.push((name, entry));
        }
    }
    Ok(entries)
}
