use super::*;
use crate::{Checksum, Level, PageSize, Pgno, TxidRange};

fn header(min: u64, max: u64, commit: u32) -> Header {
    Header {
        page_size: PageSize::new(512).unwrap(),
        commit,
        range: TxidRange::from_raw(min, max).unwrap(),
        timestamp_ms: 1_795_354_117_090,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: 0,
        provenance: Some(Provenance { pre: None, post: Checksum::EMPTY }),
    }
}

fn page(fill: u8) -> Vec<u8> {
    (0..512u32).map(|i| (i as u8).wrapping_mul(fill)).collect()
}

fn encode(header: Header, pages: &[(u32, u8)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (number, fill) in pages {
        encoder.page(Pgno::new(*number).unwrap(), &page(*fill)).unwrap();
    }
    encoder.finish().unwrap().0
}

fn decode(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let mut out = Vec::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        out.push((pgno.get(), page.clone()));
    }
    decoder.finish()?;
    Ok(out)
}

/// A level 0 file written by litestream 0.5.17: page size 4096, commit 4, TXID 2, page 2 of zeros ending in "lo".
#[test]
fn header_and_trailer_of_a_stock_file_are_understood() {
    let mut stock = [0u8; HEADER_BYTES];
    stock[0..4].copy_from_slice(b"LTX1");
    stock[4..8].copy_from_slice(&2u32.to_be_bytes());
    stock[8..12].copy_from_slice(&4096u32.to_be_bytes());
    stock[12..16].copy_from_slice(&4u32.to_be_bytes());
    stock[16..24].copy_from_slice(&2u64.to_be_bytes());
    stock[24..32].copy_from_slice(&2u64.to_be_bytes());
    stock[32..40].copy_from_slice(&0x0000_01a2_036d_8004u64.to_be_bytes());
    stock[48..56].copy_from_slice(&16512u64.to_be_bytes());
    stock[56..64].copy_from_slice(&4120u64.to_be_bytes());
    stock[64..72].copy_from_slice(&0xa55d_8131_3353_0b92u64.to_be_bytes());
    let header = Header::decode(&stock).unwrap();
    assert_eq!((header.commit, header.wal_offset, header.wal_size), (4, 16512, 4120));
    assert_eq!(header.provenance, None);
    assert_eq!(header.encode(), stock);
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = encode(header(1, 3, 3), &[(1, 1), (2, 7), (3, 9)]);
    let pages = decode(&bytes).unwrap();
    assert_eq!(pages, vec![(1, page(1)), (2, page(7)), (3, page(9))]);
    assert_eq!(Decoder::new(&bytes[..]).unwrap().header(), &header(1, 3, 3));
}

#[test]
fn every_flipped_byte_and_every_cut_is_found() {
    let bytes = encode(header(1, 3, 2), &[(1, 1), (2, 7)]);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        // The compressed bytes are covered through the page they expand to.
        if let Ok(pages) = decode(&bad) {
            assert_eq!(pages, decode(&bytes).unwrap(), "byte {at} changed the content unnoticed");
        }
        assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    let mut long = bytes.clone();
    long.push(0);
    assert!(matches!(decode(&long), Err(LtxError::TrailingBytes)));
}

#[test]
fn the_verifier_agrees_with_the_decoder_for_any_cut_into_pieces() {
    let bytes = encode(header(1, 3, 3), &[(1, 1), (2, 7), (3, 9)]);
    let expected = [(1, 1), (2, 7), (3, 9)].iter().fold(Checksum::EMPTY, |sum, (n, f)| {
        sum.toggle(Checksum::of_page(Pgno::new(*n).unwrap(), &page(*f)))
    });
    for step in [1, 3, 99, 100, 101, 512, 100_000] {
        let mut verifier = Verifier::new(1 << 20);
        for piece in bytes.chunks(step) {
            verifier.push(piece).unwrap();
        }
        let verified = verifier.finish().unwrap();
        assert_eq!(verified.image_checksum, Some(expected));
        assert_eq!((verified.bytes, verified.pages), (bytes.len() as u64, 3));
    }
    let mut verifier = Verifier::new(50);
    assert!(matches!(verifier.push(&bytes), Err(LtxError::TooLarge { .. })));
    let mut verifier = Verifier::new(1 << 20);
    verifier.push(&bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(verifier.finish(), Err(LtxError::Truncated)));
}

#[test]
fn pages_that_break_the_rules_are_not_written() {
    let mut encoder = Encoder::new(Vec::new(), header(2, 2, 5)).unwrap();
    encoder.page(Pgno::new(3).unwrap(), &page(1)).unwrap();
    assert!(encoder.page(Pgno::new(3).unwrap(), &page(1)).is_err(), "same page twice");
    assert!(encoder.page(Pgno::new(2).unwrap(), &page(1)).is_err(), "descending");
    assert!(encoder.page(Pgno::new(6).unwrap(), &page(1)).is_err(), "beyond commit");
    assert!(encoder.page(Pgno::new(4).unwrap(), &page(1)[..100]).is_err(), "short");
    let mut first = Encoder::new(Vec::new(), header(1, 1, 2)).unwrap();
    assert!(first.page(Pgno::new(2).unwrap(), &page(1)).is_err(), "hole in a first file");
    first.page(Pgno::FIRST, &page(1)).unwrap();
    assert!(first.finish().is_err(), "first file without its last page");
}

#[test]
fn a_merge_keeps_the_newest_page_and_drops_what_lies_beyond_the_end() {
    let base = encode(header(1, 1, 4), &[(1, 1), (2, 2), (3, 3), (4, 4)]);
    let grow = encode(header(2, 2, 5), &[(2, 20), (5, 50)]);
    let shrink = encode(header(3, 4, 3), &[(1, 10), (3, 30)]);
    let inputs = [&base, &grow, &shrink].map(|b| Decoder::new(&b[..]).unwrap());
    let mut out = Vec::new();
    let merged =
        merge(inputs.into(), Stamp { timestamp_ms: 77, node_id: 9, whole: false }, &mut out).unwrap();
    assert_eq!((merged.pages, merged.header.timestamp_ms, merged.header.node_id), (3, 77, 9));
    assert_eq!(merged.header.range, TxidRange::from_raw(1, 4).unwrap());
    assert_eq!(decode(&out).unwrap(), vec![(1, page(10)), (2, page(20)), (3, page(30))]);
    let image = encode(header(5, 5, 2), &[(1, 1), (2, 2)]);
    let inputs = vec![Decoder::new(&image[..]).unwrap()];
    let stamp = Stamp { whole: true, ..Stamp::default() };
    let merged = merge(inputs, stamp, &mut Vec::new()).unwrap();
    assert_eq!(merged.header.range, TxidRange::from_raw(1, 5).unwrap());
    let inputs = vec![Decoder::new(&grow[..]).unwrap()];
    assert!(merge(inputs, stamp, &mut Vec::new()).is_err(), "it does not hold every page");
    let gap = [&base, &shrink].map(|b| Decoder::new(&b[..]).unwrap());
    assert!(matches!(merge(gap.into(), Stamp::default(), Vec::new()), Err(LtxError::Merge { .. })));
}

#[test]
fn the_frame_form_is_read() {
    let mut bytes = header(2, 2, 4).encode().to_vec();
    let mut digest = crate::checksum::FileDigest::default();
    digest.update(&bytes);
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
    let mut frame = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    std::io::Write::write_all(&mut frame, &page(9)).unwrap();
    let frame = frame.finish().unwrap();
    let head = [0, 0, 0, 2, 0, 0];
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(&frame);
    digest.update(&head);
    digest.update(&page(9));
    let mut tail = vec![0; 6];
    let mut index = Vec::new();
    for value in [2, 100, 6 + frame.len() as u64] {
        parser::put_varint(&mut index, value);
    }
    index.push(0);
    tail.extend_from_slice(&index);
    tail.extend_from_slice(&(index.len() as u64).to_be_bytes());
    tail.extend_from_slice(&[0; 8]);
    digest.update(&tail);
    bytes.extend_from_slice(&tail);
    bytes.extend_from_slice(&digest.finish().get().to_be_bytes());
    assert_eq!(decode(&bytes).unwrap(), vec![(2, page(9))]);
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    assert!(decode(&bytes).is_err());
}

#[test]
fn names_are_litestreams() {
    let range = TxidRange::from_raw(1, 255).unwrap();
    assert_eq!(name::file_name(range), "0000000000000001-00000000000000ff.ltx");
    assert_eq!(name::parse("0000000000000001-00000000000000ff.ltx"), Some(range));
    for bad in [
        "0000000000000001-00000000000000FF.ltx",
        "1-ff.ltx",
        "0000000000000002-0000000000000001.ltx",
        "0000000000000000-0000000000000001.ltx",
        "0000000000000001-00000000000000ff.ltx.tmp",
        "",
    ] {
        assert_eq!(name::parse(bad), None, "{bad}");
    }
    assert_eq!(
        (name::fs_dir(Level::SNAPSHOT), name::s3_dir(Level::SNAPSHOT)),
        ("ltx/9".into(), "0009".into())
    );
}

#[test]
fn a_spooled_index_changes_no_byte() {
    // More than one piece of index: 150,000 pages.
    let pages = 150_000;
    let mut first = Encoder::new(Vec::new(), header(1, 1, pages)).unwrap();
    for number in 1..=pages {
        first.page(Pgno::new(number).unwrap(), &page(number as u8)).unwrap();
    }
    let first = first.finish().unwrap().0;
    let second = encode(header(2, 2, pages), &[(7, 3), (9, 1)]);
    let folder = tempfile::tempdir().unwrap();
    let inputs = || [&first, &second].map(|file| Decoder::new(&file[..]).unwrap()).into();
    let (mut kept, mut spooled) = (Vec::new(), Vec::new());
    let merged = merge(inputs(), Stamp::default(), &mut kept).unwrap();
    assert_eq!(merge_large(inputs(), Stamp::default(), &mut spooled, folder.path()).unwrap(), merged);
    assert!(kept == spooled, "the files differ");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    let mut verifier = Verifier::new(u64::MAX);
    verifier.push(&spooled).unwrap();
    assert_eq!(verifier.finish().unwrap().image_checksum, merged.image_checksum);
}
