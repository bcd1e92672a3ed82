//! Retention deletes as much as it may, whenever it may, while files are made out of what lies there: nothing that is being read
//! goes, so that a long merge comes to its end.

use super::*;
use crate::retain::Retainer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicI64, Ordering};
use walhub_common::clock;
use walhub_store::retention;

/// Rounds without a pause, as of the time that `now_ms` shows; the files they deleted.
fn rounds(bench: &Bench, now_ms: Arc<AtomicI64>, tasks: &TaskGroup) -> Arc<AtomicI64> {
    let deleted = Arc::new(AtomicI64::new(0));
    let holds = Arc::new(Holds::open(bench.dir.path()).unwrap());
    let retainer =
        Retainer::start(bench.buffer.clone(), bench.board.clone(), holds, bench.pins.clone(), tasks.clone());
    let (count, stop) = (deleted.clone(), tasks.token().clone());
    tasks.spawn(async move {
        while !stop.is_cancelled() {
            let take = |report: crate::retain::Report| {
                count.fetch_add(report.deleted as i64, Ordering::Relaxed);
                std::future::ready(true)
            };
            retainer.now(None, None, true, now_ms.load(Ordering::Relaxed), take).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    deleted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_is_made_of_stays_until_it_is_made() {
    let (mut gone, mut made) = (0, 0);
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        // Answers come late: a merge takes long, and rounds fall into it.
        let faults = Faults { delay: 0.5, max_delay: Duration::from_millis(4), ..Faults::default() };
        let short = |entry: &mut DestinationEntry| {
            entry.retention.policy = retention::Policy {
                retention: Duration::from_secs(600),
                l0_retention: Duration::ZERO,
                ..retention::Policy::default()
            };
        };
        // The buffer holds next to nothing: what is compacted lies at destinations.
        let mut bench = Bench::with(&[1, 1], 64 << 10, faults, &short).await;
        let mut now = clock::now_ms() - DAY_MS / 4;
        let (hub_time, tasks) = (Arc::new(AtomicI64::new(now)), TaskGroup::new("retention"));
        let deleted = rounds(&bench, hub_time.clone(), &tasks);
        bench.commit(now, &[0, 1]).await;
        while (bench.image.txid() as usize) < 60 {
            for _ in 0..random.random_range(1..4) {
                now += random.random_range(1_000..20_000);
                bench.commit(now, &[0, 1]).await;
            }
            now += random.random_range(60_000..400_000);
            hub_time.store(now, Ordering::Relaxed);
            bench.pass(now).await;
            if random.random_range(0..4) == 0 {
                bench.restart().await;
            }
        }
        assert!(tasks.shutdown(Duration::from_secs(30)).await);
        let totals = bench.board.compaction().totals();
        assert_eq!((totals.failures, totals.last_error.as_str()), (0, ""), "seed {seed}: {totals:?}");
        let all: Vec<u8> = (0..10).collect();
        for lane in [0, 1] {
            let newest = bench.image.txid();
            let bytes = bench.restores(lane, &all, newest).await.unwrap();
            assert!(bytes == bench.image.bytes(), "seed {seed}");
        }
        gone += deleted.load(Ordering::Relaxed);
        made += totals.files + totals.snapshots;
    }
    assert!(gone > 100 && made > 100, "{gone} deleted, {made} made: the rounds say nothing");
}
