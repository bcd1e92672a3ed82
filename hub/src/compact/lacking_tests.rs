//! What destinations lack: files that wait for a hub that is killed, files to which nothing leads, segments that the buffer has
//! given back.

use super::*;

/// Whatever a destination lists is a restore point there, and restores to what was committed.
async fn assert_all_restore(bench: &Bench, lane: usize) {
    let all: Vec<u8> = (0..10).collect();
    let files = bench.destinations[lane].list_all(&key(), &CancellationToken::new()).await.unwrap();
    for file in files {
        let txid = file.range.max().get();
        let bytes = bench.restores(lane, &all, txid).await;
        let bytes =
            bytes.unwrap_or_else(|| panic!("nothing leads to {} on level {}", file.range, file.level));
        assert!(bytes == bench.points[txid as usize - 1].2, "{txid} on level {}", file.level);
    }
}

/// The second destination is away for two windows, and the hub is killed in between: the file of the first one, which waited
/// for it, is gone. Then it catches up in one step.
async fn away_for_two_windows() -> Bench {
    let mut bench = Bench::new(&[24, 24]).await;
    bench.commit(START_MS, &[0, 1]).await;
    for n in 1..15 {
        bench.commit(START_MS + n * 2_000, &[0]).await;
    }
    bench.worker.look(START_MS + 40_000);
    bench.worker.pass(START_MS + 80_000).await;
    let mut unfinished = bench.worker.unfinished();
    unfinished.wait_for(|count| *count == 1).await.unwrap();
    assert_eq!(bench.list(0, 1).await.len(), 1);
    bench.restart().await;
    for n in 15..30 {
        bench.commit(START_MS + 90_000 + n, &[0]).await;
    }
    bench.put_at_once(1, 0, 2, 30).await;
    bench
}

#[tokio::test]
async fn a_destination_that_caught_up_in_one_step_gets_no_file_to_which_nothing_leads() {
    let mut bench = away_for_two_windows().await;
    // The copy of the first file is not to be had.
    bench.board.post_health(0, |health| health.healthy = false);
    bench.worker.look(START_MS + 130_000);
    bench.pass(START_MS + 170_000).await;
    assert_eq!(bench.list(0, 1).await.len(), 2);
    assert!(bench.list(1, 1).await.is_empty(), "nothing there leads to it");
    for n in 0..10 {
        bench.commit(START_MS + 180_000 + n, &[0, 1]).await;
    }
    bench.pass(START_MS + 230_000).await;
    assert_eq!(bench.list(1, 1).await.len(), 1, "what follows is of use");
    assert_all_restore(&bench, 1).await;
    let totals = bench.board.compaction().totals();
    assert!(totals.useless > 0 && totals.brought == 0, "{totals:?}");
    assert_eq!(totals.lookups, 0, "the listing after the start says it: {totals:?}");
}

#[tokio::test]
async fn a_file_that_a_destination_lacks_is_brought_there_from_another_one() {
    let mut bench = away_for_two_windows().await;
    bench.worker.look(START_MS + 130_000);
    bench.pass(START_MS + 170_000).await;
    bench.pass(START_MS + 270_000).await;
    assert_eq!(bench.list(0, 1).await.len(), 2);
    assert_eq!(bench.list(1, 1).await, bench.list(0, 1).await);
    assert_all_restore(&bench, 1).await;
    let totals = bench.board.compaction().totals();
    assert!(totals.useless == 0 && totals.brought > 0, "{totals:?}");
    assert_eq!(bench.leftovers(), 0);
}

#[tokio::test]
async fn a_file_of_the_same_history_that_is_there_already_is_as_good() {
    let mut bench = Bench::new(&[24, 24]).await;
    for n in 0..10 {
        bench.commit(START_MS + n * 1_000, &[0, 1]).await;
    }
    bench.worker.look(START_MS + 30_000);
    bench.pass(START_MS + 80_000).await;
    // The same window made another time has other bytes; a hub that starts cannot list this destination.
    let file = bench.list(1, 1).await.remove(0);
    let path = bench.path(1, 1, file.range);
    let old = std::fs::read(&path).unwrap();
    let mut other = Vec::new();
    let stamp = Stamp { timestamp_ms: START_MS + 7, node_id: 9, whole: false };
    merge(vec![Decoder::new(&old[..]).unwrap()], stamp, &mut other).unwrap();
    assert!(old != other);
    std::fs::write(&path, &other).unwrap();
    std::fs::remove_file(bench.path(0, 1, file.range)).unwrap();
    bench.faulty[1].set_down(true);
    bench.restart().await;
    bench.worker.look(START_MS + 81_000);
    bench.worker.pass(START_MS + 120_000).await;
    bench.faulty[1].set_down(false);
    let mut unfinished = bench.worker.unfinished();
    unfinished.wait_for(|count| *count == 0).await.unwrap();
    assert_eq!(bench.list(0, 1).await.len(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), other, "what is there stays");
    assert_eq!(bench.board.compaction().totals().last_error, "");
    assert_all_restore(&bench, 1).await;
}

#[tokio::test]
async fn what_the_buffer_has_given_back_is_compacted_from_files_of_level_0() {
    let mut bench = Bench::with_buffer(&[24, 24], 48 << 10).await;
    let mut now = START_MS;
    for round in 0..40_u64 {
        for _ in 0..7 {
            now += 4_300;
            bench.commit(now, &[0, 1]).await;
            let txid = Txid::new(bench.image.txid()).unwrap();
            for place in bench.board.roster().places() {
                bench.buffer.set_cursor(&place.entry.cursor, bench.id, txid).unwrap();
            }
            bench.buffer.trim(bench.board.clone()).await.unwrap();
        }
        // The buffer keeps the last few transactions only: some windows pass unseen.
        if round % 3 == 2 {
            bench.pass(now).await;
        }
        if round % 7 == 6 {
            bench.restart().await;
        }
    }
    let oldest = bench.buffer.list(bench.id, None, 1).unwrap().remove(0);
    assert!(oldest.meta.range.min().get() > 200, "the buffer was never full: {oldest:?}");
    bench.pass(now + 40_000).await;
    bench.pass(now + 80_000).await;
    for lane in [0, 1] {
        for level in [1, 2] {
            let files = bench.list(lane, level).await;
            let mut reached = 1;
            for file in &files {
                assert!(
                    file.range.min().get() <= reached + 1,
                    "a hole before {} on level {level}",
                    file.range
                );
                reached = file.range.max().get();
            }
            assert!(level == 2 || reached == bench.image.txid(), "level {level} ends at {reached}");
        }
        assert!(!bench.list(lane, 2).await.is_empty());
        assert_all_restore(&bench, lane).await;
    }
    let totals = bench.board.compaction().totals();
    assert_eq!(totals.failures, 0, "{totals:?}");
}
