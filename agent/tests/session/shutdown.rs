//! A shutdown that says it is done leaves nothing: whatever the agent was in the middle of, and whoever talked to it, the
//! next agent gets the state folder at once.

use crate::hub::Listening;
use crate::node::{Application, Node, reaches, rng};
use rand::Rng;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use walhub_agent::app::{App, Running};
use walhub_agent::database::State;

const ONE: &str = "poll-interval: 100ms\ndatabases:\n  - path: '{dir}/app.db'\n";
const DEADLINE: Duration = Duration::from_secs(60);
const ROUNDS: u64 = 40;

/// What the agent is in the middle of.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Following,
    Paused,
    Offline,
    PausedOffline,
    /// Some milliseconds after its start: taking hold of the file, connecting, being welcomed for the first time.
    Beginning,
}

const MOMENTS: [Moment; 5] =
    [Moment::Following, Moment::Paused, Moment::Offline, Moment::PausedOffline, Moment::Beginning];

/// One request, one line of answer.
fn ask(socket: &Path, request: &serde_json::Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains("\"ok\":true"), "{request}: {line}");
}

/// A program on the node that asks for the status until its connection ends.
fn asks_on(socket: &Path) -> std::thread::JoinHandle<()> {
    let mut stream = UnixStream::connect(socket).unwrap();
    std::thread::spawn(move || {
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        // An error is an end as well: the agent may close while a request is on its way.
        while stream.write_all(b"{\"op\":\"status\"}\n").is_ok()
            && answers.read_line(&mut line).is_ok_and(|read| read > 0)
        {
            line.clear();
        }
    })
}

/// An agent in the middle of `moment`, and its hub if that is there.
async fn brought_to(
    moment: Moment,
    node: &Node,
    app: &Application,
    after: Duration,
) -> (Running, Option<Listening>) {
    let socket = node.path("state/agent.sock");
    if matches!(moment, Moment::Beginning) {
        // Without state the hub has an epoch to name.
        std::fs::remove_dir_all(node.path("state")).unwrap();
    }
    let hub = node.hub.listen().await;
    let agent = node.start();
    if matches!(moment, Moment::Beginning) {
        tokio::time::sleep(after).await;
        return (agent, Some(hub));
    }
    node.settled(&agent, "app.db", app).await;
    app.insert(2, 200);
    if matches!(moment, Moment::Paused | Moment::PausedOffline) {
        ask(&socket, &json!({"op": "pause", "database": "app.db"}));
    }
    if matches!(moment, Moment::Following | Moment::Paused) {
        return (agent, Some(hub));
    }
    hub.stop().await;
    if matches!(moment, Moment::Offline) {
        reaches(&agent, "app.db", State::Offline).await;
    }
    app.insert(2, 200);
    (agent, None)
}

#[test]
fn a_stopped_agent_leaves_its_state_folder_to_the_next_at_once() {
    let node = Node::new(161, ONE);
    let mut rng = rng(161, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let app = node.database("app.db");
        let socket = node.path("state/agent.sock");
        drop(App::build(node.config()).unwrap());
        for round in 0..ROUNDS {
            let moment = MOMENTS[rng.random_range(0..MOMENTS.len())];
            let after = Duration::from_micros(rng.random_range(0..40_000));
            let (agent, hub) = brought_to(moment, &node, &app, after).await;
            let silent: Vec<UnixStream> =
                (0..rng.random_range(0..20)).map(|_| UnixStream::connect(&socket).unwrap()).collect();
            let asking: Vec<_> = (0..rng.random_range(0..3)).map(|_| asks_on(&socket)).collect();
            for mut waiting in silent.iter().take(3) {
                waiting
                    .write_all(b"{\"op\":\"sync\",\"database\":\"app.db\",\"wait\":\"durable\"}\n")
                    .unwrap();
            }
            assert!(agent.shutdown(DEADLINE).await, "round {round}, {moment:?}");
            let next = App::build(node.config());
            let next = next.unwrap_or_else(|e| panic!("round {round}, {moment:?}: {e}"));
            assert!(
                UnixStream::connect(&socket).is_ok(),
                "round {round}, {moment:?}: the socket is the next one's"
            );
            drop(next);
            if let Some(hub) = hub {
                hub.stop().await;
            }
            asking.into_iter().for_each(|program| program.join().unwrap());
        }
        // Nothing was lost on the way.
        let _hub = node.hub.listen().await;
        let agent = node.start();
        node.settled(&agent, "app.db", &app).await;
        assert!(agent.shutdown(DEADLINE).await);
        drop(app);
        node.assert_equal_pages("app.db");
        assert_eq!(node.hub.wrongs(), [""; 0]);
    });
}
