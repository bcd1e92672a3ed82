//! What must hold for any input: round trips, damage found, merging equal to applying in order.

use super::*;
use crate::testutil::{fuzz_ltx_decoder, fuzz_ltx_verifier, sealed_ltx};
use crate::{Checksum, PageSize, Pgno, TxidRange};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;

const PAGE: usize = 512;

fn checksums() -> impl Strategy<Value = Checksum> {
    any::<u64>().prop_map(|bits| Checksum::new(bits | 1 << 63).unwrap())
}

fn ranges() -> impl Strategy<Value = TxidRange> {
    (1u64..=1 << 40, 0u64..1000).prop_map(|(min, more)| TxidRange::from_raw(min, min + more).unwrap())
}

prop_compose! {
    fn headers()(
        shift in 9u32..=16,
        commit in any::<u32>(),
        range in ranges(),
        timestamp_ms in any::<i64>(),
        wal in (1u64..1 << 63, 0u64..1 << 63, any::<[u32; 2]>()),
        with_wal in any::<bool>(),
        node_id in any::<u64>(),
        provenance in prop::option::of((prop::option::of(checksums()), checksums())),
    ) -> Header {
        let (wal_offset, wal_size, wal_salts) = if with_wal { wal } else { (0, 0, [0, 0]) };
        let page_size = PageSize::new(1 << shift).unwrap();
        let provenance = provenance.map(|(pre, post)| Provenance { pre, post });
        Header { page_size, commit, range, timestamp_ms, wal_offset, wal_size, wal_salts, node_id, provenance }
    }
}

/// Pages that compress, pages that do not, pages of zeros.
fn page() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0; PAGE]),
        any::<u8>().prop_map(|fill| vec![fill; PAGE]),
        any::<[u8; 32]>().prop_map(|fill| fill.repeat(PAGE / 32)),
        prop::collection::vec(any::<u8>(), PAGE),
    ]
}

fn header(min: u64, max: u64, commit: u32) -> Header {
    Header {
        page_size: PageSize::new(PAGE as u32).unwrap(),
        commit,
        range: TxidRange::from_raw(min, max).unwrap(),
        timestamp_ms: 0,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: 0,
        provenance: None,
    }
}

type Pages = BTreeMap<u32, Vec<u8>>;

fn encode(header: Header, pages: &Pages) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for (number, page) in pages {
        encoder.page(Pgno::new(*number).unwrap(), page).unwrap();
    }
    encoder.finish().unwrap().0
}

fn decode(bytes: &[u8]) -> Result<(Header, Pages), LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let mut pages = Pages::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.insert(pgno.get(), page.clone());
    }
    decoder.finish()?;
    Ok((*decoder.header(), pages))
}

fn verify(bytes: &[u8], piece: usize) -> Result<Verified, LtxError> {
    let mut verifier = Verifier::new(1 << 20);
    bytes.chunks(piece).try_for_each(|piece| verifier.push(piece))?;
    verifier.finish()
}

/// Any delta: some pages of a database of 300.
fn deltas() -> impl Strategy<Value = (Header, Pages)> {
    (2u64..100, prop::collection::btree_map(1u32..=300, page(), 0..12))
        .prop_map(|(txid, pages)| (header(txid, txid, 300), pages))
}

/// One transaction of a generated history.
#[derive(Clone, Debug)]
struct Change {
    commit: u32,
    pages: Pages,
}

/// A history that follows the growth rule, from an image of a few pages on.
fn histories() -> impl Strategy<Value = Vec<Change>> {
    let change = (1u32..24, prop::collection::vec((any::<Index>(), page()), 0..4), any::<u8>());
    prop::collection::vec(change, 1..8).prop_map(|changes| {
        let mut size = 0;
        let mut history = Vec::new();
        for (commit, touched, fill) in changes {
            let grown = size + 1..=commit;
            let mut pages: Pages = grown.map(|pgno| (pgno, vec![fill ^ pgno as u8; PAGE])).collect();
            pages.extend(touched.into_iter().map(|(at, page)| (at.index(commit as usize) as u32 + 1, page)));
            size = commit;
            history.push(Change { commit, pages });
        }
        history
    })
}

fn apply(image: &mut Pages, change: &Change) {
    image.extend(change.pages.clone());
    image.retain(|number, _| *number <= change.commit);
}

/// The file of the transactions `first..=last` (from 1), merged by the model.
fn model_file(history: &[Change], first: usize, last: usize) -> Vec<u8> {
    let mut pages = Pages::new();
    for change in &history[first - 1..last] {
        apply(&mut pages, change);
    }
    encode(header(first as u64, last as u64, history[last - 1].commit), &pages)
}

fn merge_all(files: &[Vec<u8>]) -> Vec<u8> {
    let inputs = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
    let mut out = Vec::new();
    merge(inputs, Stamp::default(), &mut out).unwrap();
    out
}

proptest! {
    #[test]
    fn headers_round_trip(header in headers()) {
        prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn arbitrary_header_bytes_are_refused_or_understood(
        bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES),
        known in any::<[bool; 4]>(),
    ) {
        let mut bytes = bytes;
        let good = header(7, 9, 3).encode();
        // With all four parts good only commit, time, node id and reserved bytes are arbitrary.
        for (take, part) in known.into_iter().zip([0..12, 16..32, 40..72, 80..100]) {
            if take {
                bytes[part.clone()].copy_from_slice(&good[part]);
            }
        }
        match Header::decode(&bytes) {
            Ok(header) => {
                let again = header.encode();
                prop_assert_eq!(&again[8..40], &bytes[8..40]);
                prop_assert_eq!(&again[48..80], &bytes[48..80]);
                prop_assert_eq!(Header::decode(&again).unwrap(), header);
            }
            Err(_) => prop_assert!(!known[..3].iter().all(|known| *known)),
        }
    }

    #[test]
    fn files_round_trip((header, pages) in deltas()) {
        let bytes = encode(header, &pages);
        prop_assert_eq!(decode(&bytes).unwrap(), (header, pages));
    }

    #[test]
    fn damage_is_found_or_harmless((header, pages) in deltas(), at in any::<Index>(), flip in 1u8..) {
        let mut bytes = encode(header, &pages);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // The checksum covers what a page expands to, not how it was compressed.
        if let Ok(content) = decode(&bytes) {
            prop_assert_eq!(content, (header, pages));
        }
        prop_assert_eq!(verify(&bytes, 97).is_ok(), decode(&bytes).is_ok());
    }

    #[test]
    fn a_cut_file_is_never_whole((header, pages) in deltas(), at in any::<Index>()) {
        let bytes = encode(header, &pages);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(decode(cut).is_err());
        prop_assert!(verify(cut, 64).is_err());
    }

    #[test]
    fn arbitrary_bytes_break_no_promise(bytes in prop::collection::vec(any::<u8>(), 0..2000), good in 0usize..200) {
        let mut bytes = bytes;
        // A good beginning gets the rest past the header.
        let file = encode(header(2, 2, 300), &Pages::from([(5, vec![3; PAGE])]));
        let good = good.min(bytes.len()).min(file.len());
        bytes[..good].copy_from_slice(&file[..good]);
        fuzz_ltx_decoder(&bytes);
        fuzz_ltx_verifier(&bytes);
    }

    /// The decoder's rules, held against their statement in one line each.
    #[test]
    fn pages_are_accepted_exactly_by_the_rules(
        first in any::<bool>(),
        numbers in prop_oneof![
            prop::collection::vec(0u32..6, 0..6),
            (0u32..6).prop_map(|n| (1..=n).collect()),
            prop::collection::btree_set(0u32..3_000_000, 0..6).prop_map(|set| set.into_iter().collect()),
        ],
        commit in 0u32..6,
    ) {
        let txid = if first { 1 } else { 2 };
        let lock = PageSize::new(PAGE as u32).unwrap().lock_page().get();
        let page = [5; PAGE];
        let pages: Vec<_> = numbers.iter().map(|number| (*number, &page[..])).collect();
        let bytes = sealed_ltx(header(txid, txid, commit).encode(), &pages);
        let ascending = numbers.windows(2).all(|w| w[0] < w[1]);
        let legal = numbers.iter().all(|number| *number != 0 && *number != lock);
        let complete = numbers.iter().zip(1..).all(|(number, due)| *number == due)
            && numbers.len() >= commit as usize;
        prop_assert_eq!(decode(&bytes).is_ok(), ascending && legal && (!first || complete));
        prop_assert_eq!(verify(&bytes, 50).is_ok(), decode(&bytes).is_ok());
    }

    #[test]
    fn merging_equals_applying_in_order(history in histories(), cuts in any::<[Index; 2]>()) {
        let last = history.len();
        let mut image = Pages::new();
        history.iter().for_each(|change| apply(&mut image, change));
        let singles: Vec<_> = (1..=last).map(|txid| model_file(&history, txid, txid)).collect();
        let merged = merge_all(&singles);
        let whole = header(1, last as u64, history[last - 1].commit);
        prop_assert_eq!(decode(&merged).unwrap(), (whole, image));

        // In two steps, cut anywhere.
        let cut = cuts[0].index(last);
        if cut > 0 {
            let parts = [merge_all(&singles[..cut]), merge_all(&singles[cut..])];
            prop_assert_eq!(&merge_all(&parts), &merged);
        }
        // Overlapping: the first part reaches into the second.
        let (a, b) = (cut + 1, cuts[1].index(last) + 1);
        if a < last && (2..=a + 1).contains(&b) {
            let parts = [model_file(&history, 1, a), model_file(&history, b, last)];
            prop_assert_eq!(&merge_all(&parts), &merged);
        }
        // One file alone stays what it is.
        prop_assert_eq!(&merge_all(std::slice::from_ref(&merged)), &merged);
    }

    #[test]
    fn a_merge_refuses_what_is_no_run(history in histories(), at in any::<Index>()) {
        prop_assume!(history.len() >= 2);
        let mut files: Vec<_> = (1..=history.len()).map(|txid| model_file(&history, txid, txid)).collect();
        let at = at.index(files.len() - 1);
        let outcome = |files: &[Vec<u8>]| {
            let inputs = files.iter().map(|file| Decoder::new(&file[..]).unwrap()).collect();
            merge(inputs, Stamp::default(), std::io::sink()).map(|merged| merged.header.range)
        };
        files.swap(at, at + 1);
        prop_assert!(matches!(outcome(&files), Err(LtxError::Merge { .. })), "swapped");
        files.swap(at, at + 1);
        files.insert(at, files[at].clone());
        prop_assert!(matches!(outcome(&files), Err(LtxError::Merge { .. })), "doubled");
        files.remove(at);
        if at > 0 {
            files.remove(at);
            prop_assert!(matches!(outcome(&files), Err(LtxError::Merge { .. })), "missing");
        }
    }

    #[test]
    fn names_round_trip(range in ranges()) {
        prop_assert_eq!(name::parse(&name::file_name(range)), Some(range));
    }

    #[test]
    fn arbitrary_names_are_refused_or_canonical(text in "[0-9a-fA-F]{14,17}-?[0-9a-f]{15,17}(\\.ltx)?|.*") {
        if let Some(range) = name::parse(&text) {
            prop_assert_eq!(name::file_name(range), text);
        }
    }
}

/// Claims of sizes that no memory holds end as errors, at once.
#[test]
fn impossible_sizes_cost_nothing() {
    let head = header(2, 2, u32::MAX).encode();
    for tail in [
        // A block of 4 GiB; a frame in the old form that claims 4 GiB of content; an index of 2^64-1 bytes.
        &[0, 0, 0, 9, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3][..],
        &[0, 0, 0, 9, 0, 0, 0x04, 0x22, 0x4d, 0x18, 0x68, 0x70, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3],
        &[0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3],
    ] {
        let bytes = [&head[..], tail].concat();
        assert!(decode(&bytes).is_err());
        assert!(verify(&bytes, 1).is_err());
    }
}
