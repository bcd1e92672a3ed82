//! The hub's small state in sled: typed trees over one store that can be lost without loss.
//!
//! # Invariants
//! - Nothing here is known only here: what is in the store can be read again from the segment log. So a store that does
//!   not open, or panics, is moved aside with a warning and made anew.
//! - No acknowledgement depends on sled's flush; values are small (at most about 1 KiB).
//! - A panic inside sled comes back as an error, from opening and from every later call.
//!
//! Non-goals: what the trees mean (their users know), transactions over several trees.

pub mod key;
mod tree;

pub use tree::Tree;

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// What went wrong in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// sled says so.
    #[error("sled: {0}")]
    Sled(String),
    /// sled panicked.
    #[error("sled panicked: {0}")]
    Panicked(String),
    /// Bytes that are no key or value of their tree.
    #[error("tree {tree}: {reason}")]
    Malformed {
        /// Which tree.
        tree: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The store is closed, or being opened anew.
    #[error("the store is not open")]
    Closed,
    /// The folder cannot be used.
    #[error("{doing} {path}: {reason}")]
    Folder {
        /// The step.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// The open store. Dropping the last handle closes it.
#[derive(Debug, Clone)]
pub struct Db {
    sled: sled::Db,
    path: PathBuf,
}

impl Db {
    /// Opens the store in `path`. One that does not open is moved to `path` + `.broken-<now_ms>` (an older such folder
    /// is removed) and an empty one takes its place; only when that fails too there is an error.
    pub fn open(path: &Path, now_ms: i64) -> Result<Db, DbError> {
        match Self::try_open(path) {
            Ok(db) => Ok(db),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the index does not open: moving it aside and building it anew from the log");
                move_aside(path, now_ms)?;
                Self::try_open(path)
            }
        }
    }

    /// In a thread of its own: whatever a damaged store makes sled do ends there.
    fn try_open(path: &Path) -> Result<Db, DbError> {
        let config = sled::Config::default()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::HighThroughput)
            .use_compression(false)
            .flush_every_ms(None);
        let opening = std::thread::Builder::new()
            .name("walhub-index-open".to_owned())
            .spawn(move || guard(|| config.open()))
            .map_err(|e| DbError::Folder { doing: "open", path: path.to_owned(), reason: e.to_string() })?;
        let sled = opening.join().map_err(|panic| DbError::Panicked(panic_text(&*panic)))??;
        Ok(Db { sled, path: path.to_owned() })
    }

    /// The tree of this name; one name always has the same types.
    pub fn tree<K: key::Key, V: key::Value>(&self, name: &'static str) -> Result<Tree<K, V>, DbError> {
        guard(|| self.sled.open_tree(name)).map(|tree| Tree::new(name, tree))
    }

    /// Writes everything to disk, and makes sure that it is there: sled's own flush does not survive a power cut.
    pub fn flush(&self) -> Result<(), DbError> {
        guard(|| self.sled.flush())?;
        let file = self.path.join("db");
        for path in [file.as_path(), self.path.as_path()] {
            File::open(path).and_then(|f| f.sync_all()).map_err(|e| DbError::Folder {
                doing: "sync",
                path: path.to_owned(),
                reason: e.to_string(),
            })?;
        }
        Ok(())
    }
}

/// Runs a call of sled; a panic is an error.
fn guard<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, DbError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| DbError::Sled(e.to_string())),
        Err(panic) => Err(DbError::Panicked(panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("unknown").to_owned()
}

fn move_aside(path: &Path, now_ms: i64) -> Result<(), DbError> {
    let fail = |doing, path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| DbError::Folder { doing, path, reason: e.to_string() }
    };
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        return Err(DbError::Folder { doing: "move", path: path.to_owned(), reason: "no name".to_owned() });
    };
    let marker = format!("{name}.broken-");
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    for entry in fs::read_dir(folder).map_err(fail("list", folder))?.flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&marker)) {
            let old = entry.path();
            fs::remove_dir_all(&old).map_err(fail("remove", &old))?;
        }
    }
    fs::rename(path, folder.join(format!("{marker}{now_ms}"))).map_err(fail("move", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use key::checkpoint::{CheckpointKey, CheckpointValue};

    const VALUE: CheckpointValue = CheckpointValue { log_id: 1, file: 2, salt: 3, offset: 4 };

    fn stored(db: &Db) -> Option<CheckpointValue> {
        db.tree("checkpoint").unwrap().get(&CheckpointKey).unwrap()
    }

    fn filled(path: &Path) {
        let db = Db::open(path, 0).unwrap();
        db.tree("checkpoint").unwrap().insert(&CheckpointKey, &VALUE).unwrap();
        db.flush().unwrap();
        assert_eq!(stored(&db), Some(VALUE));
    }

    fn broken_folders(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.contains("broken")).collect()
    }

    #[test]
    fn a_store_keeps_what_was_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        filled(&path);
        assert_eq!(stored(&Db::open(&path, 0).unwrap()), Some(VALUE));
    }

    #[test]
    fn a_store_of_garbage_is_moved_aside_and_only_the_newest_such_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        for now_ms in [5, 6] {
            filled(&path);
            fs::write(path.join("conf"), b"garbage that is no configuration").unwrap();
            let db = Db::open(&path, now_ms).unwrap();
            assert_eq!(stored(&db), None, "an empty store took its place");
            assert_eq!(broken_folders(dir.path()), [format!("sled.broken-{now_ms}")]);
        }
    }

    #[test]
    fn whatever_is_cut_off_a_store_it_opens_old_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        filled(&path);
        let whole = fs::read(path.join("db")).unwrap();
        for length in [0, 1, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            fs::write(path.join("db"), &whole[..length]).unwrap();
            let db = Db::open(&path, 7).unwrap();
            assert!(matches!(stored(&db), None | Some(VALUE)), "cut to {length}");
            drop(db);
            let _ = fs::remove_dir_all(&path);
            filled(&path);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Db::open(&dir.path().join("missing/\0/sled"), 1), Err(DbError::Folder { .. })));
    }
}
