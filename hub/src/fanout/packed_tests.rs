//! Packed lanes: few objects for many databases, and the same gap-free histories in them.

use super::*;
use crate::fanout::coverage;
use walhub_common::TxidRange;
use walhub_store::destinations::object::collect;
use walhub_store::destinations::{Fault, Listed, ObjectPath, PutMode};
use walhub_store::pack::PackedDestination;

/// Lanes of these destinations, of which those in `packed` keep packs.
fn packed_board(destinations: &[Arc<Faulty>], packed: &[usize]) -> Arc<Board> {
    let places = destinations.iter().enumerate().map(|(lane, destination)| {
        let plain = place(lane, destination);
        if !packed.contains(&lane) {
            return plain;
        }
        let packs = Arc::new(PackedDestination::new(destination.clone()));
        Arc::new(Place { destination: packs, ..(*plain).clone() })
    });
    Arc::new(Board::new(Roster::new(places.collect(), Rules::new(Vec::new(), Policy::default()))))
}

impl Bench {
    pub(super) fn packed(faults: &[Faults], packed: &[usize]) -> Self {
        let mut bench = Self::new(faults);
        bench.board = packed_board(&bench.destinations, packed);
        bench
    }

    async fn restart_packed(&mut self, packed: &[usize]) {
        self.stop().await;
        self.board = packed_board(&self.destinations, packed);
        self.start();
    }

    fn packs(&self, lane: usize) -> usize {
        let folder = self.dir.path().join(format!("d{lane}/walhub/packs"));
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// Files of a database, as a hub that has just started finds them.
    pub(super) async fn listed(&self, lane: usize, name: &str) -> (DynDestination, Vec<Listed>) {
        let name_of = DestinationName::new(format!("d{lane}")).unwrap();
        let config = FileConfig { path: self.dir.path().join(format!("d{lane}")) };
        let fresh = PackedDestination::new(Arc::new(FileDestination::new(name_of, &config)));
        let mut files = Vec::new();
        for level in Level::all() {
            files.extend(fresh.list(&key(name), level, &CancellationToken::new()).await.unwrap());
        }
        (Arc::new(fresh), files)
    }

    pub(super) async fn assert_pack_restores(&self, lane: usize, name: &str, image: &Image) {
        let (destination, files) = self.listed(lane, name).await;
        let out = self.dir.path().join(format!("packed-{lane}-{name}"));
        let mut applier = Applier::new(&out, true).unwrap();
        for file in coverage::chain(&files, None) {
            let key = FileKey { database: key(name), level: file.level, range: file.range };
            let stream = destination.open(&key, 0, &CancellationToken::new()).await.unwrap();
            applier.apply(&key.to_string(), &collect(stream, 1 << 30).await.unwrap()[..]).unwrap();
        }
        let report = applier.finish(Some(image.checksum())).unwrap();
        assert_eq!(report.position().txid.get(), image.txid());
        assert_eq!(std::fs::read(&out).unwrap(), image.bytes());
    }

    /// Databases `db0`, `db1`, … with one transaction each.
    async fn databases(&self, count: usize) -> Vec<(DatabaseId, Image)> {
        let mut databases = Vec::new();
        for n in 0..count {
            let (id, mut image) = (self.register(&format!("db{n}")).await, Image::new(5));
            self.append(id, &image.first()).await;
            databases.push((id, image));
        }
        databases
    }

    async fn commit_all(&self, databases: &mut [(DatabaseId, Image)], page: u32) {
        for (id, image) in databases {
            self.append(*id, &image.commit(&[page % 5 + 1])).await;
        }
    }

    async fn all_reach(&self, lane: usize, databases: &[(DatabaseId, Image)]) {
        for (id, image) in databases {
            self.reaches(lane, *id, image.txid()).await;
        }
    }
}

#[tokio::test]
async fn all_databases_leave_in_one_object_per_flush() {
    let mut bench = Bench::packed(&[Faults::default()], &[0]);
    let mut databases = bench.databases(30).await;
    bench.start();
    bench.all_reach(0, &databases).await;
    assert_eq!(bench.packs(0), 1, "what waited goes together");
    let lists = bench.destinations[0].calls(Operation::List);
    for round in 0..10 {
        bench.commit_all(&mut databases, round).await;
        bench.all_reach(0, &databases).await;
    }
    // A flush may have begun in the middle of a round.
    assert!((11..=21).contains(&bench.packs(0)), "{}", bench.packs(0));
    assert_eq!(bench.board.health(0).puts, bench.packs(0) as u64);
    assert_eq!(bench.destinations[0].calls(Operation::List), lists, "no listing in the steady state");
    assert!(!bench.folder(0, "db0").exists(), "nothing lies by itself");
    for (n, (id, image)) in databases.iter().enumerate() {
        assert_eq!(bench.row(*id).durable, Txid::new(11));
        bench.assert_pack_restores(0, &format!("db{n}"), image).await;
    }
    let calls = [Operation::Put, Operation::List, Operation::Open];
    let before = calls.map(|operation| bench.destinations[0].calls(operation));
    tokio::time::sleep(INTERVAL * 10).await;
    assert_eq!(
        calls.map(|operation| bench.destinations[0].calls(operation)),
        before,
        "an idle lane does nothing"
    );
    bench.stop().await;
}

#[tokio::test]
async fn a_lying_failing_destination_gets_gap_free_packs() {
    let bad =
        Faults { fail: 0.2, lie: 0.2, delay: 0.2, max_delay: Duration::from_millis(5), ..Faults::default() };
    let mut bench = Bench::packed(&[bad], &[0]);
    bench.start();
    let mut databases = bench.databases(8).await;
    for round in 0..20 {
        bench.commit_all(&mut databases, round).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if round % 7 == 6 {
            bench.restart_packed(&[0]).await;
        }
    }
    bench.all_reach(0, &databases).await;
    assert!(bench.destinations[0].failed() > 0);
    bench.stop().await;
    for (n, (_, image)) in databases.iter().enumerate() {
        let name = format!("db{n}");
        bench.assert_pack_restores(0, &name, image).await;
        let (_, files) = bench.listed(0, &name).await;
        let mut next = 1;
        for file in &files {
            assert_eq!(file.range.min().get(), next, "{name} has each transaction once: {files:?}");
            next = file.range.max().get() + 1;
        }
    }
}

#[tokio::test]
async fn a_hub_that_ended_between_the_put_and_its_cursors_goes_on_behind_the_pack() {
    let mut bench = Bench::packed(&[Faults::default()], &[0]);
    let mut databases = bench.databases(6).await;
    bench.start();
    bench.all_reach(0, &databases).await;
    bench.commit_all(&mut databases, 1).await;
    bench.all_reach(0, &databases).await;
    bench.stop().await;
    let lane = "d0".parse().unwrap();
    for (id, _) in &databases {
        bench.buffer.set_cursor(&lane, *id, Txid::FIRST).unwrap();
    }
    let packs = bench.packs(0);
    bench.restart_packed(&[0]).await;
    bench.all_reach(0, &databases).await;
    assert_eq!(bench.packs(0), packs, "nothing is put twice");
    bench.commit_all(&mut databases, 2).await;
    bench.all_reach(0, &databases).await;
    bench.stop().await;
    for (n, (_, image)) in databases.iter().enumerate() {
        bench.assert_pack_restores(0, &format!("db{n}"), image).await;
    }
}

#[tokio::test]
async fn a_large_first_snapshot_goes_by_itself_and_holds_up_nobody() {
    let mut bench = Bench::packed(&[Faults::default()], &[0]);
    let (id, mut image) = (bench.register("large").await, Image::new(10_000));
    bench.append(id, &image.first()).await;
    let mut databases = bench.databases(3).await;
    bench.start();
    bench.reaches(0, id, 1).await;
    bench.all_reach(0, &databases).await;
    assert_eq!(bench.files(0, "large").len(), 1);
    bench.append(id, &image.commit(&[7])).await;
    bench.commit_all(&mut databases, 1).await;
    bench.reaches(0, id, 2).await;
    bench.all_reach(0, &databases).await;
    assert_eq!(bench.files(0, "large").len(), 1, "the small rest is in a pack");
    bench.assert_pack_restores(0, "large", &image).await;
    bench.restart_packed(&[0]).await;
    bench.append(id, &image.commit(&[8])).await;
    bench.reaches(0, id, 3).await;
    bench.assert_pack_restores(0, "large", &image).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_destination_that_is_away_gets_everything_in_few_packs_afterwards() {
    let mut bench = Bench::packed(&[Faults::default(), Faults::default()], &[1]);
    bench.start();
    let mut databases = bench.databases(10).await;
    for lane in 0..2 {
        bench.all_reach(lane, &databases).await;
    }
    bench.destinations[1].set_down(true);
    let before = bench.packs(1);
    for round in 0..20 {
        bench.commit_all(&mut databases, round).await;
        bench.all_reach(0, &databases).await;
    }
    eventually("the lane to be red", || !bench.board.health(1).healthy).await;
    bench.destinations[1].set_down(false);
    bench.all_reach(1, &databases).await;
    assert!(bench.board.health(1).healthy);
    assert!(bench.packs(1) - before <= 3, "{} packs", bench.packs(1) - before);
    bench.stop().await;
    for (n, (_, image)) in databases.iter().enumerate() {
        bench.assert_pack_restores(1, &format!("db{n}"), image).await;
    }
}

#[tokio::test]
async fn past_the_buffer_packs_and_files_catch_up_from_each_other() {
    for packed in [0, 1] {
        let mut bench = Bench::packed(&[Faults::default(), Faults::default()], &[packed]);
        bench.buffer = Arc::new(MemoryBuffer::new(100_000));
        bench.destinations[1].set_down(true);
        bench.start();
        let (id, mut image) = (bench.register("app").await, Image::new(20));
        bench.append(id, &image.first()).await;
        bench.reaches(0, id, 1).await;
        // Only d0 counts for trimming, as when d1 was added to the configuration later.
        let lane: DestinationName = "d0".parse().unwrap();
        while bench.buffer.read(id, None, 1).is_ok() {
            bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
            bench.reaches(0, id, image.txid()).await;
            bench.buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await.unwrap();
        }
        bench.append(id, &image.commit(&[9])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.destinations[1].set_down(false);
        bench.reaches(1, id, image.txid()).await;
        bench.stop().await;
        for lane in 0..2 {
            bench.assert_pack_restores(lane, "app", &image).await;
            assert_eq!(bench.packs(lane) > 0, lane == packed);
            assert_eq!(bench.folder(lane, "app").exists(), lane != packed);
        }
    }
}

#[tokio::test]
async fn a_number_that_somebody_took_is_passed_by() {
    let mut bench = Bench::packed(&[Faults::default()], &[0]);
    let mut databases = bench.databases(4).await;
    bench.start();
    bench.all_reach(0, &databases).await;
    let next = ObjectPath::new(format!("walhub/packs/{:016x}.pack", bench.packs(0))).unwrap();
    let token = CancellationToken::new();
    let body = Body::Bytes("not a pack".into());
    bench.destinations[0].put_object(&next, body, PutMode::Create, &token).await.unwrap();
    bench.commit_all(&mut databases, 1).await;
    bench.all_reach(0, &databases).await;
    assert!(bench.board.health(0).healthy);
    bench.stop().await;
    for (n, (_, image)) in databases.iter().enumerate() {
        bench.assert_pack_restores(0, &format!("db{n}"), image).await;
    }
}

#[tokio::test]
async fn what_waits_when_the_place_goes_is_not_put_behind_what_went_with_it() {
    let mut bench = Bench::packed(&[Faults::default()], &[0]);
    let mut databases = bench.databases(2).await;
    bench.start();
    bench.all_reach(0, &databases).await;
    let puts = bench.destinations[0].calls(Operation::Put);
    let tell = bench.destinations[0].fail_next_put();
    for (n, (id, image)) in databases.iter_mut().enumerate() {
        bench.append(*id, &image.commit(&[2])).await;
        if n == 0 {
            let under_way = || bench.destinations[0].calls(Operation::Put) == puts + 1;
            eventually("the first one's pack to be under way", under_way).await;
        }
    }
    // Time for the second one's file to come into the tray, which nothing shows.
    tokio::time::sleep(INTERVAL * 10).await;
    // Its place is lost, and an empty one is there before anybody looks.
    let root = bench.dir.path().join("d0");
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    let next = bench.destinations[0].fail_next_put();
    tell.send(Fault::Gone("made for a test".to_owned())).unwrap();
    let again = || bench.destinations[0].calls(Operation::Put) == puts + 2;
    eventually("the next pack to be under way", again).await;
    for (id, _) in &databases {
        assert!(bench.row(*id).durable <= Some(Txid::FIRST), "nothing is there yet");
    }
    drop(next);
    bench.all_reach(0, &databases).await;
    bench.stop().await;
    for (n, (_, image)) in databases.iter().enumerate() {
        let name = format!("db{n}");
        let (_, files) = bench.listed(0, &name).await;
        let ranges: Vec<_> = files.iter().map(|file| file.range).collect();
        assert_eq!(ranges, [TxidRange::from_raw(1, 2).unwrap()], "{name}: no file without what leads to it");
        bench.assert_pack_restores(0, &name, image).await;
    }
}
