//! Files that litestream 0.5.17 wrote: a database with one table, replicated, and one row inserted; and the same by
//! 0.5.15, which wrote the older form of pages, with a second row that does not compress. Kept as hex text.

use walhub_common::ltx::{Decoder, Encoder, Header, LtxError, Stamp, Verifier, merge};
use walhub_common::restore::{Applier, Proof};
use walhub_tests::oracle::{integrity, observer};
use walhub_tests::scratch::Scratch;

pub(crate) const SNAPSHOT: &str = include_str!("golden/snapshot.hex");
pub(crate) const DELTA: &str = include_str!("golden/delta.hex");

pub(crate) const OLD_SNAPSHOT: &str = include_str!("golden/old-snapshot.hex");
pub(crate) const OLD_DELTA: &str = include_str!("golden/old-delta.hex");

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks_exact(2).map(pair).collect()
}

fn pages(file: &[u8]) -> (Header, Vec<(u32, Vec<u8>)>) {
    let mut decoder = Decoder::new(file).unwrap();
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        pages.push((pgno.get(), page.clone()));
    }
    let trailer = decoder.finish().unwrap();
    assert_eq!(trailer.post_apply, None);
    (*decoder.header(), pages)
}

#[test]
fn a_delta_of_stock_litestream_is_understood_to_the_last_byte() {
    let file = bytes(DELTA);
    assert_eq!(file.len(), 191);
    let (header, pages) = pages(&file);
    assert_eq!((header.page_size.get(), header.commit), (4096, 4));
    assert_eq!((header.range.min().get(), header.range.max().get()), (2, 2));
    assert_eq!(header.timestamp_ms, 0x01a2_0433_8f6b);
    assert_eq!((header.wal_offset, header.wal_size), (24_752, 4120));
    assert_eq!(header.wal_salts, [0x04f6_d2ba, 0xb669_fbc0]);
    assert_eq!((header.node_id, header.provenance), (0, None));

    // Page 2, a table leaf with one cell: row 1, NULL for the row id's alias, 'hello'.
    let [(2, page)] = &pages[..] else { panic!("{} pages", pages.len()) };
    let mut expected = vec![0; 4096];
    expected[..10].copy_from_slice(&[0x0d, 0, 0, 0, 1, 0x0f, 0xf6, 0, 0x0f, 0xf6]);
    expected[4086..].copy_from_slice(b"\x08\x01\x03\x00\x17hello");
    assert_eq!(page, &expected);

    // Written again with the LZ4 block as it came, it is the same file, checksum included.
    let mut decoder = Decoder::new(&file[..]).unwrap();
    let mut copy = Encoder::new(Vec::new(), header).unwrap();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        copy.page_lz4(pgno, decoder.block().unwrap(), &page).unwrap();
    }
    assert_eq!(copy.finish().unwrap().0, file);
}

#[test]
fn a_chain_of_stock_litestream_restores() {
    let scratch = Scratch::new("golden");
    let mut applier = Applier::new(scratch.join("out.db"), false).unwrap();
    applier.apply("snapshot", &bytes(SNAPSHOT)[..]).unwrap();
    applier.apply("delta", &bytes(DELTA)[..]).unwrap();
    let report = applier.finish(None).unwrap();
    // Litestream records no database checksum.
    assert_eq!((report.pages, report.proof), (4, Proof::FilesOnly));
    assert_eq!(integrity(&report.path), "ok");
    let copy = observer(&report.path);
    let row: (i64, String) =
        copy.query_row("SELECT id, v FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(row, (1, "hello".to_owned()));
}

#[test]
fn the_verifier_takes_both_and_knows_the_image_of_the_first() {
    let (_, pages) = pages(&bytes(SNAPSHOT));
    assert_eq!(pages.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (hex, is_image) in [(SNAPSHOT, true), (DELTA, false)] {
        let mut verifier = Verifier::new(1000);
        verifier.push(&bytes(hex)).unwrap();
        assert_eq!(verifier.finish().unwrap().image_checksum.is_some(), is_image);
    }
}

#[test]
fn the_older_form_restores_and_becomes_the_newer_one_when_merged() {
    let scratch = Scratch::new("golden-old");
    let files = [bytes(OLD_SNAPSHOT), bytes(OLD_DELTA)];
    let inputs = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
    let mut merged = Vec::new();
    merge(inputs, Stamp::default(), &mut merged).unwrap();
    let mut verifier = Verifier::new(100_000);
    verifier.push(&merged).unwrap();
    assert_eq!(verifier.finish().unwrap().pages, 4);

    let mut images = Vec::new();
    for (name, files) in [("old", &files[..]), ("merged", std::slice::from_ref(&merged))] {
        let mut applier = Applier::new(scratch.join(name), false).unwrap();
        for file in files {
            applier.apply(name, &file[..]).unwrap();
        }
        let report = applier.finish(None).unwrap();
        assert_eq!(integrity(&report.path), "ok");
        let copy = observer(&report.path);
        let lengths: Vec<i64> = copy
            .prepare("SELECT length(v) FROM t ORDER BY id")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(lengths, [3500, 5]);
        images.push(report.checksum);
    }
    assert_eq!(images[0], images[1]);
}

/// What agents send is in the newer form: the hub's gate takes nothing else, and says so.
#[test]
fn the_verifier_refuses_the_older_form() {
    let mut verifier = Verifier::new(100_000);
    let error = verifier.push(&bytes(OLD_DELTA)).unwrap_err();
    assert!(matches!(&error, LtxError::Page { pgno: 2, reason } if reason.contains("frame form")), "{error}");
}
