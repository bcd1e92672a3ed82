//! A database whose every state is remembered, and whose transactions come out as an agent would send them.

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use rusqlite::Connection;
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::{Checksum, PageSize, Pgno, TxidRange};

/// One segment of an agent.
pub(super) struct Segment {
    pub(super) range: TxidRange,
    pub(super) pre: Option<Checksum>,
    pub(super) post: Checksum,
    pub(super) ltx: Bytes,
}

/// See the module doc.
pub(super) struct Source {
    connection: Connection,
    image: Vec<u8>,
    txid: u64,
    checksum: Option<Checksum>,
}

fn pages(image: &[u8], size: PageSize) -> impl Iterator<Item = (Pgno, &[u8])> {
    let pages = image.chunks_exact(size.bytes()).enumerate();
    pages.map(|(index, page)| (Pgno::new(index as u32 + 1).expect("from 1"), page))
}

impl Source {
    /// An empty table in a database that may shrink.
    pub(super) fn new() -> Source {
        let connection = Connection::open_in_memory().expect("SQLite");
        let made = connection.execute_batch(
            "PRAGMA page_size = 1024; PRAGMA auto_vacuum = INCREMENTAL; CREATE TABLE t(id INTEGER PRIMARY KEY, at INTEGER, x BLOB)",
        );
        made.expect("a table");
        Source { connection, image: Vec::new(), txid: 0, checksum: None }
    }

    /// The database as it is now.
    pub(super) fn image(&self) -> &[u8] {
        &self.image
    }

    /// Commits `count` transactions, which come as one segment.
    pub(super) fn commit(&mut self, count: u64, random: &mut StdRng) -> Segment {
        for n in 0..count {
            let (id, size) = (random.random_range(0..60), random.random_range(10..1500));
            let at = (self.txid + n) as i64;
            let put = "INSERT OR REPLACE INTO t VALUES (?1, ?2, randomblob(?3))";
            self.connection.execute(put, (id, at, size)).expect("a transaction");
        }
        // A segment that makes the database smaller holds one transaction.
        if count == 1 && random.random_range(0..5) == 0 {
            let id = random.random_range(0..60);
            let sql =
                format!("DELETE FROM t WHERE id BETWEEN {id} AND {id} + 10; PRAGMA incremental_vacuum;");
            self.connection.execute_batch(&sql).expect("a transaction");
        }
        let now = self.connection.serialize("main").expect("serialize").to_vec();
        assert!(count == 1 || now.len() >= self.image.len(), "it only grows by puts");
        self.segment(count, &now)
    }

    fn segment(&mut self, count: u64, now: &[u8]) -> Segment {
        let size = PageSize::new(1024).expect("a page size");
        let range = TxidRange::from_raw(self.txid + 1, self.txid + count).expect("count is not 0");
        let all = |sum: Checksum, (pgno, page): (Pgno, &[u8])| sum.toggle(Checksum::of_page(pgno, page));
        let post = pages(now, size).fold(Checksum::EMPTY, all);
        let header = Header {
            page_size: size,
            commit: (now.len() / size.bytes()) as u32,
            range,
            timestamp_ms: 1,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: Some(Provenance { pre: self.checksum, post }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("a header");
        let old: Vec<&[u8]> = pages(&self.image, size).map(|(_, page)| page).collect();
        for (pgno, page) in pages(now, size) {
            if old.get(pgno.index()) != Some(&page) {
                encoder.page(pgno, page).expect("a page");
            }
        }
        let ltx = encoder.finish().expect("a file").0.into();
        let pre = self.checksum.replace(post);
        self.image = now.to_vec();
        self.txid += count;
        Segment { range, pre, post, ltx }
    }
}
