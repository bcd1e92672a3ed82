//! The local socket: what programs on the node can ask, while the application writes.

use crate::node::{Application, Node, eventually, reaches, status};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use walhub_agent::database::State;

const ONE: &str = "poll-interval: 100ms\ndatabases:\n  - path: '{dir}/app.db'\n";
const DEADLINE: Duration = Duration::from_secs(20);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap()
}

/// One connection.
struct Talk(BufReader<UnixStream>);

impl Talk {
    fn open(socket: &Path) -> Talk {
        Talk(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.say(&format!("{request}\n"));
        self.hear().expect("an answer")
    }

    /// The result of a request that is done.
    #[track_caller]
    fn done(&mut self, request: &Value) -> Value {
        let mut answer = self.ask(request);
        assert_eq!(answer["ok"], true, "{request}: {answer}");
        answer["result"].take()
    }

    /// The code of one that is not.
    #[track_caller]
    fn refused(&mut self, request: &Value) -> String {
        let answer = self.ask(request);
        assert_eq!(answer["ok"], false, "{request}: {answer}");
        assert!(
            answer["error"]["message"].is_string() && answer["error"]["what_to_do"].is_string(),
            "{answer}"
        );
        answer["error"]["code"].as_str().unwrap().to_owned()
    }
}

fn busy(app: &Application) -> bool {
    let busy: i64 = app.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    busy != 0
}

#[test]
fn a_synced_commit_is_at_the_hub_when_the_answer_comes() {
    let node = Node::new(101, ONE);
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let mut talk = Talk::open(&node.path("state/agent.sock"));
        let path = node.path("app.db");
        for round in 0..30 {
            app.insert(1, 200);
            // By name and by path, one connection for all.
            let database = if round % 2 == 0 { json!("app.db") } else { json!(path) };
            let wait = if round % 3 == 0 { "durable" } else { "buffered" };
            let synced = talk.done(&json!({"op": "sync", "database": database, "wait": wait}));
            assert_eq!((&synced["database"], &synced["level"]), (&json!("app.db"), &json!(wait)));
            assert_eq!(node.content_at_hub("app.db"), app.content(), "round {round}");
            let at_hub = node.hub.history("app.db").position().unwrap().txid.get();
            assert!(synced["txid"].as_u64().unwrap() <= at_hub);
        }
        let seen = talk.done(&json!({"op": "status"}));
        assert_eq!(seen["databases"][0]["state"], "following");
        assert_eq!(seen["databases"][0]["restore_points_lost"], 0);
        assert!(agent.shutdown(DEADLINE).await);
    });
}

#[test]
fn what_cannot_be_done_says_why_and_what_to_do() {
    let node = Node::new(102, ONE);
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let socket = node.path("state/agent.sock");
        let mut talk = Talk::open(&socket);
        let unknown = talk.ask(&json!({"op": "sync", "database": "app.d"}));
        assert_eq!(unknown["error"]["code"], "unknown-database");
        assert!(
            unknown["error"]["message"].as_str().unwrap().contains("did you mean \"app.db\""),
            "{unknown}"
        );
        for wrong in [
            json!({"op": "sink"}),
            json!({"op": "sync"}),
            json!({"op": "pause", "database": "app.db", "for_ms": 0}),
        ] {
            assert_eq!(talk.refused(&wrong), "bad-request", "{wrong}");
        }
        // A line without end closes the connection, and no other.
        let mut endless = Talk::open(&socket);
        endless.say(&"x".repeat(4096));
        assert_eq!(endless.hear().unwrap()["error"]["code"], "bad-request");
        assert_eq!(endless.hear(), None);
        // Not safe while the hub is away.
        hub.stop().await;
        reaches(&agent, "app.db", State::Offline).await;
        app.insert(1, 100);
        let late = talk.ask(&json!({"op": "sync", "database": "app.db", "timeout_ms": 200}));
        assert_eq!(late["error"]["code"], "timeout", "{late}");
        assert_eq!(talk.refused(&json!({"op": "checkpoint", "database": "app.db"})), "hub-away");
        // A sync that waits is done when the hub is back.
        let waiting = tokio::task::spawn_blocking(move || {
            talk.done(&json!({"op": "sync", "database": "app.db"}));
            talk
        });
        let _hub = node.hub.listen().await;
        let mut talk = waiting.await.unwrap();
        assert_eq!(node.content_at_hub("app.db"), app.content());
        // More connections than are answered.
        let mut many: Vec<Talk> = (0..63).map(|_| Talk::open(&socket)).collect();
        many.iter_mut().for_each(|talk| {
            talk.done(&json!({"op": "status"}));
        });
        assert_eq!(Talk::open(&socket).hear().unwrap()["error"]["code"], "too-many-connections");
        assert!(!talk.done(&json!({"op": "resume", "database": "app.db"}))["was_paused"].as_bool().unwrap());
        assert!(agent.shutdown(DEADLINE).await);
        assert_eq!(talk.0.read_line(&mut String::new()).unwrap(), 0, "connections end with the agent");
    });
}

#[test]
fn a_pause_gives_the_checkpoints_back_and_loses_nothing() {
    let node = Node::new(103, ONE);
    runtime().block_on(async {
        let hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let mut talk = Talk::open(&node.path("state/agent.sock"));
        assert!(busy(&app));
        app.insert(5, 500);
        talk.done(&json!({"op": "pause", "database": "app.db"}));
        assert!(!busy(&app), "the application checkpoints by itself");
        let paused = status(&agent, "app.db");
        assert_eq!(paused.state, State::Paused);
        assert!(paused.paused_until_ms.is_some() && paused.what_to_do.unwrap().contains("resume"));
        assert_eq!(talk.refused(&json!({"op": "sync", "database": "app.db"})), "paused");
        assert_eq!(talk.refused(&json!({"op": "checkpoint", "database": "app.db"})), "paused");
        for _ in 0..20 {
            app.insert(3, 300);
            assert!(!busy(&app));
        }
        assert!(talk.done(&json!({"op": "resume", "database": "app.db"}))["was_paused"].as_bool().unwrap());
        node.settled(&agent, "app.db", &app).await;
        assert!(busy(&app));
        // It ends by itself, also when the hub comes and goes meanwhile.
        talk.done(&json!({"op": "pause", "database": "app.db", "for_ms": 1500}));
        app.insert(3, 300);
        hub.stop().await;
        assert!(!busy(&app));
        let _hub = node.hub.listen().await;
        node.settled(&agent, "app.db", &app).await;
        assert!(busy(&app));
        assert_eq!(status(&agent, "app.db").paused_until_ms, None);
        // Paused while the hub is away, and stopped while it is paused.
        talk.done(&json!({"op": "pause", "database": "app.db"}));
        app.insert(3, 300);
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
fn checkpoints_on_request_beside_a_writer_keep_every_transaction() {
    let node = Node::new(104, &format!("restore-points: transaction\n{ONE}"));
    runtime().block_on(async {
        let _hub = node.hub.listen().await;
        let app = node.database("app.db");
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        let path = node.path("app.db");
        let writer = std::thread::spawn(move || {
            let app = Application::open(&path);
            let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
            while begun.elapsed() < Duration::from_secs(2) {
                let at = Instant::now();
                app.insert(1, 400);
                slowest = slowest.max(at.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            slowest
        });
        let mut talk = Talk::open(&node.path("state/agent.sock"));
        let mut truncated = 0;
        while !writer.is_finished() {
            for shrink in [false, true] {
                let answer = talk.ask(&json!({"op": "checkpoint", "database": "app.db", "shrink": shrink}));
                let code = answer["error"]["code"].as_str();
                assert!(answer["ok"] == true || code == Some("busy"), "{answer}");
                truncated += u32::from(answer["result"]["truncated"] == true);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let slowest = writer.join().unwrap();
        println!("{truncated} truncations, slowest commit {slowest:?}");
        assert!(truncated > 3, "{truncated}");
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        eventually("the end is an empty log", || {
            let done = talk.done(&json!({"op": "checkpoint", "database": "app.db", "shrink": true}));
            if done["truncated"] == true { Ok(()) } else { Err(done.to_string()) }
        })
        .await;
        assert_eq!(node.path("app.db-wal").metadata().unwrap().len(), 0);
        node.settled(&agent, "app.db", &app).await;
        let history = node.hub.history("app.db");
        assert_eq!(
            history.segments.len() as u64,
            history.position().unwrap().txid.get(),
            "no restore point is lost"
        );
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}
