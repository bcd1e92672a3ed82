use super::*;
use crate::ltx::{Encoder, Header, LtxError, Provenance};
use crate::testutil::sealed_ltx;
use crate::{Checksum, PageSize, Pgno, TxidRange};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

type Pages = Vec<(u32, Vec<u8>)>;

/// A database as a map, which is what the applier must reproduce.
#[derive(Clone, Default)]
struct Model {
    pages: BTreeMap<u32, Vec<u8>>,
    commit: u32,
}

impl Model {
    fn image(&self, page_size: PageSize) -> Vec<u8> {
        let mut image = vec![0; self.commit as usize * page_size.bytes()];
        for (number, page) in &self.pages {
            let at = page_size.offset(Pgno::new(*number).unwrap()) as usize;
            image[at..at + page.len()].copy_from_slice(page);
        }
        image
    }

    fn checksum(&self) -> Checksum {
        let sums = self.pages.iter().map(|(n, page)| Checksum::of_page(Pgno::new(*n).unwrap(), page));
        sums.fold(Checksum::EMPTY, Checksum::toggle)
    }

    fn change(&mut self, commit: u32, pages: &[(u32, Vec<u8>)]) {
        self.pages.extend(pages.iter().cloned());
        self.commit = commit;
        self.pages.retain(|number, _| *number <= commit);
    }
}

fn size() -> PageSize {
    PageSize::new(1024).unwrap()
}

fn page(fill: u32) -> Vec<u8> {
    (0..1024u32).map(|i| (i.wrapping_mul(fill) >> 3) as u8).collect()
}

fn ltx(range: (u64, u64), commit: u32, pages: &[(u32, Vec<u8>)], provenance: Option<Provenance>) -> Vec<u8> {
    let header = Header {
        page_size: size(),
        commit,
        range: TxidRange::from_raw(range.0, range.1).unwrap(),
        timestamp_ms: 1000 + range.1 as i64,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: 0,
        provenance,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (number, page) in pages {
        encoder.page(Pgno::new(*number).unwrap(), page).unwrap();
    }
    encoder.finish().unwrap().0
}

/// A history of a growing, shrinking and growing database: the files and the image after them.
fn history() -> (Vec<Vec<u8>>, Model) {
    let mut model = Model::default();
    let mut files = Vec::new();
    let changes: [(u32, Pages); 4] = [
        (900, (1..=900).map(|n| (n, page(n))).collect()),
        (901, vec![(1, page(7777)), (500, page(1)), (501, page(2)), (901, page(3))]),
        (300, vec![(1, page(8888)), (299, page(4))]),
        (302, vec![(2, page(5)), (301, page(6)), (302, page(0))]),
    ];
    for (txid, (commit, pages)) in (1u64..).zip(changes) {
        let pre = (txid > 1).then(|| model.checksum());
        model.change(commit, &pages);
        let provenance = Some(Provenance { pre, post: model.checksum() });
        files.push(ltx((txid, txid), commit, &pages, provenance));
    }
    (files, model)
}

fn restore(path: &Path, files: &[Vec<u8>], expected: Option<Checksum>) -> Result<Report, RestoreError> {
    let mut applier = Applier::new(path, false)?;
    for (at, file) in files.iter().enumerate() {
        applier.apply(&format!("file {at}"), &file[..])?;
    }
    applier.finish(expected)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_history_becomes_its_last_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/out.db");
    let (files, model) = history();
    let report = restore(&path, &files, Some(model.checksum())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model.image(size()));
    assert_eq!((report.pages, report.bytes, report.checksum), (302, 302 * 1024, model.checksum()));
    assert_eq!((report.position().txid.get(), report.timestamp_ms), (4, 1004));
    assert_eq!(report.proof, Proof::Source);
    assert_eq!((report.progress.files, report.progress.pages_written), (4, 909));
    assert_eq!(report.progress.bytes_in, files.iter().map(|f| f.len() as u64).sum::<u64>());
    assert_eq!(names(path.parent().unwrap()), ["out.db"]);
}

#[test]
fn overlapping_files_and_pages_beyond_the_end_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let first = ltx((1, 5), 3, &[(1, page(1)), (2, page(2)), (3, page(3))], None);
    let header = Header::decode(&ltx((3, 8), 4, &[], None)).unwrap().encode();
    let second = sealed_ltx(header, &[(2, &page(20)), (4, &page(40)), (9, &page(90))]);
    let report = restore(&path, &[first, second], None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [page(1), page(20), page(3), page(40)].concat());
    assert_eq!((report.range.min().get(), report.range.max().get()), (1, 8));
    assert_eq!(report.proof, Proof::FilesOnly);
}

#[test]
fn progress_ends_at_the_totals_of_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = history();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let mut applier = Applier::new(dir.path().join("out.db"), false)
        .unwrap()
        .on_progress(move |progress| sink.lock().unwrap().push(progress));
    for file in &files {
        applier.apply("f", &file[..]).unwrap();
    }
    let report = applier.finish(None).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.last(), Some(&report.progress));
    assert!(seen.len() > files.len(), "the first file has several batches");
    assert!(seen.windows(2).all(|w| w[0].bytes_in <= w[1].bytes_in));
}

#[test]
fn an_image_that_is_not_the_source_is_never_given_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let (files, model) = history();
    let wrong = model.checksum().toggle(Checksum::of_page(Pgno::FIRST, &page(1)));
    let error = restore(&path, &files, Some(wrong)).unwrap_err();
    assert!(matches!(error, RestoreError::Mismatch { expected, .. } if expected == wrong), "{error}");
    assert!(error.to_string().contains("transaction 0000000000000004"), "{error}");

    // The file itself says what must come out, before and after it.
    let small = [(1, page(1))];
    let good = Checksum::EMPTY.toggle(Checksum::of_page(Pgno::FIRST, &page(1)));
    let bad = [
        ltx((1, 1), 1, &small, Some(Provenance { pre: None, post: good })),
        ltx((2, 2), 1, &[], Some(Provenance { pre: Some(wrong), post: good })),
    ];
    let error = restore(&path, &bad, None).unwrap_err();
    assert!(error.to_string().contains("before file 1"), "{error}");
    let error = restore(&path, &[ltx((1, 1), 1, &small, Some(Provenance { pre: None, post: wrong }))], None);
    assert!(matches!(error, Err(RestoreError::Mismatch { .. })));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let first = ltx((1, 2), 2, &[(1, page(1)), (2, page(2))], None);
    let next = |range, commit, pages: &[(u32, Vec<u8>)]| vec![first.clone(), ltx(range, commit, pages, None)];
    let cases = [
        (next((4, 4), 2, &[]), "the one after 0000000000000002 is needed"),
        (next((2, 2), 2, &[]), "a file between them is missing"),
        (next((3, 3), 4, &[(4, page(4))]), "needs page 3"),
        (next((3, 3), 4, &[(3, page(4))]), "needs page 4"),
        (next((3, 3), u32::MAX, &[(u32::MAX - 1, page(4))]), "needs page 3"),
        (vec![ltx((7, 7), 3, &[(2, page(2))], None)], "needs page 1"),
        (vec![], "nothing to restore"),
        (vec![ltx((1, 1), 0, &[], None)], "nothing to restore"),
    ];
    for (files, words) in cases {
        let error = restore(&path, &files, None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut damaged = first.clone();
    let at = damaged.len() - 1;
    damaged[at] ^= 1;
    let error = restore(&path, &[damaged], None).unwrap_err();
    assert!(matches!(&error, RestoreError::Input { source: LtxError::Checksum { .. }, .. }), "{error}");
    assert!(error.to_string().starts_with("file 0: "), "{error}");
    let error = restore(&path, &[first[..first.len() - 20].to_vec()], None).unwrap_err();
    assert!(matches!(error, RestoreError::Input { source: LtxError::Truncated, .. }));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn another_page_size_begins_a_new_image_and_must_be_whole() {
    let dir = tempfile::tempdir().unwrap();
    let first = ltx((1, 1), 3, &[(1, page(1)), (2, page(2)), (3, page(3))], None);
    let smaller = |pages: &[(u32, u8)]| {
        let mut header = Header::decode(&ltx((2, 2), 2, &[], None)).unwrap();
        header.page_size = PageSize::new(512).unwrap();
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (number, fill) in pages {
            encoder.page(Pgno::new(*number).unwrap(), &[*fill; 512]).unwrap();
        }
        encoder.finish().unwrap().0
    };
    let part = [first.clone(), smaller(&[(2, 8)])];
    let error = restore(&dir.path().join("part.db"), &part, None).unwrap_err();
    assert!(matches!(error, RestoreError::MissingPage { pgno: 1, .. }), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
    let whole = [first, smaller(&[(1, 7), (2, 8)])];
    let report = restore(&dir.path().join("whole.db"), &whole, None).unwrap();
    assert_eq!((report.page_size.get(), report.pages), (512, 2));
    let image = fs::read(dir.path().join("whole.db")).unwrap();
    assert_eq!(image, [[7; 512], [8; 512]].concat());
    let sum = |number, fill: u8| Checksum::of_page(Pgno::new(number).unwrap(), &[fill; 512]);
    assert_eq!(report.checksum, Checksum::EMPTY.toggle(sum(1, 7)).toggle(sum(2, 8)));
}

#[test]
fn an_existing_output_is_replaced_only_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let (files, model) = history();
    fs::write(&path, "precious").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(restore(&path, &files, None), Err(RestoreError::Exists(_))));

    let mut applier = Applier::new(&path, true).unwrap();
    for file in &files {
        applier.apply("f", &file[..]).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    applier.finish(None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model.image(size()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640);

    for suffix in ["-wal", "-shm", "-journal"] {
        let companion = dir.path().join(format!("out.db{suffix}"));
        fs::write(&companion, "").unwrap();
        let Err(error) = Applier::new(&path, true) else { panic!("{suffix} was ignored") };
        assert!(error.to_string().contains(suffix), "{error}");
        fs::remove_file(companion).unwrap();
    }
    assert_eq!(names(dir.path()), ["out.db"]);
}

#[test]
fn an_output_made_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let mut applier = Applier::new(&path, false).unwrap();
    applier.apply("a", &ltx((1, 1), 1, &[(1, page(1))], None)[..]).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(applier.finish(None), Err(RestoreError::Exists(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(names(dir.path()), ["out.db"]);
}

#[test]
fn two_restores_into_one_output_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    let first = Applier::new(&path, false).unwrap();
    assert!(matches!(Applier::new(&path, false), Err(RestoreError::Busy(_))));
    drop(first);
    // What a killed restore left behind is no obstacle, and not part of the result.
    fs::write(dir.path().join("out.db.walhub-restore.tmp"), vec![9; 1 << 20]).unwrap();
    let report = restore(&path, &[ltx((1, 1), 1, &[(1, page(1))], None)], None).unwrap();
    assert_eq!(fs::read(&report.path).unwrap(), page(1));
    assert_eq!(names(dir.path()), ["out.db"]);
}

#[test]
fn a_disk_that_refuses_is_reported_with_the_path() {
    let path = Path::new("/proc/nowhere/out.db");
    let Err(error) = Applier::new(path, false) else { panic!("restored into /proc") };
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
}
