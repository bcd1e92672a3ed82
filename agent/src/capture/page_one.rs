//! Page 1 of a database that is brought back while applications have it open: what must not be as it was then.
//!
//! Pure. Everything else of page 1 (user version, application id, free list, the root of the schema) is the source's.

use std::ops::Range;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const VERSIONS: Range<usize> = 18..20;
const RESERVED: usize = 20;
const CHANGES: Range<usize> = 24..28;
const PAGES: Range<usize> = 28..32;
const COOKIE: Range<usize> = 40..44;
const LARGEST_ROOT: Range<usize> = 52..56;
const ENCODING: Range<usize> = 56..60;
/// The change counter once more, and the version of the library that wrote it.
const WRITER: Range<usize> = 92..100;
/// Write and read version of a database in WAL mode.
const WAL: [u8; 2] = [2, 2];

/// Why open connections could not go on with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Not page 1 of a database.
    #[error("its first page is not that of a SQLite database")]
    NotADatabase,
    /// Connections keep the encoding for life.
    #[error(
        "its text encoding is another one than that of the live database, which open connections cannot follow"
    )]
    Encoding,
    /// The bytes kept free at the end of each page.
    #[error("it keeps {there} bytes of each page reserved, the live database {here}")]
    Reserved {
        /// Live.
        here: u8,
        /// At the point asked for.
        there: u8,
    },
}

/// Makes `page` (page 1 of the point asked for) one that connections which have `live` open can go on with:
/// - WAL mode stays;
/// - the size of the database is `pages`, as SQLite is about to declare it valid;
/// - the schema cookie is the live one until the rest is written; then it must become the one that is returned, which is above
///   both, so that every connection reads the schema and prepares its statements again.
///
/// SQLite itself changes the change counter and its own version when it commits.
pub(super) fn adapt(page: &mut [u8], live: &[u8], pages: u32) -> Result<u32, Unfit> {
    if page.len() < 100 || live.len() < 100 || !page.starts_with(MAGIC) {
        return Err(Unfit::NotADatabase);
    }
    if page[RESERVED] != live[RESERVED] {
        return Err(Unfit::Reserved { here: live[RESERVED], there: page[RESERVED] });
    }
    // 0: no table was ever made.
    let (here, there) = (word(live, ENCODING), word(page, ENCODING));
    if here != there && here != 0 && there != 0 {
        return Err(Unfit::Encoding);
    }
    page[VERSIONS].copy_from_slice(&WAL);
    page[PAGES].copy_from_slice(&pages.to_be_bytes());
    let cookie = word(live, COOKIE).max(word(page, COOKIE)).wrapping_add(1);
    page[COOKIE].copy_from_slice(&live[COOKIE]);
    Ok(cookie)
}

/// True when two first pages are the same but for what [`adapt`] and SQLite change.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    let own = |at: usize| [VERSIONS, CHANGES, PAGES, COOKIE, WRITER].iter().any(|field| field.contains(&at));
    a.len() == b.len() && a.iter().zip(b).enumerate().all(|(at, (a, b))| a == b || own(at))
}

/// True when the database moves pages when it commits, or may be told to.
pub(super) fn has_auto_vacuum(page: &[u8]) -> bool {
    word(page, LARGEST_ROOT) != 0
}

fn word(page: &[u8], field: Range<usize>) -> u32 {
    page[field].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(cookie: u32, encoding: u32) -> Vec<u8> {
        let mut page = vec![7; 512];
        page[..16].copy_from_slice(MAGIC);
        page[COOKIE].copy_from_slice(&cookie.to_be_bytes());
        page[ENCODING].copy_from_slice(&encoding.to_be_bytes());
        page
    }

    #[test]
    fn the_cookie_is_one_that_nobody_has_seen() {
        for (live, there) in [(5, 9), (9, 5), (9, 9), (u32::MAX, 3)] {
            let (mut new, live) = (page(there, 1), page(live, 1));
            let before = new.clone();
            let cookie = adapt(&mut new, &live, 77).unwrap();
            assert!(cookie != word(&live, COOKIE) && cookie != there);
            assert_eq!(word(&new, COOKIE), word(&live, COOKIE));
            assert_eq!((&new[VERSIONS], word(&new, PAGES)), (&WAL[..], 77));
            assert!(same(&new, &before) && new != before);
        }
    }

    #[test]
    fn a_difference_anywhere_else_is_one() {
        let one = page(1, 1);
        for at in [0, 16, 20, 32, 36, 44, 52, 60, 64, 91, 100, 511] {
            let mut other = one.clone();
            other[at] ^= 1;
            assert!(!same(&one, &other), "{at}");
        }
        assert!(!same(&one, &one[..511]));
    }

    #[test]
    fn what_open_connections_cannot_follow_is_refused() {
        let live = page(1, 1);
        assert_eq!(adapt(&mut page(1, 2), &live, 1), Err(Unfit::Encoding));
        assert_eq!(adapt(&mut page(1, 0), &live, 1), Ok(2));
        let mut reserved = page(1, 1);
        reserved[RESERVED] = 32;
        assert_eq!(adapt(&mut reserved, &live, 1), Err(Unfit::Reserved { here: 7, there: 32 }));
        assert_eq!(adapt(&mut [0; 512], &live, 1), Err(Unfit::NotADatabase));
    }
}
