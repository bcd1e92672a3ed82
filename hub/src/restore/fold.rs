//! LTX files, oldest first ▸ the checksum of every page they leave behind. Blocking; no knowledge of where files come from.
//!
//! Invariants:
//! - checksums are computed from pages, in files that proved whole; what a file says of itself is compared, not believed;
//! - memory is 8 bytes for each page that was received (some more per page when only the newest part of a history is
//!   folded): a file that merely claims a size makes no table grow.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Read;
use walhub_common::ltx::{Decoder, Header, LtxError};
use walhub_common::{Checksum, PageSize, Pgno, Pos};

/// Why files give no table.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// A file is damaged, or could not be read.
    #[error("{name}: {source}")]
    File {
        /// Which.
        name: String,
        /// The cause.
        source: LtxError,
    },
    /// A growing database must bring every new page.
    #[error("{name} does not bring page {page}, with which the database grows")]
    MissingPage {
        /// Which file.
        name: String,
        /// Which page.
        page: u32,
    },
    /// The files end elsewhere, or with another content.
    #[error("the files lead to {found}, asked for is {asked}")]
    Elsewhere {
        /// Where they lead.
        found: String,
        /// What was asked for.
        asked: Pos,
    },
}

/// Page checksums of a database, or of the part of it that changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pages {
    /// Bytes per page.
    pub page_size: PageSize,
    /// Database size in pages.
    pub commit: u32,
    held: Held,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Held {
    /// Every page of the database from page 1; 0 for the lock page.
    All(Vec<u64>),
    /// Those that changed.
    Changed(BTreeMap<u32, u64>),
}

/// Pages of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Batch {
    /// Pages that follow each other.
    Run(u32, Vec<u64>),
    /// Single pages.
    List(Vec<u32>, Vec<u64>),
}

impl Pages {
    /// True when every page is there.
    pub fn whole(&self) -> bool {
        matches!(self.held, Held::All(_))
    }

    /// The next at most `max` pages from page number `from` on, and where to go on; `None` at the end.
    pub fn batch(&self, from: u32, max: usize) -> Option<(Batch, u32)> {
        match &self.held {
            Held::All(sums) => {
                let mut start = (from.max(1) - 1) as usize;
                if sums.get(start) == Some(&0) {
                    start += 1;
                }
                let rest = sums.get(start..).filter(|rest| !rest.is_empty())?;
                let run = rest.iter().take(max).take_while(|sum| **sum != 0);
                let run: Vec<u64> = run.copied().collect();
                let (first, count) = (start as u32 + 1, run.len() as u32);
                Some((Batch::Run(first, run), first + count))
            }
            Held::Changed(pages) => {
                let (pages, sums): (Vec<u32>, Vec<u64>) =
                    pages.range(from..).take(max).map(|(page, sum)| (*page, *sum)).unzip();
                let next = pages.last()?.saturating_add(1);
                Some((Batch::List(pages, sums), next))
            }
        }
    }
}

/// The fold.
#[derive(Debug)]
pub(super) struct Fold {
    held: Held,
    newest: Option<Header>,
}

impl Fold {
    /// Of a history from its beginning, or of its newest part.
    pub(super) fn new(from_the_beginning: bool) -> Self {
        let held = if from_the_beginning { Held::All(Vec::new()) } else { Held::Changed(BTreeMap::new()) };
        Self { held, newest: None }
    }

    /// Takes the next file. After an error the fold is worth nothing.
    pub(super) fn file(&mut self, name: &str, input: impl Read) -> Result<(), FoldError> {
        let fault = |source| FoldError::File { name: name.to_owned(), source };
        let mut file = Decoder::new(input).map_err(fault)?;
        let header = *file.header();
        let reshaped = self.newest.is_some_and(|newest| newest.page_size != header.page_size);
        if reshaped || header.is_snapshot() {
            // It holds every page, and those before it are gone.
            self.held = Held::All(Vec::new());
        }
        let missing = |page| FoldError::MissingPage { name: name.to_owned(), page };
        let lock = header.page_size.lock_page();
        match &mut self.held {
            Held::All(sums) => sums.truncate(header.commit as usize),
            Held::Changed(pages) => drop(pages.split_off(&header.commit.saturating_add(1))),
        }
        let mut page = Vec::new();
        while let Some(pgno) = file.next_page(&mut page).map_err(fault)? {
            if pgno.get() > header.commit {
                continue;
            }
            let sum = Checksum::of_page(pgno, &page).get();
            match &mut self.held {
                Held::All(sums) => {
                    skip(sums, lock, header.commit);
                    match pgno.index().cmp(&sums.len()) {
                        Ordering::Less => sums[pgno.index()] = sum,
                        Ordering::Equal => sums.push(sum),
                        Ordering::Greater => return Err(missing(sums.len() as u32 + 1)),
                    }
                }
                Held::Changed(pages) => drop(pages.insert(pgno.get(), sum)),
            }
        }
        file.finish().map_err(fault)?;
        if let Held::All(sums) = &mut self.held {
            skip(sums, lock, header.commit);
            if sums.len() < header.commit as usize {
                return Err(missing(sums.len() as u32 + 1));
            }
        }
        self.newest = Some(header);
        Ok(())
    }

    /// The table, when the files lead to `asked`.
    pub(super) fn finish(self, asked: Pos) -> Result<Pages, FoldError> {
        let elsewhere = |found: String| FoldError::Elsewhere { found, asked };
        let Some(newest) = self.newest else { return Err(elsewhere("nothing".to_owned())) };
        let txid = newest.range.max();
        let found = match &self.held {
            Held::All(sums) => {
                let sums = sums.iter().filter_map(|sum| Checksum::new(*sum));
                Some(sums.fold(Checksum::EMPTY, Checksum::toggle))
            }
            Held::Changed(_) => newest.provenance.map(|p| p.post),
        };
        match found {
            Some(checksum) if (Pos { txid, checksum }) != asked => {
                Err(elsewhere(Pos { txid, checksum }.to_string()))
            }
            None if txid != asked.txid => Err(elsewhere(format!("transaction {txid}"))),
            _ => Ok(Pages { page_size: newest.page_size, commit: newest.commit, held: self.held }),
        }
    }
}

/// The lock page takes its place in the table without a page of its own, once it is its turn.
fn skip(sums: &mut Vec<u64>, lock: Pgno, commit: u32) {
    if sums.len() == lock.index() && lock.get() <= commit {
        sums.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testutil::{Image, Segment};
    use proptest::prelude::*;

    fn fold(segments: &[Segment], from_the_beginning: bool) -> Result<Pages, FoldError> {
        let last = segments.last().unwrap();
        let mut fold = Fold::new(from_the_beginning);
        for segment in segments {
            fold.file(&segment.range.to_string(), &segment.ltx[..])?;
        }
        fold.finish(Pos { txid: last.txid(), checksum: last.post })
    }

    /// All pages of a table, in messages of `max`.
    fn pages(table: &Pages, max: usize) -> BTreeMap<u32, u64> {
        let (mut all, mut from) = (BTreeMap::new(), 1);
        while let Some((batch, next)) = table.batch(from, max) {
            match batch {
                Batch::Run(first, sums) => all.extend((first..).zip(sums)),
                Batch::List(pages, sums) => all.extend(pages.into_iter().zip(sums)),
            }
            from = next;
        }
        all
    }

    fn live(image: &Image) -> BTreeMap<u32, u64> {
        let sum = |(number, page): (u32, &[u8])| {
            (number, Checksum::of_page(Pgno::new(number).unwrap(), page).get())
        };
        (1..).zip(image.bytes().chunks(512)).map(sum).collect()
    }

    proptest! {
        /// Whatever was committed, the table is that of the image; the newest part alone brings a copy of the rest up
        /// to date.
        #[test]
        fn the_table_is_that_of_the_image(
            writes in proptest::collection::vec(proptest::collection::btree_set(1_u32..8, 1..4), 1..8),
            cut in 0_usize..8,
            max in 1_usize..9,
        ) {
            let mut image = Image::new(4);
            let mut segments = vec![image.first()];
            let mut states = vec![live(&image)];
            for write in writes {
                let mut size = states.last().unwrap().len() as u32;
                let numbers: Vec<u32> = write.into_iter().filter(|n| {
                    let fits = *n <= size + 1;
                    size += u32::from(*n == size + 1);
                    fits
                }).collect();
                segments.push(image.commit(&numbers));
                states.push(live(&image));
            }
            let table = fold(&segments, true).unwrap();
            prop_assert!(table.whole());
            prop_assert_eq!(&pages(&table, max), states.last().unwrap());
            let cut = 1 + cut % segments.len();
            if cut < segments.len() {
                let newer = fold(&segments[cut..], false).unwrap();
                prop_assert!(!newer.whole());
                let mut followed = states[cut - 1].clone();
                followed.extend(pages(&newer, max));
                prop_assert_eq!(&followed, states.last().unwrap());
            }
        }
    }

    #[test]
    fn a_claim_that_the_pages_do_not_bear_out_is_refused() {
        let mut image = Image::new(4);
        let first = image.first();
        let mut second = image.commit(&[2]);
        second.forge_post(Checksum::new(1 << 63 | 7).unwrap());
        let error = fold(&[first.clone(), second], true).unwrap_err();
        assert!(matches!(error, FoldError::Elsewhere { .. }), "{error}");
        let mut damaged = first.ltx.to_vec();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        assert!(matches!(Fold::new(true).file("x", &damaged[..]), Err(FoldError::File { .. })));
    }

    #[test]
    fn a_history_without_its_beginning_gives_no_whole_table() {
        let mut image = Image::new(4);
        image.first();
        let second = image.commit(&[2]);
        assert!(matches!(fold(&[second], true), Err(FoldError::MissingPage { page: 1, .. })));
        assert!(matches!(
            Fold::new(true).finish(Pos { txid: walhub_common::Txid::FIRST, checksum: Checksum::EMPTY }),
            Err(FoldError::Elsewhere { .. })
        ));
    }

    #[test]
    fn the_lock_page_has_its_place_and_no_checksum() {
        let table = Pages {
            page_size: PageSize::new(65536).unwrap(),
            commit: 5,
            held: Held::All(vec![9, 8, 0, 6, 5]),
        };
        assert_eq!(table.batch(1, 10), Some((Batch::Run(1, vec![9, 8]), 3)));
        assert_eq!(table.batch(3, 1), Some((Batch::Run(4, vec![6]), 5)));
        assert_eq!(table.batch(5, 1), Some((Batch::Run(5, vec![5]), 6)));
        assert_eq!(table.batch(6, 1), None);
        let mut sums = vec![1, 2];
        skip(&mut sums, Pgno::new(3).unwrap(), 2);
        assert_eq!(sums, [1, 2]);
        skip(&mut sums, Pgno::new(3).unwrap(), 3);
        assert_eq!(sums, [1, 2, 0]);
    }
}
