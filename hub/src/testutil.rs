//! For tests: a database image whose transactions come out as honest segments, and ways to make them dishonest.

use crate::config::DestinationEntry;
use crate::copies::{LaneId, Place};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::{Checksum, DatabaseKey, PageSize, Pgno, Txid, TxidRange};
use walhub_proto::convert;
use walhub_proto::v1::SegmentChunk;
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{DestinationConfig, DynDestination};

/// `node/<name>`.
pub fn key(name: &str) -> DatabaseKey {
    format!("node/{name}").parse().expect("a legal name")
}

/// A destination that nobody will ask.
pub fn place(lane: LaneId, name: &str) -> Arc<Place> {
    let entry = DestinationEntry::folder(name, Path::new(&format!("/nowhere/{name}")));
    let DestinationConfig::File(config) = &entry.config else { unreachable!("a folder") };
    let destination: DynDestination = Arc::new(FileDestination::new(entry.name.clone(), config));
    Arc::new(Place { lane, entry, destination })
}

/// A database of small pages, as a node would hold it.
#[derive(Clone, Debug)]
pub struct Image {
    pages: Vec<Vec<u8>>,
    txid: u64,
    checksum: Checksum,
    writes: u64,
}

/// One LTX file and what is said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Transactions.
    pub range: TxidRange,
    /// Database checksum before.
    pub pre: Option<Checksum>,
    /// Database checksum after.
    pub post: Checksum,
    /// The file.
    pub ltx: Bytes,
    header: Header,
    pages: Vec<(Pgno, Vec<u8>)>,
}

const PAGE: PageSize = match PageSize::new(512) {
    Some(size) => size,
    None => unreachable!(),
};

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).expect("pages are numbered from 1")
}

impl Image {
    /// A database of `pages` pages that nobody has captured yet.
    pub fn new(pages: u32) -> Self {
        let mut image = Self { pages: Vec::new(), txid: 0, checksum: Checksum::EMPTY, writes: 0 };
        for number in 1..=pages {
            let page = image.fresh();
            image.checksum = image.checksum.toggle(Checksum::of_page(pgno(number), &page));
            image.pages.push(page);
        }
        image
    }

    /// Bytes that no page had before; they do not compress well.
    fn fresh(&mut self) -> Vec<u8> {
        self.writes += 1;
        let mut state = self.writes.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..PAGE.bytes())
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    }

    /// Database checksum now.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The newest transaction; 0 before the first.
    pub fn txid(&self) -> u64 {
        self.txid
    }

    /// The file's bytes now.
    pub fn bytes(&self) -> Vec<u8> {
        self.pages.concat()
    }

    /// The first segment: every page, TXID 1.
    pub fn first(&mut self) -> Segment {
        assert_eq!(self.txid, 0, "the first segment comes once");
        let all: Vec<u32> = (1..=self.pages.len() as u32).collect();
        self.segment(1, None, &all)
    }

    /// A transaction that rewrites `numbers`; pages just beyond the end are appended.
    pub fn commit(&mut self, numbers: &[u32]) -> Segment {
        self.commit_run(1, numbers)
    }

    /// `count` transactions squashed into one segment.
    pub fn commit_run(&mut self, count: u64, numbers: &[u32]) -> Segment {
        assert_ne!(self.txid, 0, "the first segment comes first");
        let pre = self.checksum;
        for &number in numbers {
            let page = self.fresh();
            let at = pgno(number).index();
            if at == self.pages.len() {
                self.pages.push(page.clone());
            } else {
                self.checksum = self.checksum.toggle(Checksum::of_page(pgno(number), &self.pages[at]));
                self.pages[at].clone_from(&page);
            }
            self.checksum = self.checksum.toggle(Checksum::of_page(pgno(number), &page));
        }
        self.segment(count, Some(pre), numbers)
    }

    /// A part of a first snapshot: these pages as they are now.
    pub fn part(&self, number: u32, numbers: &[u32]) -> Segment {
        let range = TxidRange::from_raw(number.into(), number.into()).expect("parts are numbered from 2");
        self.file(range, None, numbers)
    }

    fn segment(&mut self, count: u64, pre: Option<Checksum>, numbers: &[u32]) -> Segment {
        let range = TxidRange::from_raw(self.txid + 1, self.txid + count).expect("count is not 0");
        self.txid += count;
        let provenance = Some(Provenance { pre, post: self.checksum });
        self.file(range, provenance, numbers)
    }

    fn file(&self, range: TxidRange, provenance: Option<Provenance>, numbers: &[u32]) -> Segment {
        let header = Header {
            page_size: PAGE,
            commit: self.pages.len() as u32,
            range,
            timestamp_ms: 1_000 + self.txid as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance,
        };
        let pages = numbers.iter().map(|n| (pgno(*n), self.pages[pgno(*n).index()].clone())).collect();
        let pre = provenance.and_then(|p| p.pre);
        let mut segment = Segment { range, pre, post: self.checksum, ltx: Bytes::new(), header, pages };
        segment.encode();
        segment
    }
}

impl Segment {
    fn encode(&mut self) {
        let mut encoder = Encoder::new(Vec::new(), self.header).expect("a legal header");
        for (number, page) in &self.pages {
            encoder.page(*number, page).expect("legal pages");
        }
        self.ltx = encoder.finish().expect("a complete file").0.into();
    }

    /// Claims another checksum after it, in header and message alike.
    pub fn forge_post(&mut self, post: Checksum) {
        self.post = post;
        self.header.provenance = Some(Provenance { pre: self.pre, post });
        self.encode();
    }

    /// Claims another history before it, in header and message alike.
    pub fn forge_pre(&mut self, pre: Checksum) {
        self.pre = Some(pre);
        self.header.provenance = Some(Provenance { pre: self.pre, post: self.post });
        self.encode();
    }

    /// Newest transaction.
    pub fn txid(&self) -> Txid {
        self.range.max()
    }
}

/// The messages that carry a segment, in pieces of `size` bytes.
pub fn chunks(handle: u32, segment: &Segment, size: usize) -> Vec<SegmentChunk> {
    let pieces = segment.ltx.len().div_ceil(size);
    (0..pieces)
        .map(|n| SegmentChunk {
            handle,
            range: Some(convert::range_to_wire(segment.range)),
            pre_checksum: segment.pre.map_or(0, Checksum::get),
            post_checksum: segment.post.get(),
            agent_time_ms: segment.header.timestamp_ms,
            chunk: n as u32,
            last: n + 1 == pieces,
            data: segment.ltx.slice(n * size..segment.ltx.len().min((n + 1) * size)),
            ..SegmentChunk::default()
        })
        .collect()
}

/// The messages that carry a part of a first snapshot.
pub fn part_chunks(handle: u32, part: &Segment, size: usize) -> Vec<SegmentChunk> {
    let mut chunks = chunks(handle, part, size);
    for chunk in &mut chunks {
        (chunk.staged, chunk.pre_checksum, chunk.post_checksum) = (true, 0, 0);
    }
    chunks
}

/// The messages that carry the part which completes a first snapshot of `range`.
pub fn seal_chunks(handle: u32, part: &Segment, range: TxidRange, size: usize) -> Vec<SegmentChunk> {
    let mut chunks = chunks(handle, part, size);
    for chunk in &mut chunks {
        (chunk.uses_staged, chunk.pre_checksum) = (true, 0);
        chunk.range = Some(convert::range_to_wire(range));
    }
    chunks
}
