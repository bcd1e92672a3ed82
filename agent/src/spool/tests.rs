use super::*;
use crate::disk;
use walhub_common::ltx::{Encoder, Provenance};
use walhub_common::{Checksum, PageSize, Pgno, TxidRange};

const SIZE: PageSize = PageSize::new(512).unwrap();

fn sum(txid: u64) -> Checksum {
    Checksum::new(1 << 63 | txid).unwrap()
}

fn pos(txid: u64) -> Option<Pos> {
    Txid::new(txid).map(|txid| Pos { txid, checksum: sum(txid.get()) })
}

fn segment(min: u64, max: u64, pages: u32) -> (SegmentMeta, Vec<u8>) {
    let meta = SegmentMeta {
        range: TxidRange::from_raw(min, max).unwrap(),
        pre: pos(min - 1).map(|p| p.checksum),
        post: sum(max),
        page_size: SIZE,
        commit: pages,
        agent_time_ms: 5,
    };
    let header = Header {
        page_size: SIZE,
        commit: pages,
        range: meta.range,
        timestamp_ms: 5,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: 0,
        provenance: Some(Provenance { pre: meta.pre, post: meta.post }),
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for page in 1..=pages {
        let noise: Vec<u8> = (0..512_u64).map(|i| ((i * (min + u64::from(page)) * 31) >> 3) as u8).collect();
        encoder.page(Pgno::new(page).unwrap(), &noise).unwrap();
    }
    (meta, encoder.finish().unwrap().0)
}

fn put(sink: &mut dyn Sink, min: u64, max: u64, pages: u32) -> io::Result<()> {
    let (meta, bytes) = segment(min, max, pages);
    sink.begin(&meta)?;
    let chunks: Vec<_> = bytes.chunks(300).collect();
    for (i, chunk) in chunks.iter().enumerate() {
        sink.chunk(Bytes::copy_from_slice(chunk), i + 1 == chunks.len())?;
    }
    Ok(())
}

struct Place {
    folder: tempfile::TempDir,
    room: Arc<Room>,
}

impl Place {
    fn new(limit: u64) -> Place {
        Place { folder: tempfile::tempdir().unwrap(), room: Room::new(limit) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn open(&self) -> Spool {
        Spool::open(disk::real(), &self.path(), self.room.clone()).unwrap()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.path()).map_or(0, Iterator::count)
    }
}

fn batch(spool: &mut Spool, segments: std::ops::RangeInclusive<u64>) {
    let mut batch = spool.begin().unwrap();
    for txid in segments {
        put(&mut batch, txid, txid, 2).unwrap();
    }
    spool.append(batch).unwrap().unwrap();
}

/// Collects what is sent.
#[derive(Default)]
struct Sent(Vec<(SegmentMeta, Vec<u8>)>);

impl Sink for Sent {
    fn begin(&mut self, meta: &SegmentMeta) -> io::Result<()> {
        self.0.push((*meta, Vec::new()));
        Ok(())
    }

    fn chunk(&mut self, data: Bytes, _: bool) -> io::Result<()> {
        self.0.last_mut().unwrap().1.extend_from_slice(&data);
        Ok(())
    }
}

fn sent_after(spool: &Spool, hub: Option<Pos>) -> Vec<(SegmentMeta, Vec<u8>)> {
    let (mut sink, mut at) = (Sent::default(), hub);
    while let Some(mut segments) = spool.segments_after(at).unwrap() {
        while let Some(sent) = segments.send_next(&mut sink).unwrap() {
            at = Some(sent.unwrap().position());
        }
    }
    sink.0
}

#[test]
fn what_was_spooled_comes_back_byte_for_byte_after_a_restart() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 5..=9);
    batch(&mut spool, 10..=12);
    let bytes = spool.bytes();
    assert_eq!(place.room.used(), bytes);
    drop(spool);
    assert_eq!(place.room.used(), 0);
    let spool = place.open();
    assert_eq!((spool.bytes(), place.room.used()), (bytes, bytes));
    assert_eq!((spool.start(), spool.end()), (pos(4), pos(12)));
    for hub in 4..12 {
        assert_eq!(spool.coverage(pos(hub)), Coverage::Resendable);
        let wanted: Vec<_> = (hub + 1..=12).map(|txid| segment(txid, txid, 2)).collect();
        assert_eq!(sent_after(&spool, pos(hub)), wanted);
    }
    for hub in [3, 12, 13] {
        assert_eq!(spool.coverage(pos(hub)), Coverage::Nothing);
    }
    assert_eq!(spool.coverage(None), Coverage::Nothing);
}

#[test]
fn another_history_is_never_sent() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 5..=9);
    let other = |txid: u64| Some(Pos { checksum: sum(txid + 1000), ..pos(txid).unwrap() });
    assert_eq!(spool.coverage(other(4)), Coverage::Fork { ours: pos(4).unwrap() });
    assert_eq!(spool.coverage(other(9)), Coverage::Fork { ours: pos(9).unwrap() });
    // In the middle of a batch it is found when it is read.
    let mut segments = spool.segments_after(other(7)).unwrap().unwrap();
    let mut sink = Sent::default();
    assert_eq!(segments.send_next(&mut sink).unwrap().unwrap().unwrap_err(), pos(7).unwrap());
    assert!(sink.0.is_empty());
}

#[test]
fn a_hub_inside_a_squashed_run_cannot_be_served() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    let mut delta = spool.begin().unwrap();
    put(&mut delta, 5, 9, 2).unwrap();
    spool.append(delta).unwrap();
    let mut segments = spool.segments_after(pos(7)).unwrap().unwrap();
    let error = segments.send_next(&mut Sent::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn acks_give_room_back_batch_by_batch() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 1..=3);
    batch(&mut spool, 4..=6);
    spool.acked(Txid::new(2).unwrap());
    assert_eq!((place.files(), spool.start()), (2, None));
    spool.acked(Txid::new(3).unwrap());
    assert_eq!((place.files(), spool.start()), (1, pos(3)));
    spool.acked(Txid::new(6).unwrap());
    assert_eq!((place.files(), place.room.used()), (0, 0));
    assert!(spool.is_empty());
}

#[test]
fn the_bound_holds_and_a_batch_that_passes_it_leaves_nothing() {
    let place = Place::new(8 << 10);
    let mut spool = place.open();
    batch(&mut spool, 1..=1);
    let used = place.room.used();
    let mut new = spool.begin().unwrap();
    let error = (2..100).find_map(|txid| put(&mut new, txid, txid, 2).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    assert!(place.room.used() <= 8 << 10);
    drop(new);
    assert_eq!((place.room.used(), place.files()), (used, 1));
    assert_eq!(spool.end(), pos(1));
}

#[test]
fn a_squash_stands_for_everything_before_it_wherever_it_is_interrupted() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 5..=9);
    batch(&mut spool, 10..=12);
    let mut delta = spool.begin().unwrap();
    put(&mut delta, 5, 14, 3).unwrap();
    // Killed after the new file had its name and before the old ones were removed.
    let sealed = delta.0.seal().unwrap().unwrap();
    place.room.give_back(sealed.bytes);
    drop(spool);
    assert_eq!(place.files(), 3);
    let mut spool = place.open();
    assert_eq!(place.files(), 1);
    assert_eq!((spool.start(), spool.end(), spool.lost_restore_points()), (pos(4), pos(14), 9));
    batch(&mut spool, 15..=16);
    assert_eq!(sent_after(&spool, pos(4)).len(), 3);
    assert_eq!(place.room.used(), spool.bytes());
}

#[test]
fn chains_that_do_not_connect_and_damaged_files_go() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 1..=3);
    batch(&mut spool, 7..=8);
    assert_eq!((spool.start(), place.files()), (pos(6), 1), "what does not connect takes its place");
    batch(&mut spool, 9..=9);
    drop(spool);
    fs::write(place.path().join("unfinished.tmp"), "half").unwrap();
    let first = place.path().join(format!("{:016x}-{:016x}.spool", 7, 8));
    let mut bytes = fs::read(&first).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    fs::write(&first, bytes).unwrap();
    let mut spool = place.open();
    assert_eq!((spool.start(), spool.end(), place.files()), (pos(8), pos(9), 1));
    spool.clear();
    assert!(spool.is_empty());
    assert_eq!((place.files(), place.room.used()), (0, 0));
}

#[test]
fn garbage_inside_a_file_is_an_error_and_no_panic() {
    let place = Place::new(1 << 20);
    let mut spool = place.open();
    batch(&mut spool, 1..=4);
    let path = place.path().join(spool.batches[0].name());
    let whole = fs::read(&path).unwrap();
    let mut failed = 0;
    for at in 0..whole.len() - 56 {
        let mut bytes = whole.clone();
        bytes[at] = !bytes[at];
        fs::write(&path, &bytes).unwrap();
        let mut segments = spool.segments_after(None).unwrap().unwrap();
        let mut sink = Sent::default();
        loop {
            match segments.send_next(&mut sink) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    failed += 1;
                    break;
                }
            }
        }
    }
    assert!(failed > 100, "lengths and headers are checked: {failed}");
}
