//! Every kind of segment, good and bad.

use super::*;

#[tokio::test]
async fn segments_are_stored_in_order_with_the_hubs_time() {
    let hub = Hub::new();
    let (client, image, _) = two_databases(&hub).await;
    assert_eq!(hub.held("a/app"), (vec![(1, 1), (2, 2), (3, 3)], 3));
    let database = hub.buffer.find(&"a/app".parse().unwrap()).unwrap();
    assert_eq!(database.position.unwrap().checksum, image.checksum());
    assert_eq!(database.path, "/data/app");
    let times: Vec<i64> =
        hub.buffer.list(database.id, None, 10).unwrap().iter().map(|s| s.meta.time_ms).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_duplicate_is_acknowledged_again_and_stored_once() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(8);
    let (first, second) = (image.first(), image.commit(&[2]));
    for segment in [&first, &second, &first, &second] {
        client.send(1, segment).await;
    }
    client.acked(1, 2).await;
    client.send(1, &first).await;
    client.acked(1, 2).await;
    assert_eq!(hub.held("a/app").0, [(1, 1), (2, 2)]);
    client.end().await.unwrap();
}

#[tokio::test]
async fn a_gap_is_refused_with_the_position_to_go_on_from() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut ahead = image.clone();
    ahead.commit(&[1]);
    client.send(1, &ahead.commit(&[2])).await;
    let refused = client.refused(1, RefusalCode::Gap).await;
    assert_eq!(refused.position, Some(Position { txid: 3, checksum: image.checksum().get() }));
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn after_a_refusal_a_handle_takes_nothing_until_it_is_opened_again() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut ahead = image.clone();
    ahead.commit(&[1]);
    client.send(1, &ahead.commit(&[2])).await;
    // In order, but too late: what follows a gap was sent before the agent could know of it.
    client.send(1, &image.clone().commit(&[5])).await;
    client.refused(1, RefusalCode::Gap).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_fork_is_refused_and_overwrites_nothing() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut fork = image.clone().commit(&[1]);
    fork.forge_pre(Checksum::new(1 << 63 | 99).unwrap());
    client.send(1, &fork).await;
    client.refused(1, RefusalCode::Fork).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
    // The same transaction with another content.
    let mut twin = Image::new(8);
    twin.first();
    for _ in 0..2 {
        twin.commit(&[7]);
    }
    let (txid, mut last) = (image.txid(), twin.commit(&[7]));
    assert_eq!(last.txid().get(), txid);
    last.forge_pre(Checksum::new(1 << 63 | 99).unwrap());
    client.send(1, &last).await;
    client.refused(1, RefusalCode::Fork).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_corrupted_segment_is_refused() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let segment = image.clone().commit(&[1, 2, 3]);
    let mut pieces = chunks(1, &segment, 300);
    let at = pieces.len() - 2;
    let mut bad = pieces[at].data.to_vec();
    bad[100] ^= 1;
    pieces[at].data = bad.into();
    for piece in pieces {
        client.chunk(piece).await;
    }
    client.refused(1, RefusalCode::Corrupted).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn an_oversized_chunk_is_refused() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let mut chunk = chunks(1, &image.clone().commit(&[1]), 1 << 20).remove(0);
    chunk.data = vec![0; MAX_CHUNK_BYTES + 1].into();
    client.chunk(chunk).await;
    client.refused(1, RefusalCode::Oversized).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_chunk_out_of_order_is_malformed() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    let segment = image.clone().commit(&[1, 2, 3]);
    let pieces = chunks(1, &segment, 300);
    client.chunk(pieces[0].clone()).await;
    client.chunk(pieces[2].clone()).await;
    client.refused(1, RefusalCode::Malformed).await;
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}

#[tokio::test]
async fn a_foreign_handle_is_malformed_and_disturbs_nobody() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    client.send(77, &image.clone().commit(&[1])).await;
    for _ in chunks(77, &image.clone().commit(&[1]), 300) {
        client.refused(77, RefusalCode::Malformed).await;
    }
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
}
