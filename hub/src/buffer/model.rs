//! Two buffers, the same random steps, the same answers: the twin in memory is the model of the one on disk.

use super::contract::{Made, Subject, bytes_of, key, lane, segment, txid};
use super::{BufferError, DatabaseId, SegmentRef, WalBuffer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use walhub_common::{Checksum, DestinationName, Pos, Txid, TxidRange};

/// Does the same random things to both, and demands the same answers. Neither may reach its bound.
pub async fn compare(left: &mut dyn Subject, right: &mut dyn Subject, seed: u64, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let names: Vec<String> = (0..4).map(|n| format!("model-{n}")).collect();
    let lanes = [lane("a"), lane("b")];
    let mut unfinished: Vec<Option<(Made, usize)>> = vec![None; names.len()];
    for step in 0..steps {
        let (l, r) = (left.buffer(), right.buffer());
        let which = rng.random_range(0..names.len());
        let name = &names[which];
        let known = l.find(&key(name));
        let at = format!("seed {seed} step {step} {name}");
        let Some(known) = known else {
            let lineage = Some(rng.random_range(1..u64::MAX));
            let registered = l.register(&key(name), lineage, "/x").await.unwrap();
            assert_eq!(r.register(&key(name), lineage, "/x").await.unwrap(), registered, "{at}");
            continue;
        };
        match rng.random_range(0..100) {
            0..70 => {
                let fresh = || {
                    let position = known.position;
                    let min = position.map_or(1, |p| p.txid.get() + 1);
                    let sizes: Vec<usize> =
                        (0..rng.random_range(1..5)).map(|_| rng.random_range(0..5000)).collect();
                    (segment(position, min + rng.random_range(0..3), &sizes, rng.random()), 0)
                };
                let (made, number) = unfinished[which].take().unwrap_or_else(fresh);
                let mut chunk = made.chunk(known.id, number);
                if rng.random_range(0..12) == 0 {
                    chunk.meta.range = TxidRange::single(txid(rng.random_range(1..9)));
                }
                let (a, b) = (l.append(chunk.clone()).await, r.append(chunk.clone()).await);
                assert_eq!(a.is_ok(), b.is_ok(), "{at}: {a:?} {b:?}");
                if a.is_ok() && !chunk.last && chunk.meta == made.meta {
                    unfinished[which] = Some((made, number + 1));
                }
            }
            70..76 => {
                unfinished[which] = None;
                l.abandon(known.id).await.unwrap();
                r.abandon(known.id).await.unwrap();
            }
            76..82 => {
                let lane = &lanes[rng.random_range(0..2)];
                let to = Txid::new(rng.random_range(0..40));
                for buffer in [&l, &r] {
                    match to {
                        Some(to) => buffer.set_cursor(lane, known.id, to).unwrap(),
                        None => buffer.clear_cursor(lane, known.id).unwrap(),
                    }
                }
            }
            82..84 => {
                let checksum = Checksum::new(1 << 63 | rng.random::<u64>()).unwrap();
                let beyond = known.position.map_or(0, |p| p.txid.get()) + rng.random_range(0..4);
                let to = Pos { txid: txid(beyond.max(1)), checksum };
                let (a, b) = (l.adopt(known.id, to, 7).await, r.adopt(known.id, to, 7).await);
                assert_eq!(a.is_ok(), b.is_ok(), "{at}: {a:?} {b:?}");
            }
            84..88 => {
                let path = format!("/path/{}", rng.random_range(0..3));
                let registered = l.register(&key(name), None, &path).await.unwrap();
                assert_eq!(r.register(&key(name), None, &path).await.unwrap(), registered, "{at}");
            }
            88 => {
                left.squash(known.id).await;
                right.squash(known.id).await;
                assert_eq!(l.given_up(known.id), r.given_up(known.id), "{at}");
            }
            89 => {
                unfinished.fill(None);
                left.reopen().await;
                right.reopen().await;
            }
            _ => look_alike(&*l, &*r, &lanes, &mut rng, &at),
        }
    }
    look_alike(&*left.buffer(), &*right.buffer(), &lanes, &mut rng, "the end");
}

fn look_alike(l: &dyn WalBuffer, r: &dyn WalBuffer, lanes: &[DestinationName], rng: &mut StdRng, at: &str) {
    assert_eq!(l.databases(), r.databases(), "{at}");
    for database in l.databases() {
        let id = database.id;
        for lane in lanes {
            assert_eq!(l.cursor(lane, id), r.cursor(lane, id), "{at}");
        }
        let after = Txid::new(rng.random_range(0..30));
        let max_bytes = rng.random_range(0..20_000);
        match (l.read(id, after, max_bytes), r.read(id, after, max_bytes)) {
            (Ok(left), Ok(right)) => assert_same(l, r, id, &left, &right, at),
            (Err(BufferError::Trimmed { txid: a, .. }), Err(BufferError::Trimmed { txid: b, .. })) => {
                assert_eq!(a, b, "{at}");
            }
            (left, right) => panic!("{at}: {left:?} {right:?}"),
        }
        let max = rng.random_range(0..10);
        let (left, right) = (l.list(id, after, max).unwrap(), r.list(id, after, max).unwrap());
        assert_same(l, r, id, &left, &right, at);
    }
}

fn assert_same(
    l: &dyn WalBuffer,
    r: &dyn WalBuffer,
    id: DatabaseId,
    left: &[SegmentRef],
    right: &[SegmentRef],
    at: &str,
) {
    assert_eq!(left.len(), right.len(), "{at}");
    for (left, right) in left.iter().zip(right) {
        assert_eq!((left.meta, left.bytes), (right.meta, right.bytes), "{at}");
        assert_eq!(bytes_of(l, id, left), bytes_of(r, id, right), "{at}");
    }
}
