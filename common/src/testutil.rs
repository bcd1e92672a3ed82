//! For tests of every crate: LTX files that break rules on purpose, and the entry functions of the fuzz targets.
//!
//! The entry functions take any bytes and panic when a parser breaks a promise. Fuzzers call them with what they
//! invent, ordinary tests replay a small corpus and its mutations through them.

use crate::checksum::FileDigest;
use crate::ltx::{Decoder, Encoder, HEADER_BYTES, Header, LtxError, Verifier};
use crate::wal::{FRAME_HEADER_BYTES, FrameNo, FrameVerifier, Grouper, Salts, WAL_HEADER_BYTES};
use crate::wal::{Transaction, WalHeader, WalReader};
use crate::{PageSize, Pgno};

/// An LTX file of `pages` in the order given, whatever the rules say, under a header given as bytes. Index and file
/// checksum are right, so that a reader has only the rule itself to refuse it by.
pub fn sealed_ltx(header: [u8; HEADER_BYTES], pages: &[(u32, &[u8])]) -> Vec<u8> {
    let mut digest = FileDigest::default();
    digest.update(&header);
    let mut out = header.to_vec();
    let mut index = Vec::new();
    for (pgno, page) in pages {
        let block = lz4_flex::block::compress(page);
        let mut head = pgno.to_be_bytes().to_vec();
        head.extend_from_slice(&[0, 1]);
        head.extend_from_slice(&(block.len() as u32).to_be_bytes());
        digest.update(&head);
        digest.update(page);
        for value in [u64::from(*pgno), out.len() as u64, (head.len() + block.len()) as u64] {
            put_varint(&mut index, value);
        }
        out.extend_from_slice(&head);
        out.extend_from_slice(&block);
    }
    index.push(0);
    let mut tail = vec![0; 6];
    tail.extend_from_slice(&index);
    tail.extend_from_slice(&(index.len() as u64).to_be_bytes());
    tail.extend_from_slice(&[0; 8]);
    digest.update(&tail);
    out.extend_from_slice(&tail);
    out.extend_from_slice(&digest.finish().get().to_be_bytes());
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Fuzz target: the WAL reader. Once on the bytes as they are, once with every checksum put right, so that the code
/// behind the checksums is reached as well.
pub fn fuzz_wal(data: &[u8]) {
    if let Some(header) = data.first_chunk::<WAL_HEADER_BYTES>() {
        if let Ok(header) = WalHeader::parse(header) {
            read_log(&header, &data[WAL_HEADER_BYTES..]);
        }
        let (header, frames) = seal_log(header, &data[WAL_HEADER_BYTES..]);
        assert_eq!(WalHeader::parse(&header.encode()), Ok(header));
        let read = read_log(&header, &frames);
        let frame = FRAME_HEADER_BYTES + header.page_size.bytes();
        assert_eq!(read as usize * frame, frames.len(), "a sealed log was not read to its end");
    }
}

/// Reads frames until the chain breaks; how many verified.
fn read_log(header: &WalHeader, frames: &[u8]) -> u32 {
    let mut reader = WalReader::new(header);
    let mut grouper = Grouper::new(header.page_size);
    let mut next = FrameNo(1);
    for bytes in frames.chunks_exact(reader.frame_bytes()) {
        assert_eq!(reader.offset(), next.offset(header.page_size));
        let before = reader.position();
        match reader.push(bytes) {
            Ok((number, frame)) => {
                assert_eq!(number, next);
                next = next.next();
                if let Some(txn) = grouper.push(number, frame) {
                    check_transaction(&txn, number, header.page_size);
                }
            }
            Err(stop) => {
                assert_eq!((stop.frame, reader.position()), (next, before));
                assert_eq!(reader.push(bytes), Err(stop));
                break;
            }
        }
    }
    reader.position().frame.get()
}

fn check_transaction(txn: &Transaction, last: FrameNo, page_size: PageSize) {
    assert!(txn.first <= txn.last && txn.last == last && txn.commit > 0);
    assert!(txn.pages.windows(2).all(|w| w[0].0 < w[1].0), "pages ascend");
    for (pgno, frame) in &txn.pages {
        assert!(pgno.get() <= txn.commit && *pgno != page_size.lock_page());
        assert!((txn.first..=txn.last).contains(frame));
    }
}

/// A valid log whose free fields and pages come from the bytes.
fn seal_log(header: &[u8; WAL_HEADER_BYTES], data: &[u8]) -> (WalHeader, Vec<u8>) {
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("BUG: 4 bytes"));
    let page_size = PageSize::new(512 << (header[8] % 3)).expect("BUG: 512, 1024 or 2048");
    let salts = Salts([number(16), number(20)]);
    let header = WalHeader::new(header[3] & 1 == 1, page_size, number(12), salts);
    let mut chain = FrameVerifier::new(page_size, header.big_endian, header.salts, header.checksum);
    let mut frames = Vec::with_capacity(data.len());
    for bytes in data.chunks_exact(FRAME_HEADER_BYTES + page_size.bytes()) {
        let (fields, page) = bytes.split_at(FRAME_HEADER_BYTES);
        let field = |at: usize| u32::from_be_bytes(fields[at..at + 4].try_into().expect("BUG: 4 bytes"));
        let pgno = Pgno::new(field(0)).unwrap_or(Pgno::FIRST);
        let commit = (field(4) != 0).then_some(field(4));
        frames.extend_from_slice(&chain.append(pgno, commit, page));
        frames.extend_from_slice(page);
    }
    (header, frames)
}

/// Pages of a file, with its header.
type Content = (Header, Vec<(Pgno, Vec<u8>)>);

/// Most pages that the fuzz targets keep.
const KEEP: usize = 4096;

/// Fuzz target: the LTX decoder. A file whose only fault is its checksum is put right and read again; what decodes is
/// encoded again and must come back the same.
pub fn fuzz_ltx_decoder(data: &[u8]) {
    match decode(data) {
        Ok(content) => check_reencodes(&content),
        Err(LtxError::Checksum { found, computed }) => {
            if let Ok(content) = decode(&seal(data, found, computed)) {
                check_reencodes(&content);
            }
        }
        Err(_) => {}
    }
}

/// Fuzz target: the LTX verifier. It must agree with the decoder on every input, in pieces of any size.
pub fn fuzz_ltx_verifier(data: &[u8]) {
    let Some((pieces, data)) = data.split_first() else { return };
    check_verifier(data, usize::from(*pieces) + 1);
    if let Err(LtxError::Checksum { found, computed }) = decode(data) {
        check_verifier(&seal(data, found, computed), usize::from(*pieces) + 1);
    }
}

fn decode(data: &[u8]) -> Result<Content, LtxError> {
    let mut decoder = Decoder::new(data)?;
    let header = *decoder.header();
    let mut pages = Vec::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        assert_eq!(page.len(), header.page_size.bytes());
        if pages.len() < KEEP {
            pages.push((pgno, page.clone()));
        }
    }
    decoder.finish()?;
    Ok((header, pages))
}

/// The file with its checksum put right: the one of the places with the wrong value that makes it whole. Panics when
/// there is none, as then the checksum was not all that was wrong.
fn seal(data: &[u8], found: u64, computed: u64) -> Vec<u8> {
    let places = data.windows(8).enumerate().filter(|(_, bytes)| *bytes == found.to_be_bytes());
    let mut sealed = places.map(|(at, _)| {
        let mut sealed = data.to_vec();
        sealed[at..at + 8].copy_from_slice(&computed.to_be_bytes());
        sealed
    });
    let whole = sealed.find(|sealed| matches!(decode(sealed), Ok(_) | Err(LtxError::TrailingBytes)));
    whole.expect("only the checksum was wrong")
}

fn check_reencodes((header, pages): &Content) {
    assert!(pages.windows(2).all(|w| w[0].0 < w[1].0), "pages ascend");
    let mut encoder = Encoder::new(Vec::new(), *header).expect("a decoded header can be written");
    let kept: Vec<_> = pages.iter().filter(|(pgno, _)| pgno.get() <= header.commit).cloned().collect();
    for (pgno, page) in &kept {
        encoder.page(*pgno, page).expect("a decoded page can be written");
    }
    if pages.len() == KEEP {
        return;
    }
    let (bytes, _) = encoder.finish().expect("a decoded file can be written");
    assert_eq!(decode(&bytes).expect("a written file can be read"), (*header, kept));
}

fn check_verifier(data: &[u8], piece: usize) {
    let verified = verify(data, piece);
    let decoded = decode(data);
    match (&verified, &decoded) {
        (Ok(verified), Ok((header, _))) => {
            assert_eq!((verified.header, verified.bytes), (*header, data.len() as u64));
        }
        (Err(_), Err(_)) => {}
        // The one documented difference: pages in the old form.
        (Err(LtxError::Page { reason, .. }), Ok(_)) if reason.contains("frame form") => {}
        _ => panic!("verifier says {verified:?}, decoder says {:?}", decoded.map(|(header, _)| header)),
    }
}

fn verify(data: &[u8], piece: usize) -> Result<crate::ltx::Verified, LtxError> {
    let mut verifier = Verifier::new(1 << 30);
    for piece in data.chunks(piece) {
        verifier.push(piece)?;
    }
    verifier.finish()
}
