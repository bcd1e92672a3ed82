//! Jobs whose hub is lost come back from its mirror, and do nothing that nobody asked for.

use super::copy::{JobCopy, restore, revive};
use super::model::JobId;
use super::owner::Action;
use super::owner_tests::{Life, next, planned, say};
use bytes::Bytes;
use std::time::Duration;
use walhub_proto::v1::{Job, JobState, OrderState};

/// The hub of these copies is lost, and another one takes its place.
fn rebuilt(copies: &[JobCopy]) -> (tempfile::TempDir, Life) {
    let dir = tempfile::tempdir().unwrap();
    let revived: Vec<_> = copies.iter().map(|copy| revive(copy, 1_795_354_117_000).unwrap()).collect();
    restore(dir.path(), &revived).unwrap();
    let life = Life::begin(dir.path());
    (dir, life)
}

#[tokio::test]
async fn a_job_waits_for_a_word_and_then_nothing_is_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    let begun = life.jobs.begin(planned("x", &["a/1", "b/1", "c/1"], 0), "ann").await.unwrap();
    let (a, b) = (life.sit("a"), life.sit("b"));
    let (first, second) = (next(&a).await, next(&b).await);
    say(&a, &first, OrderState::Done);
    life.until(|job| job.done == 1 && job.running == 1).await;
    let copies = life.jobs.copies().await.unwrap();
    // The mirror was made; what comes now is lost with the hub.
    say(&b, &second, OrderState::Done);
    life.until(|job| job.done == 2).await;
    life.end().await;

    let (_dir, life) = rebuilt(&copies);
    let told = |job: &Job| {
        job.state() == JobState::Paused
            && job.reason.contains("its hub was lost")
            && job.reason.contains("2026-11-22T")
    };
    let job = life.until(told).await;
    assert_eq!((job.id.as_str(), job.done, job.total), (begun.id.as_str(), 1, 3));
    let (a, b, c) = (life.sit("a"), life.sit("b"), life.sit("c"));
    for chair in [&a, &b, &c] {
        let order = tokio::time::timeout(Duration::from_millis(200), chair.next()).await;
        assert!(order.is_err(), "nobody asked for it: {order:?}");
    }
    life.jobs.act("", Action::Resume, "ann").await.unwrap();
    // The node that is done already hears the same order, and says so.
    let again = next(&b).await;
    assert_eq!(again.id, second.id);
    say(&b, &again, OrderState::Done);
    let third = next(&c).await;
    say(&c, &third, OrderState::Done);
    let job = life.until(|job| job.state() == JobState::Done).await;
    assert_eq!(job.done, 3);
    let order = tokio::time::timeout(Duration::from_millis(200), a.next()).await;
    assert!(order.is_err(), "what was done is not done again: {order:?}");
    assert_eq!(life.jobs.copies().await.unwrap(), []);
    life.end().await;
}

#[tokio::test]
async fn a_job_that_was_being_cancelled_still_is() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    life.jobs.begin(planned("x", &["a/1", "b/1"], 0), "ann").await.unwrap();
    let a = life.sit("a");
    let order = next(&a).await;
    life.jobs.act("", Action::Cancel, "ann").await.unwrap();
    life.until(|job| job.state() == JobState::Cancelling).await;
    let copies = life.jobs.copies().await.unwrap();
    life.end().await;
    let (_dir, life) = rebuilt(&copies);
    let a = life.sit("a");
    let told = next(&a).await;
    assert!(told.id == order.id && told.cancel, "{told:?}");
    say(&a, &told, OrderState::Cancelled);
    life.until(|job| job.state() == JobState::Cancelled).await;
    life.end().await;
}

#[tokio::test]
async fn copies_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    life.jobs.begin(planned("x", &["a/1", "b/1"], 0), "ann").await.unwrap();
    let a = life.sit("a");
    say(&a, &next(&a).await, OrderState::Failed);
    life.until(|job| job.failed == 1).await;
    let [good] = &life.jobs.copies().await.unwrap()[..] else { panic!("one job") };
    life.end().await;
    let revived = revive(good, 0).unwrap();
    assert_eq!((revived.databases, revived.ended, revived.operator.as_str()), (2, 1, "ann"));
    let whole = [&good.head[..], &good.stands[..]].concat();
    let lines: Vec<usize> = (1..whole.len()).filter(|at| whole[at - 1] == b'\n').collect();
    for cut in 0..whole.len() {
        // Whole lines are a record of their own: an earlier one of the same job.
        let head = Bytes::copy_from_slice(&whole[..cut]);
        let revived = revive(&JobCopy { head, stands: Bytes::new(), ..good.clone() }, 0);
        assert_eq!(revived.is_ok(), lines.contains(&cut), "cut to {cut}: {revived:?}");
    }
    let other = JobCopy { id: JobId::parse("20261123-0230-abcd").unwrap(), ..good.clone() };
    assert!(revive(&other, 0).is_err());
    let twice = JobCopy { stands: good.head.clone(), ..good.clone() };
    assert!(revive(&twice, 0).is_err());
}
