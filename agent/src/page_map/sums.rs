//! The checksums of all pages: in memory for a small database, in a scratch file with a few of them in memory for a large one.
//!
//! The file has no name, so nothing of it outlives the process: what is saved is the business of [`super::store`]. New
//! checksums are kept in memory and go into the file in the order of their pages when they are many, a tenth of all
//! ([`OVER_SHARE`]): then even a database that is written all over costs the node's disk 2 % of its log for them, and
//! one that is written in places much less.
//!
//! Memory: [`IN_MEMORY`] checksums of 8 bytes, or about 2 bytes a page and [`RUN`] checksums that were read last. While the
//! disk takes no file, or nothing more, everything stays in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Pages of a database whose checksums stay in memory: 2 GB of 4 KiB pages.
const IN_MEMORY: usize = 1 << 19;
/// Changed checksums that wait in memory for their file: at least so many, and one in so many of all.
const LEAST_OVER: usize = 1 << 15;
const OVER_SHARE: usize = 10;
/// Checksums that are read and written at once.
const RUN: usize = 512;
const BYTES: usize = 8;

/// Where the checksums go that memory has no room for.
#[derive(Clone, Debug)]
pub struct Room {
    folder: PathBuf,
    in_memory: usize,
}

impl Room {
    /// In a folder of this database alone. Nothing is created before it is needed.
    pub fn beside(folder: &Path) -> Room {
        Room { folder: folder.to_owned(), in_memory: IN_MEMORY }
    }

    /// As [`Room::beside`], for databases of more than `in_memory` pages.
    pub fn with_less(folder: &Path, in_memory: usize) -> Room {
        Room { folder: folder.to_owned(), in_memory }
    }

    fn file(&self) -> io::Result<File> {
        let path = self.folder.join("table");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }
}

/// See the module doc. Every page has one, 0 until it is set.
#[derive(Debug)]
pub(super) struct Sums {
    room: Room,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u64>),
    File(Box<Overlaid>),
}

/// A file, and what is newer.
#[derive(Debug)]
struct Overlaid {
    file: File,
    len: usize,
    over: BTreeMap<u32, u64>,
    /// When `over` has as many, they go into the file.
    most: usize,
    /// The run of the file that was read last, as it lies there.
    read: RefCell<Option<(usize, RunBytes)>>,
}

type RunBytes = [u8; RUN * BYTES];

impl Sums {
    /// Of no pages.
    pub(super) fn new(room: Room) -> Sums {
        Sums { room, place: Place::Memory(Vec::new()) }
    }

    pub(super) fn len(&self) -> usize {
        match &self.place {
            Place::Memory(sums) => sums.len(),
            Place::File(overlaid) => overlaid.len,
        }
    }

    /// The one at `index`; 0 past the end.
    pub(super) fn get(&self, index: usize) -> io::Result<u64> {
        match &self.place {
            Place::Memory(sums) => Ok(sums.get(index).copied().unwrap_or(0)),
            Place::File(overlaid) => overlaid.get(index),
        }
    }

    /// All, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = io::Result<u64>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Sets one that is there.
    pub(super) fn set(&mut self, index: usize, sum: u64) {
        match &mut self.place {
            Place::Memory(sums) => sums[index] = sum,
            Place::File(overlaid) => overlaid.set(index, sum),
        }
    }

    /// One more.
    pub(super) fn push(&mut self, sum: u64) {
        let index = self.len();
        self.resize(index + 1);
        match &mut self.place {
            Place::Memory(sums) => sums[index] = sum,
            Place::File(overlaid) => overlaid.append(index, sum),
        }
    }

    /// Changes their number.
    pub(super) fn resize(&mut self, len: usize) {
        if let Place::Memory(sums) = &mut self.place {
            if len <= self.room.in_memory {
                sums.resize(len, 0);
                // A shrunk database gives its memory back, a growing one keeps the amortised doubling of Vec.
                if sums.capacity() > 2 * sums.len() + 64 {
                    sums.shrink_to_fit();
                }
                return;
            }
            match self.room.file() {
                Ok(file) => self.place = Place::File(Box::new(Overlaid::of(file, sums))),
                Err(e) => {
                    tracing::warn!(folder = %self.room.folder.display(), error = %e, "no scratch file for a page map, which stays in memory");
                    self.room.in_memory = usize::MAX;
                    return self.resize(len);
                }
            }
        }
        if let Place::File(overlaid) = &mut self.place {
            overlaid.resize(len);
        }
    }
}

impl Overlaid {
    fn of(file: File, sums: &[u64]) -> Overlaid {
        let (over, read) = (BTreeMap::new(), RefCell::new(None));
        let mut overlaid = Overlaid { file, len: sums.len(), over, most: LEAST_OVER, read };
        sums.iter().enumerate().for_each(|(index, sum)| overlaid.append(index, *sum));
        overlaid
    }

    fn get(&self, index: usize) -> io::Result<u64> {
        if index >= self.len {
            return Ok(0);
        }
        if let Some(sum) = self.over.get(&(index as u32)) {
            return Ok(*sum);
        }
        let run = index / RUN;
        let mut read = self.read.borrow_mut();
        if read.as_ref().is_none_or(|(number, _)| *number != run) {
            *read = Some((run, self.run(run)?));
        }
        Ok(read.as_ref().map_or(0, |(_, bytes)| word(bytes, index % RUN)))
    }

    /// Those that come in order need not gather: each run is written once or twice.
    fn append(&mut self, index: usize, sum: u64) {
        self.over.insert(index as u32, sum);
        if self.over.len() >= LEAST_OVER.min(self.most) {
            self.settle();
        }
    }

    fn set(&mut self, index: usize, sum: u64) {
        self.over.insert(index as u32, sum);
        if self.over.len() >= self.most {
            self.settle();
        }
    }

    fn resize(&mut self, len: usize) {
        if len < self.len {
            self.over.split_off(&(len as u32));
            *self.read.get_mut() = None;
            // Only gives room back: what grows again is set anew.
            let _ = self.file.set_len((len * BYTES) as u64);
        }
        self.len = len;
    }

    /// Brings what is in memory into the file. When that fails it stays, and is tried again when there is more.
    fn settle(&mut self) {
        *self.read.get_mut() = None;
        self.most = (self.len / OVER_SHARE).max(LEAST_OVER);
        match self.write() {
            Ok(()) => self.over.clear(),
            Err(e) => {
                tracing::warn!(error = %e, checksums = self.over.len(), "the scratch file of a page map cannot be written; it stays in memory");
                self.most += self.over.len();
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut over = self.over.iter().peekable();
        while let Some((first, _)) = over.peek() {
            let number = **first as usize / RUN;
            let mut bytes = self.run(number)?;
            while let Some((index, sum)) = over.next_if(|(index, _)| **index as usize / RUN == number) {
                let at = *index as usize % RUN * BYTES;
                bytes[at..at + BYTES].copy_from_slice(&sum.to_ne_bytes());
            }
            self.file.write_all_at(&bytes, (number * RUN * BYTES) as u64)?;
        }
        Ok(())
    }

    /// A run as the file has it; what lies past its end is 0.
    fn run(&self, number: usize) -> io::Result<RunBytes> {
        let mut bytes = [0; RUN * BYTES];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], (number * RUN * BYTES + done) as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(bytes)
    }
}

fn word(bytes: &RunBytes, nth: usize) -> u64 {
    u64::from_ne_bytes(bytes[nth * BYTES..][..BYTES].try_into().expect("BUG: 8 bytes"))
}

#[cfg(test)]
impl Clone for Sums {
    /// In memory.
    fn clone(&self) -> Sums {
        let sums = self.iter().map(|sum| sum.expect("a checksum")).collect();
        Sums { room: self.room.clone(), place: Place::Memory(sums) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_scratch_file_everything_stays_in_memory() {
        let mut sums = Sums::new(Room::with_less(Path::new("/nowhere/at/all"), 10));
        (0..100).for_each(|n| sums.push(n));
        assert!(matches!(sums.place, Place::Memory(_)));
        assert_eq!((sums.len(), sums.get(99).unwrap()), (100, 99));
    }

    #[test]
    fn a_file_that_takes_nothing_more_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = Sums::new(Room::with_less(folder.path(), 1000));
        (0..1001).for_each(|n| sums.push(n));
        let Place::File(overlaid) = &mut sums.place else { panic!("in memory") };
        // Reads go on, writes fail.
        let written = folder.path().join("copy");
        fs::write(
            &written,
            overlaid.run(0).unwrap().iter().flat_map(|s| s.to_ne_bytes()).collect::<Vec<_>>(),
        )
        .unwrap();
        overlaid.file = File::open(&written).unwrap();
        (0..512).for_each(|n| sums.set(n, 7));
        for n in 1001..3 * LEAST_OVER as u64 {
            sums.push(n);
        }
        assert_eq!(sums.get(511).unwrap(), 7);
        assert_eq!(sums.get(2 * LEAST_OVER).unwrap(), 2 * LEAST_OVER as u64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lies where, it is a list of numbers.
        #[test]
        fn a_table_on_disk_is_the_one_in_memory(
            steps in proptest::collection::vec((0_usize..4000, proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..40), any::<bool>()), 1..30),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut sums = Sums::new(Room::with_less(folder.path(), 700));
            let mut model: Vec<u64> = Vec::new();
            for (len, changes, settle) in steps {
                sums.resize(len);
                // A database that grows brings all its pages.
                (model.len()..len).for_each(|index| sums.set(index, index as u64));
                model.extend(model.len() as u64..len as u64);
                model.truncate(len);
                for (at, sum) in changes.into_iter().filter(|_| len > 0) {
                    let index = at.index(len);
                    sums.set(index, sum);
                    model[index] = sum;
                    prop_assert_eq!(sums.get(index).unwrap(), sum);
                }
                if let (Place::File(overlaid), true) = (&mut sums.place, settle) {
                    overlaid.settle();
                }
                let found: Vec<u64> = sums.iter().map(Result::unwrap).collect();
                prop_assert_eq!(&found, &model);
            }
            prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
