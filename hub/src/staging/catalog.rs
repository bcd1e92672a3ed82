//! Page → newest staged version: a file of fixed records, one per page, read and written in runs.
//!
//! ```text
//! catalog      record = checksum u64 (0: no version), part u32, offset of the LZ4 block u32, its size u32, 0 u32
//!              record 0 = magic, page size                                          big-endian, 24 bytes each
//! base         a link to the catalog of the image that was adopted; it says of each page of which `catalog` says nothing
//! ```
//!
//! Nodes made from one image differ in few pages, and the records of all others would be 24 bytes a page for each node: so
//! the image's are shared, and a node's own file is sparse. A base is never written.
//!
//! Its bytes are not trusted: whoever reads a page through it compares the page with the checksum, and the checksums of all
//! pages with what the node said. A crash while one part's records are written is repaired by writing them again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use walhub_common::stretch::STRETCH_PAGES;
use walhub_common::{Checksum, PageSize, Pgno};

const CATALOG: &str = "catalog";
const BASE: &str = "base";
const RECORD: usize = 24;
const MAGIC: &[u8; 8] = b"WHSTAGE1";
/// Records read or written at once.
pub(super) const RUN: usize = 4096;

/// Where the newest version of a page lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) part: u32,
    pub(super) offset: u32,
    pub(super) size: u32,
    pub(super) checksum: Checksum,
}

/// The files of one folder.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    base: Option<File>,
    page_size: PageSize,
}

impl Catalog {
    /// An empty one in a folder that has no base.
    pub(super) fn create(dir: &Path, page_size: PageSize) -> io::Result<Catalog> {
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(dir.join(CATALOG))?;
        let mut head = [0; RECORD];
        head[..8].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&page_size.get().to_be_bytes());
        file.write_all_at(&head, 0)?;
        Ok(Catalog { file, base: None, page_size })
    }

    /// The one that is there; `None` when there is none, or not one of ours.
    pub(super) fn open(dir: &Path) -> io::Result<Option<Catalog>> {
        let file = match File::options().read(true).write(true).open(dir.join(CATALOG)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let base = match File::open(dir.join(BASE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            base => Some(base?),
        };
        let Some(page_size) = head(&file)? else { return Ok(None) };
        if let Some(base) = &base
            && head(base)? != Some(page_size)
        {
            return Ok(None);
        }
        Ok(Some(Catalog { file, base, page_size }))
    }

    /// Says in `dir`, which has none, the same as the one of an image, and shares its records. On disk when it returns, but
    /// for the names. `NotFound` when the image is gone.
    pub(super) fn adopt(dir: &Path, image: &Path) -> io::Result<()> {
        fs::hard_link(image.join(CATALOG), dir.join(BASE))?;
        match head(&File::open(dir.join(BASE))?)? {
            Some(page_size) => Catalog::create(dir, page_size)?.sync(),
            None => Err(io::Error::other("the catalog of an image is damaged")),
        }
    }

    /// Makes one in the folder `to` that says the same and has no base. On disk when it returns, but for the name.
    pub(super) fn copy(&self, to: &Path) -> io::Result<()> {
        let copy = Catalog::create(to, self.page_size)?;
        let mut first = Some(Pgno::FIRST);
        while let Some(at) = first {
            let run = self.read(at, RUN)?;
            let numbers = (at.get()..).map_while(Pgno::new);
            let pages: Vec<(Pgno, Version)> =
                numbers.zip(&run).filter_map(|(page, version)| Some((page, (*version)?))).collect();
            copy.write(&pages, |_| ())?;
            first = at.get().checked_add(RUN as u32).and_then(Pgno::new).filter(|_| run.len() == RUN);
        }
        copy.sync()
    }

    /// Removes what is there.
    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        for name in [CATALOG, BASE] {
            match fs::remove_file(dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Records of `count` pages from `first` on; fewer at the end.
    pub(super) fn read(&self, first: Pgno, count: usize) -> io::Result<Vec<Option<Version>>> {
        let mut versions = records(&self.file, first, count)?;
        let Some(base) = &self.base else { return Ok(versions) };
        let below = records(base, first, count)?;
        versions.resize(versions.len().max(below.len()), None);
        for (version, below) in versions.iter_mut().zip(below) {
            *version = version.or(below);
        }
        Ok(versions)
    }

    /// Records of the pages of a stretch; fewer at the end of the file.
    pub(super) fn stretch(&self, number: u32) -> io::Result<Vec<Option<Version>>> {
        let first = number.checked_mul(STRETCH_PAGES).and_then(|n| Pgno::new(n.checked_add(1)?));
        first.map_or(Ok(Vec::new()), |first| self.read(first, STRETCH_PAGES as usize))
    }

    /// Writes records of ascending pages; calls `replaced` for each record that was there.
    pub(super) fn write(
        &self,
        pages: &[(Pgno, Version)],
        mut replaced: impl FnMut(Version),
    ) -> io::Result<()> {
        let follows = |a: &(Pgno, Version), b: &(Pgno, Version)| a.0.get() + 1 == b.0.get();
        for run in pages.chunk_by(follows) {
            for run in run.chunks(RUN) {
                let first = run[0].0;
                self.read(first, run.len())?.into_iter().flatten().for_each(&mut replaced);
                let mut bytes = Vec::with_capacity(run.len() * RECORD);
                for (_, version) in run {
                    bytes.extend_from_slice(&version.checksum.get().to_be_bytes());
                    bytes.extend_from_slice(&version.part.to_be_bytes());
                    bytes.extend_from_slice(&version.offset.to_be_bytes());
                    bytes.extend_from_slice(&version.size.to_be_bytes());
                    bytes.extend_from_slice(&[0; 4]);
                }
                self.file.write_all_at(&bytes, u64::from(first.get()) * RECORD as u64)?;
            }
        }
        Ok(())
    }

    /// On disk when it returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The page size that a file begins with; `None` when it is not one of ours.
fn head(file: &File) -> io::Result<Option<PageSize>> {
    let mut head = [0; RECORD];
    let whole = read_full(file, &mut head, 0)? == RECORD && head[..8] == *MAGIC;
    Ok(whole.then(|| PageSize::new(word(&head, 8))).flatten())
}

fn records(file: &File, first: Pgno, count: usize) -> io::Result<Vec<Option<Version>>> {
    let mut bytes = vec![0; count * RECORD];
    let found = read_full(file, &mut bytes, u64::from(first.get()) * RECORD as u64)?;
    bytes.truncate(found - found % RECORD);
    Ok(bytes.chunks_exact(RECORD).map(decode).collect())
}

fn decode(record: &[u8]) -> Option<Version> {
    let sum = u64::from_be_bytes(record[..8].try_into().expect("BUG: 8 bytes"));
    Some(Version {
        checksum: Checksum::new(sum)?,
        part: word(record, 8),
        offset: word(record, 12),
        size: word(record, 16),
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("BUG: 4 bytes"))
}

/// As many bytes as there are.
fn read_full(file: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], at + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u32 = RUN as u32 + 700;

    fn version(page: u32, part: u32) -> Version {
        let checksum = Checksum::new(1 << 63 | u64::from(page) << 32 | u64::from(part)).unwrap();
        Version { part, offset: page, size: 100, checksum }
    }

    fn all(catalog: &Catalog) -> Vec<Option<Version>> {
        let runs = (0..).map(|n| catalog.read(Pgno::new(n * RUN as u32 + 1).unwrap(), RUN).unwrap());
        runs.take_while(|run| !run.is_empty()).flatten().collect()
    }

    fn image(dir: &Path) -> Catalog {
        let image = Catalog::create(dir, PageSize::new(4096).unwrap()).unwrap();
        let pages: Vec<(Pgno, Version)> =
            (1..=PAGES).filter(|n| n % 5 != 0).map(|n| (Pgno::new(n).unwrap(), version(n, 7))).collect();
        image.write(&pages, |_| panic!("nothing is replaced")).unwrap();
        image
    }

    #[test]
    fn what_a_node_says_lies_above_what_its_image_says() {
        let folders: [tempfile::TempDir; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [images, node, copied] = folders.each_ref().map(|folder| folder.path());
        let image = image(images);
        let before = all(&image);
        assert_eq!(before.len(), PAGES as usize);
        Catalog::adopt(node, images).unwrap();
        let mine = Catalog::open(node).unwrap().unwrap();
        assert_eq!(all(&mine), before);

        // One that the image has, one that it lacks, one behind its end.
        let own = [1001, 1005, PAGES + 3];
        let pages = own.map(|n| (Pgno::new(n).unwrap(), version(n, 8)));
        let mut replaced = Vec::new();
        mine.write(&pages, |old| replaced.push(old)).unwrap();
        assert_eq!(replaced, [version(1001, 7)]);
        let mut wanted = before.clone();
        wanted.resize(PAGES as usize + 3, None);
        own.iter().for_each(|n| wanted[*n as usize - 1] = Some(version(*n, 8)));
        fs::remove_dir_all(images).unwrap();
        let opened = Catalog::open(node).unwrap().unwrap();
        opened.copy(copied).unwrap();
        for catalog in [&mine, &opened, &Catalog::open(copied).unwrap().unwrap()] {
            assert_eq!(all(catalog), wanted);
        }
        assert_eq!(all(&image), before, "the image stays as it is");

        Catalog::remove(node).unwrap();
        assert!(Catalog::open(node).unwrap().is_none());
        assert_eq!(fs::read_dir(node).unwrap().count(), 0);
    }

    #[test]
    fn a_node_does_not_repeat_what_its_image_says() {
        use std::os::unix::fs::MetadataExt;
        let folders: [tempfile::TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [images, node] = folders.each_ref().map(|folder| folder.path());
        image(images);
        Catalog::adopt(node, images).unwrap();
        let mine = Catalog::open(node).unwrap().unwrap();
        mine.write(&[(Pgno::new(PAGES).unwrap(), version(PAGES, 8))], |_| ()).unwrap();
        mine.sync().unwrap();
        let taken = fs::metadata(node.join(CATALOG)).unwrap().blocks() * 512;
        assert!(taken <= 16 << 10, "{taken} bytes for one page");
        assert_eq!(fs::metadata(node.join(BASE)).unwrap().nlink(), 2);
    }

    #[test]
    fn a_base_that_is_not_one_is_refused() {
        let folders: [tempfile::TempDir; 2] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [images, node] = folders.each_ref().map(|folder| folder.path());
        image(images);
        Catalog::adopt(node, images).unwrap();
        for bad in [&b"WHSTAGE2"[..], b"WHSTAGE1\0\0\x20\0"] {
            fs::remove_file(node.join(BASE)).unwrap();
            fs::write(node.join(BASE), bad).unwrap();
            assert!(Catalog::open(node).unwrap().is_none());
            assert!(Catalog::adopt(&tempfile::tempdir().unwrap().path().join("gone"), node).is_err());
        }
    }
}
