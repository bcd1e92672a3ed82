//! The owner with a real desk and a real folder: agents that come late, a hub that dies, words of operators.

use super::cost::Cost;
use super::journal::Journals;
use super::model::{JobId, Stays, Target};
use super::owner::{Action, JobError, Jobs};
use super::plan::{Asked, Planned};
use crate::copies::{Board, Policy, Roster, Rules};
use crate::fleet::orders::Chair;
use crate::fleet::{Epochs, Fleet, LabelBook, OrderDesk, Registry};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use walhub_common::AgentName;
use walhub_common::task::TaskGroup;
use walhub_proto::v1::selector::By;
use walhub_proto::v1::{
    Job, JobRequest, JobState, OrderMode, OrderState, OrderUpdate, RestoreOrder, Selector,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// One life of a hub.
pub(super) struct Life {
    fleet: Arc<Fleet>,
    pub(super) jobs: Jobs,
    group: TaskGroup,
}

impl Life {
    pub(super) fn begin(dir: &Path) -> Life {
        let roster = Roster::new(Vec::new(), Rules::new(Vec::new(), Policy::default()));
        let fleet = Arc::new(Fleet {
            epochs: Epochs::open(dir).unwrap(),
            registry: Registry::default(),
            labels: LabelBook::open(dir).unwrap(),
            orders: OrderDesk::default(),
            board: Arc::new(Board::new(roster)),
        });
        let group = TaskGroup::new("test");
        let jobs = Jobs::start(Journals::open(dir).unwrap(), fleet.clone(), &group);
        Life { fleet, jobs, group }
    }

    pub(super) fn sit(&self, agent: &str) -> Chair {
        self.fleet.orders.sit(&agent_name(agent), true)
    }

    /// Whether the points of these databases are kept, at destinations and in the buffer.
    fn awaited(&self, databases: &[&str]) -> Vec<bool> {
        let awaited = self.fleet.board.awaited();
        let kept = |name: &&str| {
            let key = name.parse().unwrap();
            let there = !awaited.of(&key).points.is_empty();
            assert_eq!(there, !awaited.buffered(&key).is_empty());
            there
        };
        databases.iter().map(kept).collect()
    }

    pub(super) async fn end(self) {
        assert!(self.group.shutdown(PATIENCE).await);
    }

    pub(super) async fn until(&self, wanted: impl Fn(&Job) -> bool) -> Job {
        let mut changes = self.jobs.revision();
        let reached = async {
            loop {
                let job = self.jobs.view("", 0).await.unwrap().job;
                if wanted(&job) {
                    return job;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the job gets there")
    }
}

fn agent_name(name: &str) -> AgentName {
    AgentName::new(name).unwrap()
}

pub(super) fn planned(request_id: &str, databases: &[&str], max_failures: u32) -> Planned {
    let request = JobRequest {
        request_id: request_id.into(),
        selectors: vec![Selector { by: Some(By::Name("*/*".into())) }],
        mode: OrderMode::InPlace.into(),
        max_failures,
        parallelism: 2,
        ..JobRequest::default()
    };
    let target = |(n, name): (usize, &&str)| Target {
        database: name.parse().unwrap(),
        wave: 1,
        until: (n as u64 + 1, 1 << 63),
        until_ms: 9,
        cost: Cost::default(),
        stays: Stays { buffered_from: Some(1), everything: false },
    };
    let targets = databases.iter().enumerate().map(target).collect();
    Planned {
        asked: Asked::new(request).unwrap(),
        targets,
        unplanned: Vec::new(),
        waves: 1,
        waits: Arc::default(),
    }
}

pub(super) async fn next(chair: &Chair) -> RestoreOrder {
    tokio::time::timeout(PATIENCE, chair.next()).await.expect("an order comes")
}

pub(super) fn say(chair: &Chair, order: &RestoreOrder, state: OrderState) {
    chair.update(OrderUpdate {
        id: order.id.clone(),
        state: state.into(),
        reached: order.until,
        message: "because".into(),
        ..OrderUpdate::default()
    });
}

#[tokio::test]
async fn a_job_goes_on_in_the_next_life_of_the_hub_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    let job = life.jobs.begin(planned("x", &["a/1", "b/1", "c/1"], 0), "ann").await.unwrap();
    let same = life.jobs.begin(planned("x", &["a/1"], 0), "ann").await.unwrap();
    assert_eq!((same.id.as_str(), same.total), (job.id.as_str(), 3), "one request is one job");
    let busy = life.jobs.begin(planned("y", &["z/1", "c/1"], 0), "ann").await.unwrap_err();
    assert!(matches!(&busy, JobError::Busy { database, .. } if database.to_string() == "c/1"), "{busy}");
    let (a, b) = (life.sit("a"), life.sit("b"));
    let (first, second) = (next(&a).await, next(&b).await);
    say(&a, &first, OrderState::Done);
    say(&b, &second, OrderState::Applying);
    life.until(|job| job.done == 1 && job.running == 1 && job.away == 1).await;
    assert_eq!(life.awaited(&["a/1", "b/1", "c/1"]), [false, true, true]);
    life.end().await;
    drop((a, b));

    let life = Life::begin(dir.path());
    assert_eq!(life.awaited(&["a/1", "b/1", "c/1"]), [false, true, true], "before anything else begins");
    let (a, b) = (life.sit("a"), life.sit("b"));
    let again = next(&b).await;
    assert_eq!(again, second, "what was ordered is ordered again, as it was");
    let c = life.sit("c");
    let third = next(&c).await;
    say(&b, &again, OrderState::Done);
    say(&c, &third, OrderState::Done);
    let ended = life.until(|job| job.state() == JobState::Done).await;
    assert_eq!((ended.id, ended.done, ended.kept), (job.id, 3, 0));
    assert_eq!(life.awaited(&["a/1", "b/1", "c/1"]), [false; 3]);
    let silent = tokio::time::timeout(Duration::from_millis(50), a.next()).await;
    assert!(silent.is_err(), "what is done is not ordered again: {silent:?}");
    life.end().await;
}

#[tokio::test]
async fn operators_stop_what_has_not_begun_and_hear_what_could_not_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    assert!(matches!(life.jobs.view("", 0).await, Err(JobError::None)));
    assert!(matches!(life.jobs.act("nope", Action::Pause, "ann").await, Err(JobError::Unknown(_))));
    let a = life.sit("a");
    life.jobs.begin(planned("", &["a/1", "a/2", "a/3", "b/1"], 5), "ann").await.unwrap();
    assert_eq!(life.awaited(&["a/1", "a/3", "b/1"]), [true; 3]);
    let (one, two) = (next(&a).await, next(&a).await);
    say(&a, &one, OrderState::Failed);
    let three = next(&a).await;
    let cancelled = life.jobs.act("", Action::Cancel, "ann").await.unwrap();
    assert_eq!(cancelled.state(), JobState::Cancelling);
    let mut back = [next(&a).await, next(&a).await];
    back.sort_by(|x, y| x.id.cmp(&y.id));
    assert!(back.iter().all(|order| order.cancel), "{back:?}");
    assert_eq!([&back[0].id, &back[1].id], [&two.id, &three.id]);
    say(&a, &two, OrderState::Cancelled);
    say(&a, &three, OrderState::Done);
    let ended = life.until(|job| job.state() == JobState::Cancelled).await;
    assert_eq!((ended.done, ended.failed), (1, 3), "{ended:?}");
    assert_eq!(life.awaited(&["a/1", "a/3", "b/1"]), [false; 3]);
    let refused = life.jobs.act("", Action::Resume, "ann").await.unwrap_err().to_string();
    assert!(refused.contains("has ended"), "{refused}");
    life.end().await;
}

#[tokio::test]
async fn only_so_many_ended_jobs_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(dir.path());
    let mut first: Option<String> = None;
    for n in 0..103 {
        let job = life.jobs.begin(planned(&format!("r{n}"), &["a/1"], 0), "ann").await.unwrap();
        first.get_or_insert_with(|| job.id.clone());
        assert!(JobId::parse(&job.id).is_some());
        life.jobs.act(&job.id, Action::Cancel, "ann").await.unwrap();
    }
    let listed = life.jobs.list().await.unwrap();
    // The last one ended after it was counted.
    assert_eq!(listed.len(), 101);
    assert!(!listed.iter().any(|job| Some(&job.id) == first.as_ref()));
    assert_eq!(std::fs::read_dir(dir.path().join("jobs")).unwrap().count(), listed.len());
    life.end().await;
}
