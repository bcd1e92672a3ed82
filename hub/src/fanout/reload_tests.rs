//! Destinations that come, go and fail in any order: nothing is told durable that no folder holds, and in the end every
//! folder holds everything. Seeded.

use super::*;
use crate::buffer::Registered;
use crate::copies::{Inbox, Selector};
use crate::fanout::Trust;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PLACES: usize = 3;
const STEPS: usize = 40;

struct Fleet {
    bench: Bench,
    random: StdRng,
    /// Places in service, each in its lane: (number of the place, lane).
    serving: Vec<(usize, usize)>,
    next_lane: usize,
    databases: Vec<(Registered, Image)>,
    inbox: Arc<Inbox>,
    told: Vec<u64>,
}

impl Fleet {
    async fn new(seed: u64) -> Self {
        let bad = Faults { fail: 0.1, lie: 0.1, ..Faults::default() };
        let mut bench = Bench::new(&[bad; PLACES]);
        bench.buffer = Arc::new(MemoryBuffer::new(200_000));
        let mut fleet = Self {
            bench,
            random: StdRng::seed_from_u64(seed),
            serving: vec![(0, 0)],
            next_lane: 1,
            databases: Vec::new(),
            inbox: Arc::default(),
            told: Vec::new(),
        };
        fleet.bench.board = Arc::new(Board::new(fleet.roster(None)));
        fleet.bench.start();
        for name in ["one", "two", "three"] {
            let database = fleet.bench.buffer.register(&key(name), None, "").await.unwrap();
            fleet.bench.board.open(database.id, &database.key, fleet.inbox.clone());
            fleet.databases.push((database, Image::new(8)));
            fleet.told.push(0);
        }
        fleet
    }

    /// `alone`: database `one` goes to this destination only.
    fn roster(&self, alone: Option<usize>) -> Roster {
        let place = |(number, lane): &(usize, usize)| place(*lane, &self.bench.destinations[*number]);
        let selector = alone.map(|number| Selector {
            patterns: vec![glob::Pattern::new("node/one").unwrap()],
            destinations: Some(vec![format!("d{number}").parse().unwrap()]),
            ..Selector::of_all(Policy::default())
        });
        let rules = Rules::new(selector.into_iter().collect(), Policy::default());
        Roster::new(self.serving.iter().map(place).collect(), rules)
    }

    async fn write(&mut self) {
        for (database, image) in &mut self.databases {
            if self.random.random_bool(0.7) {
                let page = self.random.random_range(1..=8);
                let segment = if image.txid() == 0 { image.first() } else { image.commit(&[page]) };
                append(&self.bench.buffer, database.id, &segment).await;
            }
        }
        self.bench.buffer.trim(self.bench.board.clone()).await.unwrap();
    }

    /// One reload: a destination more or less, or another selector.
    async fn change(&mut self) {
        let idle: Vec<usize> =
            (0..PLACES).filter(|number| self.serving.iter().all(|(other, _)| other != number)).collect();
        let (mut opened, mut closed) = (None, None);
        match self.random.random_range(0..3) {
            0 if !idle.is_empty() => {
                let number = idle[self.random.random_range(0..idle.len())];
                self.serving.push((number, self.next_lane));
                opened = Some(self.next_lane);
                self.next_lane += 1;
            }
            // The last one that has everything stays: without it history would be gone, and rightly so.
            1 if self.serving.len() > 1 && self.all_arrived() => {
                let at = self.random.random_range(0..self.serving.len());
                closed = Some(self.serving.remove(at).1);
            }
            _ => {}
        }
        let alone = self.random.random_bool(0.3);
        let alone = alone.then(|| self.serving[self.random.random_range(0..self.serving.len())].0);
        self.bench.board.apply(self.roster(alone));
        let fanout = self.bench.fanout.as_ref().unwrap();
        if let Some(lane) = closed {
            fanout.close(&[lane], Duration::from_secs(10)).await;
        }
        if let Some(lane) = opened {
            let place = self.bench.board.roster().place(lane).unwrap().clone();
            fanout.open(place, Trust::Listings);
        }
    }

    fn all_arrived(&self) -> bool {
        self.databases.iter().all(|(database, image)| {
            self.serving
                .iter()
                .all(|(_, lane)| image.txid() == 0 || self.bench.held(*lane, database.id) == image.txid())
        })
    }

    /// What was told durable lies in a folder, and was not told before.
    fn check(&mut self) {
        for (id, durable) in self.inbox.take() {
            let at = self.databases.iter().position(|(database, _)| database.id == id).unwrap();
            assert!(durable.get() > self.told[at], "{durable} after {}", self.told[at]);
            self.told[at] = durable.get();
            let name = self.databases[at].0.key.name.to_string();
            let newest = (0..PLACES).flat_map(|number| {
                let folder = self.bench.folder(number, &name).join("ltx/0");
                let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
                files.filter_map(|file| walhub_common::ltx::name::parse(file.file_name().to_str()?))
            });
            let newest = newest.map(|range| range.max().get()).max();
            assert!(
                newest >= Some(durable.get()),
                "{name}: told {durable}, the newest file ends at {newest:?}"
            );
        }
    }
}

#[tokio::test]
async fn nothing_is_promised_and_nothing_is_lost_whatever_is_reloaded_in_whatever_order() {
    for seed in 0..6 {
        let mut fleet = Fleet::new(seed).await;
        for _ in 0..STEPS {
            fleet.write().await;
            if fleet.random.random_bool(0.4) {
                fleet.change().await;
            }
            tokio::time::sleep(Duration::from_millis(fleet.random.random_range(0..15))).await;
            fleet.check();
        }
        // In the end every place serves everything.
        let idle: Vec<usize> =
            (0..PLACES).filter(|number| fleet.serving.iter().all(|(other, _)| other != number)).collect();
        let mut opened = Vec::new();
        for number in idle {
            fleet.serving.push((number, fleet.next_lane));
            opened.push(fleet.next_lane);
            fleet.next_lane += 1;
        }
        fleet.bench.board.apply(fleet.roster(None));
        for lane in opened {
            let place = fleet.bench.board.roster().place(lane).unwrap().clone();
            fleet.bench.fanout.as_ref().unwrap().open(place, Trust::Listings);
        }
        for (database, image) in &fleet.databases {
            for (number, lane) in &fleet.serving {
                fleet.bench.reaches(*lane, database.id, image.txid()).await;
                fleet.bench.assert_restores(*number, database.key.name.as_str(), image);
            }
        }
        fleet.check();
        fleet.bench.stop().await;
    }
}
