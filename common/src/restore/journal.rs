//! Which pages of a restore lie in its temporary file already, in a small file beside it.
//!
//! ```text
//! magic 8 | txid 8 | checksum 8 | page size 4 | pages 4 | one bit per page, in words of 8 bytes | CRC-64 of all before
//! ```
//! It is replaced by a rename, never synced, and not believed: a page counts again only with its content summed. Points
//! without a checksum have no journal, for nothing would prove the result.

use super::sink::Point;
use crate::checksum::FileDigest;
use crate::{Checksum, PageSet, Pgno};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"WHRJ0001";
const HEAD_BYTES: usize = 32;
/// Pages are read in pieces of about so many bytes.
const PIECE_BYTES: usize = 1024 * 1024;

fn head(point: &Point, checksum: Checksum) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..16].copy_from_slice(&point.txid.get().to_be_bytes());
    head[16..24].copy_from_slice(&checksum.get().to_be_bytes());
    head[24..28].copy_from_slice(&point.page_size.get().to_be_bytes());
    head[28..].copy_from_slice(&point.commit.to_be_bytes());
    head
}

/// Replaces the journal.
pub(super) fn write(path: &Path, point: &Point, written: &PageSet) -> io::Result<()> {
    let Some(checksum) = point.checksum else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut bytes = head(point, checksum).to_vec();
    written.words().iter().for_each(|word| bytes.extend_from_slice(&word.to_be_bytes()));
    let mut digest = FileDigest::default();
    digest.update(&bytes);
    bytes.extend_from_slice(&digest.finish().get().to_be_bytes());
    let new = super::output::with_suffix(path, ".new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

/// The pages of `point` that lie in `file` according to the journal, and the XOR of their checksums; `None` when there is
/// nothing to go on with.
pub(super) fn resume(path: &Path, file: &File, point: &Point) -> Option<(PageSet, Checksum)> {
    let written = parse(&fs::read(path).ok()?, point)?;
    let sum = sum(file, point, &written).ok()?;
    Some((written, sum))
}

fn parse(bytes: &[u8], point: &Point) -> Option<PageSet> {
    let (body, found) = bytes.split_last_chunk::<8>()?;
    let mut digest = FileDigest::default();
    digest.update(body);
    if digest.finish().get() != u64::from_be_bytes(*found) {
        return None;
    }
    let words = body.strip_prefix(&head(point, point.checksum?))?;
    let words = words.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("BUG: 8 bytes")));
    let written = PageSet::from_words(words.collect(), point.commit)?;
    (!written.contains(point.page_size.lock_page())).then_some(written)
}

fn sum(file: &File, point: &Point, written: &PageSet) -> io::Result<Checksum> {
    let page_bytes = point.page_size.bytes();
    let per_piece = (PIECE_BYTES / page_bytes).max(1);
    let mut buffer = vec![0; per_piece * page_bytes];
    let (mut sum, mut next) = (Checksum::EMPTY, 1);
    while let Some(first) = Pgno::new(next).filter(|first| first.get() <= point.commit) {
        let run = (next..=point.commit).map_while(Pgno::new).take_while(|page| written.contains(*page));
        let run: Vec<Pgno> = run.take(per_piece).collect();
        let bytes = &mut buffer[..run.len() * page_bytes];
        file.read_exact_at(bytes, point.page_size.offset(first))?;
        for (pgno, page) in run.iter().zip(bytes.chunks_exact(page_bytes)) {
            sum = sum.toggle(Checksum::of_page(*pgno, page));
        }
        next += run.len().max(1) as u32;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageSize, Txid};

    #[test]
    fn only_an_intact_journal_of_the_same_point_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image) = (folder.path().join("journal"), folder.path().join("image"));
        let size = PageSize::new(512).unwrap();
        let bytes: Vec<u8> = (0..10 * 512_u32).map(|at| (at * 7 / 512) as u8).collect();
        fs::write(&image, &bytes).unwrap();
        let file = File::open(&image).unwrap();
        let point = Point {
            txid: Txid::new(9).unwrap(),
            checksum: Checksum::new(1 << 63 | 5),
            page_size: size,
            commit: 10,
            timestamp_ms: 7,
        };
        let mut written = PageSet::empty(10);
        written.insert_run(2..=4);
        written.insert_run(9..=9);
        write(&path, &point, &written).unwrap();
        let sum = [2, 3, 4, 9].iter().fold(Checksum::EMPTY, |sum, number| {
            let pgno = Pgno::new(*number).unwrap();
            sum.toggle(Checksum::of_page(pgno, &bytes[pgno.index() * 512..][..512]))
        });
        assert_eq!(resume(&path, &file, &point), Some((written.clone(), sum)));
        for other in [
            Point { txid: Txid::FIRST, ..point },
            Point { checksum: None, ..point },
            Point { checksum: Checksum::new(1 << 63 | 4), ..point },
            Point { commit: 11, ..point },
            Point { page_size: PageSize::new(1024).unwrap(), ..point },
        ] {
            assert_eq!(resume(&path, &file, &other), None, "{other:?}");
        }
        // A file that is shorter than the journal says.
        fs::write(&image, &bytes[..8 * 512]).unwrap();
        assert_eq!(resume(&path, &file, &point), None);
        fs::write(&image, &bytes).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(resume(&path, &file, &point), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(resume(&path, &file, &point), None, "cut at {at}");
        }
        assert!(write(&path, &Point { checksum: None, ..point }, &written).is_err());
    }
}
