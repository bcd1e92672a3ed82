//! The suite that every buffer must pass.

use super::{BufferError, Chunk, DatabaseId, EveryDatabase, Registered, SegmentMeta, SegmentRef, WalBuffer};
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Read;
use std::sync::Arc;
use walhub_common::{Checksum, DatabaseKey, DestinationName, Pos, Txid, TxidRange};

/// A buffer that can be taken down and brought up again.
#[async_trait]
pub trait Subject: Send {
    /// The buffer as it is now.
    fn buffer(&self) -> Arc<dyn WalBuffer>;
    /// A restart.
    async fn reopen(&mut self);
    /// Merges what can be merged of a database.
    async fn squash(&self, database: DatabaseId);
}

/// A segment's bytes and facts, made of a seed: equal arguments give equal segments.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its facts.
    pub meta: SegmentMeta,
    /// Its chunks.
    pub chunks: Vec<Bytes>,
}

/// The segment of `min..=max` that follows `position`, in chunks of these sizes.
pub fn segment(position: Option<Pos>, max: u64, sizes: &[usize], seed: u64) -> Made {
    let min = Txid::following(position.map(|p| p.txid));
    let mut rng = StdRng::seed_from_u64(seed ^ max << 20);
    let meta = SegmentMeta {
        range: TxidRange::new(min, Txid::new(max).expect("max is not 0")).expect("min <= max"),
        pre: position.map(|p| p.checksum),
        post: Checksum::new(1 << 63 | rng.random::<u64>()).expect("bit 63 is set"),
        time_ms: 1_700_000_000_000 + i64::try_from(max).unwrap_or_default(),
        agent_time_ms: rng.random_range(0..2_000_000_000_000),
    };
    let chunk = |size: &usize| {
        let mut data = vec![rng.random::<u8>(); *size];
        let start = data.len().min(16);
        rng.fill(&mut data[..start]);
        Bytes::from(data)
    };
    Made { meta, chunks: sizes.iter().map(chunk).collect() }
}

impl Made {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    /// One of its chunks.
    pub fn chunk(&self, database: DatabaseId, number: usize) -> Chunk {
        Chunk {
            database,
            meta: self.meta,
            number: u32::try_from(number).expect("few chunks"),
            last: number + 1 == self.chunks.len(),
            data: self.chunks[number].clone(),
        }
    }

    /// Appends all of it.
    pub async fn append(&self, buffer: &dyn WalBuffer, database: DatabaseId) -> Result<(), BufferError> {
        for number in 0..self.chunks.len() {
            buffer.append(self.chunk(database, number)).await?;
        }
        Ok(())
    }

    /// The position after it.
    pub fn position(&self) -> Option<Pos> {
        Some(Pos { txid: self.meta.range.max(), checksum: self.meta.post })
    }
}

/// All bytes of a buffered segment.
pub fn bytes_of(buffer: &dyn WalBuffer, database: DatabaseId, segment: &SegmentRef) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = buffer.open(database, segment).expect("the segment opens");
    reader.read_to_end(&mut bytes).expect("the segment reads");
    assert_eq!(bytes.len() as u64, segment.bytes);
    bytes
}

pub(super) fn key(name: &str) -> DatabaseKey {
    format!("node/{name}").parse().expect("a good name")
}

pub(super) fn lane(name: &str) -> DestinationName {
    DestinationName::new(name).expect("a good name")
}

pub(super) fn txid(n: u64) -> Txid {
    Txid::new(n).expect("not 0")
}

pub(super) async fn register(buffer: &dyn WalBuffer, name: &str) -> Registered {
    buffer.register(&key(name), None, "/srv/db").await.expect("registration")
}

/// Appends single transactions up to `last`; gives them.
pub(super) async fn fill(buffer: &dyn WalBuffer, id: DatabaseId, from: Option<Pos>, last: u64) -> Vec<Made> {
    let mut position = from;
    let mut made = Vec::new();
    for max in position.map_or(1, |p| p.txid.get() + 1)..=last {
        let next = segment(position, max, &[100 + usize::try_from(max).unwrap_or(0) % 50], id.0);
        next.append(buffer, id).await.expect("append");
        position = next.position();
        made.push(next);
    }
    made
}

/// The whole suite.
pub async fn suite(subject: &mut dyn Subject) {
    registrations_are_found_again(subject).await;
    segments_come_back_in_order_and_survive_a_restart(subject).await;
    order_is_kept(subject).await;
    unfinished_segments_do_not_exist(subject).await;
    many_appends_may_be_under_way(subject).await;
    positions_are_adopted(subject).await;
    cursors_move_and_survive_a_clean_restart(subject).await;
    closed_buffers_say_so(subject).await;
}

async fn registrations_are_found_again(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    assert_eq!(buffer.find(&key("first")), None);
    let first = buffer.register(&key("first"), Some(77), "/a").await.unwrap();
    let second = register(&*buffer, "second").await;
    assert_eq!((first.lineage, first.position, first.time_ms), (77, None, 0));
    assert_ne!(second.lineage, 0);
    assert_ne!(first.id, second.id);
    let again = buffer.register(&key("first"), Some(78), "/b").await.unwrap();
    assert_eq!(
        again,
        Registered { path: "/b".to_owned(), ..first },
        "the first lineage stays, the path follows"
    );
    subject.reopen().await;
    let buffer = subject.buffer();
    assert_eq!(buffer.find(&key("first")), Some(again.clone()));
    assert_eq!(buffer.databases(), [again, second.clone()]);
    let third = register(&*buffer, "a-third").await;
    assert!(third.id > second.id, "numbers are not used again");
    assert_eq!(buffer.databases().first(), Some(&third), "they are listed by name");
}

async fn segments_come_back_in_order_and_survive_a_restart(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "order").await.id;
    assert_eq!(buffer.read(id, None, 1000).unwrap(), []);
    let snapshot = segment(None, 5, &[1000, 1 << 20, 1 << 20, 17, 0], 1);
    let mut changed = buffer.changed();
    changed.mark_unchanged();
    snapshot.append(&*buffer, id).await.unwrap();
    changed.changed().await.unwrap();
    let mut made = vec![snapshot.clone()];
    made.extend(fill(&*buffer, id, snapshot.position(), 20).await);
    for round in 0..2 {
        let buffer = subject.buffer();
        let registered = buffer.find(&key("order")).unwrap();
        assert_eq!(registered.position, made[15].position());
        assert_eq!(registered.time_ms, made[15].meta.time_ms);
        let all = buffer.read(id, None, u64::MAX).unwrap();
        assert_eq!(all.len(), 16);
        for (found, made) in all.iter().zip(&made) {
            assert_eq!(found.meta, made.meta);
            assert_eq!(bytes_of(&*buffer, id, found), made.bytes());
        }
        assert_eq!(buffer.read(id, None, 1).unwrap(), all[..1], "one segment at least");
        let two = all[1].bytes + all[2].bytes;
        assert_eq!(buffer.read(id, Some(txid(5)), two).unwrap(), all[1..3]);
        assert_eq!(buffer.read(id, Some(txid(5)), two - 1).unwrap(), all[1..2]);
        assert_eq!(buffer.read(id, Some(txid(20)), 1000).unwrap(), []);
        assert_eq!(buffer.read(id, Some(txid(99)), 1000).unwrap(), []);
        assert!(matches!(buffer.read(id, Some(txid(3)), 1000), Err(BufferError::Trimmed { .. })));
        assert_eq!(buffer.covering(id, txid(3)).unwrap().as_ref(), Some(&all[0]));
        assert_eq!(buffer.list(id, None, 3).unwrap(), all[..3]);
        assert_eq!(buffer.list(id, Some(txid(6)), 100).unwrap(), all[2..]);
        assert_eq!(buffer.list(id, None, 0).unwrap(), []);
        if round == 0 {
            subject.reopen().await;
        }
    }
}

async fn order_is_kept(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "rules").await.id;
    let made = fill(&*buffer, id, None, 3).await;
    let good = segment(made[2].position(), 4, &[10, 10], 9);
    let wrong = |change: &dyn Fn(&mut Chunk)| {
        let mut chunk = good.chunk(id, 0);
        change(&mut chunk);
        chunk
    };
    let far = TxidRange::single(txid(5));
    let refused = [
        made[2].chunk(id, 0),
        made[0].chunk(id, 0),
        good.chunk(id, 1),
        wrong(&|c| c.meta.range = far),
        wrong(&|c| c.meta.pre = made[1].meta.pre),
        wrong(&|c| c.meta.pre = None),
        wrong(&|c| c.number = 1),
    ];
    for chunk in refused {
        let error = buffer.append(chunk.clone()).await.expect_err("out of order");
        assert!(matches!(error, BufferError::OutOfOrder { .. }), "{chunk:?}: {error}");
    }
    assert_eq!(buffer.covering(id, txid(2)).unwrap().map(|s| s.meta), Some(made[1].meta));
    assert_eq!(buffer.covering(id, txid(4)).unwrap(), None);
    let unknown = buffer.append(wrong(&|c| c.database = DatabaseId(999_999))).await;
    assert!(matches!(unknown, Err(BufferError::UnknownDatabase(_))));
    let large = buffer.append(wrong(&|c| c.data = Bytes::from(vec![0; (1 << 20) + 1]))).await;
    assert!(matches!(large, Err(BufferError::TooLarge(_))));
    let nobody = DatabaseId(999_999);
    assert!(matches!(buffer.read(nobody, None, 1), Err(BufferError::UnknownDatabase(_))));
    assert!(matches!(buffer.list(nobody, None, 1), Err(BufferError::UnknownDatabase(_))));
    assert!(matches!(buffer.abandon(nobody).await, Err(BufferError::UnknownDatabase(_))));
    assert!(buffer.set_cursor(&lane("x"), nobody, txid(1)).is_err());
    assert!(buffer.clear_cursor(&lane("x"), nobody).is_err());
    good.append(&*buffer, id).await.unwrap();
    assert_eq!(buffer.find(&key("rules")).unwrap().position, good.position());
}

async fn unfinished_segments_do_not_exist(subject: &mut dyn Subject) {
    let id = register(&*subject.buffer(), "unfinished").await.id;
    let three = |seed| segment(None, 1, &[500, 500, 500], seed);
    // Given up, replaced by another, cut off by a restart: each time the next one starts afresh.
    let buffer = subject.buffer();
    buffer.append(three(1).chunk(id, 0)).await.unwrap();
    buffer.abandon(id).await.unwrap();
    buffer.abandon(id).await.unwrap();
    assert!(buffer.append(three(1).chunk(id, 1)).await.is_err());
    buffer.append(three(2).chunk(id, 0)).await.unwrap();
    buffer.append(three(2).chunk(id, 1)).await.unwrap();
    buffer.append(three(3).chunk(id, 0)).await.unwrap();
    assert!(buffer.append(three(2).chunk(id, 2)).await.is_err(), "it was replaced");
    assert_eq!(buffer.list(id, None, 10).unwrap(), []);
    subject.reopen().await;
    let buffer = subject.buffer();
    assert!(buffer.append(three(3).chunk(id, 1)).await.is_err(), "it was cut off");
    assert_eq!(buffer.find(&key("unfinished")).unwrap().position, None);
    let made = three(4);
    made.append(&*buffer, id).await.unwrap();
    let found = buffer.read(id, None, 1).unwrap();
    assert_eq!(bytes_of(&*buffer, id, &found[0]), made.bytes());
}

async fn many_appends_may_be_under_way(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let mut waiting = Vec::new();
    let mut expected = Vec::new();
    for name in ["many-a", "many-b", "many-c"] {
        let id = register(&*buffer, name).await.id;
        let mut position = None;
        for max in 1..=200 {
            let made = segment(position, max, &[64, 8], id.0);
            waiting.push(buffer.append(made.chunk(id, 0)));
            waiting.push(buffer.append(made.chunk(id, 1)));
            position = made.position();
        }
        expected.push((name, position));
    }
    for appended in futures_util::future::join_all(waiting).await {
        appended.unwrap();
    }
    for (name, position) in expected {
        let registered = buffer.find(&key(name)).unwrap();
        assert_eq!(registered.position, position);
        assert_eq!(buffer.read(registered.id, None, u64::MAX).unwrap().len(), 200);
    }
}

async fn positions_are_adopted(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "adopts").await.id;
    let at = |n: u64| Pos { txid: txid(n), checksum: Checksum::new(1 << 63 | n).expect("bit 63 is set") };
    assert!(matches!(buffer.adopt(DatabaseId(999), at(3), 5).await, Err(BufferError::UnknownDatabase(_))));
    let mut changed = buffer.changed();
    let adopted = buffer.adopt(id, at(3), 5).await.unwrap();
    assert_eq!((adopted.position, adopted.time_ms), (Some(at(3)), 5));
    // Watchers hear of it, soon after the caller.
    changed.changed().await.unwrap();
    assert!(matches!(buffer.read(id, None, 1), Err(BufferError::Trimmed { .. })));
    assert_eq!(buffer.read(id, Some(txid(3)), 1).unwrap(), []);
    for back in [3, 2] {
        assert!(matches!(buffer.adopt(id, at(back), 5).await, Err(BufferError::OutOfOrder { .. })));
    }
    let made = fill(&*buffer, id, adopted.position, 5).await;
    let next = segment(made[1].position(), 6, &[5, 6], 0);
    buffer.append(next.chunk(id, 0)).await.unwrap();
    assert!(matches!(buffer.adopt(id, at(9), 5).await, Err(BufferError::OutOfOrder { .. })));
    buffer.abandon(id).await.unwrap();
    buffer.adopt(id, at(9), 7).await.unwrap();
    fill(&*buffer, id, Some(at(9)), 10).await;
    for _ in 0..2 {
        let buffer = subject.buffer();
        let held = buffer.find(&key("adopts")).unwrap();
        assert_eq!(held.position.unwrap().txid, txid(10));
        let ranges = |found: Vec<SegmentRef>| -> Vec<u64> {
            found.iter().map(|segment| segment.meta.range.min().get()).collect()
        };
        assert_eq!(ranges(buffer.list(id, None, 9).unwrap()), [4, 5, 10]);
        assert_eq!(ranges(buffer.read(id, Some(txid(3)), 1 << 20).unwrap()), [4, 5], "the hole ends a run");
        assert!(matches!(
            buffer.read(id, Some(txid(5)), 1),
            Err(BufferError::Trimmed { txid: missing, .. }) if missing == txid(6)
        ));
        assert_eq!(ranges(buffer.read(id, Some(txid(9)), 1).unwrap()), [10]);
        subject.reopen().await;
    }
}

async fn cursors_move_and_survive_a_clean_restart(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "cursors").await.id;
    fill(&*buffer, id, None, 9).await;
    assert_eq!(buffer.cursor(&lane("a"), id), None);
    buffer.set_cursor(&lane("a"), id, txid(9)).unwrap();
    buffer.set_cursor(&lane("b"), id, txid(2)).unwrap();
    buffer.set_cursor(&lane("a"), id, txid(7)).unwrap();
    buffer.close().await.unwrap();
    subject.reopen().await;
    let buffer = subject.buffer();
    assert_eq!(buffer.cursor(&lane("a"), id), Some(txid(7)), "back is a move as well");
    assert_eq!(buffer.cursor(&lane("b"), id), Some(txid(2)));
    assert_eq!(buffer.cursor(&lane("c"), id), None);
    buffer.clear_cursor(&lane("a"), id).unwrap();
    buffer.clear_cursor(&lane("c"), id).unwrap();
    assert_eq!(buffer.cursor(&lane("a"), id), None);
    buffer.close().await.unwrap();
    subject.reopen().await;
    let buffer = subject.buffer();
    assert_eq!(buffer.cursor(&lane("a"), id), None, "cleared is cleared");
    assert_eq!(buffer.cursor(&lane("b"), id), Some(txid(2)));
}

async fn closed_buffers_say_so(subject: &mut dyn Subject) {
    let buffer = subject.buffer();
    let id = register(&*buffer, "closed").await.id;
    let made = fill(&*buffer, id, None, 2).await;
    let found = buffer.list(id, None, 1).unwrap();
    buffer.close().await.unwrap();
    buffer.close().await.unwrap();
    let next = segment(made[1].position(), 3, &[5], 0);
    assert!(matches!(next.append(&*buffer, id).await, Err(BufferError::Closed)));
    assert!(matches!(buffer.register(&key("x"), None, "").await, Err(BufferError::Closed)));
    assert!(matches!(buffer.abandon(id).await, Err(BufferError::Closed)));
    assert!(matches!(buffer.read(id, None, 1), Err(BufferError::Closed)));
    assert!(matches!(buffer.list(id, None, 1), Err(BufferError::Closed)));
    assert!(matches!(buffer.open(id, &found[0]), Err(BufferError::Closed)));
    assert!(matches!(buffer.trim(EveryDatabase::by(&[])).await, Err(BufferError::Closed)));
    assert!(matches!(buffer.set_cursor(&lane("a"), id, txid(1)), Err(BufferError::Closed)));
    assert!(matches!(buffer.clear_cursor(&lane("a"), id), Err(BufferError::Closed)));
    subject.reopen().await;
    assert_eq!(subject.buffer().list(id, None, 1).unwrap().len(), 1);
}
