//! The task that owns all jobs: operators' words and agents' news come in, records go to disk, orders go to the desk.
//!
//! Invariants: one task decides; a record is synced before it is applied, and applied before its orders are posted; a disk
//! that fails holds jobs up, and what was heard meanwhile is written when it works again.

use super::copy::{self, JobCopy};
use super::journal::{Journal, Journals};
use super::machine::{self, Fleet as Seen};
use super::model::{Job, JobId, Record};
use super::plan::Planned;
use super::view;
use crate::copies::{Awaited, Wait};
use crate::fleet::Fleet;
use crate::fleet::orders::News;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, clock};
use walhub_proto::v1;

/// Ended jobs that are remembered.
const HISTORY: usize = 100;
/// Jobs that have not ended.
const MAX_ACTIVE: usize = 32;
/// What waits to be dealt with.
const COMMANDS: usize = 64;
/// How often nodes that stay away are looked at.
const BEAT: Duration = Duration::from_secs(1);

/// What an operator can do with a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Give no more orders.
    Pause,
    /// Go on.
    Resume,
    /// Give no more, and take back what can be.
    Cancel,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No such job.
    #[error("the hub knows no job {0:?}; see `hubctl jobs list`")]
    Unknown(String),
    /// No job at all.
    #[error("there was no job yet")]
    None,
    /// A database is in another job.
    #[error("{database} belongs to job {job}, which has not ended; wait for it, or cancel it")]
    Busy {
        /// Which.
        database: DatabaseKey,
        /// Its job.
        job: JobId,
    },
    /// Too many.
    #[error("{MAX_ACTIVE} jobs have not ended: wait for them, or cancel some")]
    TooMany,
    /// Nothing to do.
    #[error("none of the databases can be brought to that point: {0}")]
    Nothing(String),
    /// As the job stands.
    #[error("{0}")]
    Refused(String),
    /// The disk.
    #[error("the job cannot be recorded: {0}")]
    Io(#[from] io::Error),
    /// The hub goes down.
    #[error("the hub is shutting down")]
    Ended,
}

/// A job, and its databases that changed since the revision that was named.
#[derive(Clone, Debug)]
pub struct View {
    /// Without its databases.
    pub job: v1::Job,
    /// Those that changed.
    pub targets: Vec<v1::JobTarget>,
    /// To be named the next time.
    pub revision: u64,
}

enum Command {
    Start { planned: Box<Planned>, operator: String, reply: Reply<v1::Job> },
    Act { id: String, action: Action, operator: String, reply: Reply<v1::Job> },
    View { id: String, since: u64, reply: Reply<View> },
    List { reply: Reply<Vec<v1::Job>> },
    Copies { reply: Reply<Vec<JobCopy>> },
}

type Reply<T> = oneshot::Sender<Result<T, JobError>>;

/// Handle on the owner. Clones are the same.
#[derive(Clone)]
pub struct Jobs {
    commands: mpsc::Sender<Command>,
    revision: watch::Receiver<u64>,
}

impl Jobs {
    /// Carries on what was on disk, in a task of `group`. What it waits for is known when this returns.
    pub fn start(mut journals: Journals, fleet: Arc<Fleet>, group: &TaskGroup) -> Jobs {
        let found = journals.take();
        let (commands, asked) = mpsc::channel(COMMANDS);
        let (revision, seen) = watch::channel(1);
        let awaited = fleet.board.awaited();
        let held = |(id, (job, journal))| (id, Held::new(job, journal, 1).wait(awaited));
        let jobs = found.into_iter().map(held).collect();
        let seen_fleet = Seen { seen: BTreeMap::new(), started_ms: clock::now_ms() };
        let owner = Owner { journals: Arc::new(journals), fleet, jobs, seen: seen_fleet, revision };
        group.spawn(owner.run(asked, group.token().clone()));
        Jobs { commands, revision: seen }
    }

    /// Records a plan as a job and begins; the job that began with the same request when there is one.
    pub async fn begin(&self, planned: Planned, operator: &str) -> Result<v1::Job, JobError> {
        let (planned, operator) = (Box::new(planned), operator.to_owned());
        self.ask(|reply| Command::Start { planned, operator, reply }).await
    }

    /// Pauses, resumes or cancels a job; the newest when `id` is empty.
    pub async fn act(&self, id: &str, action: Action, operator: &str) -> Result<v1::Job, JobError> {
        let (id, operator) = (id.to_owned(), operator.to_owned());
        self.ask(|reply| Command::Act { id, action, operator, reply }).await
    }

    /// A job with its databases that changed after `since`; 0 for all. The newest job when `id` is empty.
    pub async fn view(&self, id: &str, since: u64) -> Result<View, JobError> {
        let id = id.to_owned();
        self.ask(|reply| Command::View { id, since, reply }).await
    }

    /// All jobs, newest first.
    pub async fn list(&self) -> Result<Vec<v1::Job>, JobError> {
        self.ask(|reply| Command::List { reply }).await
    }

    /// Those that have not ended, as a mirror of the hub keeps them, by id.
    pub async fn copies(&self) -> Result<Vec<JobCopy>, JobError> {
        self.ask(|reply| Command::Copies { reply }).await
    }

    /// Changes whenever a job does.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, JobError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| JobError::Ended)?;
        answer.await.unwrap_or(Err(JobError::Ended))
    }
}

/// A job and what goes with it.
struct Held {
    job: Job,
    /// Away while it is written.
    journal: Option<Journal>,
    /// Decided, and not on disk yet.
    due: Vec<Record>,
    /// When each database changed last.
    changed: Vec<u64>,
    /// What lies at the desk: whether it was taken back.
    posted: BTreeMap<usize, bool>,
    /// What leads to the points of databases that are not at their end stays.
    waits: BTreeMap<usize, Wait>,
    /// The disk failed, and that was said.
    failing: bool,
}

impl Held {
    fn new(job: Job, journal: Journal, revision: u64) -> Held {
        let changed = vec![revision; job.targets.len()];
        Held {
            job,
            journal: Some(journal),
            due: Vec::new(),
            changed,
            posted: BTreeMap::new(),
            waits: BTreeMap::new(),
            failing: false,
        }
    }

    /// Waits for every point that is still to be restored.
    fn wait(mut self, awaited: &Awaited) -> Held {
        if self.job.phase.is_end() {
            return self;
        }
        let by: Arc<str> = format!("job {}", self.job.spec.id).into();
        for (at, (target, stand)) in self.job.targets.iter().zip(&self.job.stands).enumerate() {
            if !stand.is_end() {
                self.waits.insert(at, awaited.wait(&target.database, target.need(), &by));
            }
        }
        self
    }

    /// Waits no longer for what a record ended.
    fn release(&mut self, record: &Record) {
        match record {
            Record::Stand { target, stand } if stand.is_end() => drop(self.waits.remove(target)),
            Record::Phase { phase, .. } if phase.is_end() => self.waits.clear(),
            _ => {}
        }
    }

    /// Writes what is due, then lets it count. False when the disk failed.
    async fn commit(&mut self, revision: u64) -> bool {
        if self.due.is_empty() {
            return true;
        }
        let Some(mut journal) = self.journal.take() else { return false };
        let records = std::mem::take(&mut self.due);
        let written = tokio::task::spawn_blocking(move || {
            let result = journal.append(&records);
            (journal, records, result)
        });
        let Ok((journal, records, result)) = written.await else { return false };
        self.journal = Some(journal);
        if let Err(error) = result {
            if !std::mem::replace(&mut self.failing, true) {
                tracing::error!(job = %self.job.spec.id, %error, "a job cannot be recorded; it waits for the disk");
            }
            self.due = records;
            return false;
        }
        self.failing = false;
        for record in &records {
            self.job.apply(record);
            self.release(record);
            match record {
                Record::Stand { target, .. } => self.changed[*target] = revision,
                Record::Phase { phase, reason, .. } => {
                    tracing::info!(job = %self.job.spec.id, ?phase, reason, "a job stands elsewhere");
                }
                Record::Wave(wave) => tracing::info!(job = %self.job.spec.id, wave, "the next wave begins"),
                Record::Begun { .. } => {}
            }
        }
        true
    }

    /// An end that is decided is not judged again.
    fn is_due(&self, at: usize) -> bool {
        self.due.iter().any(|record| matches!(record, Record::Stand { target, .. } if *target == at))
    }
}

struct Owner {
    journals: Arc<Journals>,
    fleet: Arc<Fleet>,
    jobs: BTreeMap<JobId, Held>,
    seen: Seen,
    revision: watch::Sender<u64>,
}

impl Owner {
    async fn run(mut self, mut asked: mpsc::Receiver<Command>, token: CancellationToken) {
        for held in self.jobs.values().filter(|held| !held.job.phase.is_end()) {
            tracing::info!(job = %held.job.spec.id, databases = held.job.targets.len(), "a job is carried on");
        }
        let desk = self.fleet.orders.clone();
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                Some(command) = asked.recv() => self.command(command).await,
                news = desk.news() => self.news(news),
                _ = beat.tick(), if self.jobs.values().any(|held| !held.job.phase.is_end()) => {}
            }
            self.advance().await;
        }
    }

    fn next_revision(&self) -> u64 {
        *self.revision.borrow() + 1
    }

    fn news(&mut self, news: News) {
        let (now_ms, revision) = (clock::now_ms(), self.next_revision());
        for agent in news.moved {
            let presence = self.fleet.orders.presence(&agent);
            self.seen.seen.insert(agent.clone(), (presence, now_ms));
            for held in self.jobs.values_mut().filter(|held| !held.job.phase.is_end()) {
                for (target, changed) in held.job.targets.iter().zip(&mut held.changed) {
                    if target.database.agent == agent {
                        *changed = revision;
                    }
                }
            }
        }
        for (id, update) in news.updates {
            let parsed = id.rsplit_once('.').and_then(|(job, at)| {
                let at: usize = at.parse().ok()?;
                Some((JobId::parse(job)?, at))
            });
            let Some((job, at)) = parsed else { continue };
            let Some(held) = self.jobs.get_mut(&job).filter(|held| at < held.changed.len()) else { continue };
            if held.is_due(at) {
                continue;
            }
            held.changed[at] = revision;
            held.due.extend(machine::heard(&mut held.job, at, update, now_ms));
        }
        self.revision.send_replace(revision);
    }

    /// Takes every step that is due, of every job, and brings the desk in line.
    async fn advance(&mut self) {
        let (now_ms, revision) = (clock::now_ms(), self.next_revision());
        let mut any = false;
        for held in self.jobs.values_mut() {
            loop {
                any |= !held.due.is_empty();
                if !held.commit(revision).await {
                    break;
                }
                held.due = machine::next(&held.job, &self.seen, now_ms);
                if held.due.is_empty() {
                    break;
                }
            }
            let wanted = machine::orders(&held.job);
            for (at, order) in &wanted {
                if held.posted.get(at) != Some(&order.cancel) {
                    held.posted.insert(*at, order.cancel);
                    self.fleet.orders.post(&held.job.targets[*at].database.agent, order.clone());
                }
            }
            let gone: Vec<usize> =
                held.posted.keys().filter(|at| !wanted.contains_key(at)).copied().collect();
            for at in gone {
                held.posted.remove(&at);
                let agent = &held.job.targets[at].database.agent;
                self.fleet.orders.withdraw(agent, &held.job.order_id(at));
            }
        }
        if any {
            self.revision.send_replace(revision);
        }
    }

    async fn command(&mut self, command: Command) {
        // Whoever does not wait for the answer any more does not get it.
        match command {
            Command::Start { planned, operator, reply } => {
                let _ = reply.send(self.start(*planned, operator).await);
            }
            Command::Act { id, action, operator, reply } => {
                let _ = reply.send(self.act(&id, action, &operator).await);
            }
            Command::View { id, since, reply } => {
                let _ = reply.send(self.view(&id, since));
            }
            Command::List { reply } => {
                let mut jobs: Vec<v1::Job> =
                    self.jobs.values().map(|held| view::job(&held.job, &self.seen)).collect();
                jobs.sort_by_key(|job| std::cmp::Reverse(job.started_ms));
                let _ = reply.send(Ok(jobs));
            }
            Command::Copies { reply } => {
                let copies = copy::copies(self.jobs.values().map(|held| &held.job));
                let _ = reply.send(copies.map_err(JobError::Io));
            }
        }
    }

    fn find(&self, id: &str) -> Result<JobId, JobError> {
        if id.is_empty() {
            let newest = self.jobs.values().max_by_key(|held| held.job.spec.started_ms);
            return newest.map(|held| held.job.spec.id.clone()).ok_or(JobError::None);
        }
        let known = JobId::parse(id).filter(|id| self.jobs.contains_key(id));
        known.ok_or_else(|| JobError::Unknown(id.chars().take(64).collect()))
    }

    fn view(&self, id: &str, since: u64) -> Result<View, JobError> {
        let held = &self.jobs[&self.find(id)?];
        let changed = (0..held.changed.len()).filter(|at| held.changed[*at] > since);
        Ok(View {
            job: view::job(&held.job, &self.seen),
            targets: changed.map(|at| view::target(&held.job, at, &self.seen)).collect(),
            revision: *self.revision.borrow(),
        })
    }

    async fn act(&mut self, id: &str, action: Action, who: &str) -> Result<v1::Job, JobError> {
        let (id, now_ms, revision) = (self.find(id)?, clock::now_ms(), self.next_revision());
        let held = self.jobs.get_mut(&id).expect("BUG: just found");
        let record = machine::operator(&held.job, action, who, now_ms).map_err(JobError::Refused)?;
        held.due.extend(record);
        if !held.commit(revision).await {
            return Err(io::Error::other("see the hub's log").into());
        }
        self.revision.send_replace(revision);
        self.advance().await;
        Ok(view::job(&self.jobs[&id].job, &self.seen))
    }

    async fn start(&mut self, planned: Planned, operator: String) -> Result<v1::Job, JobError> {
        let request_id = &planned.asked.request.request_id;
        let same = |held: &&Held| !request_id.is_empty() && held.job.spec.request_id == *request_id;
        if let Some(held) = self.jobs.values().find(same) {
            return Ok(view::job(&held.job, &self.seen));
        }
        let active = || self.jobs.values().filter(|held| !held.job.phase.is_end());
        if active().count() >= MAX_ACTIVE {
            return Err(JobError::TooMany);
        }
        if planned.targets.is_empty() {
            let first = planned.unplanned.first();
            return Err(JobError::Nothing(
                first.map(|(key, reason)| format!("{key}: {reason}")).unwrap_or_default(),
            ));
        }
        let mut taken: BTreeMap<&DatabaseKey, &JobId> = BTreeMap::new();
        for held in active() {
            taken.extend(held.job.targets.iter().map(|target| (&target.database, &held.job.spec.id)));
        }
        if let Some((database, job)) =
            planned.targets.iter().find_map(|t| taken.get(&t.database).map(|job| (&t.database, *job)))
        {
            return Err(JobError::Busy { database: database.clone(), job: job.clone() });
        }
        let mut id = JobId::new(clock::now_ms());
        while self.jobs.contains_key(&id) {
            id = JobId::new(clock::now_ms());
        }
        let (first, waits) = planned.record(id.clone(), operator);
        let (journals, record, name) = (self.journals.clone(), first.clone(), id.clone());
        let journal = tokio::task::spawn_blocking(move || journals.create(&name, &record)).await;
        let journal = journal.map_err(io::Error::other)??;
        let job = Job::begin(first).expect("BUG: the first record of a job");
        tracing::info!(
            job = %id, databases = job.targets.len(), waves = job.spec.waves, operator = job.spec.operator, "a job begins"
        );
        let held = Held::new(job, journal, self.next_revision()).wait(self.fleet.board.awaited());
        // Now the job waits itself.
        drop(waits);
        self.jobs.insert(id.clone(), held);
        self.forget().await;
        self.advance().await;
        Ok(view::job(&self.jobs[&id].job, &self.seen))
    }

    /// Keeps the history bounded.
    async fn forget(&mut self) {
        let mut ended: Vec<(i64, JobId)> = self
            .jobs
            .values()
            .filter(|held| held.job.phase.is_end())
            .map(|held| (held.job.ended_ms, held.job.spec.id.clone()))
            .collect();
        ended.sort_unstable();
        for (_, id) in ended.iter().take(ended.len().saturating_sub(HISTORY)) {
            let (journals, name) = (self.journals.clone(), id.clone());
            let removed = tokio::task::spawn_blocking(move || journals.remove(&name)).await;
            if let Err(error) = removed.map_err(io::Error::other).flatten() {
                tracing::warn!(job = %id, %error, "an old job cannot be forgotten");
            }
            self.jobs.remove(id);
        }
    }
}
