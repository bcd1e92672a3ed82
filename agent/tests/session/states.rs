//! Who comes first: the application that keeps everybody out, or the agent.

use crate::node::{Node, reaches, status};
use rusqlite::Connection;
use std::time::Duration;
use walhub_agent::database::State;

const ONE: &str = "poll-interval: 100ms\ndatabases:\n  - path: '{dir}/app.db'\n";

#[test]
fn an_application_in_exclusive_mode_is_left_alone_and_picked_up_afterwards() {
    let node = Node::new(111, ONE);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let _hub = node.hub.listen().await;
        drop(node.database("app.db"));
        let exclusive = Connection::open(node.path("app.db")).unwrap();
        exclusive.pragma_update(None, "locking_mode", "exclusive").unwrap();
        exclusive.execute_batch("INSERT INTO t(body) VALUES (randomblob(10))").unwrap();
        let agent = node.start();
        let absent = reaches(&agent, "app.db", State::Absent).await;
        assert!(absent.last_error.unwrap().contains("locking_mode=EXCLUSIVE"));
        for _ in 0..20 {
            exclusive.execute_batch("INSERT INTO t(body) VALUES (randomblob(100))").unwrap();
        }
        drop(exclusive);
        let app = node.database("app.db");
        node.settled(&agent, "app.db", &app).await;
        // Once it is followed, nobody gets it alone.
        let late = Connection::open(node.path("app.db")).unwrap();
        late.busy_timeout(Duration::from_millis(100)).unwrap();
        late.pragma_update(None, "locking_mode", "exclusive").unwrap();
        let refused = late.execute_batch("INSERT INTO t(body) VALUES (randomblob(10))").unwrap_err();
        assert!(refused.to_string().contains("locked"), "{refused}");
        drop(late);
        app.insert(1, 100);
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(status(&agent, "app.db").last_error, None);
        assert!(agent.shutdown(Duration::from_secs(20)).await);
        drop(app);
        node.assert_equal_pages("app.db");
    });
}
