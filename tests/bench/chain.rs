//! A chain of LTX files of a real database: its first image, then transactions of at most 64 MiB that each change rows all over
//! it, as long as there is room. The last, small one is still in the database's log, with the place that its header names, so that stock
//! litestream takes the chain for its own.

use crate::setup::database;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use walhub_common::ltx::{Encoder, Header, Provenance, name};
use walhub_common::{Checksum, PageSize, Pgno, TxidRange, clock};

/// Rows of one insert, of about a page each.
const BATCH: u32 = 2_560;
/// Of a chain, the part that the first image takes, in tenths.
const IMAGE_TENTHS: u64 = 2;
/// A transaction changes at most every so many-th row.
const LEAST_STRIDE: u64 = 16;
/// And at most so much of the database.
const LARGEST: u64 = 64 << 20;
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// What was written.
pub(crate) struct Chain {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Of the database after the last file.
    pub(crate) checksum: Checksum,
}

/// LTX files in a folder, by their transactions.
pub(crate) fn files(folder: &Path) -> Vec<(TxidRange, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<(TxidRange, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((name::parse(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    files.sort_by_key(|(range, _)| *range);
    files
}

/// Pages that a file holds, in order.
type Pages<'a> = Box<dyn Iterator<Item = (u32, Vec<u8>)> + 'a>;

struct Chainer<'a> {
    folder: &'a Path,
    /// Of each page, as it is now.
    sums: Vec<Option<Checksum>>,
    whole: Checksum,
    made: Chain,
}

/// Makes the database at `path` and its chain of about `bytes` bytes in `folder`.
pub(crate) fn write(path: &Path, folder: &Path, bytes: u64) -> Chain {
    let app = database(path, 0);
    app.pragma_update(None, "synchronous", "off").expect("synchronous");
    app.pragma_update(None, "wal_autocheckpoint", 0).expect("no checkpoints of its own");
    app.pragma_update(None, "cache_size", -262_144).expect("cache");
    let rows = fill(&app, path, bytes * IMAGE_TENTHS / 10);
    let made = Chain { files: 0, bytes: 0, checksum: Checksum::EMPTY };
    let mut chainer = Chainer { folder, sums: Vec::new(), whole: Checksum::EMPTY, made };
    chainer.image(path);
    let size = std::fs::metadata(path).expect("size").len();
    let stride = u32::try_from(size.div_ceil(LARGEST).max(LEAST_STRIDE)).expect("a stride");
    let mut turn: u32 = 0;
    while chainer.made.bytes < bytes {
        let update = "UPDATE t SET data = randomblob(2600), note = note || '.' WHERE id % ?1 = ?2";
        app.execute(update, [stride, turn % stride]).expect("update");
        chainer.log(path);
        app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
        turn += 1;
    }
    app.execute("UPDATE t SET note = 'the last' WHERE id = ?1", [rows / 2]).expect("update");
    chainer.log(path);
    // The connection that is closed last would write the log back.
    std::mem::forget(app);
    chainer.made
}

/// Rows until the database is so large that its image is about `bytes`, two thirds of it noise.
fn fill(app: &Connection, path: &Path, bytes: u64) -> u32 {
    let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                  INSERT INTO t(note, data)
                  SELECT substr(replace(hex(zeroblob(90)), '00', 'row ' || i || ' of many, '), 1, 1200), randomblob(2600)
                  FROM n";
    let mut rows: u32 = 0;
    // What LZ4 leaves of a page.
    while std::fs::metadata(path).expect("size").len() * 7 / 10 < bytes {
        app.execute(insert, [BATCH]).expect("fill");
        rows += BATCH;
        app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
    }
    rows
}

impl Chainer<'_> {
    fn image(&mut self, path: &Path) {
        let mut file = File::open(path).expect("open the database");
        let pages = u32::try_from(file.metadata().expect("size").len() / PAGE as u64).expect("pages");
        let all = (1..=pages).map(move |pgno| {
            let mut page = vec![0; PAGE];
            file.read_exact(&mut page).expect("read a page");
            (pgno, page)
        });
        self.put(pages, 0, [0, 0], Box::new(all));
    }

    /// The transaction that is all of the log.
    fn log(&mut self, path: &Path) {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = File::open(wal).expect("open the log");
        let length = wal.metadata().expect("size").len() as usize;
        let mut header = [0; WAL_HEADER];
        wal.read_exact_at(&mut header, 0).expect("the log's header");
        let word =
            |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (mut newest, mut pages) = (BTreeMap::new(), 0);
        for at in (WAL_HEADER..length).step_by(FRAME_HEADER + PAGE) {
            let mut frame = [0; FRAME_HEADER];
            wal.read_exact_at(&mut frame, at as u64).expect("a frame");
            assert_eq!(frame[8..16], header[16..24], "the log holds one transaction");
            newest.insert(word(&frame, 0), at + FRAME_HEADER);
            pages = word(&frame, 4);
        }
        let read = newest.into_iter().map(|(pgno, at)| {
            let mut page = vec![0; PAGE];
            wal.read_exact_at(&mut page, at as u64).expect("a page");
            (pgno, page)
        });
        let salts = [word(&header, 16), word(&header, 20)];
        self.put(pages, length - WAL_HEADER, salts, Box::new(read));
    }

    fn put(&mut self, pages: u32, wal_size: usize, wal_salts: [u32; 2], content: Pages<'_>) {
        let txid = self.made.files + 1;
        let range = TxidRange::from_raw(txid, txid).expect("a transaction");
        let path = self.folder.join(name::file_name(range));
        self.sums.resize(pages as usize, None);
        // The header names the checksum behind the file, and comes first: the pages are gone through twice.
        let mut kept = Vec::new();
        let scratch = path.with_extension("pages");
        {
            let mut out = BufWriter::with_capacity(1 << 20, File::create(&scratch).expect("scratch"));
            for (pgno, page) in content {
                if u64::from(pgno) == LOCK_PAGE {
                    continue;
                }
                let number = Pgno::new(pgno).expect("from 1");
                let sum = Checksum::of_page(number, &page);
                let slot = &mut self.sums[pgno as usize - 1];
                self.whole =
                    slot.replace(sum).map_or(self.whole, |before| self.whole.toggle(before)).toggle(sum);
                std::io::Write::write_all(&mut out, &page).expect("scratch");
                kept.push(number);
            }
        }
        let pre = (txid > 1).then_some(self.made.checksum);
        self.made.checksum = self.whole;
        let header = Header {
            page_size: PAGE_SIZE,
            commit: pages,
            range,
            timestamp_ms: clock::now_ms(),
            wal_offset: WAL_HEADER as u64,
            wal_size: wal_size as u64,
            wal_salts,
            node_id: 1,
            provenance: Some(Provenance { pre, post: self.whole }),
        };
        let mut pages = std::io::BufReader::with_capacity(1 << 20, File::open(&scratch).expect("scratch"));
        let out = BufWriter::with_capacity(1 << 20, File::create(&path).expect("an LTX file"));
        let mut encoder = Encoder::new(out, header).expect("header");
        let mut page = vec![0; PAGE];
        for number in kept {
            pages.read_exact(&mut page).expect("scratch");
            encoder.page(number, &page).expect("page");
        }
        encoder.finish().expect("trailer").0.into_inner().expect("written");
        std::fs::remove_file(scratch).expect("scratch");
        self.made.files = txid;
        self.made.bytes += std::fs::metadata(&path).expect("size").len();
    }
}

const PAGE: usize = 4096;
/// SQLite never uses it.
const LOCK_PAGE: u64 = 0x4000_0000 / PAGE as u64 + 1;
const PAGE_SIZE: PageSize = match PageSize::new(PAGE as u32) {
    Some(size) => size,
    None => unreachable!(),
};
