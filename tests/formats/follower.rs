//! The simplest thing that captures: reads the log file at quiet moments and turns every transaction into an LTX file.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::wal::{Grouper, Transaction, WAL_HEADER_BYTES, WalHeader, WalPosition, WalReader};
use walhub_common::{Checksum, PageSize, Pgno, Txid, TxidRange};

/// A database and all that was captured from it.
pub(crate) struct Follower {
    wal: PathBuf,
    page_size: PageSize,
    image: Vec<u8>,
    checksum: Checksum,
    position: Option<WalPosition>,
    /// One LTX file per transaction; the first is the image at the start.
    pub(crate) files: Vec<Vec<u8>>,
    /// How often a generation of the log began.
    pub(crate) generations: u32,
}

impl Follower {
    /// Starts from the file of a database whose log is empty.
    pub(crate) fn start(database: &Path) -> Follower {
        let image = std::fs::read(database).expect("database");
        let page_size = match u16::from_be_bytes([image[16], image[17]]) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let page_size = PageSize::new(page_size).expect("page size");
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let mut follower = Follower {
            wal: wal.into(),
            page_size,
            image,
            checksum: Checksum::EMPTY,
            position: None,
            files: vec![],
            generations: 0,
        };
        let pages: Vec<_> = follower.stored(1..=follower.commit()).collect();
        follower.checksum = follower.sum_up();
        follower.write(&pages, Provenance { pre: None, post: follower.checksum });
        follower
    }

    /// Takes what was committed since the last call; how many transactions. No writer may be at work.
    pub(crate) fn follow(&mut self) -> usize {
        let log = std::fs::read(&self.wal).unwrap_or_default();
        let Some((header, _)) = log.split_first_chunk::<WAL_HEADER_BYTES>() else { return 0 };
        let header = WalHeader::parse(header).expect("a header by SQLite");
        assert_eq!(header.page_size, self.page_size);
        if self.position.is_none_or(|position| position.salts != header.salts) {
            self.position = Some(header.start());
            self.generations += 1;
        }
        let position = self.position.expect("just set");
        let mut reader = WalReader::resume(self.page_size, header.big_endian, position);
        let mut grouper = Grouper::new(self.page_size);
        let mut count = 0;
        while let Some(bytes) =
            log.get(reader.offset() as usize..reader.offset() as usize + reader.frame_bytes())
        {
            let Ok((number, frame)) = reader.push(bytes) else { break };
            if let Some(txn) = grouper.push(number, frame) {
                self.apply(&log, &txn);
                self.position = Some(reader.position());
                count += 1;
            }
        }
        count
    }

    fn apply(&mut self, log: &[u8], txn: &Transaction) {
        let before = self.commit();
        let pages: Vec<_> = txn.pages.iter().map(|(pgno, _)| *pgno).collect();
        let grown: Vec<_> = self.stored(before + 1..=txn.commit).collect();
        assert!(pages.ends_with(&grown), "a database that grows writes its new pages");
        self.image.resize(txn.commit as usize * self.page_size.bytes(), 0);
        for (pgno, frame) in &txn.pages {
            let page = &log[frame.page_offset(self.page_size) as usize..][..self.page_size.bytes()];
            let at = self.page_size.offset(*pgno) as usize;
            self.image[at..at + page.len()].copy_from_slice(page);
        }
        let pre = self.checksum;
        self.checksum = self.sum_up();
        self.write(&pages, Provenance { pre: Some(pre), post: self.checksum });
    }

    fn write(&mut self, pages: &[Pgno], provenance: Provenance) {
        let txid = Txid::new(self.files.len() as u64 + 1).expect("from 1");
        let header = Header {
            page_size: self.page_size,
            commit: self.commit(),
            range: TxidRange::single(txid),
            timestamp_ms: 1_700_000_000_000 + txid.get() as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(provenance),
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("header");
        for pgno in pages {
            encoder.page(*pgno, self.page(*pgno)).expect("page");
        }
        self.files.push(encoder.finish().expect("trailer").0);
    }

    /// Pages of the database.
    pub(crate) fn commit(&self) -> u32 {
        (self.image.len() / self.page_size.bytes()) as u32
    }

    /// Those of the pages that a file may hold.
    fn stored(&self, pages: RangeInclusive<u32>) -> impl Iterator<Item = Pgno> + use<> {
        let lock_page = self.page_size.lock_page();
        pages.filter_map(Pgno::new).filter(move |pgno| *pgno != lock_page)
    }

    fn page(&self, pgno: Pgno) -> &[u8] {
        &self.image[self.page_size.offset(pgno) as usize..][..self.page_size.bytes()]
    }

    /// The captured image.
    pub(crate) fn image(&self) -> &[u8] {
        &self.image
    }

    /// Its database checksum.
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// From all pages each time: nothing incremental that could be wrong in the same way as what it judges.
    fn sum_up(&self) -> Checksum {
        self.stored(1..=self.commit())
            .fold(Checksum::EMPTY, |sum, pgno| sum.toggle(Checksum::of_page(pgno, self.page(pgno))))
    }
}
