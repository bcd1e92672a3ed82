//! A replica made of captured transactions alone, with its own checksum of every page: after each transaction the sum
//! over the whole database must be the one that was promised with it.

use walhub_common::ltx::{Decoder, expand};
use walhub_common::{Checksum, PageSize, Pgno};
use walhub_proto::v1;

pub(crate) struct Replica {
    page_size: Option<PageSize>,
    pub(crate) image: Vec<u8>,
    /// Of each page; the lock page has none.
    sums: Vec<Option<Checksum>>,
    sum: Checksum,
    pub(crate) txid: u64,
    /// Pages applied so far.
    pub(crate) pages: u64,
}

/// What a segment says of itself.
struct Step {
    first: u64,
    last: u64,
    post: Checksum,
    page_size: PageSize,
    commit: u32,
}

impl Replica {
    pub(crate) fn new() -> Replica {
        Replica {
            page_size: None,
            image: Vec::new(),
            sums: Vec::new(),
            sum: Checksum::EMPTY,
            txid: 0,
            pages: 0,
        }
    }

    /// Applies one LTX file that must follow what is there.
    pub(crate) fn apply(&mut self, file: &[u8]) -> Result<(), String> {
        let fault = |error: &dyn std::fmt::Display| format!("after TXID {}: {error}", self.txid);
        let mut decoder = Decoder::new(file).map_err(|error| fault(&error))?;
        let header = *decoder.header();
        let provenance = header.provenance.ok_or_else(|| fault(&"a segment without checksums"))?;
        if provenance.pre.is_some_and(|pre| pre != self.sum) || provenance.pre.is_none() != (self.txid == 0) {
            return Err(fault(&format!(
                "a segment that starts from {:?}, not from {}",
                provenance.pre, self.sum
            )));
        }
        let (mut pages, mut page) = (Vec::new(), Vec::new());
        while let Some(pgno) = decoder.next_page(&mut page).map_err(|error| error.to_string())? {
            pages.push((pgno, page.clone()));
        }
        decoder.finish().map_err(|error| error.to_string())?;
        let (first, last) = (header.range.min().get(), header.range.max().get());
        let step =
            Step { first, last, post: provenance.post, page_size: header.page_size, commit: header.commit };
        self.take(&step, pages)
    }

    /// Applies the pages of one segment that must follow what is there, as the hub sends them.
    pub(crate) fn apply_pages(
        &mut self,
        plan: &v1::RestorePlan,
        messages: &[v1::PageFrames],
    ) -> Result<(), String> {
        let fault = |text: &str| format!("after TXID {}: {text}", self.txid);
        let position = plan.position.ok_or_else(|| fault("a plan without a position"))?;
        let [file] = &plan.files[..] else { return Err(fault("a segment is one file")) };
        let step = Step {
            first: file.range.map_or(0, |range| range.min),
            last: position.txid,
            post: Checksum::new(position.checksum).ok_or_else(|| fault("a segment without checksums"))?,
            page_size: PageSize::new(plan.page_size).ok_or_else(|| fault("an impossible page size"))?,
            commit: plan.commit,
        };
        let mut pages = Vec::new();
        for frames in messages {
            let mut at = 0;
            for (page, bytes) in frames.pages.iter().zip(&frames.lengths) {
                let pgno = Pgno::new(*page).ok_or_else(|| fault("page 0"))?;
                let block = frames.data.get(at..at + *bytes as usize).ok_or_else(|| fault("short frames"))?;
                let mut page = Vec::new();
                expand(block, step.page_size, &mut page).map_err(|error| fault(&error.to_string()))?;
                pages.push((pgno, page));
                at += *bytes as usize;
            }
        }
        self.take(&step, pages)
    }

    fn take(&mut self, step: &Step, pages: Vec<(Pgno, Vec<u8>)>) -> Result<(), String> {
        let &Step { first, last, post, page_size, commit } = step;
        if first != self.txid + 1 {
            return Err(format!("after TXID {}: the next segment is {first} to {last}", self.txid));
        }
        if self.page_size != Some(page_size) {
            // Another page size is another image: every page must come.
            *self =
                Replica { page_size: Some(page_size), txid: self.txid, pages: self.pages, ..Replica::new() };
        }
        let size = page_size.bytes();
        let (before, after) = (self.sums.len(), commit as usize);
        for sum in self.sums.drain(after.min(before)..).flatten() {
            self.sum = self.sum.toggle(sum);
        }
        self.sums.resize(after, None);
        self.image.resize(after * size, 0);
        for (pgno, page) in pages {
            let slot =
                self.sums.get_mut(pgno.index()).ok_or_else(|| format!("page {pgno} is beyond the end"))?;
            let sum = Checksum::of_page(pgno, &page);
            if let Some(old) = slot.replace(sum) {
                self.sum = self.sum.toggle(old);
            }
            self.sum = self.sum.toggle(sum);
            self.image[pgno.index() * size..][..size].copy_from_slice(&page);
            self.pages += 1;
        }
        let lock = page_size.lock_page().index();
        if let Some(hole) =
            self.sums.iter().enumerate().position(|(index, sum)| sum.is_none() && index != lock)
        {
            return Err(format!("TXID {last}: page {} never came", hole + 1));
        }
        if self.sum != post {
            return Err(format!("TXID {last}: the pages sum up to {}, promised was {post}", self.sum));
        }
        self.txid = last;
        Ok(())
    }

    /// The checksum after the last transaction.
    pub(crate) fn sum(&self) -> Checksum {
        self.sum
    }

    /// Page numbers that differ from a live image.
    pub(crate) fn differing(&self, live: &[u8]) -> Vec<usize> {
        let size = self.page_size.map_or(4096, PageSize::bytes);
        let pages = live.len().max(self.image.len()).div_ceil(size);
        let page = |image: &[u8], index: usize| -> Vec<u8> {
            image.get(index * size..image.len().min((index + 1) * size)).unwrap_or_default().to_vec()
        };
        (0..pages)
            .filter(|&index| page(live, index) != page(&self.image, index))
            .map(|index| index + 1)
            .collect()
    }
}

/// Checksum of a whole image.
pub(crate) fn checksum(image: &[u8], page_size: PageSize) -> Checksum {
    let pages = (1u32..).map_while(Pgno::new).zip(image.chunks(page_size.bytes()));
    pages
        .filter(|(pgno, _)| *pgno != page_size.lock_page())
        .fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(Checksum::of_page(pgno, page)))
}
