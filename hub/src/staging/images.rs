//! Images: parts of completed first snapshots, kept so that a database made from the same image need not send them again.
//!
//! ```text
//! <data-dir>/images/<n>/catalog, part-<k>   as in `staging`; the part files are links, so they take room once
//!                       stretches           size of page, pages, hash of each stretch, checksum of it all
//! ```
//!
//! Invariants
//! - An image is complete or not there: it is made under another name, synced, and renamed.
//! - Pages of an image are found by BLAKE3 alone (see [`walhub_common::stretch`]), so no node can make a neighbour take a
//!   page for its own that is not.
//! - At most [`MOST`] images, and `max_bytes`; the one that was of use least recently goes first. Whatever was built on it
//!   has links of its own.
//!
//! Non-goals: an image that is lost or damaged is no loss, its pages are sent.

use super::StagingError;
use super::area::link_parts;
use super::catalog::Catalog;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::PageSize;
use walhub_common::stretch::StretchHash;

/// Folder of all images, inside the data folder.
pub(super) const FOLDER: &str = "images";
/// Images kept; their hashes are in memory, 512 KiB each at most.
const MOST: usize = 16;
/// A database that agrees with an image in seven of eight stretches is no image of its own.
const ALIKE: (usize, usize) = (7, 8);
/// One stretch of so many must agree, or an image is of no use.
const USEFUL: usize = 8;
const STRETCHES: &str = "stretches";
const MAGIC: &[u8; 8] = b"WHIMAGE1";
const HEAD: usize = 16;

/// See the module doc. Its methods block.
#[derive(Debug)]
pub(super) struct Images {
    root: PathBuf,
    max_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    /// The one of use least recently first.
    images: Vec<Image>,
}

impl Kept {
    fn bytes(&self) -> u64 {
        self.images.iter().map(|image| image.bytes).sum()
    }
}

#[derive(Debug)]
struct Image {
    dir: PathBuf,
    page_size: PageSize,
    bytes: u64,
    hashes: Vec<StretchHash>,
}

/// The image that agrees best.
#[derive(Debug)]
pub(super) struct Best {
    /// Its folder; it may be gone by the time it is read.
    pub(super) dir: PathBuf,
    /// Stretches that agree, ascending.
    pub(super) matched: Vec<u32>,
}

impl Images {
    /// Reads what is there; removes what is half made or damaged.
    pub(super) fn open(data_dir: &Path, max_bytes: u64) -> io::Result<Images> {
        let root = data_dir.join(FOLDER);
        fs::create_dir_all(&root)?;
        let mut kept = Kept::default();
        let mut numbers = Vec::new();
        for dir in super::folders(&root)? {
            match dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok()) {
                Some(number) => numbers.push((number, dir)),
                None => fs::remove_dir_all(dir)?,
            }
        }
        numbers.sort_unstable();
        for (number, dir) in numbers {
            kept.next = number + 1;
            match load(&dir)? {
                Some(image) => kept.images.push(image),
                None => {
                    tracing::warn!(dir = %dir.display(), "dropped a damaged image; what it would have spared is sent");
                    fs::remove_dir_all(dir)?;
                }
            }
        }
        Ok(Images { root, max_bytes, kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.kept().images.is_empty()
    }

    /// Keeps the complete parts in `dir` as an image, unless there is one much like it.
    pub(super) fn keep(
        &self,
        dir: &Path,
        page_size: PageSize,
        commit: u32,
        hashes: Vec<StretchHash>,
    ) -> Result<(), StagingError> {
        let mut kept = self.kept();
        let alike = kept.images.iter().position(|image| {
            image.page_size == page_size
                && agreeing(&image.hashes, &hashes) * ALIKE.1 >= hashes.len() * ALIKE.0
        });
        if let Some(at) = alike {
            kept.images[at..].rotate_left(1);
            return Ok(());
        }
        let number = kept.next;
        kept.next += 1;
        let (making, name) = (self.root.join(format!("making-{number}")), self.root.join(number.to_string()));
        fs::create_dir(&making)?;
        let bytes = link_parts(dir, &making)?;
        Catalog::open(dir)?
            .ok_or_else(|| StagingError::Corrupt("the catalog is missing".into()))?
            .copy(&making)?;
        let mut file = File::create(making.join(STRETCHES))?;
        file.write_all(&encode(page_size, commit, &hashes))?;
        file.sync_all()?;
        File::open(&making)?.sync_all()?;
        fs::rename(&making, &name)?;
        File::open(&self.root)?.sync_all()?;
        tracing::info!(
            bytes,
            stretches = hashes.len(),
            "kept an image: databases like it need not send what is in it"
        );
        kept.images.push(Image { dir: name, page_size, bytes, hashes });
        while kept.images.len() > MOST || kept.bytes() > self.max_bytes {
            let oldest = kept.images.remove(0);
            fs::remove_dir_all(&oldest.dir)?;
            tracing::info!(dir = %oldest.dir.display(), "dropped the image that was of use least recently");
        }
        Ok(())
    }

    /// The image that agrees with most of these stretches, given ascending; `None` when none is of use.
    pub(super) fn best(&self, page_size: PageSize, stretches: &[(u32, StretchHash)]) -> Option<Best> {
        let mut kept = self.kept();
        let matched = |image: &Image| -> Vec<u32> {
            let same =
                |(number, hash): &&(u32, StretchHash)| image.hashes.get(*number as usize) == Some(hash);
            stretches.iter().filter(same).map(|(number, _)| *number).collect()
        };
        let fitting = kept.images.iter().enumerate().filter(|(_, image)| image.page_size == page_size);
        let (at, matched) =
            fitting.map(|(at, image)| (at, matched(image))).max_by_key(|(_, matched)| matched.len())?;
        if matched.is_empty() || matched.len() * USEFUL < stretches.len() {
            return None;
        }
        let dir = kept.images[at].dir.clone();
        kept.images[at..].rotate_left(1);
        Some(Best { dir, matched })
    }
}

fn agreeing(image: &[StretchHash], hashes: &[StretchHash]) -> usize {
    image.iter().zip(hashes).filter(|(a, b)| a == b).count()
}

fn encode(page_size: PageSize, commit: u32, hashes: &[StretchHash]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&page_size.get().to_be_bytes());
    bytes.extend_from_slice(&commit.to_be_bytes());
    bytes.extend(hashes.iter().flatten());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// `None` when it is not a whole image.
fn load(dir: &Path) -> io::Result<Option<Image>> {
    let bytes = match fs::read(dir.join(STRETCHES)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let Some((bytes, checksum)) = bytes.split_last_chunk::<32>() else { return Ok(None) };
    let whole = bytes.len() >= HEAD && bytes[..8] == *MAGIC && blake3::hash(bytes) == *checksum;
    let size =
        |bytes: &[u8]| PageSize::new(u32::from_be_bytes(bytes[8..12].try_into().expect("BUG: 4 bytes")));
    let Some(page_size) = whole.then(|| size(bytes)).flatten() else { return Ok(None) };
    let (hashes, rest) = bytes[HEAD..].as_chunks::<32>();
    let catalog = Catalog::open(dir)?;
    if !rest.is_empty() || catalog.is_none_or(|catalog| catalog.page_size() != page_size) {
        return Ok(None);
    }
    let bytes = super::area::sizes(dir)?;
    Ok(Some(Image { dir: dir.to_owned(), page_size, bytes, hashes: hashes.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> PageSize {
        PageSize::new(512).unwrap()
    }

    fn hashes(seed: u8, count: usize) -> Vec<StretchHash> {
        (0..count).map(|n| [seed ^ n as u8; 32]).collect()
    }

    fn folder(dir: &Path) -> PathBuf {
        let parts = dir.join("parts");
        if !parts.exists() {
            fs::create_dir(&parts).unwrap();
            Catalog::create(&parts, size()).unwrap();
            fs::write(parts.join("part-2"), [7; 1000]).unwrap();
        }
        parts
    }

    fn asked(hashes: &[StretchHash]) -> Vec<(u32, StretchHash)> {
        hashes.iter().enumerate().map(|(n, hash)| (n as u32, *hash)).collect()
    }

    #[test]
    fn the_image_that_agrees_best_is_found_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let parts = folder(dir.path());
        let images = Images::open(dir.path(), 1 << 20).unwrap();
        assert!(images.is_empty());
        images.keep(&parts, size(), 99, hashes(0, 16)).unwrap();
        let mut other = hashes(0x80, 16);
        other[3] = hashes(0, 16)[3];
        images.keep(&parts, size(), 99, other.clone()).unwrap();
        let mut like = other.clone();
        like[9] = [1; 32];
        for images in [&images, &Images::open(dir.path(), 1 << 20).unwrap()] {
            let best = images.best(size(), &asked(&like)).unwrap();
            assert_eq!(best.matched, (0..16).filter(|n| *n != 9).collect::<Vec<u32>>());
            assert!(best.dir.ends_with("1"), "{best:?}");
            assert!(images.best(PageSize::new(1024).unwrap(), &asked(&like)).is_none());
            assert!(images.best(size(), &asked(&hashes(0x40, 16))).is_none());
            assert_eq!(images.kept().bytes(), 2000);
        }
    }

    #[test]
    fn what_is_alike_is_kept_once_and_old_images_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let parts = folder(dir.path());
        let images = Images::open(dir.path(), 3000).unwrap();
        let mut like = hashes(0, 16);
        like[0] = [9; 32];
        for hashes in [hashes(0, 16), like, hashes(0x20, 16), hashes(0x40, 16)] {
            images.keep(&parts, size(), 99, hashes).unwrap();
        }
        assert_eq!(images.kept().bytes(), 3000);
        // It was of use, so another one goes.
        assert!(images.best(size(), &asked(&hashes(0, 16))).is_some());
        images.keep(&parts, size(), 99, hashes(0x60, 16)).unwrap();
        assert!(images.best(size(), &asked(&hashes(0, 16))).is_some());
        assert!(images.best(size(), &asked(&hashes(0x20, 16))).is_none());
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 3);
    }

    #[test]
    fn what_is_damaged_or_half_made_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let parts = folder(dir.path());
        let images = Images::open(dir.path(), 1 << 20).unwrap();
        images.keep(&parts, size(), 99, hashes(0, 16)).unwrap();
        let file = dir.path().join(FOLDER).join("0").join(STRETCHES);
        let good = fs::read(&file).unwrap();
        for at in [0, 9, 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, bad).unwrap();
            fs::create_dir_all(dir.path().join(FOLDER).join("making-7")).unwrap();
            assert!(Images::open(dir.path(), 1 << 20).unwrap().is_empty(), "{at}");
            assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 0);
        }
    }
}
