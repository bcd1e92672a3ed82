//! A look at, and a hand on, every dangerous step of the log: tests fail a step, or note what had been synced when a
//! power cut hit. Without a probe every step simply happens.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// A step that is about to happen, unless its name says it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step<'a> {
    /// A new file is written under a temporary name.
    Create(&'a Path),
    /// It gets its name.
    Rename(&'a Path),
    /// The folder is synced.
    SyncFolder,
    /// Bytes are written.
    Write {
        /// Log file.
        path: &'a Path,
        /// Where.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// The file is synced.
    Sync(&'a Path),
    /// The file was synced: everything before `end` is on disk.
    Synced {
        /// Log file.
        path: &'a Path,
        /// Byte offset.
        end: u64,
    },
    /// The file is cut.
    Truncate {
        /// Log file.
        path: &'a Path,
        /// To this length.
        end: u64,
    },
    /// The file is unlinked.
    Unlink(&'a Path),
    /// The index is about to be flushed.
    FlushIndex,
}

type Hook = dyn Fn(Step<'_>) -> io::Result<()> + Send + Sync;

/// What is called at each step; an error makes the step fail.
#[derive(Clone, Default)]
pub struct Probe(Option<Arc<Hook>>);

impl Probe {
    /// Calls `hook` before each step.
    pub fn new(hook: impl Fn(Step<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(in crate::buffer) fn at(&self, step: Step<'_>) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hook| hook(step))
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Probe(on)" } else { "Probe(off)" })
    }
}
