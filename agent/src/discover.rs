//! Which database files to follow, and under which names: a walk over folders that opens no file.
//!
//! Invariants:
//! - one name stands for one file. A name stays with the file that had it before; another file that wants it is reported
//!   and not followed;
//! - one file is followed once, under the name of the first source that finds it;
//! - what cannot be read is a fault of the scan, and the rest of the scan goes on.

use crate::watch::COMPANIONS;
use glob::{MatchOptions, Pattern};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use walhub_common::DatabaseName;
use walhub_common::limits::MAX_DATABASES_PER_AGENT;

/// Folders below a watched one that are walked at most.
const MAX_FOLDERS: usize = 10_000;
/// In the names of files that a restore is writing, or has left.
const RESTORE_INFIX: &str = ".walhub-restore.";
/// What a restore put another file in place of, and that is kept: for people, not to be followed.
pub const KEPT: &str = ".walhub-kept";

/// One entry of `databases:` in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// One file, followed whether it exists or not.
    Path {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: DatabaseName,
    },
    /// Every file of a folder whose name matches.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Matched against file names.
        pattern: Pattern,
        /// Folders below as well.
        recursive: bool,
        /// Put before the names of its files.
        prefix: String,
    },
}

/// A file to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: DatabaseName,
    /// The file.
    pub path: PathBuf,
    /// True when the configuration names it, so that it is followed even while it does not exist.
    pub fixed: bool,
}

/// Something that was not followed, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// File or folder.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub reason: String,
}

/// What a walk found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scan {
    /// By name.
    pub found: BTreeMap<DatabaseName, Found>,
    /// Sorted by path.
    pub faults: BTreeSet<Fault>,
    /// Folders in which new files may appear.
    pub folders: BTreeSet<PathBuf>,
}

impl Scan {
    fn fault(&mut self, path: &Path, reason: impl Into<String>) {
        self.faults.insert(Fault { path: path.to_owned(), reason: reason.into() });
    }
}

/// Walks all sources. `had` says which file a name stood for before.
pub fn scan(sources: &[Source], had: &dyn Fn(&DatabaseName) -> Option<PathBuf>) -> Scan {
    let mut scan = Scan::default();
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    let mut wanted: Vec<Found> = Vec::new();
    for source in sources {
        match source {
            Source::Path { path, name } => {
                if taken.insert(path.clone()) {
                    wanted.push(Found { name: name.clone(), path: path.clone(), fixed: true });
                }
            }
            Source::Folder { folder, pattern, recursive, prefix } => {
                for file in walk(&mut scan, folder, pattern, *recursive) {
                    if taken.contains(&file) {
                        continue;
                    }
                    match name_of(folder, &file, prefix) {
                        Ok(name) => {
                            taken.insert(file.clone());
                            wanted.push(Found { name, path: file, fixed: false });
                        }
                        Err(reason) => scan.fault(&file, reason),
                    }
                }
            }
        }
    }
    settle(&mut scan, wanted, had);
    scan
}

/// Gives each name to one file: the one that had it, else the first.
fn settle(scan: &mut Scan, wanted: Vec<Found>, had: &dyn Fn(&DatabaseName) -> Option<PathBuf>) {
    let mut by_name: BTreeMap<DatabaseName, Vec<Found>> = BTreeMap::new();
    for found in wanted {
        by_name.entry(found.name.clone()).or_default().push(found);
    }
    for (name, mut rivals) in by_name {
        let before = if rivals.len() > 1 { had(&name) } else { None };
        let winner = rivals.iter().position(|f| Some(&f.path) == before.as_ref()).unwrap_or(0);
        let winner = rivals.swap_remove(winner);
        for loser in rivals {
            let reason = format!(
                "the name {name} is taken by {}; list this file with `path:` and a `name:` of its own",
                winner.path.display()
            );
            scan.fault(&loser.path, reason);
        }
        if scan.found.len() < MAX_DATABASES_PER_AGENT {
            scan.found.insert(name, winner);
        } else {
            scan.fault(
                &winner.path,
                format!("an agent follows at most {MAX_DATABASES_PER_AGENT} databases; narrow the pattern"),
            );
        }
    }
}

/// Matching files, sorted.
fn walk(scan: &mut Scan, folder: &Path, pattern: &Pattern, recursive: bool) -> Vec<PathBuf> {
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let mut files = Vec::new();
    let mut pending = vec![folder.to_owned()];
    let mut walked = 0;
    while let Some(folder) = pending.pop() {
        walked += 1;
        if walked > MAX_FOLDERS {
            scan.fault(&folder, format!("more than {MAX_FOLDERS} folders; narrow `dir:`"));
            break;
        }
        scan.folders.insert(folder.clone());
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                scan.fault(&folder, format!("cannot be read: {e}"));
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // Follows links to files, and not links to folders: a cycle would have no end.
            let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                scan.fault(&path, "its name is not UTF-8; rename it, or leave it out of the pattern");
                continue;
            };
            if is_folder {
                if recursive && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if pattern.matches_with(name, options)
                && !COMPANIONS.iter().any(|c| name.ends_with(c))
                && !name.contains(RESTORE_INFIX)
                && !name.contains(KEPT)
                && fs::metadata(&path).is_ok_and(|m| m.is_file())
            {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The name of a file found in a folder: its path below the folder, `-` between the parts, `_` for what a name cannot
/// have.
fn name_of(folder: &Path, file: &Path, prefix: &str) -> Result<DatabaseName, String> {
    let below = file.strip_prefix(folder).unwrap_or(file);
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    let text = format!("{prefix}{}", parts.join("-"));
    let hint = "; list it with `path:` and a `name:` of its own";
    DatabaseName::new(sanitised(&text)).map_err(|e| format!("{e}{hint}"))
}

/// The name that a file would have if it existed: a restore must find it although it is gone.
pub fn name_in(sources: &[Source], path: &Path) -> Option<DatabaseName> {
    sources.iter().find_map(|source| match source {
        Source::Path { path: listed, name } => (listed == path).then(|| name.clone()),
        Source::Folder { folder, pattern, recursive, prefix } => {
            let parent = path.parent()?;
            let within = if *recursive { parent.starts_with(folder) } else { parent == folder };
            let matches = pattern.matches(path.file_name()?.to_str()?);
            if within && matches { name_of(folder, path, prefix).ok() } else { None }
        }
    })
}

/// The default name of a file listed with `path:`.
pub fn default_name(path: &Path) -> Option<DatabaseName> {
    DatabaseName::new(sanitised(&path.file_name()?.to_string_lossy())).ok()
}

fn sanitised(text: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.chars().map(|c| if keep(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DatabaseName {
        DatabaseName::new(text).unwrap()
    }

    fn folder(folder: &Path, pattern: &str, recursive: bool, prefix: &str) -> Source {
        Source::Folder {
            folder: folder.to_owned(),
            pattern: Pattern::new(pattern).unwrap(),
            recursive,
            prefix: prefix.into(),
        }
    }

    fn nothing_before(_: &DatabaseName) -> Option<PathBuf> {
        None
    }

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn a_pattern_finds_databases_and_not_their_companions() {
        let dir = tempfile::tempdir().unwrap();
        let app = touch(dir.path().join("app.db"));
        for other in [
            "app.db-wal",
            "app.db-shm",
            "app.db-journal",
            "notes.txt",
            ".hidden.db",
            "x.db.walhub-restore.tmp",
            "x.db.walhub-restore.journal",
            "x.db.20261123-0230-7f3a.0.walhub-kept",
            "x.db.20261123-0230-7f3a.0.walhub-kept-wal",
        ] {
            touch(dir.path().join(other));
        }
        touch(dir.path().join("below/deep.db"));
        let found = scan(&[folder(dir.path(), "*", false, "")], &nothing_before);
        let names: Vec<_> = found.found.keys().map(DatabaseName::as_str).collect();
        assert_eq!(names, ["app.db", "notes.txt"]);
        let found = scan(&[folder(dir.path(), "*.db", false, "eu-")], &nothing_before);
        assert_eq!(found.found[&name("eu-app.db")].path, app);
        assert_eq!(found.found.len(), 1);
        assert!(found.faults.is_empty());
        assert_eq!(found.folders, BTreeSet::from([dir.path().to_owned()]));
    }

    #[test]
    fn folders_below_become_part_of_the_name() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path().join("acme/shop.db"));
        touch(dir.path().join("umbrella corp/shop.db"));
        touch(dir.path().join(".git/shop.db"));
        let found = scan(&[folder(dir.path(), "*.db", true, "")], &nothing_before);
        let names: Vec<_> = found.found.keys().map(DatabaseName::as_str).collect();
        assert_eq!(names, ["acme-shop.db", "umbrella_corp-shop.db"]);
        assert_eq!(found.folders.len(), 3);
    }

    #[test]
    fn a_contested_name_stays_with_the_file_that_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = touch(dir.path().join("a b.db"));
        let second = touch(dir.path().join("a_b.db"));
        let sources = [folder(dir.path(), "*.db", false, "")];
        let found = scan(&sources, &nothing_before);
        assert_eq!(found.found[&name("a_b.db")].path, first);
        assert_eq!(found.faults.len(), 1);
        let before = |_: &DatabaseName| Some(second.clone());
        let found = scan(&sources, &before);
        assert_eq!(found.found[&name("a_b.db")].path, second);
        let fault = found.faults.first().unwrap();
        assert_eq!(fault.path, first);
        assert!(fault.reason.contains("a_b.db is taken"), "{}", fault.reason);
    }

    #[test]
    fn a_file_listed_and_matched_is_followed_once_under_its_listed_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = touch(dir.path().join("app.db"));
        let listed = Source::Path { path: path.clone(), name: name("main") };
        let found = scan(&[listed, folder(dir.path(), "*.db", false, "")], &nothing_before);
        assert_eq!(found.found.len(), 1);
        assert_eq!(found.found[&name("main")], Found { name: name("main"), path, fixed: true });
    }

    #[test]
    fn a_file_that_is_gone_still_has_its_name() {
        let sources = [folder(Path::new("/tenants"), "*.db", true, "eu-")];
        let gone = |path: &str| name_in(&sources, Path::new(path));
        assert_eq!(gone("/tenants/acme/shop.db"), Some(name("eu-acme-shop.db")));
        assert_eq!(gone("/tenants/acme/shop.txt"), None);
        assert_eq!(gone("/elsewhere/shop.db"), None);
    }

    #[test]
    fn a_missing_folder_is_a_fault_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path().join("app.db"));
        let missing = dir.path().join("missing");
        let sources = [folder(&missing, "*.db", false, ""), folder(dir.path(), "*.db", false, "")];
        let found = scan(&sources, &nothing_before);
        assert_eq!(found.found.len(), 1);
        assert_eq!(found.faults.first().unwrap().path, missing);
        let listed = Source::Path { path: dir.path().join("later.db"), name: name("later.db") };
        assert_eq!(scan(&[listed], &nothing_before).found.len(), 1, "followed before it exists");
    }
}
