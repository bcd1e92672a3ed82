//! For tests of drills and repairs: one database in several folders, and ways to spoil it there.

use crate::buffer::memory::MemoryBuffer;
use crate::buffer::{Chunk, SegmentMeta, WalBuffer};
use crate::config::DestinationEntry;
use crate::copies::{Board, Place, Policy, Roster, Rules};
use crate::retain::{Holds, Pins};
use crate::testutil::{Image, Segment};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{Decoder, Encoder, Header, Stamp, merge, name};
use walhub_common::{DatabaseKey, DestinationName, Level, Pos, TxidRange};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::error::Operation;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, DynDestination, FileKey, PutMeta};

/// Transactions of the history.
pub(crate) const HISTORY: u64 = 8;

/// See the module doc.
pub(crate) struct Fleet {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) buffer: Arc<MemoryBuffer>,
    pub(crate) board: Arc<Board>,
    pub(crate) pins: Pins,
    pub(crate) holds: Arc<Holds>,
    disks: Vec<Arc<Faulty>>,
    files: Vec<Segment>,
    image: Image,
}

impl Fleet {
    /// Folders of these names, each with every transaction in a file of its own. The buffer knows the position, and holds
    /// nothing.
    pub(crate) async fn new(names: &[&str]) -> Fleet {
        Self::with(names, false).await
    }

    /// As [`Fleet::new`], with every transaction in the buffer.
    pub(crate) async fn buffered(names: &[&str]) -> Fleet {
        Self::with(names, true).await
    }

    async fn with(names: &[&str], buffered: bool) -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        let (mut disks, mut places) = (Vec::new(), Vec::new());
        for (lane, name) in names.iter().enumerate() {
            let path = dir.path().join(name);
            let entry = DestinationEntry::folder(name, &path);
            let inner = FileDestination::new(entry.name.clone(), &FileConfig { path });
            let disk = Arc::new(Faulty::new(Arc::new(inner), Faults::default(), 1));
            disk.probe(&CancellationToken::new()).await.unwrap();
            let destination = disk.clone() as DynDestination;
            places.push(Arc::new(Place { lane, entry, destination }));
            disks.push(disk);
        }
        let board = Arc::new(Board::new(Roster::new(places, Rules::new(Vec::new(), Policy::default()))));
        let buffer = Arc::new(MemoryBuffer::new(1 << 30));
        let registered = buffer.register(&key(), Some(7), "").await.unwrap();
        let (mut image, mut files) = (Image::new(12), Vec::new());
        for txid in 1..=HISTORY {
            let segment = if txid == 1 { image.first() } else { image.commit(&[txid as u32 % 8 + 1, 12]) };
            if buffered {
                let (range, pre, post, data) =
                    (segment.range, segment.pre, segment.post, segment.ltx.clone());
                let meta = SegmentMeta { range, pre, post, time_ms: 1_000 + txid as i64, agent_time_ms: 1 };
                let chunk = Chunk { database: registered.id, meta, number: 0, last: true, data };
                buffer.append(chunk).await.unwrap();
            }
            files.push(segment);
        }
        let newest = files.last().unwrap();
        let position = Pos { txid: newest.txid(), checksum: newest.post };
        if !buffered {
            buffer.adopt(registered.id, position, 1_000).await.unwrap();
        }
        for lane in 0..names.len() {
            board.post_copy(lane, registered.id, &key(), Some(position.txid));
            board.post_health(lane, |health| health.healthy = true);
        }
        let (pins, holds) = (Pins::default(), Arc::new(Holds::open(dir.path()).unwrap()));
        let fleet = Fleet { dir, buffer, board, pins, holds, disks, files, image };
        for name in names {
            for txid in 1..=HISTORY {
                fleet.put(name, 0, txid, txid).await;
            }
        }
        fleet
    }

    pub(crate) fn key(&self) -> DatabaseKey {
        key()
    }

    pub(crate) fn newest(&self) -> u64 {
        HISTORY
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    pub(crate) fn place(&self, name: &str) -> Arc<Place> {
        let roster = self.board.roster();
        roster.places().iter().find(|place| place.name().as_str() == name).unwrap().clone()
    }

    pub(crate) fn set_down(&self, name: &str, down: bool) {
        self.disk(name).set_down(down);
    }

    pub(crate) fn set_locked(&self, name: &str, locked: bool) {
        self.disk(name).set_locked(locked);
    }

    /// Puts and deletions asked of a folder so far.
    pub(crate) fn changes(&self, name: &str) -> u64 {
        [Operation::Put, Operation::Delete].map(|operation| self.disk(name).calls(operation)).iter().sum()
    }

    fn disk(&self, name: &str) -> &Faulty {
        let name: DestinationName = name.parse().unwrap();
        self.disks.iter().find(|disk| *disk.name() == name).unwrap()
    }

    /// Where a file lies.
    pub(crate) fn file(&self, place: &str, level: u8, min: u64, max: u64) -> PathBuf {
        let folder = name::fs_dir(Level::new(level).unwrap());
        let file = name::file_name(TxidRange::from_raw(min, max).unwrap());
        self.dir.path().join(place).join(key().to_string()).join(folder).join(file)
    }

    /// Puts the file of these transactions.
    pub(crate) async fn put(&self, place: &str, level: u8, min: u64, max: u64) {
        let bytes = self.ltx(min, max);
        self.store(place, level, min, max, bytes).await;
    }

    fn ltx(&self, min: u64, max: u64) -> Vec<u8> {
        let inputs = self.files[min as usize - 1..max as usize]
            .iter()
            .map(|segment| Decoder::new(&segment.ltx[..]).unwrap())
            .collect();
        let mut out = Vec::new();
        let stamp = Stamp { timestamp_ms: 1_000 + max as i64, node_id: 7, whole: min == 1 };
        merge(inputs, stamp, &mut out).unwrap();
        out
    }

    /// Replaces a file of level 0 by one that is whole, says the same of itself, and has other pages.
    pub(crate) async fn forge(&self, place: &str, txid: u64) {
        let bytes = self.ltx(txid, txid);
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        let header: Header = *decoder.header();
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            page[100] ^= 1;
            encoder.page(pgno, &page).unwrap();
        }
        std::fs::remove_file(self.file(place, 0, txid, txid)).unwrap();
        self.store(place, 0, txid, txid, encoder.finish().unwrap().0).await;
    }

    async fn store(&self, place: &str, level: u8, min: u64, max: u64, bytes: Vec<u8>) {
        let range = TxidRange::from_raw(min, max).unwrap();
        let file = FileKey { database: key(), level: Level::new(level).unwrap(), range };
        let meta = PutMeta { time_ms: 1_000 + max as i64, post: None };
        let destination = self.place(place).destination.clone();
        destination.put(&file, Body::Bytes(bytes.into()), meta, &CancellationToken::new()).await.unwrap();
    }
}

fn key() -> DatabaseKey {
    "node/app".parse().unwrap()
}
