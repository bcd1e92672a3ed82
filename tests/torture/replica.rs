//! A replica made of captured transactions alone, with its own checksum of every page: after each transaction the sum
//! over the whole database must be the one that was promised with it.

use walhub_common::ltx::Decoder;
use walhub_common::{Checksum, PageSize, Pgno};

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
        if header.range.min().get() != self.txid + 1 {
            return Err(fault(&format!("the next segment is {:?}", header.range)));
        }
        if provenance.pre.is_some_and(|pre| pre != self.sum) || provenance.pre.is_none() != (self.txid == 0) {
            return Err(fault(&format!(
                "a segment that starts from {:?}, not from {}",
                provenance.pre, self.sum
            )));
        }
        if self.page_size != Some(header.page_size) {
            // Another page size is another image: every page must come.
            *self = Replica {
                page_size: Some(header.page_size),
                txid: self.txid,
                pages: self.pages,
                ..Replica::new()
            };
        }
        let size = header.page_size.bytes();
        let (before, after) = (self.sums.len(), header.commit as usize);
        for sum in self.sums.drain(after.min(before)..).flatten() {
            self.sum = self.sum.toggle(sum);
        }
        self.sums.resize(after, None);
        self.image.resize(after * size, 0);
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).map_err(|error| error.to_string())? {
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
        decoder.finish().map_err(|error| error.to_string())?;
        let lock = header.page_size.lock_page().index();
        if let Some(hole) =
            self.sums.iter().enumerate().position(|(index, sum)| sum.is_none() && index != lock)
        {
            return Err(format!("TXID {}: page {} never came", header.range.max(), hole + 1));
        }
        if self.sum != provenance.post {
            return Err(format!(
                "TXID {}: the pages sum up to {}, promised was {}",
                header.range.max(),
                self.sum,
                provenance.post
            ));
        }
        self.txid = header.range.max().get();
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
