//! Strong hashes by which agent and hub find pages that the hub holds already, for whichever database.
//!
//! A *stretch* is [`STRETCH_PAGES`] neighbouring pages that begin at a multiple of that number. Two databases made from one image
//! agree in most stretches, so 32 bytes speak for a megabyte of pages; only inside a stretch that differs are pages named one
//! by one. The format's own CRC-64 cannot do this: whoever controls one database could make a page collide with a
//! neighbour's. BLAKE3 cannot be made to collide, and costs less time than reading the page.
//!
//! Page numbers are part of what is hashed: a page at another place is another page.

use crate::limits::MAX_PAGES;
use crate::{PageSize, Pgno};

/// Pages of a stretch.
pub const STRETCH_PAGES: u32 = 256;
/// Stretches of one database that are compared, at most: their hashes fit into one message. Pages beyond are sent.
pub const MAX_STRETCHES: u32 = 16 * 1024;
/// Stretches whose pages are named in one answer, at most.
pub const MAX_NAMED: usize = 128;

/// Hash of a stretch.
pub type StretchHash = [u8; 32];
/// Hash of one page.
pub type PageHash = [u8; 16];

/// The pages of a stretch of a database of `commit` pages, ascending, without the lock page.
pub fn pages(stretch: u32, commit: u32, page_size: PageSize) -> impl Iterator<Item = Pgno> {
    let from = stretch.saturating_mul(STRETCH_PAGES).saturating_add(1);
    let to = from.saturating_add(STRETCH_PAGES - 1).min(commit).min(MAX_PAGES);
    let lock = page_size.lock_page();
    (from..=to).filter_map(Pgno::new).filter(move |pgno| *pgno != lock)
}

/// Stretches of a database of `commit` pages that are compared.
pub fn count(commit: u32) -> u32 {
    commit.div_ceil(STRETCH_PAGES).min(MAX_STRETCHES)
}

/// Hashes the pages of one stretch, which come in ascending order.
#[derive(Debug, Default)]
pub struct StretchHasher(blake3::Hasher);

impl StretchHasher {
    /// The next page.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) {
        self.0.update(&pgno.get().to_be_bytes());
        self.0.update(page);
    }

    /// The hash; the hasher begins anew.
    pub fn take(&mut self) -> StretchHash {
        let hash = self.0.finalize().into();
        self.0.reset();
        hash
    }
}

/// Hash of one page.
pub fn page_hash(pgno: Pgno, page: &[u8]) -> PageHash {
    let mut hasher = StretchHasher::default();
    hasher.page(pgno, page);
    let hash = hasher.take();
    hash[..16].try_into().expect("BUG: 16 of 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(stretch: u32, commit: u32, size: u32) -> Vec<u32> {
        pages(stretch, commit, PageSize::new(size).unwrap()).map(Pgno::get).collect()
    }

    #[test]
    fn stretches_cover_every_page_once_but_the_lock_page() {
        assert_eq!(numbers(0, 3, 4096), [1, 2, 3]);
        assert_eq!(numbers(1, 258, 4096), [257, 258]);
        assert_eq!((count(0), count(1), count(256), count(257)), (0, 1, 1, 2));
        let lock = PageSize::new(65536).unwrap().lock_page().get();
        let commit = lock + 10;
        let all: Vec<u32> = (0..count(commit)).flat_map(|stretch| numbers(stretch, commit, 65536)).collect();
        assert_eq!(all, (1..=commit).filter(|page| *page != lock).collect::<Vec<_>>());
        assert_eq!(numbers(u32::MAX, u32::MAX, 512), [0_u32; 0]);
    }

    #[test]
    fn a_hash_depends_on_content_and_place() {
        let mut hasher = StretchHasher::default();
        let mut hash = |pages: &[(u32, &[u8])]| {
            pages.iter().for_each(|(pgno, page)| hasher.page(Pgno::new(*pgno).unwrap(), page));
            hasher.take()
        };
        let one = hash(&[(1, b"a"), (2, b"b")]);
        assert_eq!(hash(&[(1, b"a"), (2, b"b")]), one);
        assert_ne!(hash(&[(1, b"a"), (3, b"b")]), one);
        assert_ne!(hash(&[(1, b"a"), (2, b"c")]), one);
        assert_ne!(page_hash(Pgno::FIRST, b"a"), page_hash(Pgno::new(2).unwrap(), b"a"));
    }
}
