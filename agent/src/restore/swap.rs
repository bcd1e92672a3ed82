//! Another file in place of a database: the steps on the disk, in an order in which a process may die between any two.
//!
//! ```text
//! nobody has it open ▸ settled: its log is copied into it ▸ locked ▸ it is the safety point, page for page? ▸ linked aside
//!     ▸ what is left of logs and index goes ▸ the new file is renamed ▸ still nobody has it open ▸ aside: kept, or removed if proven
//! ```
//! Invariants
//! - The name leads to the old file or to the new one, each whole; never to nothing, if there was a file.
//! - No log of the old file ever lies beside the new one. (Logs go before the rename. A sound file has none then; of one that SQLite
//!   cannot read, and whose log it cannot copy, the log is linked aside as well: who dies in between leaves a damaged file
//!   without it, and [`mend`] gives it back.)
//! - What was there before is a proven restore point at the hub, or lies beside it under a name that ends in [`KEPT`], with what
//!   belongs to it.
//! - Whoever opens the old file in the middle of it gets it back: the order fails, and nothing is lost.
//!
//! Blocking. Non-goals: fetching, and who follows the file meanwhile (nobody: see [`super::replace`]).

use crate::capture::{Locked, Unsettled, in_the_way, lock, settle};
use crate::discover::KEPT;
use crate::disk;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use walhub_common::Checksum;

/// What SQLite has beside a database and belongs to it.
const BELONGS: [&str; 2] = ["-wal", "-journal"];
/// What SQLite makes anew.
const INDEX: &str = "-shm";
/// The new file, before it has its name.
pub(super) const NEW: &str = ".walhub-restore.new";
/// The old one, when the hub has it, until the new one is there for good.
const OLD: &str = ".walhub-restore.old";
/// The old one on its way back.
const BACK: &str = ".walhub-restore.back";
const SOMEBODY: &str = "somebody who came meanwhile";

/// See the module doc.
#[derive(Debug)]
pub(super) struct Swap {
    /// The new file, whole, proven, synced, in the same folder.
    pub(super) staged: PathBuf,
    /// The database; no link.
    pub(super) path: PathBuf,
    /// A word for the name of what is kept.
    pub(super) id: String,
    /// Database checksum of what the hub has of the state before.
    pub(super) safety: Option<Checksum>,
}

/// Why the old file is where it was, with everything that belongs to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSwapped {
    /// Somebody has it open.
    #[error(
        "{} has {} open; stop it, or restore with --in-place while it goes on. The database is as it was",
        .0, .1.display()
    )]
    Open(String, PathBuf),
    /// Its log cannot be copied into it.
    #[error("{}: {}; make room, or see who may write it. The database is as it was", .0.display(), .1)]
    Log(PathBuf, Unsettled),
    /// The disk.
    #[error("{}: {}; see whether the folder is read-only, or a file system without links. The database is as it was", .0.display(), .1)]
    Disk(PathBuf, io::Error),
}

/// What became of the old file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Swapped {
    /// It is exactly the safety point, so it is gone.
    pub(super) proven: bool,
    /// Where it is kept, by this try or by an earlier one of the same order.
    pub(super) kept: Option<PathBuf>,
}

/// What has just been done; the next one may never be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The old file has no log, or cannot be read.
    Settled,
    /// It is locked, and compared with the safety point.
    Summed,
    /// It has a second name.
    Linked,
    /// The new file may take the first.
    LogsGone,
    /// It has.
    Renamed,
    /// For good.
    Synced,
}

/// What there is to be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Old {
    /// No file; there may be a log.
    Nothing,
    /// A file without a log.
    Whole,
    /// As it was found.
    Damaged,
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// A database with what belongs to it.
fn whole(path: &Path) -> [PathBuf; 3] {
    ["", BELONGS[0], BELONGS[1]].map(|suffix| beside(path, suffix))
}

impl Swap {
    /// All steps.
    pub(super) fn run(&self) -> Result<Swapped, NotSwapped> {
        self.walk(&mut |_| {})
    }

    pub(super) fn walk(&self, done: &mut dyn FnMut(Step)) -> Result<Swapped, NotSwapped> {
        let earlier = self.earlier();
        self.must_be_closed(&self.path)?;
        let old = self.settle()?;
        done(Step::Settled);
        let locked = match old {
            Old::Nothing => None,
            _ => Some(lock(&self.path).map_err(|e| self.disk(e))?.map_err(|who| self.open(&who))?),
        };
        self.must_be_closed(&self.path)?;
        let proven = self.is_proven(old, locked.as_ref())?;
        done(Step::Summed);
        forget_old(&self.path).map_err(|e| self.disk(e))?;
        let aside = if proven { Some(beside(&self.path, OLD)) } else { self.name_to_keep() };
        let swapped = self.exchange(old, aside.as_deref(), done);
        if let (Err(_), Some(aside)) = (&swapped, &aside) {
            self.take_back(aside).map_err(|e| self.disk(e))?;
        }
        swapped?;
        drop(locked);
        done(Step::Synced);
        if let Some(old) = aside.as_ref().filter(|_| proven) {
            remove(old).and_then(|()| sync_folder(&self.path)).map_err(|e| self.disk(e))?;
        }
        Ok(Swapped { proven, kept: aside.filter(|_| !proven).or(earlier) })
    }

    fn disk(&self, error: io::Error) -> NotSwapped {
        NotSwapped::Disk(self.path.clone(), error)
    }

    fn open(&self, who: &str) -> NotSwapped {
        NotSwapped::Open(who.to_owned(), self.path.clone())
    }

    /// `at` is a name of the old file.
    fn must_be_closed(&self, at: &Path) -> Result<(), NotSwapped> {
        in_the_way(at).map_or(Ok(()), |who| Err(self.open(&who)))
    }

    fn settle(&self) -> Result<Old, NotSwapped> {
        if !self.path.exists() {
            return Ok(Old::Nothing);
        }
        match settle(&self.path) {
            Ok(()) => Ok(Old::Whole),
            Err(Unsettled::Busy(who)) => Err(self.open(&who)),
            Err(why @ Unsettled::Disk(_)) => Err(NotSwapped::Log(self.path.clone(), why)),
            Err(Unsettled::Damaged(reason)) => {
                tracing::warn!(path = %self.path.display(), reason, "the file that is replaced is damaged: it is kept as it is");
                Ok(Old::Damaged)
            }
        }
    }

    /// True when the old file is what the hub has as the safety point.
    fn is_proven(&self, old: Old, locked: Option<&Locked>) -> Result<bool, NotSwapped> {
        let (Old::Whole, Some(locked)) = (old, locked) else { return Ok(false) };
        // Somebody may have come and gone before the lock.
        if BELONGS
            .iter()
            .any(|suffix| fs::metadata(beside(&self.path, suffix)).is_ok_and(|log| log.len() > 0))
        {
            return Err(self.open(SOMEBODY));
        }
        let Some(safety) = self.safety else { return Ok(false) };
        Ok(locked.sum().map_err(|e| self.disk(e))? == Some(safety))
    }

    /// Links the old file aside, and gives its name to the new one. After an error [`Swap::take_back`] is due.
    fn exchange(&self, old: Old, aside: Option<&Path>, done: &mut dyn FnMut(Step)) -> Result<(), NotSwapped> {
        let disk = |e| self.disk(e);
        if let Some(aside) = aside {
            for (from, to) in whole(&self.path).iter().zip(&whole(aside)) {
                link(from, to).map_err(disk)?;
            }
            sync_folder(&self.path).map_err(disk)?;
        }
        done(Step::Linked);
        for suffix in BELONGS {
            let log = beside(&self.path, suffix);
            let known = old != Old::Whole && aside.is_some_and(|aside| same(&log, &beside(aside, suffix)));
            if !known && fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
                return Err(self.open(SOMEBODY));
            }
            remove(&log).map_err(disk)?;
        }
        remove(&beside(&self.path, INDEX)).map_err(disk)?;
        // A new name that survives a power cut while the logs come back would be a mix.
        sync_folder(&self.path).map_err(disk)?;
        done(Step::LogsGone);
        self.take_owner().map_err(disk)?;
        fs::rename(&self.staged, &self.path).map_err(disk)?;
        done(Step::Renamed);
        // Whoever opened the old file before that waits for its lock.
        aside.map_or(Ok(()), |aside| self.must_be_closed(aside))?;
        sync_folder(&self.path).map_err(disk)
    }

    /// The name leads to the old file again, and nothing lies aside.
    fn take_back(&self, aside: &Path) -> io::Result<()> {
        let file = fs::symlink_metadata(aside).is_ok();
        if !file && self.path.exists() {
            return Ok(()); // only a log lies aside, and it is not this file's
        }
        if file && !same(&self.path, aside) {
            let back = beside(&self.path, BACK);
            remove(&back)?;
            fs::hard_link(aside, &back)?;
            fs::rename(&back, &self.path)?;
        }
        give_back(&self.path, aside).map(drop)
    }

    /// Where an earlier try of this order, which died before its end was told, keeps what was there before.
    fn earlier(&self) -> Option<PathBuf> {
        Some(self.nth_name(1)).filter(|first| self.has_other(first))
    }

    /// For what there is: the first name that nothing has, or that an earlier try gave to the very same. `None`: there is nothing.
    fn name_to_keep(&self) -> Option<PathBuf> {
        if !whole(&self.path).iter().any(|path| path.exists()) {
            return None;
        }
        let ours = |name: &PathBuf| same(name, &self.path) || !self.has_other(name);
        (1..).map(|number| self.nth_name(number)).find(ours)
    }

    /// True when something lies under that name, or belongs to it, that is not what there is.
    fn has_other(&self, name: &Path) -> bool {
        let other =
            |(there, is): (&PathBuf, &PathBuf)| fs::symlink_metadata(there).is_ok() && !same(there, is);
        whole(name).iter().zip(&whole(&self.path)).any(other)
    }

    fn nth_name(&self, number: u32) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
        let id: String = self.id.chars().map(plain).collect();
        let again = if number > 1 { format!("-{number}") } else { String::new() };
        beside(&self.path, &format!(".{id}{again}{KEPT}"))
    }

    /// An application must be able to open what replaces its database. Best effort: only root may give files away.
    fn take_owner(&self) -> io::Result<()> {
        match (fs::metadata(&self.path), fs::metadata(folder(&self.path))) {
            (Ok(old), _) => {
                let _ = chown(&self.staged, Some(old.uid()), Some(old.gid()));
                let _ = fs::set_permissions(&self.staged, old.permissions());
            }
            (Err(_), Ok(folder)) => {
                let _ = chown(&self.staged, Some(folder.uid()), Some(folder.gid()));
            }
            _ => {}
        }
        File::open(&self.staged)?.sync_all()
    }
}

/// Undoes what a process that died in the middle of a [`Swap`] has begun, unless it is as good as done; says whether there was
/// something. For a database that nobody in this process has open or replaces. Blocking, and mostly one look.
pub(crate) fn mend(path: &Path) -> io::Result<bool> {
    let path = crate::capture::real(path);
    let Ok(file) = fs::metadata(&path) else { return Ok(false) };
    forget_old(&path)?;
    if file.nlink() < 2 {
        return Ok(false);
    }
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Ok(false);
    };
    let mut mended = false;
    for entry in fs::read_dir(folder(&path))? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        let aside =
            other.strip_prefix(&name).is_some_and(|end| [OLD, BACK].contains(&end) || end.ends_with(KEPT));
        if aside && same(&entry.path(), &path) {
            mended |= give_back(&path, &entry.path())?;
        }
    }
    Ok(mended)
}

/// Removes what a swap that died left of an old file that is a restore point, when the new one is in its place.
fn forget_old(path: &Path) -> io::Result<()> {
    for scratch in [OLD, BACK].map(|suffix| beside(path, suffix)) {
        if path.exists() && fs::symlink_metadata(&scratch).is_ok() && !same(&scratch, path) {
            remove(&scratch)?;
        }
    }
    Ok(())
}

/// The old file has its name; what belongs to it gets its own as well, and loses the other. False, and nothing is done, when there
/// is another log by now.
fn give_back(path: &Path, aside: &Path) -> io::Result<bool> {
    let logs = BELONGS.map(|suffix| (beside(aside, suffix), beside(path, suffix)));
    if logs.iter().any(|(aside, log)| aside.exists() && log.exists() && !same(aside, log)) {
        return Ok(false);
    }
    for (aside, log) in &logs {
        link(aside, log)?;
    }
    sync_folder(path)?;
    for (aside, _) in &logs {
        remove(aside)?;
    }
    remove(aside)?;
    sync_folder(path)?;
    Ok(true)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    disk::real().sync_folder(folder(path))
}

/// A second name; what is not there needs none, and what has it already is left.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && same(from, to) => Ok(()),
        done => done,
    }
}

/// True for two names of one file.
fn same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
