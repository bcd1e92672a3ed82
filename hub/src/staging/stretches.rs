//! Hashes of what is staged, stretch by stretch and page by page.

use super::StagingError;
use super::area::Area;
use super::catalog::Version;
use super::pages::Pages;
use walhub_common::stretch::{self, PageHash, STRETCH_PAGES, StretchHash, StretchHasher};
use walhub_common::{PageSize, Pgno};

impl Area {
    /// Which of these stretches are staged just so.
    pub(super) fn matching(
        &self,
        page_size: PageSize,
        stretches: &[(u32, StretchHash)],
    ) -> Result<Vec<u32>, StagingError> {
        let mut matched = Vec::new();
        let Some(catalog) = self.catalog.as_ref().filter(|catalog| catalog.page_size() == page_size) else {
            return Ok(matched);
        };
        let mut pages = Pages::of(&self.dir, page_size);
        let mut hasher = StretchHasher::default();
        for (number, hash) in stretches {
            let versions = catalog.stretch(*number)?;
            // The last stretch may be short; one with a hole is none.
            let end = versions.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            let mut whole = end > 0;
            for (pgno, version) in numbered(*number, &versions[..end]) {
                match version {
                    _ if pgno == page_size.lock_page() => {}
                    Some(version) => hasher.page(pgno, pages.read(pgno, version)?.page),
                    None => whole = false,
                }
            }
            if hasher.take() == *hash && whole {
                matched.push(*number);
            }
        }
        Ok(matched)
    }

    /// Hashes of the pages of these stretches.
    pub(super) fn page_hashes(&self, stretches: &[u32]) -> Result<Vec<PageHash>, StagingError> {
        let Some(catalog) = &self.catalog else { return Ok(Vec::new()) };
        let mut pages = Pages::of(&self.dir, catalog.page_size());
        let mut hashes = Vec::with_capacity(stretches.len() * STRETCH_PAGES as usize);
        for number in stretches {
            let versions = catalog.stretch(*number)?;
            for (pgno, version) in numbered(*number, &versions) {
                hashes.push(match version {
                    Some(version) => stretch::page_hash(pgno, pages.read(pgno, version)?.page),
                    None => PageHash::default(),
                });
            }
            hashes.resize(hashes.len().next_multiple_of(STRETCH_PAGES as usize), PageHash::default());
        }
        Ok(hashes)
    }
}

fn numbered(stretch: u32, versions: &[Option<Version>]) -> impl Iterator<Item = (Pgno, Option<&Version>)> {
    let first = stretch.saturating_mul(STRETCH_PAGES);
    let pages = (1..).filter_map(move |n: u32| Pgno::new(first.checked_add(n)?));
    pages.zip(versions.iter().map(Option::as_ref))
}
