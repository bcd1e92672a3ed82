//! The hub is away for long: the WAL, then the spool, then squashing.

use crate::node::{Application, Node, PATIENCE, reaches, status};
use crate::scenarios::{DEADLINE, ONE, runtime};
use std::time::{Duration, Instant};
use walhub_agent::database::State;

fn limits(spool: &str) -> String {
    format!("wal-limit: 4MiB\ncheckpoint-frames: 50\npoll-interval: 100ms\n{spool}\n{ONE}")
}

#[test]
fn a_wal_past_its_limit_costs_restore_points_and_no_data() {
    let node = Node::new(4, &limits("spool-max: 0B"));
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        hub.stop().await;
        reaches(&agent, "app.db", State::Offline).await;
        let largest = write_offline(&node, &app, 400).await;
        assert!(largest < 8 << 20, "the WAL grew to {largest}");
        assert!(status(&agent, "app.db").restore_points_lost > 0);
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

/// Writes until several WALs have been filled; the largest size of the `-wal` file. As fast as the node reads, not faster: when
/// the log is near its limit of 4 MiB, the next transaction waits until the agent lets it begin anew.
async fn write_offline(node: &Node, app: &Application, transactions: usize) -> u64 {
    const NEAR: i64 = 3 << 20;
    let mut largest = 0;
    for _ in 0..transactions {
        app.insert(10, 3000);
        largest = largest.max(node.path("app.db-wal").metadata().unwrap().len());
        let begun = Instant::now();
        loop {
            let (frames, copied) = log(app);
            if frames * 4120 <= NEAR || copied == frames {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{frames} frames lie in the log, {copied} are copied");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    largest
}

/// Frames in the log, and how many of them are in the database: when all are, the next transaction begins the log anew.
fn log(app: &Application) -> (i64, i64) {
    let sql = "PRAGMA wal_checkpoint(NOOP)";
    app.db.query_row(sql, [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap()
}

#[test]
fn a_wal_past_its_limit_is_spooled_and_no_restore_point_is_lost() {
    let node = Node::new(14, &limits("spool-max: 1GiB"));
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        // A spool that outgrows its database is squashed, so it must not be a small one.
        app.insert(6000, 3000);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let before = node.hub.history("app.db").segments.len();
        hub.stop().await;
        reaches(&agent, "app.db", State::Offline).await;
        write_offline(&node, &app, 200).await;
        let told = status(&agent, "app.db");
        assert!(told.spool_bytes > 1 << 20 && told.wal_bytes < 16 << 20, "{told:?}");
        // What lies on the disk survives a restart of the agent, and goes on.
        assert!(agent.shutdown(DEADLINE).await);
        let agent = node.start();
        reaches(&agent, "app.db", State::Offline).await;
        write_offline(&node, &app, 200).await;
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(
            node.hub.history("app.db").segments.len(),
            before + 400,
            "each transaction came by itself"
        );
        let told = status(&agent, "app.db");
        assert_eq!((told.restore_points_lost, told.spool_bytes), (0, 0));
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn a_spool_past_its_bound_is_squashed_and_the_catch_up_is_no_larger_than_the_database() {
    let node = Node::new(15, &limits("spool-max: 12MiB"));
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        app.insert(10, 3000);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        let (before, first) = (history.segments.len(), history.position().unwrap().txid.get());
        hub.stop().await;
        reaches(&agent, "app.db", State::Offline).await;
        write_offline(&node, &app, 200).await;
        // The same pages again and again: what is spooled outgrows the database.
        for _ in 0..400 {
            app.db.execute_batch("UPDATE t SET body = randomblob(3000) WHERE id <= 50").unwrap();
            let told = status(&agent, "app.db");
            assert!(told.spool_bytes <= 12 << 20, "the spool grew to {}", told.spool_bytes);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(status(&agent, "app.db").restore_points_lost > 0);
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        let sent: usize = history.segments[before..].iter().map(|s| s.bytes.len()).sum();
        let database = node.path("app.db").metadata().unwrap().len();
        let wal = 8 << 20;
        assert!((sent as u64) < database + wal, "{sent} bytes for a database of {database}");
        let (points, last) = (history.segments.len() - before, history.position().unwrap().txid.get());
        let lost = status(&agent, "app.db").restore_points_lost;
        assert_eq!(points as u64 + lost, last - first, "every loss was told, once");
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}
