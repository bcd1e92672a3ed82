//! What the hub holds of an unfinished first snapshot: the checksum of the newest staged version of each page, in a file
//! without a name in the state folder. The hub is asked for them again after every break, so nothing of it must survive.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use walhub_common::limits::MAX_PART_BYTES;
use walhub_common::{Checksum, PageSize, Pgno};

/// Number of the first part. An LTX file from TXID 1 would have to hold every page.
const FIRST_PART: u64 = 2;
const ENTRY: usize = 8;
/// Entries looked through at once.
const SEARCH_RUN: usize = 8192;
/// Page bytes of the first part after a break; each further one may be twice as large.
const LEAST_PART_BYTES: usize = 1 << 20;

/// The table, and where in the database the next stretch of work goes on.
#[derive(Debug)]
pub struct Staged {
    file: File,
    page_size: Option<PageSize>,
    next_part: u64,
    /// Pages of which a version is staged.
    pages: u32,
    /// The page to go on with.
    pub(super) at: u32,
    /// Page bytes of the next part: small after a break, which costs the part it hits.
    pub(super) part_bytes: usize,
    /// Pages compared since the last break.
    pub(super) compared: u64,
    /// Times the log grew too long although every page had been compared.
    pub(super) setbacks: u32,
}

impl Staged {
    /// Nothing is staged. `folder` is this database's state folder.
    pub fn create(folder: &Path) -> io::Result<Staged> {
        let path = folder.join("staged");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Staged {
            file,
            page_size: None,
            next_part: FIRST_PART,
            pages: 0,
            at: 1,
            part_bytes: LEAST_PART_BYTES,
            compared: 0,
            setbacks: 0,
        })
    }

    /// The hub holds parts of a database of this page size, up to the one before `next_part`; of which pages is said next.
    pub fn resume(&mut self, page_size: PageSize, next_part: u64) {
        (self.page_size, self.next_part) = (Some(page_size), next_part);
    }

    /// The hub holds these pages; ascending.
    pub fn hold(&mut self, pages: &[(Pgno, Checksum)]) -> io::Result<()> {
        for run in pages.chunk_by(|a, b| a.0.get().checked_add(1) == Some(b.0.get())) {
            let sums: Vec<u64> = run.iter().map(|(_, checksum)| checksum.get()).collect();
            self.write(run[0].0, &sums)?;
        }
        Ok(())
    }

    /// After all of [`Staged::hold`]: goes on at the first page of which nothing is staged, so that work comes further
    /// however soon it breaks off. The pages before it are compared at the end.
    pub fn go_on(&mut self) -> io::Result<()> {
        let lock = self.page_size.map(|size| size.lock_page().get());
        let all = self.file.metadata()?.len() / ENTRY as u64;
        let mut at = 1;
        'search: while u64::from(at) <= all {
            let first = Pgno::new(at).expect("BUG: from 1");
            for sum in self.read(first, SEARCH_RUN.min((all - u64::from(at)) as usize + 1))? {
                if sum == 0 && Some(at) != lock {
                    break 'search;
                }
                at += 1;
            }
        }
        self.at = at;
        Ok(())
    }

    /// Bytes per page, once they are known.
    pub fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Pages of which a version is staged.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Takes over the page size of the live database; true when what was staged is worth nothing for it.
    pub(super) fn fit(&mut self, page_size: PageSize) -> io::Result<bool> {
        if self.page_size == Some(page_size) {
            return Ok(false);
        }
        let useless = self.next_part != FIRST_PART;
        self.file.set_len(0)?;
        (self.page_size, self.next_part, self.pages) = (Some(page_size), FIRST_PART, 0);
        Ok(useless)
    }

    /// The number of the next part, and one further.
    pub(super) fn take_number(&mut self) -> u64 {
        self.next_part += 1;
        self.next_part - 1
    }

    /// A part was sent to its end.
    pub(super) fn part_sent(&mut self) {
        self.part_bytes = (2 * self.part_bytes).min(MAX_PART_BYTES);
    }

    /// Checksums of `count` pages from `first` on; 0 where nothing is staged.
    pub(super) fn read(&self, first: Pgno, count: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; count * ENTRY];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset(first) + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        let sums = bytes.chunks_exact(ENTRY).map(|b| u64::from_ne_bytes(b.try_into().expect("BUG: 8 bytes")));
        Ok(sums.collect())
    }

    /// Sets the checksums of pages from `first` on.
    pub(super) fn write(&mut self, first: Pgno, sums: &[u64]) -> io::Result<()> {
        let before = self.read(first, sums.len())?;
        let count = |sums: &[u64]| sums.iter().filter(|sum| **sum != 0).count() as u32;
        self.pages = (self.pages + count(sums)).saturating_sub(count(&before));
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, offset(first))
    }
}

fn offset(pgno: Pgno) -> u64 {
    pgno.index() as u64 * ENTRY as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pgno(n: u32) -> Pgno {
        Pgno::new(n).unwrap()
    }

    fn sum(n: u64) -> Checksum {
        Checksum::new(1 << 63 | n).unwrap()
    }

    #[test]
    fn what_the_hub_holds_is_found_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = Staged::create(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        staged.hold(&[(pgno(2), sum(2)), (pgno(3), sum(3)), (pgno(9), sum(9))]).unwrap();
        let (two, three, nine) = (sum(2).get(), sum(3).get(), sum(9).get());
        assert_eq!(staged.read(pgno(1), 10).unwrap(), [0, two, three, 0, 0, 0, 0, 0, nine, 0]);
        staged.go_on().unwrap();
        assert_eq!(staged.at, 1);
        staged.hold(&[(pgno(1), sum(1))]).unwrap();
        staged.go_on().unwrap();
        assert_eq!(staged.at, 4);
        staged.hold(&[(pgno(3), sum(7)), (pgno(4), sum(4))]).unwrap();
        assert_eq!((staged.pages(), staged.read(pgno(3), 1).unwrap()), (5, vec![sum(7).get()]));
    }

    #[test]
    fn another_page_size_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = Staged::create(dir.path()).unwrap();
        let (small, large) = (PageSize::new(512).unwrap(), PageSize::new(4096).unwrap());
        assert!(!staged.fit(small).unwrap(), "nothing was there");
        assert_eq!((staged.take_number(), staged.take_number()), (2, 3));
        staged.hold(&[(pgno(5), sum(5))]).unwrap();
        assert!(!staged.fit(small).unwrap());
        assert!(staged.fit(large).unwrap());
        assert_eq!((staged.pages(), staged.take_number()), (0, 2));
        assert_eq!(staged.read(pgno(5), 1).unwrap(), [0]);
    }
}
