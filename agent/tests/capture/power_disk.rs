//! A disk whose power can be cut at any operation. What was not synced by then is lost in part: sectors of writes, cuts of
//! length, and the newest changes of names, which come back in their order or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use walhub_agent::disk::{self, Disk, DiskFile};

const SECTOR: usize = 512;

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// `kill -9`: what was written is there, whole.
    Kill,
    /// What was not synced may be gone.
    PowerCut,
}

/// See the module doc. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct PowerDisk(Arc<Mutex<Model>>);

#[derive(Debug, Default)]
struct Model {
    operations: u64,
    cut_at: Option<u64>,
    files: Vec<Content>,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, usize>,
    /// Names that would survive.
    safe: BTreeMap<PathBuf, usize>,
    /// Changes of names since, in order.
    changes: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    live: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Named(PathBuf, usize),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
}

impl Change {
    fn folder(&self) -> Option<&Path> {
        match self {
            Change::Named(path, _) | Change::Removed(path) | Change::Renamed(path, _) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Named(path, file) => {
                names.insert(path.clone(), *file);
            }
            Change::Renamed(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Change::Removed(path) => {
                names.remove(path);
            }
        }
    }
}

impl Content {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.live, at, bytes);
        self.unsynced.push(Unsynced::Write(at, bytes.to_vec()));
    }

    fn cut(&mut self, length: usize) {
        self.live.truncate(length);
        self.unsynced.push(Unsynced::Length(length));
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

fn gone() -> io::Error {
    io::Error::other("the power is cut")
}

impl Model {
    /// Counts an operation; an error at and after the cut.
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.cut_at.is_some_and(|at| self.operations >= at) { Err(gone()) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl PowerDisk {
    fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap()
    }

    /// Cuts the power at the `n`th operation from now, from 1.
    pub(crate) fn cut_after(&self, n: u64) {
        let mut model = self.lock();
        model.cut_at = Some(model.operations + n);
    }

    /// True from the cut on.
    pub(crate) fn is_dead(&self) -> bool {
        let model = self.lock();
        model.cut_at.is_some_and(|at| model.operations >= at)
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The machine starts again: the folders hold what survived, all of it safe now. `chance(n)` is below `n`.
    pub(crate) fn restart(&self, end: End, mut chance: impl FnMut(u64) -> u64) {
        let mut model = self.lock();
        let mut names = model.names.clone();
        if end == End::PowerCut {
            names = model.safe.clone();
            let kept = usize::try_from(chance(model.changes.len() as u64 + 1)).unwrap();
            model.changes[..kept].iter().for_each(|change| change.apply(&mut names));
        }
        let mut survived = BTreeMap::new();
        for (path, file) in names {
            let content = &model.files[file];
            survived.insert(
                path,
                match end {
                    End::Kill => content.live.clone(),
                    End::PowerCut => content.after_a_cut(&mut chance),
                },
            );
        }
        for path in model.names.keys() {
            let _ = fs::remove_file(path);
        }
        *model = Model { operations: model.operations, ..Model::default() };
        for (path, content) in survived {
            fs::write(&path, &content).unwrap();
            let file = model.files.len();
            model.files.push(Content { synced: content.clone(), live: content, unsynced: Vec::new() });
            model.names.insert(path, file);
        }
        model.safe = model.names.clone();
    }
}

impl Content {
    fn after_a_cut(&self, chance: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
        let mut content = self.synced.clone();
        for unsynced in &self.unsynced {
            match unsynced {
                Unsynced::Length(length) if chance(2) == 0 => content.truncate(*length),
                Unsynced::Length(_) => {}
                Unsynced::Write(at, bytes) => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let to = ((at + from) / SECTOR + 1) * SECTOR - at;
                        let to = to.min(bytes.len());
                        if chance(2) == 0 {
                            put(&mut content, at + from, &bytes[from..to]);
                        }
                        from = to;
                    }
                }
            }
        }
        content
    }
}

struct PowerFile {
    disk: PowerDisk,
    file: usize,
    at: usize,
    real: Box<dyn DiskFile>,
}

impl Write for PowerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut model = self.disk.lock();
        let alive = model.operate();
        // What is written when the process dies may arrive in part.
        let bytes = if alive.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        model.files[self.file].write(self.at, bytes);
        self.at += bytes.len();
        self.real.write_all(bytes)?;
        alive.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for PowerFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut model = self.disk.lock();
        model.operate()?;
        let content = &mut model.files[self.file];
        content.synced = content.live.clone();
        content.unsynced.clear();
        Ok(())
    }
}

impl Disk for PowerDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut model = self.lock();
        model.operate()?;
        let file = match model.names.get(path) {
            Some(file) => *file,
            None => {
                let file = model.files.len();
                model.files.push(Content::default());
                model.change(Change::Named(path.to_owned(), file));
                file
            }
        };
        model.files[file].cut(0);
        let real = disk::real().create(path)?;
        Ok(Box::new(PowerFile { disk: self.clone(), file, at: 0, real }))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut model = self.lock();
        model.operate()?;
        let real = disk::real().append(path, length)?;
        let file = *model.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(length).unwrap();
        model.files[file].cut(at);
        Ok(Box::new(PowerFile { disk: self.clone(), file, at, real }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut model = self.lock();
        model.operate()?;
        disk::real().rename(from, to)?;
        model.change(Change::Renamed(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut model = self.lock();
        model.operate()?;
        disk::real().remove(path)?;
        if model.names.contains_key(path) {
            model.change(Change::Removed(path.to_owned()));
        }
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut model = self.lock();
        model.operate()?;
        let changes = std::mem::take(&mut model.changes);
        let (safe, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.folder() == Some(folder));
        safe.iter().for_each(|change| change.apply(&mut model.safe));
        model.changes = rest;
        Ok(())
    }
}
