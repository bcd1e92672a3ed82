//! What every buffer must do when it is full: the other half of the [contract](super::contract).

use super::contract::{Subject, bytes_of, fill, key, lane, register, segment, txid};
use super::squash::{MergeError, Merger, Opens};
use super::{BufferError, DatabaseId, EveryDatabase, SegmentMeta, SegmentRef, Takers, WalBuffer};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use walhub_common::{DestinationName, Pos, TxidRange};

/// Merges into a count and a sum over all bytes: a stand-in for LTX, which the buffer does not know. However segments
/// are merged, once or again, the result for a range is the same: see [`folded`].
#[derive(Debug)]
pub struct Fold;

const FOLDED: &[u8; 8] = b"folded!!";

impl Merger for Fold {
    fn merge(
        &self,
        segments: &[SegmentRef],
        _: SegmentMeta,
        open: &Opens<'_>,
        out: &mut dyn std::io::Write,
    ) -> Result<(), MergeError> {
        let mut all = Vec::new();
        for segment in segments {
            let mut bytes = Vec::new();
            let mut reader = open(segment).map_err(|e| MergeError::Failed(e.to_string()))?;
            reader.read_to_end(&mut bytes)?;
            all.push(bytes);
        }
        Ok(out.write_all(&folded(all))?)
    }
}

/// What [`Fold`] makes of segments with these bytes; 8 bytes for each beside a header.
pub fn folded(all: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut count, mut sum) = (0_u64, 0_u64);
    for bytes in all {
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_be_bytes).expect("8 bytes");
        if bytes.starts_with(FOLDED) {
            (count, sum) = (count + number(8), sum ^ number(16));
        } else {
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
            (count, sum) = (count + 1, sum ^ crc);
        }
    }
    let mut out = FOLDED.to_vec();
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&sum.to_be_bytes());
    out.resize(out.len() + 8 * usize::try_from(count).expect("few"), 0);
    out
}

/// Lanes of which some answer.
#[derive(Debug)]
struct Lanes {
    all: Arc<[DestinationName]>,
    answering: Vec<DestinationName>,
}

impl Takers for Lanes {
    fn of(&self, _: DatabaseId) -> Arc<[DestinationName]> {
        self.all.clone()
    }

    fn revision(&self) -> u64 {
        0
    }

    fn answers(&self, lane: &DestinationName) -> bool {
        self.answering.contains(lane)
    }
}

/// What a full buffer gives up, where it may. `subject` must squash with [`Fold`], hold at most about `max_bytes`,
/// and be empty at first.
pub async fn squash_suite(subject: &mut dyn Subject, max_bytes: u64) {
    let buffer = subject.buffer();
    let (id, small) = (register(&*buffer, "large").await.id, register(&*buffer, "small").await.id);
    let all: Arc<[DestinationName]> = [lane("a"), lane("b")].into();
    let lanes = |answering| Arc::new(Lanes { all: all.clone(), answering }) as Arc<dyn Takers>;
    buffer.trim(lanes(Vec::new())).await.unwrap();
    let kept = fill(&*buffer, small, None, 20).await;
    let size = usize::try_from(max_bytes / 300).unwrap();
    let mut position = None;
    let grow = async |buffer: &dyn WalBuffer, position: &mut Option<Pos>, count: u64| {
        for _ in 0..count {
            let made = segment(*position, position.map_or(1, |p: Pos| p.txid.get() + 1), &[size], 5);
            made.append(buffer, id).await.unwrap();
            *position = made.position();
            let usage = buffer.usage();
            assert!(usage.bytes <= usage.max_bytes, "{usage:?}");
        }
    };
    // Nobody takes anything: four times what fits is taken all the same, at the expense of the larger backlog.
    grow(&*buffer, &mut position, 200).await;
    assert_eq!(buffer.given_up(id).points, 0);
    grow(&*buffer, &mut position, 1000).await;
    for round in 0..2 {
        let buffer = subject.buffer();
        let held = buffer.read(id, None, u64::MAX).unwrap();
        assert_eq!(held[0].meta.range.min(), txid(1));
        assert_eq!(held.last().unwrap().meta.range.max(), position.unwrap().txid, "no hole");
        let merged = held.iter().find(|s| s.meta.range.count() > 1).expect("some were merged");
        assert_eq!(bytes_of(&*buffer, id, merged), folded(singles(merged, size)), "all of them, each once");
        assert_eq!(merged.meta.pre.is_none(), merged.meta.range.min() == txid(1));
        let inside = txid(merged.meta.range.max().get() - 1);
        assert!(matches!(buffer.read(id, Some(inside), 1), Err(BufferError::Trimmed { .. })));
        assert_eq!(buffer.covering(id, inside).unwrap().as_ref(), Some(merged));
        let untouched = buffer.read(small, None, u64::MAX).unwrap();
        assert_eq!(untouched.len(), kept.len(), "the small one paid nothing");
        for (found, made) in untouched.iter().zip(&kept) {
            assert_eq!(bytes_of(&*buffer, small, found), made.bytes());
        }
        if round == 0 {
            let given_up = buffer.given_up(id);
            assert!(buffer.usage().squashed >= given_up.points, "{:?}", buffer.usage());
            let merged: u64 = held.iter().map(|s| s.meta.range.count() - 1).sum();
            assert!(given_up.points > 0 && given_up.points <= merged, "{given_up:?} of {merged}");
            let range = given_up.range.unwrap();
            assert!(range.min() == txid(1) && range.max() < position.unwrap().txid);
            assert_eq!(buffer.given_up(small).points, 0);
            subject.reopen().await;
        }
    }
    // One destination has taken everything and answers: the other need not have for it to go.
    let buffer = subject.buffer();
    buffer.set_cursor(&lane("a"), id, position.unwrap().txid).unwrap();
    buffer.set_cursor(&lane("a"), small, txid(20)).unwrap();
    buffer.trim(lanes(vec![lane("a")])).await.unwrap();
    let before = buffer.given_up(id).points;
    for _ in 0..6 {
        grow(&*buffer, &mut position, 100).await;
        buffer.set_cursor(&lane("a"), id, position.unwrap().txid).unwrap();
    }
    assert_eq!(buffer.given_up(id).points, before, "what a destination holds is no loss");
    assert!(matches!(buffer.read(id, None, 1), Err(BufferError::Trimmed { .. })));
    // A destination stands in the middle: what is merged ends there.
    let middle = position.unwrap().txid;
    buffer.set_cursor(&lane("b"), id, middle).unwrap();
    buffer.trim(lanes(Vec::new())).await.unwrap();
    grow(&*buffer, &mut position, 600).await;
    assert!(!buffer.read(id, Some(middle), 1).unwrap().is_empty());
}

/// Bytes of the single segments that a merged one stands for.
fn singles(merged: &SegmentRef, size: usize) -> Vec<Vec<u8>> {
    let mut position = None;
    let mut all = Vec::new();
    for n in 1..=merged.meta.range.max().get() {
        let made = segment(position, n, &[size], 5);
        position = made.position();
        if made.meta.range.min() >= merged.meta.range.min() {
            all.push(made.bytes());
        }
    }
    all
}

/// Lanes, and what somebody waits for.
#[derive(Debug)]
struct Awaiting {
    lanes: Arc<[DestinationName]>,
    runs: Mutex<Vec<TxidRange>>,
    revision: AtomicU64,
}

impl Awaiting {
    fn runs(&self) -> MutexGuard<'_, Vec<TxidRange>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Takers for Awaiting {
    fn of(&self, _: DatabaseId) -> Arc<[DestinationName]> {
        self.lanes.clone()
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    fn kept(&self, _: DatabaseId) -> Vec<TxidRange> {
        self.runs().clone()
    }

    fn give_up_kept(&self) {
        self.runs().clear();
        self.revision.fetch_add(1, Ordering::Relaxed);
    }
}

/// What stays for a point that is awaited, although lanes have taken everything; and that agents come before it. `subject`
/// must squash with [`Fold`], hold at most about `max_bytes`, and be empty at first.
pub async fn kept_suite(subject: &mut dyn Subject, max_bytes: u64) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "awaited").await.id;
    let size = usize::try_from(max_bytes / 300).unwrap();
    let run = |min, max| TxidRange::new(txid(min), txid(max)).unwrap();
    let takers = Arc::new(Awaiting {
        lanes: [lane("a")].into(),
        runs: Mutex::new(vec![run(5, 9)]),
        revision: AtomicU64::new(0),
    });
    buffer.trim(takers.clone()).await.unwrap();
    let mut position = None;
    let grow = async |buffer: &dyn WalBuffer, position: &mut Option<Pos>, count: u64, taken: bool| {
        for _ in 0..count {
            let made = segment(*position, position.map_or(1, |p: Pos| p.txid.get() + 1), &[size], 5);
            made.append(buffer, id).await.unwrap();
            *position = made.position();
            if taken {
                buffer.set_cursor(&lane("a"), id, position.unwrap().txid).unwrap();
            }
            let usage = buffer.usage();
            assert!(usage.bytes <= usage.max_bytes, "{usage:?}");
        }
    };
    grow(&*buffer, &mut position, 900, true).await;
    for _ in 0..2 {
        let buffer = subject.buffer();
        let held = buffer.read(id, Some(txid(4)), u64::MAX).unwrap();
        let ends: Vec<u64> = held.iter().map(|segment| segment.meta.range.max().get()).take(5).collect();
        assert_eq!(ends, [5, 6, 7, 8, 9], "each is a point of its own still");
        let mut before = position_at(4, size);
        for segment_ref in &held[..5] {
            let made = segment(before, segment_ref.meta.range.max().get(), &[size], 5);
            assert_eq!(bytes_of(&*buffer, id, segment_ref), made.bytes());
            before = made.position();
        }
        assert!(
            matches!(buffer.read(id, Some(txid(300)), 1), Err(BufferError::Trimmed { .. })),
            "others are gone"
        );
        subject.reopen().await;
        subject.buffer().trim(takers.clone()).await.unwrap();
    }
    // What no lane takes is merged, but not across a point that is awaited.
    let awaited = position.unwrap().txid.get() + 20;
    takers.runs().push(run(awaited - 2, awaited));
    takers.revision.fetch_add(1, Ordering::Relaxed);
    let buffer = subject.buffer();
    grow(&*buffer, &mut position, 600, false).await;
    let held = buffer.list(id, Some(txid(9)), usize::MAX).unwrap();
    assert!(held.iter().any(|segment| segment.meta.range.count() > 1), "some were merged");
    let ends: Vec<u64> = held.iter().map(|segment| segment.meta.range.max().get()).collect();
    assert!(!takers.runs().is_empty() && ends.contains(&awaited), "{awaited}: {ends:?}");
}

/// The position after so many segments of `kept_suite`.
fn position_at(count: u64, size: usize) -> Option<Pos> {
    (1..=count).fold(None, |position, n| segment(position, n, &[size], 5).position())
}

/// Where lanes take everything and what is awaited alone leaves no room, it goes: agents come first.
pub async fn given_up_suite(subject: &mut dyn Subject, max_bytes: u64) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "awaited").await.id;
    let size = usize::try_from(max_bytes / 300).unwrap();
    let all = TxidRange::new(txid(1), txid(1 << 40)).unwrap();
    let takers = Arc::new(Awaiting {
        lanes: [lane("a")].into(),
        runs: Mutex::new(vec![all]),
        revision: AtomicU64::new(0),
    });
    buffer.trim(takers.clone()).await.unwrap();
    let mut position: Option<Pos> = None;
    for _ in 0..900 {
        let made = segment(position, position.map_or(1, |p| p.txid.get() + 1), &[size], 5);
        made.append(&*buffer, id).await.unwrap();
        position = made.position();
        buffer.set_cursor(&lane("a"), id, position.unwrap().txid).unwrap();
    }
    assert!(takers.runs().is_empty(), "nothing else would have made room");
    assert!(matches!(buffer.read(id, None, 1), Err(BufferError::Trimmed { .. })));
}

/// A segment that is larger than the whole buffer is refused for what it is.
pub async fn oversized_suite(subject: &mut dyn Subject, max_bytes: u64) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "oversized").await.id;
    let chunks = usize::try_from(max_bytes >> 20).unwrap() + 1;
    let made = segment(None, 1, &vec![1 << 20; chunks], 3);
    let error = made.append(&*buffer, id).await.unwrap_err();
    assert!(matches!(error, BufferError::SegmentTooLarge { .. }), "{error}");
    buffer.abandon(id).await.unwrap();
    buffer.trim(EveryDatabase::by(&[lane("a")])).await.unwrap();
    let small = segment(None, 1, &[1000], 3);
    small.append(&*buffer, id).await.unwrap();
}

/// What the bound does. `subject` must hold at most about `max_bytes`, empty at first.
pub async fn bound_suite(subject: &mut dyn Subject, max_bytes: u64) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "full").await.id;
    let idle = register(&*buffer, "idle").await.id;
    fill(&*buffer, idle, None, 1).await;
    let lanes = [lane("a"), lane("b")];
    let mut position = None;
    // The bound is met in the middle of a segment, so that the small one of `idle` alone makes no room.
    let size = usize::try_from(max_bytes * 2 / 181).unwrap().min(1 << 20);
    let full = loop {
        let made = segment(position, position.map_or(1, |p: Pos| p.txid.get() + 1), &[size], 5);
        match made.append(&*buffer, id).await {
            Ok(()) => position = made.position(),
            Err(error) => break (made, error),
        }
    };
    assert!(matches!(full.1, BufferError::Full { .. }), "{}", full.1);
    let usage = buffer.usage();
    assert!(usage.bytes <= usage.max_bytes && usage.bytes > max_bytes / 2, "{usage:?}");
    assert!(usage.full && usage.refused == 1, "{usage:?}");
    // Nobody has taken anything; then one of two.
    buffer.trim(EveryDatabase::by(&lanes)).await.unwrap();
    assert!(matches!(full.0.append(&*buffer, id).await, Err(BufferError::Full { .. })));
    let end = position.unwrap().txid;
    for (lane, id) in [(&lanes[0], id), (&lanes[0], idle)] {
        buffer.set_cursor(lane, id, end).unwrap();
        buffer.trim(EveryDatabase::by(&lanes)).await.unwrap();
        assert_eq!(buffer.list(idle, None, 1).unwrap().len(), 1, "a lane without a cursor has not passed");
        assert!(matches!(
            full.0.append(&*buffer, id).await,
            Err(BufferError::Full { .. } | BufferError::OutOfOrder { .. })
        ));
    }
    // An append finds room by itself once the lanes have passed; a database that one of them has not passed keeps its
    // segment, and no room beside it.
    let open = buffer.list(id, None, 1).unwrap().remove(0);
    let mut pinned = buffer.open(id, &open).unwrap();
    let slow = buffer.list(idle, None, 1).unwrap().remove(0);
    buffer.set_cursor(&lanes[1], id, end).unwrap();
    buffer.trim(EveryDatabase::by(&lanes)).await.unwrap();
    full.0.append(&*buffer, id).await.unwrap();
    assert!(!buffer.usage().full && buffer.usage().refused > 1, "{:?}", buffer.usage());
    assert_eq!(
        bytes_of(&*buffer, idle, &slow),
        segment(None, 1, &[101], idle.0).bytes(),
        "also where it was"
    );
    let found = buffer.list(idle, None, 1).unwrap().remove(0);
    assert_eq!(bytes_of(&*buffer, idle, &found), segment(None, 1, &[101], idle.0).bytes());
    buffer.set_cursor(&lanes[1], idle, end).unwrap();
    let mut bytes = Vec::new();
    pinned.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, segment(None, 1, &[size], 5).bytes(), "an open reader keeps what was trimmed");
    let held = buffer.list(id, None, usize::MAX).unwrap();
    assert!(held[0].meta.range.min() > txid(1), "the oldest segments are gone");
    for pair in held.windows(2) {
        assert!(pair[1].meta.range.follows(Some(pair[0].meta.range.max())), "no hole");
    }
    assert!(matches!(buffer.read(id, None, 1), Err(BufferError::Trimmed { .. })));
    assert!(matches!(buffer.open(id, &open), Err(BufferError::Trimmed { .. })));
    buffer.trim(EveryDatabase::by(&lanes)).await.unwrap();
    assert!(buffer.usage().bytes <= max_bytes / 5 * 4, "{:?}", buffer.usage());
    subject.reopen().await;
    let buffer = subject.buffer();
    assert_eq!(buffer.list(id, None, usize::MAX).unwrap().last().unwrap().meta, full.0.meta);
    assert_eq!(buffer.find(&key("full")).unwrap().position, full.0.position());
    assert_eq!(
        buffer.find(&key("idle")).unwrap().position.map(|p| p.txid),
        Some(txid(1)),
        "it outlives its segments"
    );
}
