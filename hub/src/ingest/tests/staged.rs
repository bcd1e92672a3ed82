//! First snapshots in parts: resumed, completed, refused; and segments that come where parts belong.

use super::*;
use crate::testutil::{part_chunks, seal_chunks};
use walhub_common::{Pgno, TxidRange};
use walhub_proto::v1::Staging as Parts;

fn all(pages: u32) -> Vec<u32> {
    (1..=pages).collect()
}

fn snapshot() -> TxidRange {
    TxidRange::from_raw(1, 1).unwrap()
}

impl Client {
    async fn part(&self, part: &Segment) {
        for chunk in part_chunks(1, part, 900) {
            self.chunk(chunk).await;
        }
    }

    async fn seal(&self, part: &Segment) {
        for chunk in seal_chunks(1, part, snapshot(), 900) {
            self.chunk(chunk).await;
        }
    }

    async fn staged(&mut self, number: u64) {
        loop {
            match self.next().await {
                Response::Ack(ack) if ack.level == i32::from(AckLevel::Staged) && ack.txid == number => {
                    return;
                }
                Response::Ack(_) => {}
                other => panic!("expected part {number} to be acked, got {other:?}"),
            }
        }
    }
}

fn parts(next_part: u64, pages: u32) -> Option<Parts> {
    Some(Parts { next_part, pages, page_size: 512, adopted: false })
}

#[tokio::test]
async fn a_snapshot_in_parts_over_two_links_is_one_segment() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    image.first();
    assert_eq!(client.open(1, "app").await.staging, None);
    client.part(&image.part(2, &all(12))).await;
    client.part(&image.part(3, &(13..=25).collect::<Vec<_>>())).await;
    client.staged(3).await;
    // Half a part is lost with the link.
    client.chunk(part_chunks(1, &image.part(4, &all(30)), 900).remove(0)).await;
    client.end().await.unwrap();
    assert_eq!(hub.held("a/app"), (vec![], 0), "parts are no history");

    let mut client = hub.welcomed("a", 2).await;
    assert_eq!(client.open(1, "app").await.staging, parts(4, 25));
    image.commit(&[3, 31]);
    client.part(&image.part(4, &[3, 26, 27, 28, 29, 30, 31])).await;
    client.seal(&image.part(5, &[1])).await;
    client.acked(1, 1).await;
    assert_eq!(hub.held("a/app"), (vec![(1, 1)], 1));
    let held = hub.buffer.find(&"a/app".parse().unwrap()).unwrap();
    assert_eq!(held.position.unwrap().checksum, image.checksum());
    assert!(!hub.staging.has(&held.key));
    // It goes on like any other history.
    let mut chunk = chunks(1, &image.commit(&[2]), 1 << 20).remove(0);
    chunk.range = Some(walhub_proto::v1::TxidRange { min: 2, max: 2 });
    client.chunk(chunk).await;
    client.refused(1, RefusalCode::Corrupted).await;
    assert_eq!(client.open(1, "app").await.staging, None);
    client.end().await.unwrap();
}

#[tokio::test]
async fn the_first_part_begins_anew() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let (mut image, mut other) = (Image::new(30), Image::new(20));
    image.first();
    other.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(30))).await;
    client.part(&other.part(2, &all(20))).await;
    client.seal(&other.part(3, &[1])).await;
    client.acked(1, 1).await;
    let held = hub.buffer.find(&"a/app".parse().unwrap()).unwrap();
    assert_eq!(held.position.unwrap().checksum, other.checksum());
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_damaged_part_is_refused_and_the_others_stay() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    image.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(12))).await;
    let mut chunks = part_chunks(1, &image.part(3, &all(30)), 900);
    let mut bytes = chunks[1].data.to_vec();
    bytes[400] ^= 1;
    chunks[1].data = bytes.into();
    for chunk in chunks {
        client.chunk(chunk).await;
    }
    client.refused(1, RefusalCode::Corrupted).await;
    assert_eq!(client.open(1, "app").await.staging, parts(3, 12));
    client.part(&image.part(3, &(13..=30).collect::<Vec<_>>())).await;
    client.seal(&image.part(4, &[1])).await;
    client.acked(1, 1).await;
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_with_another_checksum_is_no_history() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    image.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(30))).await;
    image.commit(&[7]);
    client.seal(&image.part(3, &[1])).await;
    client.refused(1, RefusalCode::Corrupted).await;
    assert_eq!(hub.held("a/app"), (vec![], 0));
    assert_eq!(client.open(1, "app").await.staging, None);
    client.end().await.unwrap();
}

#[tokio::test]
async fn what_does_not_belong_among_parts_is_refused() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    let first = image.first();
    let part = image.part(2, &all(30));
    let with = |change: &dyn Fn(&mut SegmentChunk)| {
        let mut chunk = part_chunks(1, &part, 1 << 20).remove(0);
        change(&mut chunk);
        chunk
    };
    for (chunk, code) in [
        (with(&|c| c.chunk = 1), RefusalCode::Malformed),
        (with(&|c| c.post_checksum = 1 << 63), RefusalCode::Malformed),
        (with(&|c| c.pre_checksum = 1 << 63), RefusalCode::Malformed),
        (with(&|c| c.range = None), RefusalCode::Malformed),
        (with(&|c| c.range.as_mut().unwrap().max += 1), RefusalCode::Malformed),
        (
            with(&|c| (c.range.as_mut().unwrap().min, c.range.as_mut().unwrap().max) = (9, 9)),
            RefusalCode::Corrupted,
        ),
        (with(&|c| c.data = vec![0; MAX_CHUNK_BYTES + 1].into()), RefusalCode::Oversized),
        (with(&|c| c.data = bytes::Bytes::new()), RefusalCode::Corrupted),
    ] {
        client.open(1, "app").await;
        client.chunk(chunk.clone()).await;
        client.refused(1, code).await;
    }
    // A whole segment in the middle of a part.
    client.open(1, "app").await;
    client.chunk(part_chunks(1, &part, 900).remove(0)).await;
    client.send(1, &first).await;
    client.refused(1, RefusalCode::Busy).await;
    // Parts of a database that has a history.
    client.open(1, "app").await;
    client.send(1, &first).await;
    client.acked(1, 1).await;
    client.part(&part).await;
    client.refused(1, RefusalCode::Busy).await;
    assert_eq!(hub.held("a/app"), (vec![(1, 1)], 1));
    assert_eq!(client.open(1, "app").await.staging, None);
    client.end().await.unwrap();
}

#[tokio::test]
async fn parts_of_a_database_that_got_its_history_in_another_way_are_dropped() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    let first = image.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(10))).await;
    client.staged(2).await;
    client.send(1, &first).await;
    client.acked(1, 1).await;
    assert_eq!(client.open(1, "app").await.staging, None);
    assert!(!hub.staging.has(&"a/app".parse().unwrap()));
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_completed_though_the_link_breaks_meanwhile() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(3000);
    image.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(3000))).await;
    client.seal(&image.part(3, &[1])).await;
    client.staged(3).await;
    client.end().await.unwrap();
    let mut epoch = 2;
    loop {
        let mut client = hub.welcomed("a", epoch).await;
        client.ask_open(1, "app", 0, None).await;
        match client.next().await {
            Response::Opened(opened) => {
                assert_eq!(opened.position.unwrap().checksum, image.checksum().get());
                break;
            }
            Response::Refused(refused) => assert_eq!(refused.code, i32::from(RefusalCode::Busy)),
            other => panic!("{other:?}"),
        }
        client.end().await.unwrap();
        epoch += 1;
    }
    assert!(hub.staging.checksums(&"a/app".parse().unwrap(), Pgno::FIRST, 1).unwrap().is_empty());
}

#[tokio::test]
async fn staging_that_is_full_is_busy() {
    let mut hub = Hub::new();
    let sealed = Arc::new(Sealed::open(hub._dir.path()).unwrap());
    hub.ingest.staging = Arc::new(Staging::open(hub._dir.path(), 10_000, sealed).unwrap());
    let mut client = hub.welcomed("a", 1).await;
    let mut image = Image::new(30);
    image.first();
    client.open(1, "app").await;
    client.part(&image.part(2, &all(30))).await;
    let refused = client.refused(1, RefusalCode::Busy).await;
    assert!(refused.message.contains("buffer.max-bytes"), "{}", refused.message);
    assert_eq!(client.open(1, "app").await.staging, None);
    client.end().await.unwrap();
}
