//! What the application feels: commits per second flat out, and the latencies of a writer paced at 1,000 commits/s;
//! alone, beside the agent (hub on the same cores), beside litestream.

use crate::Plan;
use crate::setup::{self, commit, database};
use crate::table::{Row, quantile};
use std::time::{Duration, Instant};
use walhub_tests::scratch::Scratch;

const PACE: u32 = 1000;

#[derive(Clone, Copy)]
enum Beside {
    Nobody,
    Ours,
    Litestream,
}

/// Commits/s flat out, then commits/s and latencies in ms at the pace.
#[derive(Clone, Copy)]
struct Felt {
    flat_out: f64,
    paced: f64,
    p50: f64,
    p99: f64,
    p999: f64,
}

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let rounds = plan.pick(5, 1);
    let mut results = [vec![], vec![], vec![]];
    // Interleaved: a slow minute of the machine hits all three.
    for _ in 0..rounds {
        for (at, beside) in [Beside::Nobody, Beside::Ours, Beside::Litestream].into_iter().enumerate() {
            results[at].push(feel(beside, plan));
        }
    }
    let median = |at: usize, value: fn(&Felt) -> f64| {
        quantile(&mut results[at].iter().map(value).collect::<Vec<_>>(), 0.5)
    };
    let [alone, ours, theirs] = [0, 1, 2].map(|at| Felt {
        flat_out: median(at, |f| f.flat_out),
        paced: median(at, |f| f.paced),
        p50: median(at, |f| f.p50),
        p99: median(at, |f| f.p99),
        p999: median(at, |f| f.p999),
    });
    vec![
        Row::new(
            format!("app commits/s flat out (alone: {:.0})", alone.flat_out),
            ours.flat_out,
            Some(theirs.flat_out),
        )
        .more_is_better()
        .goal("≥ beside litestream", |row| row.ratio().is_some_and(|r| r >= 1.0)),
        Row::new(
            format!("app paced at 1,000 commits/s: reached (alone: {:.0})", alone.paced),
            ours.paced,
            Some(theirs.paced),
        )
        .more_is_better()
        .goal("keeps its rate", |row| row.ours >= 0.99 * alone.paced),
        Row::new(
            format!("app paced at 1,000 commits/s: p50 ms (alone: {:.3})", alone.p50),
            ours.p50,
            Some(theirs.p50),
        ),
        Row::new(
            format!("app paced at 1,000 commits/s: p99 ms (alone: {:.3})", alone.p99),
            ours.p99,
            Some(theirs.p99),
        )
        .goal("≤ 3x alone", |row| row.ours <= 3.0 * alone.p99),
        Row::new(
            format!("app paced at 1,000 commits/s: p99.9 ms (alone: {:.3})", alone.p999),
            ours.p999,
            Some(theirs.p999),
        ),
    ]
}

fn feel(beside: Beside, plan: &Plan) -> Felt {
    let scratch = Scratch::new("bench-app");
    let path = scratch.join("app.db");
    let connection = database(&path, 1000);
    let databases = [("db".to_owned(), path)];
    let _company: Box<dyn std::any::Any> = match beside {
        Beside::Nobody => Box::new(()),
        Beside::Ours => Box::new(setup::ours(scratch.path(), &databases)),
        Beside::Litestream => Box::new(setup::litestream(scratch.path(), &databases)),
    };
    let seconds = plan.pick(6, 2);
    let mut waits = Vec::new();
    let began = Instant::now();
    for n in 1..=PACE * seconds {
        let start = Instant::now();
        commit(&connection);
        waits.push(start.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep((Duration::from_secs(1) * n / PACE).saturating_sub(began.elapsed()));
    }
    let paced = waits.len() as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut commits = 0;
    while began.elapsed() < Duration::from_secs(seconds.into()) {
        commit(&connection);
        commits += 1;
    }
    let flat_out = f64::from(commits) / began.elapsed().as_secs_f64();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| quantile(&mut waits, q));
    Felt { flat_out, paced, p50, p99, p999 }
}
