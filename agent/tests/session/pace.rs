//! How fast: streams of commits, and a link with a limit.

use crate::node::Node;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

fn runtime() -> tokio::runtime::Runtime {
    // As the program has it: a task that waits for another would hang.
    tokio::runtime::Builder::new_current_thread().max_blocking_threads(8).enable_all().build().unwrap()
}

/// With a slow poll that never comes, a commit that no event tells of would stay where it is.
#[test]
fn after_a_stream_a_lone_commit_is_seen_by_its_event() {
    for points in ["transaction", "window"] {
        after_a_stream(points);
    }
}

fn after_a_stream(points: &str) {
    let lines =
        format!("restore-points: {points}\npoll-interval: 1h\ndatabases:\n  - path: '{{dir}}/app.db'\n");
    let node = Node::new(201, &lines);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(node.hub.history("app.db").segments.len(), 1, "the snapshot");
        let mut commits = 0_u64;
        for round in 0..4 {
            // Far more than what is read one by one.
            for _ in 0..150 {
                app.insert(1, 50);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            node.settled(&agent, "app.db", &app).await;
            // The stream is over when its last window brought nothing.
            tokio::time::sleep(Duration::from_millis(100 * round)).await;
            app.insert(1, 50);
            node.settled(&agent, "app.db", &app).await;
            commits += 151;
        }
        let history = node.hub.history("app.db");
        assert_eq!(history.position().unwrap().txid.get(), 1 + commits, "every commit has its number");
        let segments = history.segments.len() as u64 - 1;
        match points {
            "transaction" => assert_eq!(segments, commits, "one segment per transaction"),
            _ => assert!(segments < commits, "{segments} segments of {commits} transactions"),
        }
        assert!(agent.shutdown(DEADLINE).await);
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn an_upload_limit_holds_and_leaves_room_for_others() {
    let lines = "upload-limit: 256KiB
databases:
  - path: '{dir}/app.db'
  - path: '{dir}/other.db'
";
    let node = Node::new(202, lines);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let (app, other) = (node.database("app.db"), node.database("other.db"));
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        node.settled(&agent, "other.db", &other).await;
        let begun = Instant::now();
        // Noise: as many bytes on the wire.
        app.insert(1024, 1024);
        // Nothing tells from outside that a part of it has left.
        tokio::time::sleep(Duration::from_millis(300)).await;
        other.insert(1, 50);
        node.settled(&agent, "other.db", &other).await;
        let at_hub = begun.elapsed();
        node.settled(&agent, "app.db", &app).await;
        let took = begun.elapsed();
        // A quarter of a second's bytes may leave at once.
        assert!(took > Duration::from_millis(3500), "a MiB took {took:?}");
        assert!(at_hub < took * 3 / 4, "{at_hub:?} of {took:?}");
        assert!(agent.shutdown(DEADLINE).await);
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn stored_pages_and_high_compression_are_understood() {
    for (seed, level) in [(203, 0), (204, 12)] {
        let lines = format!("compression-level: {level}\ndatabases:\n  - path: '{{dir}}/app.db'\n");
        let node = Node::new(seed, &lines);
        runtime().block_on(async {
            let _hub = node.hub.listen().await;
            let app = node.database("app.db");
            let agent = node.start();
            node.settled(&agent, "app.db", &app).await;
            app.insert(100, 500);
            app.db.execute_batch("INSERT INTO t(body) SELECT zeroblob(4000) FROM t").unwrap();
            node.settled(&agent, "app.db", &app).await;
            let sent: usize = node.hub.history("app.db").segments.iter().map(|s| s.bytes.len()).sum();
            let pages = std::fs::metadata(node.path("app.db-wal")).unwrap().len() as usize;
            let (most, least) = if level == 0 { (2 * pages, pages * 9 / 10) } else { (pages / 2, 1) };
            assert!((least..most).contains(&sent), "level {level}: {sent} bytes of {pages}");
            assert!(agent.shutdown(DEADLINE).await);
            drop(app);
            node.assert_equal_pages("app.db");
        });
    }
}
