//! What of the live image the hub holds already: hashes of stretches and pages for it, checksums for ourselves.
//!
//! Nothing here must be of one state of the database: a page that changes after it was hashed has another checksum than the
//! one in [`Staged`], and a walk ([`Capture::stage`]) finds it.

use super::error::CaptureError;
use super::image::Image;
use super::staged::Staged;
use super::{Capture, Pace};
use std::io;
use walhub_common::stretch::{self, MAX_STRETCHES, PageHash, STRETCH_PAGES, StretchHash, StretchHasher};
use walhub_common::{Checksum, PageSize, Pgno};

/// Stretches that tell whether the rest is worth a look.
const SAMPLE: u32 = 16;

/// Hashes of stretches, ascending.
pub(super) type Hashes = Vec<(u32, StretchHash)>;

impl Capture {
    /// Hashes of a few stretches, spread over the database.
    pub fn sample_stretches(&mut self, pace: &mut dyn Pace) -> Result<(PageSize, Hashes), CaptureError> {
        let result = self.read_image(|image| {
            let all = stretch::count(image.commit());
            let some = (0..all.min(SAMPLE))
                .map(|n| (u64::from(n) * u64::from(all) / u64::from(SAMPLE.min(all))) as u32);
            let hashes = some.map(|number| Ok((number, hash(image, number, pace, |_, _| Ok(()))?)));
            Ok((image.page_size(), hashes.collect::<Result<Hashes, CaptureError>>()?))
        });
        self.settle(result)
    }

    /// Hashes of every stretch that is compared. The checksums of their pages are in `staged` afterwards, as if the hub held
    /// all of them: [`Staged::forget`] those that it does not.
    pub fn hash_stretches(
        &mut self,
        staged: &mut Staged,
        pace: &mut dyn Pace,
    ) -> Result<Hashes, CaptureError> {
        let result = self.read_image(|image| {
            staged.fit(image.page_size()).map_err(CaptureError::Staged)?;
            let mut hashes = Hashes::new();
            for number in 0..stretch::count(image.commit()) {
                let mut sums = Vec::with_capacity(STRETCH_PAGES as usize);
                let hash = hash(image, number, pace, |pgno, page| {
                    sums.push((pgno, Checksum::of_page(pgno, page)));
                    Ok(())
                })?;
                staged.hold(&sums).map_err(CaptureError::Staged)?;
                hashes.push((number, hash));
            }
            Ok(hashes)
        });
        self.settle(result)
    }

    /// Compares the pages of these stretches with what the hub holds there, [`STRETCH_PAGES`] hashes each; those that agree
    /// count as staged.
    pub fn match_pages(
        &mut self,
        staged: &mut Staged,
        stretches: &[u32],
        held: &[PageHash],
        pace: &mut dyn Pace,
    ) -> Result<(), CaptureError> {
        let result = self.read_image(|image| {
            for (number, held) in stretches.iter().zip(held.chunks(STRETCH_PAGES as usize)) {
                let first = number.saturating_mul(STRETCH_PAGES) + 1;
                let mut same = Vec::new();
                hash(image, *number, pace, |pgno, page| {
                    let theirs = held.get((pgno.get() - first) as usize);
                    if theirs == Some(&stretch::page_hash(pgno, page)) {
                        same.push((pgno, Checksum::of_page(pgno, page)));
                    }
                    Ok(())
                })?;
                staged.hold(&same).map_err(CaptureError::Staged)?;
            }
            Ok(())
        });
        self.settle(result)
    }

    fn read_image<T>(
        &mut self,
        read: impl FnOnce(&Image<'_>) -> Result<T, CaptureError>,
    ) -> Result<T, CaptureError> {
        self.must_own_lock()?;
        let header = self.header()?;
        read(&Image::published(&self.files, &header)?)
    }
}

impl Staged {
    /// The hub does not hold this stretch.
    pub fn forget(&mut self, number: u32) -> io::Result<()> {
        if number >= MAX_STRETCHES {
            return Err(io::Error::other(format!("stretch {number} cannot be")));
        }
        let first = Pgno::new(number * STRETCH_PAGES + 1).expect("BUG: from 1");
        self.write(first, &[0; STRETCH_PAGES as usize])
    }
}

fn hash(
    image: &Image<'_>,
    number: u32,
    pace: &mut dyn Pace,
    mut each: impl FnMut(Pgno, &[u8]) -> Result<(), CaptureError>,
) -> Result<StretchHash, CaptureError> {
    let (mut hasher, mut bytes) = (StretchHasher::default(), 0);
    image.read(stretch::pages(number, image.commit(), image.page_size()), |pgno, page| {
        hasher.page(pgno, page);
        bytes += page.len() as u64;
        each(pgno, page)
    })?;
    pace.rest(bytes).map_err(CaptureError::Sink)?;
    Ok(hasher.take())
}
