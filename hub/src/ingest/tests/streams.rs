//! Streams: greeting, opening, replacing, ending, and what is promised on them.

use super::*;

#[tokio::test]
async fn names_and_handles_are_checked() {
    let hub = Hub::new();
    let (mut client, mut image, mut other) = two_databases(&hub).await;
    for (handle, name) in [(9, "../etc"), (9, ""), (0, "x"), (9, "other")] {
        client.ask_open(handle, name, 0, None).await;
        client.refused(handle, RefusalCode::Malformed).await;
    }
    others_go_on(&hub, &mut client, &mut image, &mut other).await;
    client.say(Request::Close(CloseDatabase { handle: 2 })).await;
    assert_eq!(client.open(9, "other").await.position.unwrap().txid, other.txid());
}

#[tokio::test]
async fn another_lineage_or_another_checksum_is_a_fork_at_opening() {
    let hub = Hub::new();
    let (mut client, image, _) = two_databases(&hub).await;
    let lineage = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().lineage;
    client.ask_open(1, "app", lineage ^ 1, None).await;
    client.refused(1, RefusalCode::Fork).await;
    let position = Position { txid: 3, checksum: image.checksum().get() ^ 2 };
    client.ask_open(1, "app", lineage, Some(position)).await;
    client.refused(1, RefusalCode::Fork).await;
    client.ask_open(1, "app", lineage, Some(Position { txid: 3, checksum: image.checksum().get() })).await;
    assert!(matches!(client.next().await, Response::Opened(_)));
    client.ask_open(5, "new", 4711, None).await;
    match client.next().await {
        Response::Opened(opened) => assert_eq!(opened.lineage, 4711, "an unknown lineage is adopted"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unfinished_segment_is_given_up_with_its_stream() {
    let hub = Hub::new();
    let (client, mut image, _) = two_databases(&hub).await;
    let segment = image.commit(&[1, 2, 3]);
    let pieces = chunks(1, &segment, 300);
    for piece in &pieces[..2] {
        client.chunk(piece.clone()).await;
    }
    client.end().await.unwrap();
    assert_eq!(hub.held("a/app").1, 3);
    let mut client = hub.welcomed("a", 1).await;
    assert_eq!(client.open(1, "app").await.position.unwrap().txid, 3);
    client.send(1, &segment).await;
    client.acked(1, 4).await;
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older_one() {
    let hub = Hub::new();
    let (older, mut image, _) = two_databases(&hub).await;
    let mut newer = hub.welcomed("a", 1).await;
    assert!(matches!(older.end().await, Err(SessionError::Replaced)));
    newer.open(1, "app").await;
    newer.send(1, &image.commit(&[1])).await;
    newer.acked(1, 4).await;
}

#[tokio::test]
async fn an_older_image_is_refused_and_the_living_one_stays() {
    let hub = Hub::new();
    let mut living = hub.welcomed("a", 5).await;
    for (epoch, instance) in [(4, &b"instance"[..]), (5, b"twin")] {
        let stale = hub.connect("a");
        stale.hello(epoch, if epoch == 4 { b"instance" } else { b"twin" }).await;
        let error = stale.end().await.unwrap_err();
        assert!(matches!(error, SessionError::Stale(_)), "{error} for {instance:?}");
        assert!(error.to_string().contains("an older image of node a"), "{error}");
    }
    living.open(1, "app").await;
    living.end().await.unwrap();
    let mut stateless = hub.connect("a");
    stateless.hello(0, b"new disk").await;
    match stateless.next().await {
        Response::Welcome(Welcome { epoch, .. }) => assert_eq!(epoch, 6),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_ended() {
    let hub = Hub::new();
    let client = hub.connect("a");
    client.ask_open(1, "app", 0, None).await;
    assert!(matches!(client.end().await, Err(SessionError::BadHello(_))));
    let client = hub.connect("a");
    client.say(Request::Hello(Hello { protocol_version: 2, ..Hello::default() })).await;
    assert!(matches!(client.end().await, Err(SessionError::BadHello(_))));
    let client = hub.welcomed("a", 1).await;
    client.hello(1, b"instance").await;
    assert!(matches!(client.end().await, Err(SessionError::BadMessage(_))));
}

#[tokio::test]
async fn a_full_buffer_says_busy_and_takes_more_once_there_is_room() {
    let hub = Hub::with_buffer(MemoryBuffer::new(60_000));
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(100);
    client.send(1, &image.first()).await;
    client.acked(1, 1).await;
    let mut sent = vec![image.commit(&[1, 2, 3, 4])];
    while sent.len() < 20 {
        sent.push(image.commit(&[1, 2, 3, 4]));
    }
    for segment in &sent {
        client.send(1, segment).await;
    }
    let refused = client.refused(1, RefusalCode::Busy).await;
    let held = refused.position.unwrap().txid;
    assert_eq!(hub.held("a/app").1, held, "the refusal names the true position");
    // A destination catches up.
    let lane = "one".parse().unwrap();
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    hub.buffer.set_cursor(&lane, id, Txid::new(held).unwrap()).unwrap();
    hub.buffer.trim(EveryDatabase::by(&[lane])).await.unwrap();
    assert_eq!(client.open(1, "app").await.position.unwrap().txid, held);
    let next = sent.iter().find(|s| s.range.min().get() == held + 1).unwrap();
    client.send(1, next).await;
    client.acked(1, held + 1).await;
}

#[tokio::test]
async fn durable_is_told_when_the_policy_is_met() {
    let hub = Hub::new();
    let (mut client, _, _) = two_databases(&hub).await;
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    hub.fleet.board.post_copy(0, id, &"a/app".parse().unwrap(), Txid::new(2));
    match client.next().await {
        Response::Ack(ack) => {
            assert_eq!((ack.handle, ack.level, ack.txid), (1, i32::from(AckLevel::Durable), 2));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.open(1, "app").await.durable_txid, 2);
}

#[tokio::test]
async fn many_segments_are_acknowledged_in_order_and_merged() {
    let hub = Hub::new();
    let mut client = hub.welcomed("a", 1).await;
    client.open(1, "app").await;
    let mut image = Image::new(4);
    client.send(1, &image.first()).await;
    let segments: Vec<Segment> = (0..500).map(|n| image.commit(&[n % 4 + 1])).collect();
    let requests = client.requests.clone();
    let sender = hub.tasks.spawn(async move {
        for segment in &segments {
            for chunk in chunks(1, segment, 1 << 20) {
                let message = ReplicateRequest { message: Some(Request::Segment(chunk)) };
                requests.send(Ok(message)).await.unwrap();
            }
        }
    });
    client.acked(1, 501).await;
    sender.await.unwrap();
    assert_eq!(hub.held("a/app").0.len(), 501);
}

/// The buffer's own check is the second line: a bug here must not become a hole there.
#[tokio::test]
async fn the_buffer_refuses_what_does_not_follow() {
    let hub = Hub::new();
    let (_client, mut image, _) = two_databases(&hub).await;
    image.commit(&[1]);
    let segment = image.commit(&[2]);
    let id = hub.buffer.find(&"a/app".parse().unwrap()).unwrap().id;
    let meta = crate::buffer::SegmentMeta {
        range: segment.range,
        pre: segment.pre,
        post: segment.post,
        time_ms: 1,
        agent_time_ms: 1,
    };
    let chunk = Chunk { database: id, meta, number: 0, last: true, data: segment.ltx };
    assert!(hub.buffer.append(chunk).await.is_err());
}

#[tokio::test]
async fn orders_are_said_on_every_stream_of_an_agent_that_takes_them_and_heard_of() {
    let hub = Hub::new();
    let agent = AgentName::new("a").unwrap();
    let order = RestoreOrder { id: "job.1".into(), database: "app".into(), ..RestoreOrder::default() };
    hub.fleet.orders.post(&agent, order.clone());
    for _ in 0..2 {
        let mut client = hub.welcomed("a", 1).await;
        assert_eq!(client.next().await, Response::Order(order.clone()));
        client.end().await.unwrap();
    }
    let mut client = hub.welcomed("a", 1).await;
    assert_eq!(client.next().await, Response::Order(order.clone()));
    let update = OrderUpdate { id: "job.1".into(), bytes: 7, ..OrderUpdate::default() };
    client.say(Request::OrderUpdate(update.clone())).await;
    let heard = async {
        loop {
            if let Some((_, update)) = hub.fleet.orders.news().await.updates.pop_first() {
                return update;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap(), update);
    client.end().await.unwrap();
    let mut old = hub.connect("a");
    old.takes_orders = false;
    old.hello(1, b"instance").await;
    assert!(matches!(old.next().await, Response::Welcome(_)));
    old.open(1, "app").await;
    assert!(old.responses.try_recv().is_err(), "an agent that takes no orders was sent one");
    old.end().await.unwrap();
}
