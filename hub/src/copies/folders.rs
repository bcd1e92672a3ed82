//! Which folder each destination of the kind `file` is: ids that outlive a restart of the hub, so that a folder whose disk is
//! not mounted is not taken for a new one.
//!
//! Losing them is no harm: a folder that is marked tells its id again. A file that cannot be read keeps the hub from starting
//! all the same, for what it guards against would go unnoticed.

use crate::durable;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use walhub_common::DestinationName;
use walhub_store::destinations::file::Memory;

const FILE: &str = "folders.json";

/// The ids, by the name of the place's cursors: a folder keeps its id when its destination is renamed.
#[derive(Debug)]
pub struct FolderIds {
    dir: PathBuf,
    all: Mutex<BTreeMap<String, String>>,
}

/// The id of one of them.
#[derive(Debug)]
struct Of {
    ids: Arc<FolderIds>,
    place: String,
}

impl FolderIds {
    /// What lies in the data folder. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Arc<Self>> {
        let path = data_dir.join(FILE);
        let all = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let text = format!(
                    "{}: {error}; remove it when all disks of destinations are mounted",
                    path.display()
                );
                io::Error::other(text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self { dir: data_dir.to_owned(), all: Mutex::new(all) }))
    }

    /// What is known of a place.
    pub fn of(self: &Arc<Self>, cursor: &DestinationName) -> Arc<dyn Memory> {
        Arc::new(Of { ids: self.clone(), place: cursor.to_string() })
    }
}

impl Memory for Of {
    fn id(&self) -> Option<String> {
        self.ids.all.lock().unwrap_or_else(PoisonError::into_inner).get(&self.place).cloned()
    }

    fn remember(&self, id: &str) -> io::Result<()> {
        // Written under the lock: of two that learn at a time neither is lost.
        let mut all = self.ids.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = all.clone();
        next.insert(self.place.clone(), id.to_owned());
        durable::replace(&self.ids.dir, FILE, &serde_json::to_vec(&next)?)?;
        *all = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outlive_a_restart_and_a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b): (DestinationName, DestinationName) =
            ("file-1".parse().unwrap(), "file-2".parse().unwrap());
        let ids = FolderIds::open(dir.path()).unwrap();
        assert_eq!(ids.of(&a).id(), None);
        std::thread::scope(|scope| {
            scope.spawn(|| ids.of(&a).remember("aa").unwrap());
            scope.spawn(|| ids.of(&b).remember("bb").unwrap());
        });
        let ids = FolderIds::open(dir.path()).unwrap();
        assert_eq!((ids.of(&a).id().as_deref(), ids.of(&b).id().as_deref()), (Some("aa"), Some("bb")));
        std::fs::write(dir.path().join(FILE), b"{\"file-1\"").unwrap();
        let error = FolderIds::open(dir.path()).expect_err("damaged").to_string();
        assert!(error.contains("when all disks"), "{error}");
    }
}
