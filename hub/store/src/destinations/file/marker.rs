//! Which folder this is: a small file in it holds an id, and a memory outside of it remembers that id. A disk that is not mounted
//! leaves an empty folder in its place, and another disk in its place looks like it.
//!
//! # Invariants
//! - Where an id is remembered, nothing is put into, listed in or removed from a folder without it, and nobody makes the folder
//!   anew: copies must not end up on the disk of the mount point, nor in what somebody else keeps.
//! - A folder is marked by the first probe with a memory that is blank; one that is marked already keeps its id, so that a hub
//!   that was rebuilt, a folder that was moved and a second hub all know it.
//! - Between two looks at the marker's content its inode is looked at: one `stat` a call.
//!
//! Without a memory (`hubctl`, tests) nothing is marked or refused. Non-goal: telling a folder from its copy.

use super::atomic::{self, CreateError};
use super::patience::Pulse;
use crate::destinations::{Body, Fault};
use std::fmt::Debug;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use walhub_common::clock;

/// Where the marker lies, among the objects that are no LTX files.
const FOLDER: &str = "walhub";
const FILE: &str = "folder.id";
/// Length of an id, hex digits.
const ID_BYTES: usize = 32;

/// What is remembered of a folder, outside of it.
pub trait Memory: Send + Sync + Debug {
    /// The id of the folder; `None` before the first [`Memory::remember`].
    fn id(&self) -> Option<String>;

    /// From now on this is its id. Durable when it returns. Blocking.
    fn remember(&self, id: &str) -> io::Result<()>;
}

/// What tells one file from another in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Inode {
    device: u64,
    number: u64,
    changed: (i64, i64),
}

/// See the module doc. All calls block.
#[derive(Debug)]
pub(super) struct Marker {
    root: PathBuf,
    memory: Option<Arc<dyn Memory>>,
    /// The marker that was read last and had the right id.
    seen: Mutex<Option<Inode>>,
}

impl Marker {
    pub(super) fn new(root: PathBuf, memory: Option<Arc<dyn Memory>>) -> Self {
        Self { root, memory, seen: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.root.join(FOLDER).join(FILE)
    }

    fn id(&self) -> Option<String> {
        self.memory.as_ref()?.id()
    }

    /// True once there is an id to be held against.
    pub(super) fn is_remembered(&self) -> bool {
        self.id().is_some()
    }

    /// Refuses a folder that is not the one that is remembered.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let Some(id) = self.id() else { return Ok(()) };
        let path = self.path();
        let unknown = |error: io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => self.other(&id, "is missing"),
            _ => Fault::Unavailable(format!("{}: {error}", path.display())),
        };
        let found = fs::metadata(&path).map_err(unknown)?;
        let inode =
            Inode { device: found.dev(), number: found.ino(), changed: (found.ctime(), found.ctime_nsec()) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == Some(inode) {
            return Ok(());
        }
        let text = fs::read_to_string(&path).map_err(unknown)?;
        if text.trim() != id {
            return Err(self.other(&id, "has another id"));
        }
        *seen = Some(inode);
        Ok(())
    }

    /// What to say when it is another one, or is gone.
    fn other(&self, id: &str, how: &str) -> Fault {
        let (root, path) = (self.root.display(), self.path());
        let path = path.display();
        let what = match self.root.is_dir() {
            true => format!(
                "{root} is not the folder that this hub wrote to ({path} {how}); is its disk mounted?"
            ),
            false => format!("the folder {root} is gone; is its disk mounted?"),
        };
        Fault::Gone(format!(
            "{what} Nothing is written there; to begin anew in it: mkdir -p {root}/{FOLDER} && echo {id} > {path}"
        ))
    }

    /// Marks a folder that works, or learns its id.
    pub(super) fn settle(&self, pulse: &Pulse) -> Result<(), CreateError> {
        let Some(memory) = self.memory.as_ref().filter(|memory| memory.id().is_none()) else { return Ok(()) };
        let path = self.path();
        let at = |error| CreateError::Destination(path.clone(), error);
        let id = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => self.mark(pulse)?,
            Err(error) => return Err(at(error)),
        };
        if id.len() != ID_BYTES || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let text = "it holds no id of a folder; remove it, and the folder gets a new one";
            return Err(at(io::Error::other(text)));
        }
        memory.remember(&id).map_err(|error| {
            let text = format!("the id of this folder cannot be noted in the data folder: {error}");
            at(io::Error::other(text))
        })
    }

    fn mark(&self, pulse: &Pulse) -> Result<String, CreateError> {
        let id = format!("{:032x}", rand::random::<u128>());
        let folder = atomic::create_folders(&self.root, &[FOLDER.to_owned()])?;
        let body = Body::Bytes(format!("{id}\n").into());
        match atomic::create(&folder, FILE, &body, clock::now_ms(), pulse) {
            Ok(_) => Ok(id),
            // Another hub marked it in this moment.
            Err(CreateError::Conflict(_)) => read(&self.path()),
            Err(error) => Err(error),
        }
    }
}

fn read(path: &Path) -> Result<String, CreateError> {
    let text = fs::read_to_string(path).map_err(|error| CreateError::Destination(path.to_owned(), error))?;
    Ok(text.trim().to_owned())
}
