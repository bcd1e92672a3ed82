use super::delta::Delta;
use super::frames::{Frames, FramesBuilder};
use super::{Report, RestoreError};
use crate::{Checksum, PageSize, Pgno, Pos, Txid, ltx};
use proptest::prelude::*;
use std::path::Path;

fn size() -> PageSize {
    PageSize::new(512).unwrap()
}

fn sums(image: &[u8]) -> Vec<Checksum> {
    let pages = (1..).filter_map(Pgno::new).zip(image.chunks(512));
    pages.map(|(pgno, page)| Checksum::of_page(pgno, page)).collect()
}

fn position(image: &[u8]) -> Pos {
    let checksum = sums(image).into_iter().fold(Checksum::EMPTY, Checksum::toggle);
    Pos { txid: Txid::new(9).unwrap(), checksum }
}

fn frames(image: &[u8], pages: impl Iterator<Item = u32>) -> Frames {
    let mut frames = FramesBuilder::default();
    for page in pages {
        let at = (page as usize - 1) * 512;
        frames.push(Pgno::new(page).unwrap(), &ltx::squeeze(&image[at..at + 512]));
    }
    frames.take()
}

/// The report, and how many pages were asked for.
fn restore(path: &Path, image: &[u8]) -> Result<(Report, usize), RestoreError> {
    let mut delta = Delta::create(path, size(), u32::try_from(image.len() / 512).unwrap(), false)?;
    sums(image).chunks(3).try_for_each(|sums| delta.compare(sums))?;
    let missing: Vec<u32> = delta.missing().into_iter().flatten().collect();
    assert_eq!(missing.len() as u64, delta.pages_missing());
    for part in missing.chunks(4) {
        delta.take(&frames(image, part.iter().rev().copied()))?;
    }
    Ok((delta.finish(position(image), 5)?, missing.len()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

proptest! {
    /// Whatever lies there becomes the database asked for, and no page that is right is asked for.
    #[test]
    fn any_copy_becomes_the_database(
        old in proptest::collection::vec(0_u8..4, 0..30),
        new in proptest::collection::vec(0_u8..4, 1..30),
        odd in 0_usize..512,
    ) {
        let image = |fills: &[u8]| fills.iter().flat_map(|fill| [*fill; 512]).collect::<Vec<u8>>();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let mut copy = image(&old);
        copy.extend(std::iter::repeat_n(7, odd));
        std::fs::write(&path, copy).unwrap();
        let (report, asked) = restore(&path, &image(&new)).unwrap();
        let differ = (0..new.len()).filter(|at| old.get(*at) != Some(&new[*at])).count();
        prop_assert_eq!(asked, differ);
        prop_assert_eq!(std::fs::read(&path).unwrap(), image(&new));
        prop_assert_eq!(report.progress.pages_written, differ as u64);
        prop_assert_eq!(names(dir.path()), ["a.db"]);
    }
}

#[test]
fn what_is_not_proven_leaves_the_copy_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let (old, new) = (vec![1; 5 * 512], [vec![1; 512], vec![2; 3 * 512]].concat());
    std::fs::write(&path, &old).unwrap();
    let begin = || {
        let mut delta = Delta::create(&path, size(), 4, false).unwrap();
        delta.compare(&sums(&new)).unwrap();
        assert_eq!(delta.missing(), [2..=4]);
        delta
    };
    // A page that is another one, a page nobody asked for, a page that never came, another position.
    let wrong = [vec![1; 512], vec![3; 3 * 512]].concat();
    assert!(matches!(begin().take(&frames(&wrong, 2..=2)), Err(RestoreError::Mismatch { .. })));
    assert!(begin().take(&frames(&new, 1..=1)).is_err());
    let mut delta = begin();
    delta.take(&frames(&new, [2, 4].into_iter())).unwrap();
    let error = delta.finish(position(&new), 0).unwrap_err();
    assert!(matches!(error, RestoreError::MissingPage { pgno: 3, .. }), "{error}");
    let mut delta = begin();
    delta.take(&frames(&new, 2..=4)).unwrap();
    assert!(matches!(delta.finish(position(&wrong), 0), Err(RestoreError::Mismatch { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), old);
    assert_eq!(names(dir.path()), ["a.db"]);
    // A log beside it would be applied to what comes out.
    std::fs::write(dir.path().join("a.db-wal"), "").unwrap();
    assert!(matches!(Delta::create(&path, size(), 4, false), Err(RestoreError::Companion(_))));
    // Nothing to begin with.
    assert!(Delta::create(&dir.path().join("none.db"), size(), 4, false).is_err());
    assert_eq!(names(dir.path()), ["a.db", "a.db-wal"]);
}

#[test]
fn the_lock_page_is_no_page() {
    let size = PageSize::new(65536).unwrap();
    let lock = size.lock_page();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    // Sparse but for its last pages, the lock page with garbage in it.
    let file = std::fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 65536], size.offset(lock)).unwrap();
    file.set_len(size.offset(lock) + 2 * 65536).unwrap();
    let commit = lock.get() + 2;
    let zero = vec![0; 65536];
    let last = vec![5; 65536];
    let sum = |page: u32, bytes: &[u8]| Checksum::of_page(Pgno::new(page).unwrap(), bytes);
    let mut sums: Vec<_> =
        (1..commit).filter(|page| *page != lock.get()).map(|page| sum(page, &zero)).collect();
    sums.push(sum(commit, &last));
    let mut delta = Delta::create(&path, size, commit, false).unwrap();
    sums.chunks(5000).for_each(|sums| delta.compare(sums).unwrap());
    assert_eq!(delta.missing(), [commit..=commit]);
    let mut frames = FramesBuilder::default();
    frames.push(Pgno::new(commit).unwrap(), &ltx::squeeze(&last));
    delta.take(&frames.take()).unwrap();
    let checksum = sums.into_iter().fold(Checksum::EMPTY, Checksum::toggle);
    delta.finish(Pos { txid: Txid::FIRST, checksum }, 0).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let mut page = vec![1; 65536];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut page, size.offset(lock)).unwrap();
    assert_eq!(page, zero);
}
