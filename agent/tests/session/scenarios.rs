//! One story each: what breaks, what the agent does about it, what the hub has in the end. The file is long because it is
//! one list of stories.

use crate::hub::{Faults, History};
use crate::node::{Application, Node, eventually, reaches, status};
use std::time::Duration;
use tonic::Status;
use walhub_agent::app::{App, BuildError};
use walhub_agent::database::State;

pub(crate) const ONE: &str = "databases:\n  - path: '{dir}/app.db'\n";
const TWO: &str = "databases:\n  - path: '{dir}/app.db'\n  - path: '{dir}/other.db'\n";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn every_commit_travels_as_its_own_segment() {
    let node = Node::new(1, &format!("restore-points: transaction\n{ONE}"));
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        app.insert(100, 100);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let before = node.hub.history("app.db");
        assert_eq!(before.segments.len(), 1, "the snapshot");
        for _ in 0..20 {
            app.insert(1, 100);
        }
        node.settled(&agent, "app.db", &app).await;
        let after = node.hub.history("app.db");
        assert_eq!(after.segments.len(), 21);
        assert_eq!(after.position().unwrap().txid.get(), before.position().unwrap().txid.get() + 20);
        eventually("the last ack is booked", || {
            let s = status(&agent, "app.db");
            match (s.durable_txid == s.captured_txid, s.lag_ms, s.lag_bytes, s.last_error.is_none()) {
                (true, 0, 0, true) => Ok(()),
                _ => Err(format!("{s:?}")),
            }
        })
        .await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn an_unreachable_hub_leaves_a_new_database_alone() {
    let node = Node::new(2, ONE);
    runtime().block_on(async {
        let app = node.database("app.db");
        app.insert(10, 100);
        let agent = node.start();
        reaches(&agent, "app.db", State::WaitingForHub).await;
        let busy: i64 = app.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0, "the application checkpoints by itself");
        assert!(agent.status().hub.last_error.unwrap().contains("connection refused"));
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn no_restore_point_is_lost_while_the_hub_is_away_for_a_while() {
    let node = Node::new(3, ONE);
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        hub.stop().await;
        reaches(&agent, "app.db", State::Offline).await;
        for _ in 0..50 {
            app.insert(1, 2000);
        }
        eventually("lag is told", || {
            let s = status(&agent, "app.db");
            if s.lag_ms > 0 { Ok(()) } else { Err(format!("{s:?}")) }
        })
        .await;
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        assert_eq!(history.segments.len() as u64, history.position().unwrap().txid.get());
        assert_eq!(status(&agent, "app.db").restore_points_lost, 0);
        assert_eq!(node.hub.wrongs(), [""; 0]);
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn segments_of_many_chunks_are_sent_again_after_a_break() {
    let node = Node::new(16, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        // Stored, and the ack is lost with the stream: everything is sent again.
        node.hub.set_faults(Faults {
            drop_before_storing: 500,
            drop_before_acking: 300,
            ..Faults::default()
        });
        for _ in 0..8 {
            app.insert(100, 6000);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.hub.set_faults(Faults::default());
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn acks_that_were_lost_with_a_link_are_learned_from_the_next_one() {
    let node = Node::new(17, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        node.hub.set_faults(Faults { drop_before_acking: 1000, ..Faults::default() });
        let streams = node.hub.streams();
        app.insert(1, 100);
        eventually("the stream broke", || match node.hub.streams() {
            n if n > streams => Ok(()),
            n => Err(format!("{n} streams")),
        })
        .await;
        eventually("nothing is left to wait for", || {
            let s = status(&agent, "app.db");
            match (s.lag_bytes, s.buffered_txid == s.captured_txid, agent.status().window_bytes) {
                (0, true, 0) => Ok(()),
                _ => Err(format!("{s:?}")),
            }
        })
        .await;
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn a_refused_database_gives_its_memory_to_the_others() {
    let node = Node::new(18, TWO);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let (app, other) = (node.database("app.db"), node.database("other.db"));
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        node.settled(&agent, "other.db", &other).await;
        // Everything is sent, nothing acked: the window of one database takes all room.
        node.hub.set_faults(Faults { ack_never: 1000, ..Faults::default() });
        for _ in 0..12 {
            app.insert(100, 5000);
        }
        eventually("the window is full", || match agent.status().window_bytes {
            n if n > 4 << 20 => Ok(()),
            n => Err(format!("{n} bytes")),
        })
        .await;
        node.hub.refuse_open("app.db", true);
        node.hub.set_faults(Faults::default());
        node.hub.hang_up().await;
        reaches(&agent, "app.db", State::Refused).await;
        other.insert(100, 100);
        node.settled(&agent, "other.db", &other).await;
        node.hub.refuse_open("app.db", false);
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn a_stop_in_the_middle_of_a_large_transaction_leaves_no_half_segment() {
    let node = Node::new(19, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        app.insert(4000, 6000);
        assert!(agent.shutdown(DEADLINE).await);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn a_hub_that_forgot_gets_one_delta_and_never_a_full_resend_when_it_has_the_base() {
    let node = Node::new(5, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        app.insert(2000, 500);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        for _ in 0..10 {
            app.insert(1, 100);
        }
        node.settled(&agent, "app.db", &app).await;
        node.hub.forget("app.db", 3);
        node.hub.hang_up().await;
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        assert_eq!(history.segments.len(), 4, "one delta");
        assert_eq!(status(&agent, "app.db").restore_points_lost, 7);
        // And one that lost everything gets every page once.
        node.hub.replace("app.db", History::default());
        node.hub.hang_up().await;
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(node.hub.history("app.db").segments.len(), 1);
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn a_fork_stops_its_database_only_and_overwrites_nothing() {
    let node = Node::new(6, TWO);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let (app, other) = (node.database("app.db"), node.database("other.db"));
        app.insert(10, 100);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        node.settled(&agent, "other.db", &other).await;
        let mut foreign = node.hub.history("other.db");
        foreign.lineage = 77;
        let length = foreign.segments.len();
        node.hub.replace("app.db", foreign);
        node.hub.hang_up().await;
        let forked = reaches(&agent, "app.db", State::Forked).await;
        assert!(forked.last_error.is_some() && forked.what_to_do.unwrap().contains("hubctl restore"));
        other.insert(10, 100);
        node.settled(&agent, "other.db", &other).await;
        assert_eq!(node.hub.history("app.db").segments.len(), length);
        let busy: i64 = app.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0, "the application has its checkpoints back");
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn the_same_txid_with_another_checksum_is_a_fork() {
    let node = Node::new(7, TWO);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let (app, other) = (node.database("app.db"), node.database("other.db"));
        app.insert(10, 100);
        other.insert(10, 200);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        node.settled(&agent, "other.db", &other).await;
        let (ours, mut foreign) = (node.hub.history("app.db"), node.hub.history("other.db"));
        assert_eq!(ours.position().unwrap().txid, foreign.position().unwrap().txid);
        foreign.lineage = ours.lineage;
        node.hub.replace("app.db", foreign);
        node.hub.hang_up().await;
        reaches(&agent, "app.db", State::Forked).await;
        assert_eq!(node.hub.wrongs(), [""; 0]);
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn a_restarted_agent_goes_on_where_it_was() {
    let node = Node::new(8, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        app.insert(5, 100);
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        let segments = node.hub.history("app.db").segments.len();
        // The application writes on while no agent runs, and its WAL is not recycled.
        app.db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        for _ in 0..7 {
            app.insert(5, 100);
        }
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let after = node.hub.history("app.db").segments.len();
        assert!(after == segments + 7 || after == segments + 1, "{segments} then {after}");
        // Now it is recycled: one heal.
        assert!(agent.shutdown(DEADLINE).await);
        for _ in 0..7 {
            app.insert(5, 100);
            app.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(node.hub.history("app.db").segments.len(), after + 1);
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn lost_state_is_learned_from_the_hub_and_nothing_is_sent_twice() {
    let node = Node::new(9, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        app.insert(3000, 500);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        std::fs::remove_dir_all(node.path("state")).unwrap();
        app.db.execute_batch("UPDATE t SET body = x'00' WHERE id = 1500").unwrap();
        let segments = node.hub.history("app.db").segments.len();
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        assert_eq!(history.segments.len(), segments + 1);
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn a_replaced_file_is_healed() {
    let node = Node::new(10, &format!("poll-interval: 200ms\n{ONE}"));
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        app.insert(100, 100);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        drop(app);
        // Another database takes its place, as after a restore by hand.
        let new = node.database("new.db");
        new.insert(50, 300);
        new.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(new);
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(node.path(&format!("app.db{suffix}")));
        }
        std::fs::rename(node.path("new.db"), node.path("app.db")).unwrap();
        let app = node.database("app.db");
        app.insert(1, 10);
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}

#[test]
fn what_cannot_be_followed_says_why_and_is_picked_up_later() {
    let lines = "poll-interval: 100ms\ndatabases:\n  - path: '{dir}/app.db'\n  - path: '{dir}/later/missing.db'\n  - path: '{dir}/rollback.db'\n";
    let node = Node::new(11, lines);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let rollback = Application::open(&node.path("rollback.db"));
        rollback.db.pragma_update(None, "journal_mode", "delete").unwrap();
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let missing = reaches(&agent, "missing.db", State::Absent).await;
        assert!(missing.last_error.unwrap().contains("does not exist"));
        let wrong_mode = reaches(&agent, "rollback.db", State::Absent).await;
        assert!(wrong_mode.last_error.unwrap().contains("journal"));
        std::fs::create_dir(node.path("later")).unwrap();
        let later = Application::open(&node.path("later/missing.db"));
        later.insert(3, 100);
        rollback.db.pragma_update(None, "journal_mode", "wal").unwrap();
        rollback.insert(3, 100);
        node.settled(&agent, "missing.db", &later).await;
        node.settled(&agent, "rollback.db", &rollback).await;
        app.insert(1, 1);
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn files_that_come_and_go_in_a_folder_are_followed_and_let_go() {
    let node = Node::new(12, "databases:\n  - {dir: '{dir}/data', pattern: '*.db'}\n");
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        std::fs::create_dir(node.path("data")).unwrap();
        let first = Application::open(&node.path("data/first.db"));
        let agent = node.start();
        node.settled(&agent, "first.db", &first).await;
        let second = Application::open(&node.path("data/second.db"));
        second.insert(5, 100);
        eventually("the second is found", || match agent.status().databases.len() {
            2 => Ok(()),
            n => Err(format!("{n} databases")),
        })
        .await;
        node.settled(&agent, "second.db", &second).await;
        drop(second);
        for name in ["second.db", "second.db-wal", "second.db-shm"] {
            let _ = std::fs::remove_file(node.path("data").join(name));
        }
        eventually("the second is let go", || match agent.status().databases.len() {
            1 => Ok(()),
            n => Err(format!("{n} databases")),
        })
        .await;
        first.insert(1, 1);
        node.settled(&agent, "first.db", &first).await;
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn a_refused_node_says_so_and_goes_on_when_it_is_welcome_again() {
    let node = Node::new(13, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        node.hub.refuse_node(Some(Status::failed_precondition("an older image of this node was started")));
        let app = node.database("app.db");
        let agent = node.start();
        eventually("the refusal is told", || match agent.status().hub.last_error {
            Some(text) if text.contains("refused this node: an older image") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        node.hub.refuse_node(None);
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.status().epoch > 0);
        assert!(agent.shutdown(DEADLINE).await);
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert_eq!(agent.status().epoch, 2, "raised by the start");
        assert!(agent.shutdown(DEADLINE).await);
        assert_eq!(node.hub.streams(), 2);
    });
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let node = Node::new(14, ONE);
    runtime().block_on(async {
        let agent = node.start();
        let refused = App::build(node.config()).unwrap_err();
        assert!(matches!(refused, BuildError::State(_)), "{refused}");
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn the_last_commits_before_a_stop_are_sent() {
    let node = Node::new(15, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        for _ in 0..200 {
            app.insert(1, 100);
        }
        assert!(agent.shutdown(DEADLINE).await);
        assert_eq!(node.content_at_hub("app.db"), app.content());
    });
}
