//! Jobs against a world that does everything at the worst time: agents come, go, answer twice and lie, operators interfere,
//! the hub is killed between any two records.

use super::cost::Cost;
use super::journal::Journals;
use super::machine::{AWAY_AT_WORK_MS, AWAY_MS, Fleet, heard, next, operator, orders};
use super::model::{Job, JobId, Mode, Phase, Record, Spec, Stand, Stays, Target};
use super::owner::Action;
use crate::fleet::orders::Presence;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use walhub_common::AgentName;
use walhub_proto::v1::{OrderState, OrderUpdate, Position};

fn begun(agents: usize, waves: &[u32], parallelism: u32, max_failures: u32) -> Record {
    let spec = Spec {
        id: JobId::parse("20261123-0230-abcd").unwrap(),
        request_id: "once".into(),
        operator: "ann".into(),
        started_ms: 0,
        names: vec!["*/*".into()],
        labels: Vec::new(),
        timestamp_ms: Some(5),
        txid: None,
        mode: Mode::InPlace,
        wave_words: Vec::new(),
        waves: *waves.last().unwrap_or(&1),
        max_failures,
        parallelism,
        node_rate: 0,
        total_rate: 0,
        checks: Vec::new(),
        unplanned: Vec::new(),
    };
    let target = |n: usize| Target {
        database: format!("n{:03}/app.db", n % agents).parse().unwrap(),
        wave: waves[n % waves.len()],
        until: (7 + n as u64, (1 << 63) | n as u64),
        until_ms: 5,
        cost: Cost { bytes: n as u64, ..Cost::default() },
        stays: Stays::default(),
    };
    let mut targets: Vec<Target> = (0..waves.len()).map(target).collect();
    targets.sort_by(|a, b| (a.wave, &a.database).cmp(&(b.wave, &b.database)));
    Record::Begun { spec: Box::new(spec), targets }
}

/// Everything around a job.
struct World {
    rng: StdRng,
    first: Record,
    /// What is on disk.
    disk: Vec<Record>,
    job: Job,
    fleet: Fleet,
    /// How it really is; `fleet` is what the hub knows.
    agents: BTreeMap<AgentName, Presence>,
    now_ms: i64,
    /// What each agent has said last about an order, for repetitions.
    answers: BTreeMap<usize, OrderUpdate>,
    ends: BTreeMap<usize, Stand>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let agents = rng.random_range(1..12_usize);
        let mut wave = 1;
        let waves: Vec<u32> = (0..rng.random_range(1..25))
            .map(|_| {
                wave += u32::from(rng.random_bool(0.25));
                wave
            })
            .collect();
        let first = begun(agents, &waves, rng.random_range(1..6), rng.random_range(0..4));
        World::of(first, rng)
    }

    /// A world around this job.
    fn of(first: Record, rng: StdRng) -> World {
        let job = Job::begin(first.clone()).unwrap();
        let agents =
            job.targets.iter().map(|target| (target.database.agent.clone(), Presence::Away)).collect();
        World {
            rng,
            first,
            disk: Vec::new(),
            job,
            fleet: Fleet::default(),
            agents,
            now_ms: 0,
            answers: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// Writes, applies, and judges every record.
    fn commit(&mut self, records: Vec<Record>) {
        let here = |job: &Job, fleet: &Fleet| {
            let ordered = |(target, stand): (&Target, &Stand)| {
                matches!(stand, Stand::Ordered { .. })
                    && fleet.presence(&target.database.agent) == Presence::Here
            };
            job.targets.iter().zip(&job.stands).filter(|pair| ordered(*pair)).count()
        };
        for record in records {
            let before = here(&self.job, &self.fleet);
            match &record {
                Record::Stand { target, stand } => {
                    assert!(!self.job.stands[*target].is_end(), "an end was taken back: {record:?}");
                    if let Stand::Ordered { .. } = stand {
                        let failures = self.job.failures() - self.job.forgiven as usize;
                        assert_eq!(self.job.phase, Phase::Running);
                        assert!(failures <= self.job.spec.max_failures as usize, "past the stop rule");
                        assert!(self.job.targets[*target].wave <= self.job.wave, "before its wave");
                        assert!(before < self.job.spec.parallelism as usize, "too many at one time");
                    }
                    if stand.is_end() {
                        assert!(self.ends.insert(*target, stand.clone()).is_none());
                    }
                }
                Record::Wave(wave) => {
                    assert_eq!(*wave, self.job.wave + 1);
                    for (target, stand) in self.job.targets.iter().zip(&self.job.stands) {
                        let settled =
                            stand.is_end() || self.fleet.presence(&target.database.agent) == Presence::Away;
                        assert!(
                            target.wave > self.job.wave || settled,
                            "{target:?} is not settled: {stand:?}"
                        );
                    }
                }
                Record::Phase { .. } => assert!(!self.job.phase.is_end(), "a job ended twice: {record:?}"),
                Record::Begun { .. } => panic!("{record:?}"),
            }
            let line = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record, "{line}");
            assert!(self.job.apply(&record));
            self.disk.push(record);
        }
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let records = next(&self.job, &self.fleet, self.now_ms);
            if records.is_empty() {
                return;
            }
            self.commit(records);
        }
        panic!("the job never comes to rest");
    }

    /// `kill -9` of the hub: what is on disk is what it knows.
    fn restart(&mut self) {
        let mut job = Job::begin(self.first.clone()).unwrap();
        assert!(self.disk.iter().all(|record| job.apply(record)));
        assert_eq!((&job.stands, job.phase, job.wave), (&self.job.stands, self.job.phase, self.job.wave));
        self.job = job;
        self.fleet = Fleet { seen: BTreeMap::new(), started_ms: self.now_ms };
        for (agent, presence) in self.agents.clone() {
            // Some are back before the job is looked at, some after.
            if self.rng.random_bool(0.5) {
                self.fleet.seen.insert(agent, (presence, self.now_ms));
            }
        }
    }

    fn moves(&mut self, agent: &AgentName, presence: Presence) {
        self.agents.insert(agent.clone(), presence);
        self.fleet.seen.insert(agent.clone(), (presence, self.now_ms));
    }

    /// An agent speaks about one of its orders.
    fn speak(&mut self, target: usize, honest: bool) {
        let (txid, checksum) = self.job.targets[target].until;
        let id = self.job.order_id(target);
        let update = match self.answers.get(&target) {
            Some(ended) => ended.clone(),
            None => {
                let all = [
                    OrderState::Taken,
                    OrderState::Fetching,
                    OrderState::Applying,
                    OrderState::Done,
                    OrderState::Failed,
                    OrderState::Cancelled,
                ];
                let state = if honest { OrderState::Done } else { *all.choose(&mut self.rng).unwrap() };
                let lies = !honest && self.rng.random_bool(0.1);
                let reached = Some(Position { txid, checksum: if lies { 1 << 63 } else { checksum } });
                OrderUpdate { id, state: state.into(), reached, ..OrderUpdate::default() }
            }
        };
        let ended = update.state() as i32 >= OrderState::Done as i32;
        if ended {
            self.answers.insert(target, update.clone());
        }
        // Also about orders that are not there: of another phase, of the past.
        let was = self.job.stands[target].clone();
        let record = heard(&mut self.job, target, update.clone(), self.now_ms);
        assert_eq!(record.is_some(), ended && matches!(was, Stand::Ordered { .. }));
        if let Some(Record::Stand { stand: Stand::Done(_), .. }) = &record {
            assert_eq!(update.state(), OrderState::Done);
            assert_eq!(update.reached, Some(Position { txid, checksum }), "done without a proof");
        }
        self.commit(record.into_iter().collect());
    }

    fn anything(&mut self) {
        let target = self.rng.random_range(0..self.job.targets.len());
        let agent = self.job.targets[target].database.agent.clone();
        match self.rng.random_range(0..100) {
            0..30 => self.speak(target, false),
            30..50 => self.moves(&agent, Presence::Here),
            50..62 => self.moves(&agent, Presence::Away),
            62..64 => self.moves(&agent, Presence::Deaf),
            64..72 => self.restart(),
            72..88 => self.now_ms += self.rng.random_range(0..2 * AWAY_MS),
            88..90 => self.now_ms += AWAY_AT_WORK_MS,
            90..99 => {
                let action = if self.rng.random_bool(0.6) { Action::Resume } else { Action::Pause };
                let said = operator(&self.job, action, "ann", self.now_ms);
                self.commit(said.ok().flatten().into_iter().collect());
            }
            _ => {
                let said = operator(&self.job, Action::Cancel, "ann", self.now_ms);
                self.commit(said.ok().flatten().into_iter().collect());
            }
        }
        self.settle();
        for (target, order) in orders(&self.job) {
            assert!(matches!(self.job.stands[target], Stand::Ordered { .. }));
            assert_eq!(order.cancel, self.job.phase == Phase::Cancelling);
        }
    }

    /// Everybody comes back and does what is ordered: then the job must end.
    fn calm_down(&mut self) {
        for agent in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.moves(&agent, Presence::Here);
        }
        for _ in 0..10 * self.job.targets.len() + 10 {
            if let Ok(record) = operator(&self.job, Action::Resume, "ann", self.now_ms) {
                self.commit(record.into_iter().collect());
            }
            self.settle();
            for target in orders(&self.job).into_keys() {
                self.speak(target, true);
            }
            self.settle();
        }
    }
}

#[test]
fn whatever_happens_ends_stay_ends_waves_wait_and_the_job_comes_to_its_end() {
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.settle();
        for _ in 0..150 {
            world.anything();
        }
        world.calm_down();
        let job = &world.job;
        assert!(job.phase.is_end(), "seed {seed}: {:?} {:?}", job.phase, job.stands);
        assert!(job.stands.iter().all(Stand::is_end), "seed {seed}");
        let all_done = job.stands.iter().all(|stand| matches!(stand, Stand::Done(_)));
        assert_eq!(all_done, job.phase == Phase::Done, "seed {seed}: {:?}", job.stands);
        for (target, stand) in &world.ends {
            assert_eq!(job.stands[*target], *stand, "seed {seed}");
        }
    }
}

#[test]
fn a_failure_past_the_rule_stops_the_wave_and_resuming_forgives_it() {
    let first = begun(9, &[1, 1, 1, 2, 2, 2, 2, 2, 2], 2, 0);
    let mut world = World::of(first, StdRng::seed_from_u64(1));
    for agent in world.job.targets.iter().map(|t| t.database.agent.clone()).collect::<Vec<_>>() {
        world.moves(&agent, Presence::Here);
    }
    world.settle();
    assert_eq!(orders(&world.job).len(), 2);
    let failed = OrderUpdate {
        state: OrderState::Failed.into(),
        message: "the check \"a = 1\" does not hold".into(),
        ..OrderUpdate::default()
    };
    let record = heard(&mut world.job, 0, failed, 9).unwrap();
    world.commit(vec![record]);
    world.settle();
    assert_eq!(world.job.phase, Phase::Stopped);
    assert!(world.job.reason.contains("n000/app.db: the check"), "{}", world.job.reason);
    assert_eq!(orders(&world.job).into_keys().collect::<Vec<_>>(), [1], "what was ordered is carried out");
    world.speak(1, true);
    world.settle();
    assert!(orders(&world.job).is_empty(), "no third database of the wave, no second wave");
    let record = operator(&world.job, Action::Resume, "ann", 9).unwrap().unwrap();
    world.commit(vec![record]);
    world.calm_down();
    assert_eq!((world.job.phase, world.job.failures()), (Phase::Failed, 1));
}

#[test]
fn a_node_that_is_away_holds_up_its_wave_for_a_moment_only_and_is_ordered_when_it_comes() {
    let mut world = World::of(begun(3, &[1, 2, 2], 9, 0), StdRng::seed_from_u64(2));
    let agent = |n: usize| -> AgentName { format!("n{n:03}").parse().unwrap() };
    world.moves(&agent(1), Presence::Here);
    world.settle();
    assert!(orders(&world.job).is_empty(), "right after a start of the hub nobody is away for good");
    world.now_ms += AWAY_MS;
    world.settle();
    assert_eq!(orders(&world.job).into_keys().collect::<Vec<_>>(), [1]);
    world.restart();
    world.moves(&agent(1), Presence::Here);
    world.speak(1, true);
    world.now_ms += 365 * 24 * 3_600_000;
    world.settle();
    assert_eq!(world.job.phase, Phase::Running, "it waits for those that are away");
    world.moves(&agent(0), Presence::Here);
    world.settle();
    assert_eq!(orders(&world.job).into_keys().collect::<Vec<_>>(), [0]);
    world.calm_down();
    assert_eq!(world.job.phase, Phase::Done);
}

#[test]
fn a_bound_per_node_lets_its_databases_come_one_after_another() {
    let Record::Begun { mut spec, targets } = begun(2, &[1, 1, 1, 1], 8, 0) else { panic!() };
    (spec.node_rate, spec.total_rate) = (1000, 4000);
    let mut job = Job::begin(Record::Begun { spec, targets }).unwrap();
    let mut fleet = Fleet::default();
    for target in &job.targets {
        fleet.seen.insert(target.database.agent.clone(), (Presence::Here, 0));
    }
    next(&job, &fleet, 0).iter().for_each(|record| assert!(job.apply(record)));
    let given = orders(&job);
    assert_eq!(given.len(), 2, "one for each node");
    assert!(given.values().all(|order| order.max_bytes_per_second == 500), "an eighth of the whole");
}

#[test]
fn a_journal_that_was_cut_anywhere_gives_the_job_as_it_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(3);
    world.settle();
    for _ in 0..200 {
        world.anything();
    }
    let id = world.job.spec.id.clone();
    let journals = Journals::open(dir.path()).unwrap();
    let mut journal = journals.create(&id, &world.first).unwrap();
    let path = dir.path().join(format!("jobs/{id}.jsonl"));
    let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
    for record in &world.disk {
        journal.append(std::slice::from_ref(record)).unwrap();
        ends.push(std::fs::metadata(&path).unwrap().len());
    }
    let whole = std::fs::read(&path).unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    for _ in 0..200 {
        let cut = rng.random_range(ends[0]..=whole.len() as u64);
        std::fs::write(&path, &whole[..cut as usize]).unwrap();
        let kept = ends.iter().filter(|end| **end <= cut).count() - 1;
        let mut expected = Job::begin(world.first.clone()).unwrap();
        world.disk[..kept].iter().for_each(|record| assert!(expected.apply(record)));
        let mut loaded = Journals::open(dir.path()).unwrap().take();
        let (job, mut journal) = loaded.remove(&id).unwrap();
        assert_eq!((job.stands, job.phase, job.wave), (expected.stands, expected.phase, expected.wave));
        // And it goes on behind the cut.
        journal.append(&world.disk[kept..]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_damaged_journal_is_moved_aside_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(5);
    let journals = Journals::open(dir.path()).unwrap();
    journals.create(&world.job.spec.id, &world.first).unwrap();
    for (name, text) in [("a", "{\"wave\":2}\n"), ("b", ""), ("c", "{}\n{}\n")] {
        std::fs::write(dir.path().join(format!("jobs/{name}.jsonl")), text).unwrap();
    }
    let loaded = Journals::open(dir.path()).unwrap().take();
    assert_eq!(loaded.keys().collect::<Vec<_>>(), [&world.job.spec.id]);
    for name in ["a", "b", "c"] {
        assert!(dir.path().join(format!("jobs/{name}.damaged")).exists(), "{name}");
    }
}
