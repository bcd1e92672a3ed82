//! Mirrors of a hub whose parts are real and whose destinations fail as asked.

use super::*;
use crate::buffer::memory::MemoryBuffer;
use crate::config::DestinationEntry;
use crate::copies::{Place, Policy, Roster, Rules};
use crate::fleet::{Epochs, LabelBook, OrderDesk, Registry};
use crate::jobs::Journals;
use std::path::Path;
use walhub_common::AgentName;
use walhub_store::destinations::error::Operation;
use walhub_store::destinations::faulty::{Faults, Faulty};
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Destination, DestinationConfig, DynDestination};

const PATIENCE: Duration = Duration::from_secs(60);

struct Hub {
    fleet: Arc<Fleet>,
    holds: Arc<Holds>,
    buffer: Arc<MemoryBuffer>,
    board: Arc<Board>,
    places: Vec<Arc<Faulty>>,
    tasks: TaskGroup,
    dir: tempfile::TempDir,
}

impl Hub {
    /// A hub with these folders as destinations, in a data folder of its own.
    async fn new(folders: &[&str]) -> Hub {
        Hub::with(tempfile::tempdir().unwrap(), folders).await
    }

    async fn with(dir: tempfile::TempDir, folders: &[&str]) -> Hub {
        let data = dir.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let mut places = Vec::new();
        let mut roster = Vec::new();
        for (lane, name) in folders.iter().enumerate() {
            let entry = DestinationEntry::folder(name, &dir.path().join(name));
            let DestinationConfig::File(config) = &entry.config else { unreachable!("a folder") };
            let folder = FileDestination::new(entry.name.clone(), config);
            let faulty = Arc::new(Faulty::new(Arc::new(folder), Faults::default(), 1));
            faulty.probe(&CancellationToken::new()).await.unwrap();
            places.push(faulty.clone());
            roster.push(Arc::new(Place { lane, entry, destination: faulty }));
        }
        let rules = Rules::new(Vec::new(), Policy::default());
        let board = Arc::new(Board::new(Roster::new(roster, rules)));
        let fleet = Arc::new(Fleet {
            epochs: Epochs::open(&data).unwrap(),
            registry: Registry::default(),
            labels: LabelBook::open(&data).unwrap(),
            orders: OrderDesk::default(),
            board: board.clone(),
        });
        let holds = Arc::new(Holds::open(&data).unwrap());
        let buffer = Arc::new(MemoryBuffer::new(1 << 20));
        Hub { fleet, holds, buffer, board, places, tasks: TaskGroup::new("test"), dir }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Begins to mirror; all destinations work.
    fn start(&self, interval: Duration) {
        for lane in 0..self.places.len() {
            self.board.post_health(lane, |health| health.healthy = true);
        }
        let sources = Sources {
            buffer: self.buffer.clone(),
            fleet: self.fleet.clone(),
            holds: self.holds.clone(),
            jobs: Jobs::start(Journals::open(&self.data()).unwrap(), self.fleet.clone(), &self.tasks),
            config: Box::new(|| Arc::from("listen: x\n")),
        };
        let ledger = Ledger::open(&self.data()).unwrap();
        Mirror::start(sources, self.board.clone(), ledger, interval, &self.tasks);
    }

    async fn agent(&self, name: &str, epoch: u64) {
        self.fleet.epochs.claim(&AgentName::new(name).unwrap(), epoch, b"i").await.unwrap();
    }

    fn requests(&self) -> u64 {
        let kinds = [Operation::Put, Operation::List, Operation::Open, Operation::Delete];
        self.places.iter().map(|place| kinds.map(|kind| place.calls(kind)).iter().sum::<u64>()).sum()
    }

    /// Waits for many intervals in which no request is sent.
    async fn quiet_for(&self, looks: u32) {
        let quiet = async {
            loop {
                let before = self.requests();
                tokio::time::sleep(Duration::from_millis(50) * looks).await;
                if self.requests() == before {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, quiet).await.expect("an idle hub sends nothing");
    }

    async fn end(self) -> tempfile::TempDir {
        assert!(self.tasks.shutdown(PATIENCE).await);
        self.dir
    }

    /// Waits until a destination has a mirror that satisfies `holds`.
    async fn mirrored(&self, place: usize, what: &str, holds: impl Fn(&HubState) -> bool) -> HubState {
        let waiting = async {
            loop {
                if let Some(state) = newest(&(self.places[place].clone() as DynDestination)).await
                    && holds(&state)
                {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"))
    }
}

async fn newest(place: &DynDestination) -> Option<HubState> {
    let cancel = CancellationToken::new();
    let listed = shelf::list(place, &cancel).await.ok()?;
    let (hub, numbers) = listed.first_key_value()?;
    Some(shelf::newest(place, hub, numbers, &cancel).await.ok()?.state)
}

fn objects(folder: &Path) -> usize {
    let Ok(hubs) = std::fs::read_dir(folder.join("walhub/hub")) else { return 0 };
    hubs.flatten().map(|hub| std::fs::read_dir(hub.path()).unwrap().count()).sum()
}

#[tokio::test]
async fn what_changes_is_mirrored_everywhere_and_the_last_few_stay() {
    let hub = Hub::new(&["near", "far"]).await;
    hub.start(Duration::from_millis(20));
    for epoch in 1..=12 {
        hub.agent("a", epoch).await;
        for place in 0..2 {
            hub.mirrored(place, "the epoch", |state| state.agents[0].epoch == epoch).await;
        }
    }
    let key = "a/app.db".parse().unwrap();
    hub.buffer.register(&key, Some(0xfeed), "/data/app.db").await.unwrap();
    let state = hub.mirrored(0, "the database", |state| !state.databases.is_empty()).await;
    assert_eq!((state.databases[0].lineage, state.config.as_str()), (0xfeed, "listen: x\n"));
    hub.mirrored(1, "the database", |state| !state.databases.is_empty()).await;
    let dir = hub.end().await;
    for folder in ["near", "far"] {
        let count = objects(&dir.path().join(folder));
        // The last removal may not have come to its turn.
        assert!((site::KEEP..=site::KEEP + 1).contains(&count), "{count} at {folder}");
    }
}

#[tokio::test]
async fn an_idle_hub_sends_nothing_also_after_a_restart() {
    let hub = Hub::new(&["near"]).await;
    hub.agent("a", 1).await;
    hub.start(Duration::from_millis(10));
    hub.mirrored(0, "the agent", |state| state.agents.len() == 1).await;
    let settled = async {
        while !hub.board.mirror().at(0).current || hub.places[0].calls(Operation::Delete) == 0 {
            hub.agent("a", 1 + hub.places[0].calls(Operation::Put)).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("it comes to rest");
    hub.quiet_for(10).await;
    let dir = hub.end().await;
    let hub = Hub::with(dir, &["near"]).await;
    hub.start(Duration::from_millis(10));
    let before = hub.requests();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.requests(), before, "a restart changes nothing");
    assert!(hub.board.mirror().at(0).current);
    hub.end().await;
}

#[tokio::test]
async fn a_hold_waits_for_no_interval() {
    let hub = Hub::new(&["near"]).await;
    hub.start(Duration::from_secs(24 * 3600));
    for (name, count) in [("a/app.db", 1), ("a/log.db", 2)] {
        hub.holds.add(&name.parse().unwrap(), "case 7").await.unwrap();
        hub.mirrored(0, "the hold", |state| state.holds.len() == count).await;
    }
    hub.holds.release(&"a/app.db".parse().unwrap()).await.unwrap();
    hub.mirrored(0, "its end", |state| state.holds.len() == 1).await;
    hub.end().await;
}

#[tokio::test]
async fn a_destination_that_is_down_holds_up_no_other_and_gets_the_newest_later() {
    let hub = Hub::new(&["near", "far"]).await;
    hub.agent("a", 1).await;
    hub.places[1].set_down(true);
    hub.start(Duration::from_millis(20));
    for epoch in 2..=4 {
        hub.agent("a", epoch).await;
        hub.mirrored(0, "the epoch", |state| state.agents[0].epoch == epoch).await;
    }
    let told = async {
        while hub.board.mirror().at(1).error.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the failure is told");
    assert!(!hub.board.mirror().at(1).current);
    hub.places[1].set_down(false);
    hub.mirrored(1, "the newest", |state| state.agents[0].epoch == 4).await;
    let current = async {
        while !hub.board.mirror().at(1).current {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, current).await.expect("it is current again");
    assert!(hub.board.mirror().at(1).error.is_empty());
    hub.end().await;
}

#[tokio::test]
async fn an_old_copy_of_the_data_folder_overwrites_nothing_and_goes_on_behind() {
    let hub = Hub::new(&["near"]).await;
    hub.agent("a", 1).await;
    hub.start(Duration::from_millis(20));
    hub.mirrored(0, "the first", |state| state.agents[0].epoch == 1).await;
    let old = std::fs::read(hub.data().join(ledger::FILE)).unwrap();
    for epoch in 2..=4 {
        hub.agent("a", epoch).await;
        hub.mirrored(0, "the epoch", |state| state.agents[0].epoch == epoch).await;
    }
    let before = hub.mirrored(0, "the last", |_| true).await;
    let dir = hub.end().await;
    std::fs::write(dir.path().join("data").join(ledger::FILE), old).unwrap();
    let hub = Hub::with(dir, &["near"]).await;
    hub.agent("a", 9).await;
    hub.start(Duration::from_millis(20));
    let after = hub.mirrored(0, "behind the others", |state| state.agents[0].epoch == 9).await;
    assert_eq!(after.id, before.id);
    assert!(after.seq > before.seq, "{} after {}", after.seq, before.seq);
    let listed =
        shelf::list(&(hub.places[0].clone() as DynDestination), &CancellationToken::new()).await.unwrap();
    let numbers = &listed[&before.id];
    assert!(numbers.contains(&before.seq), "what was there stays: {numbers:?}");
    hub.end().await;
}
