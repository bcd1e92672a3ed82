use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use walhub_common::ltx::{Encoder, Provenance};
use walhub_common::{PageSize, Pgno, TxidRange};

const PAGES: u32 = 40;

fn page(fill: u64) -> Vec<u8> {
    fill.to_be_bytes().repeat(64)
}

/// TXID 1 writes all pages, each later one writes page `txid % PAGES + 1`.
fn history(count: u64) -> Vec<Vec<u8>> {
    let mut image: Vec<Vec<u8>> = vec![page(0); PAGES as usize];
    let number = |at: usize| Pgno::new(at as u32 + 1).unwrap();
    let sum = |image: &[Vec<u8>]| {
        image
            .iter()
            .enumerate()
            .fold(Checksum::EMPTY, |sum, (at, page)| sum.toggle(Checksum::of_page(number(at), page)))
    };
    let mut files = Vec::new();
    for txid in 1..=count {
        let pre = (txid > 1).then(|| sum(&image));
        let at = (txid % u64::from(PAGES)) as usize;
        image[at] = page(txid);
        let header = Header {
            page_size: PageSize::new(512).unwrap(),
            commit: PAGES,
            range: TxidRange::from_raw(txid, txid).unwrap(),
            timestamp_ms: txid as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre, post: sum(&image) }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let changed = if txid == 1 { 0..PAGES as usize } else { at..at + 1 };
        for at in changed {
            encoder.page(number(at), &image[at]).unwrap();
        }
        files.push(encoder.finish().unwrap().0);
    }
    files
}

/// Counts how many are open at once.
struct Counted(io::Cursor<Vec<u8>>, Arc<AtomicUsize>);

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn inputs(files: &[Vec<u8>], open: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>) -> Vec<Input> {
    let input = |file: &Vec<u8>| {
        let (file, open, most) = (file.clone(), open.clone(), most.clone());
        Box::new(move || {
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(Box::new(Counted(io::Cursor::new(file), open)) as Box<dyn Read + Send>)
        }) as Input
    };
    files.iter().map(input).collect()
}

fn plain(files: &[Vec<u8>]) -> Vec<Input> {
    inputs(files, &Arc::default(), &Arc::default())
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn thousands_of_inputs_give_the_bytes_of_one_merge_with_few_of_them_open() {
    let folder = tempfile::tempdir().unwrap();
    let files = history(2_500);
    let (open, most) = (Arc::default(), Arc::default());
    let out = folder.path().join("a.ltx");
    let stamp = Stamp { timestamp_ms: 9, node_id: 7, whole: false };
    let made = compact(inputs(&files, &open, &most), stamp, &out, &CancellationToken::new()).unwrap();
    assert_eq!(made.header.range, TxidRange::from_raw(1, 2_500).unwrap());
    assert_eq!(names(folder.path()), ["a.ltx"]);
    assert!(most.load(Ordering::SeqCst) <= FAN_IN, "{most:?} were open");
    let mut expected = Vec::new();
    let decoders = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
    ltx::merge(decoders, stamp, &mut expected).unwrap();
    let found = std::fs::read(&out).unwrap();
    assert_eq!(made.bytes, found.len() as u64);
    assert!(found == expected);
}

#[test]
fn a_snapshot_whose_pages_are_not_the_sources_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.ltx");
    let mut files = history(80);
    // A file whose own checksum is right and whose page is another: a lost update.
    files[50] = {
        let mut decoder = Decoder::new(&files[50][..]).unwrap();
        let header = *decoder.header();
        let mut bytes = Vec::new();
        let pgno = decoder.next_page(&mut bytes).unwrap().unwrap();
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        encoder.page(pgno, &page(999_999)).unwrap();
        encoder.finish().unwrap().0
    };
    let error = compact(plain(&files), Stamp::default(), &out, &CancellationToken::new());
    assert!(matches!(error, Err(CompactError::Image { .. })), "{error:?}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn cancelled_or_damaged_in_the_middle_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.ltx");
    let files = history(300);
    for at in [0, 31, 32, 150, 299] {
        let cancel = CancellationToken::new();
        let mut stopped = plain(&files);
        let (bytes, token) = (files[at].clone(), cancel.clone());
        stopped[at] = Box::new(move || {
            token.cancel();
            Ok(Box::new(io::Cursor::new(bytes)))
        });
        let error = compact(stopped, Stamp::default(), &out, &cancel);
        assert!(matches!(error, Err(CompactError::Cancelled)), "{at}: {error:?}");
        assert!(names(folder.path()).is_empty(), "{at}");

        let mut damaged = files.clone();
        let middle = damaged[at].len() / 2;
        damaged[at][middle] ^= 1;
        let error = compact(plain(&damaged), Stamp::default(), &out, &CancellationToken::new());
        assert!(matches!(error, Err(CompactError::Ltx(_))), "{at}: {error:?}");
        assert!(names(folder.path()).is_empty(), "{at}");
    }
}
