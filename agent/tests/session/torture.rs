//! Everything at once, by seed: two applications write, the hub drops, refuses, acks late and forgets, the agent is
//! restarted; in the end hub and files are equal, and the hub never saw a segment that did not follow.

use crate::hub::Faults;
use crate::node::{Node, rng};
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LINES: &str = "poll-interval: 200ms
checkpoint-frames: 64
wal-limit: 2MiB
databases:
  - path: '{dir}/one.db'
  - path: '{dir}/two.db'
";
const NAMES: [&str; 2] = ["one.db", "two.db"];
const ROUNDS: u32 = 12;

fn torture(seed: u64) {
    let node = Node::new(seed, LINES);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = NAMES
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            let (app, stop) = (node.database(name), stop.clone());
            std::thread::spawn(move || {
                let mut rng = rng(seed, at as u64);
                while !stop.load(Ordering::Relaxed) {
                    app.churn(&mut rng);
                    std::thread::sleep(Duration::from_millis(rng.random_range(0..4)));
                }
                app
            })
        })
        .collect();
    runtime.block_on(async {
        let mut rng = rng(seed, 99);
        let mut listening = Some(node.hub.listen().await);
        let mut agent = node.start();
        for _ in 0..ROUNDS {
            let share =
                |rng: &mut rand::rngs::StdRng| if rng.random_bool(0.4) { rng.random_range(0..60) } else { 0 };
            node.hub.set_faults(Faults {
                drop_before_storing: share(&mut rng),
                drop_before_acking: share(&mut rng),
                refuse_gap: share(&mut rng),
                refuse_busy: share(&mut rng),
                refuse_corrupted: share(&mut rng),
                ack_late: share(&mut rng) * 5,
                ack_never: 0,
            });
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
            match rng.random_range(0..6) {
                0 => {
                    if let Some(listening) = listening.take() {
                        listening.stop().await;
                    }
                }
                1 => {
                    assert!(agent.shutdown(Duration::from_secs(30)).await);
                    agent = node.start();
                }
                2 => node.hub.hang_up().await,
                3 => {
                    let name = NAMES[rng.random_range(0..2)];
                    let length = node.hub.history(name).segments.len();
                    node.hub.forget(name, rng.random_range(0..=length));
                    node.hub.hang_up().await;
                }
                _ => {}
            }
            if listening.is_none() && rng.random_bool(0.6) {
                listening = Some(node.hub.listen().await);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let apps: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        node.hub.set_faults(Faults::default());
        if listening.is_none() {
            listening = Some(node.hub.listen().await);
        }
        for (name, app) in NAMES.iter().zip(&apps) {
            node.settled(&agent, name, app).await;
        }
        assert!(agent.shutdown(Duration::from_secs(30)).await);
        drop(apps);
        for name in NAMES {
            node.assert_equal_pages(name);
        }
        assert_eq!(node.hub.wrongs(), [""; 0], "seed {seed}");
        drop(listening);
    });
}

macro_rules! seeds {
    ($($name:ident: $seed:literal,)*) => {
        $(#[test]
        fn $name() {
            torture($seed);
        })*
    };
}

seeds! {
    seed_1: 1,
    seed_2: 2,
    seed_3: 3,
    seed_4: 4,
    seed_5: 5,
    seed_6: 6,
}

/// Paste a seed that failed, or walk many: `SEEDS=1000..1100 cargo nextest run -p walhub-agent --run-ignored only`.
#[test]
#[ignore = "for hunting"]
fn seeds_from_the_environment() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "100..110".into());
    let (from, to) = seeds.split_once("..").expect("SEEDS=FROM..TO");
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        eprintln!("seed {seed}");
        torture(seed);
    }
}
