//! Lanes while the roster changes under them: who is served, by whom, how often, and what a change leaves alone.

use super::*;
use crate::copies::{LaneId, Meters, Selector};
use crate::fanout::Trust;
use walhub_common::clock;
use walhub_common::ltx::{self, Stamp};
use walhub_store::destinations::limited::{Kind, Limited, Limits};

/// Selectors of the form (pattern, destinations, interval).
fn rules(selectors: &[(&str, &[&str], Option<Duration>)], policy: Policy) -> Rules {
    let selector = |(pattern, names, interval): &(&str, &[&str], Option<Duration>)| Selector {
        patterns: vec![glob::Pattern::new(pattern).unwrap()],
        destinations: Some(names.iter().map(|name| name.parse().unwrap()).collect()),
        sync_interval: *interval,
        ..Selector::of_all(Policy::default())
    };
    Rules::new(selectors.iter().map(selector).collect(), policy)
}

impl Bench {
    /// A roster of these destinations of the bench, each in the lane of its own number plus `shift`.
    fn roster(&self, numbers: &[usize], rules: Rules) -> Roster {
        Roster::new(numbers.iter().map(|n| place(*n, &self.destinations[*n])).collect(), rules)
    }

    fn open(&self, lane: LaneId, trust: Trust) {
        let place = self.board.roster().place(lane).unwrap().clone();
        self.fanout.as_ref().unwrap().open(place, trust);
    }

    async fn close(&self, lane: LaneId) {
        self.fanout.as_ref().unwrap().close(&[lane], Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn a_database_goes_only_where_its_selector_says_and_at_its_own_pace() {
    let mut bench = Bench::reliable(2);
    let slow = Duration::from_secs(3600);
    let rules = rules(&[("node/slow", &["d1"], Some(slow)), ("node/near", &["d0"], None)], Policy::default());
    bench.board = Arc::new(Board::new(bench.roster(&[0, 1], rules)));
    bench.start();
    let (near, mut near_image) = (bench.register("near").await, Image::new(6));
    let (slow, mut slow_image) = (bench.register("slow").await, Image::new(6));
    let (all, mut all_image) = (bench.register("all").await, Image::new(6));
    for (id, image) in [(near, &mut near_image), (slow, &mut slow_image), (all, &mut all_image)] {
        bench.append(id, &image.first()).await;
    }
    bench.reaches(0, near, 1).await;
    bench.reaches(1, slow, 1).await;
    for page in 1..=5 {
        for (id, image) in [(near, &mut near_image), (slow, &mut slow_image), (all, &mut all_image)] {
            bench.append(id, &image.commit(&[page])).await;
        }
        bench.reaches(0, near, near_image.txid()).await;
        bench.reaches(1, all, all_image.txid()).await;
    }
    assert_eq!(bench.held(1, slow), 1, "the first one went at once, the others wait for an hour");
    assert!(!bench.folder(0, "slow").exists() && !bench.folder(1, "near").exists());
    assert_eq!(bench.row(near).durable, Txid::new(6), "one destination is all it has");
    // What `slow` waits for must not be given back, though d0 never takes it.
    bench.buffer.trim(bench.board.clone()).await.unwrap();
    assert_eq!(bench.buffer.read(slow, Txid::new(1), u64::MAX).unwrap().len(), 5);
    bench.assert_restores(0, "near", &near_image);
    bench.stop().await;
}

#[tokio::test]
async fn a_database_that_another_destination_is_to_have_as_well_is_brought_there_while_it_is_idle() {
    let mut bench = Bench::reliable(2);
    let near = rules(&[("node/app", &["d0"], None)], Policy::default());
    bench.board = Arc::new(Board::new(bench.roster(&[0, 1], near)));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    let (other, mut other_image) = (bench.register("other").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.append(other, &other_image.first()).await;
    bench.reaches(0, id, 1).await;
    bench.reaches(1, other, 1).await;
    let three = Policy { copies: 3, ..Policy::default() };
    bench.board.apply(bench.roster(&[0, 1], rules(&[], three)));
    bench.reaches(1, id, 1).await;
    bench.assert_restores(1, "app", &image);
    eventually("it is durable under the new policy", || bench.row(id).durable == Txid::new(1)).await;
    // And away from it again: what d1 holds stays, and counts no longer.
    bench.board.apply(bench.roster(&[0, 1], rules(&[("node/app", &["d0"], None)], three)));
    bench.append(id, &image.commit(&[1])).await;
    bench.reaches(0, id, 2).await;
    assert_eq!((bench.held(1, id), bench.files(1, "app").len()), (0, 1));
    bench.stop().await;
}

#[tokio::test]
async fn an_added_destination_gets_what_the_buffer_has_and_the_rest_from_a_sibling() {
    let mut bench = Bench::reliable(2);
    bench.buffer = Arc::new(MemoryBuffer::new(100_000));
    bench.board = Arc::new(Board::new(bench.roster(&[0], Rules::new(Vec::new(), Policy::default()))));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    let (idle, mut idle_image) = (bench.register("idle").await, Image::new(4));
    bench.append(idle, &idle_image.first()).await;
    bench.append(id, &image.first()).await;
    while bench.buffer.read(id, None, 1).is_ok() {
        bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.buffer.trim(bench.board.clone()).await.unwrap();
    }
    // Cursors of an earlier life of that place are not believed.
    bench.buffer.set_cursor(&"d1".parse().unwrap(), id, Txid::new(image.txid()).unwrap()).unwrap();
    let health = bench.board.health(0);
    bench
        .board
        .apply(bench.roster(&[0, 1], Rules::new(Vec::new(), Policy { copies: 3, ..Policy::default() })));
    assert_eq!(bench.row(id).durable, None, "the policy is raised: durable waits");
    bench.open(1, Trust::Listings);
    bench.reaches(1, id, image.txid()).await;
    bench.reaches(1, idle, 1).await;
    bench.assert_restores(1, "app", &image);
    bench.assert_restores(1, "idle", &idle_image);
    assert_eq!(bench.row(id).durable.map(Txid::get), Some(image.txid()));
    assert_eq!(bench.board.health(0), health, "the other lane was left alone");
    bench.stop().await;
}

/// A file of level 0, as a hub with this lineage puts it.
async fn put_as(destination: &Faulty, lineage: u64, segment: &Segment) {
    let stamp = Stamp { timestamp_ms: 5, node_id: lineage, ..Stamp::default() };
    let mut bytes = Vec::new();
    ltx::merge(vec![Decoder::new(&segment.ltx[..]).unwrap()], stamp, &mut bytes).unwrap();
    let file = FileKey { database: key("app"), level: Level::RAW, range: segment.range };
    let (meta, cancel) = (PutMeta { time_ms: 5, post: Some(segment.post) }, CancellationToken::new());
    destination.probe(&cancel).await.unwrap();
    destination.put(&file, Body::Bytes(bytes.into()), meta, &cancel).await.unwrap();
}

#[tokio::test]
async fn another_history_is_not_copied_from_a_sibling_and_the_next_one_is_asked() {
    // What tells them apart: the lineage, or the checksum before.
    for other_lineage in [true, false] {
        let mut bench = Bench::reliable(3);
        bench.buffer = Arc::new(MemoryBuffer::new(100_000));
        let roster = |bench: &Bench, numbers: &[usize]| {
            bench.roster(numbers, Rules::new(Vec::new(), Policy::default()))
        };
        let (id, mut image) = (bench.register("app").await, Image::new(20));
        let lineage = bench.buffer.find(&key("app")).unwrap().lineage ^ u64::from(other_lineage);
        let mut foreign = Image::new(9);
        for segment in [foreign.first(), foreign.commit(&[2]), foreign.commit(&[3])] {
            put_as(&bench.destinations[0], lineage, &segment).await;
        }
        // The laggard has nothing, or the first transaction.
        let before: &[usize] = if other_lineage { &[0, 1] } else { &[0, 1, 2] };
        bench.board = Arc::new(Board::new(roster(&bench, before)));
        bench.start();
        bench.append(id, &image.first()).await;
        for lane in &before[1..] {
            bench.reaches(*lane, id, 1).await;
        }
        bench.board.apply(roster(&bench, &[0, 1]));
        bench.close(2).await;
        let lane: DestinationName = "d1".parse().unwrap();
        while bench.buffer.read(id, Txid::new(1), 1).is_ok() {
            bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
            bench.reaches(1, id, image.txid()).await;
            bench.buffer.trim(EveryDatabase::by(std::slice::from_ref(&lane))).await.unwrap();
        }
        eventually("the first one in the order is asked", || bench.board.health(0).healthy).await;
        bench.board.apply(roster(&bench, &[0, 1, 2]));
        bench.open(2, Trust::Listings);
        bench.reaches(2, id, image.txid()).await;
        bench.assert_restores(2, "app", &image);
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_removed_destination_no_longer_holds_the_buffer_and_a_hanging_one_no_longer_than_its_deadline() {
    let mut bench = Bench::reliable(2);
    bench.buffer = Arc::new(MemoryBuffer::new(100_000));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(20));
    bench.append(id, &image.first()).await;
    bench.reaches(1, id, 1).await;
    bench.destinations[1].set_down(true);
    for _ in 0..6 {
        bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
        bench.reaches(0, id, image.txid()).await;
    }
    bench.append(id, &image.commit(&(1..=20).collect::<Vec<_>>())).await;
    bench.reaches(0, id, image.txid()).await;
    bench.buffer.trim(bench.board.clone()).await.unwrap();
    assert!(bench.buffer.read(id, Txid::new(1), 1).is_ok(), "d1 still waits for it");
    bench.board.apply(bench.roster(&[0], Rules::new(Vec::new(), Policy::default())));
    bench.close(1).await;
    while bench.buffer.read(id, Txid::new(1), 1).is_ok() {
        bench.append(id, &image.commit(&[1, 2, 3, 4, 5, 6, 7, 8])).await;
        bench.reaches(0, id, image.txid()).await;
        bench.buffer.trim(bench.board.clone()).await.unwrap();
    }
    assert_eq!(bench.row(id).durable.map(Txid::get), Some(image.txid()));
    bench.stop().await;
}

#[tokio::test]
async fn a_renamed_destination_goes_on_where_it_was_without_listing_what_is_idle() {
    let mut bench = Bench::reliable(1);
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    let lists = bench.destinations[0].calls(Operation::List);
    // The same folder under another name, in the same lane, with the same cursor.
    let name: DestinationName = "renamed".parse().unwrap();
    let path = bench.dir.path().join("d0");
    let folder = FileDestination::new(name.clone(), &FileConfig { path: path.clone() });
    let entry = DestinationEntry::folder("renamed", &path);
    let entry = DestinationEntry { sync_interval: INTERVAL, cursor: "d0".parse().unwrap(), ..entry };
    let renamed = Arc::new(Faulty::new(Arc::new(folder), Faults::default(), 1));
    let places = vec![Arc::new(Place { lane: 0, entry, destination: renamed.clone() })];
    bench.board.apply(Roster::new(places, Rules::new(Vec::new(), Policy::default())));
    assert_eq!(bench.held(0, id), 1, "its copies count all the time");
    bench.close(0).await;
    bench.open(0, Trust::Cursors);
    eventually("the renamed one is ready", || bench.board.health(0).healthy).await;
    // One look for packs; the databases are not listed.
    assert_eq!((bench.held(0, id), renamed.calls(Operation::List)), (1, 1));
    bench.append(id, &image.commit(&[2])).await;
    bench.reaches(0, id, 2).await;
    assert_eq!(bench.files(0, "app").len(), 2);
    assert_eq!(bench.destinations[0].calls(Operation::List), lists);
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}

#[tokio::test]
async fn a_lane_whose_requests_are_spent_waits_for_the_next_day_and_says_so() {
    let mut bench = Bench::reliable(2);
    let meters = Arc::new(Meters::default());
    let limited = |lane: usize, budget| {
        let place = place(lane, &bench.destinations[lane]);
        let meter = meters.of(&place.entry.cursor);
        let destination = Arc::new(Limited::new(place.destination.clone(), Limits::default(), meter));
        let mut entry = place.entry.clone();
        entry.limits.requests_per_day = budget;
        Arc::new(Place { lane, entry, destination })
    };
    let places = vec![limited(0, None), limited(1, Some(100))];
    let roster = Roster::new(places, Rules::new(Vec::new(), Policy::default()));
    bench.board = Arc::new(Board::with_meters(roster, meters.clone()));
    bench.start();
    let (id, mut image) = (bench.register("app").await, Image::new(6));
    bench.append(id, &image.first()).await;
    bench.reaches(1, id, 1).await;
    let cursor: DestinationName = "d1".parse().unwrap();
    let used = meters.of(&cursor).today(clock::now_ms()).total();
    assert!((5..50).contains(&used), "a probe, a look at every level, a put: {used}");
    // Ninety flushes later; the reserve of the day is used up by somebody else, a restore say.
    meters.of(&cursor).count(Kind::Get, 100 - used, clock::now_ms());
    bench.append(id, &image.commit(&[2])).await;
    bench.reaches(0, id, 2).await;
    eventually("the lane says that it is spent", || bench.board.health(1).spent).await;
    bench.append(id, &image.commit(&[3])).await;
    bench.reaches(0, id, 3).await;
    assert_eq!(bench.held(1, id), 1);
    assert_eq!(meters.of(&cursor).today(clock::now_ms()).total(), 100);
    assert!(bench.board.health(1).healthy, "it is not the destination's fault");
    bench.stop().await;
}

#[tokio::test]
async fn a_destination_that_is_away_is_asked_for_a_byte_before_much_is_sent_again() {
    let mut bench = Bench::reliable(1);
    bench.start();
    eventually("the destination is ready", || bench.board.health(0).healthy).await;
    let (id, mut image) = (bench.register("app").await, Image::new(4000));
    bench.append(id, &image.first()).await;
    bench.reaches(0, id, 1).await;
    bench.destinations[0].set_down(true);
    let puts = bench.destinations[0].calls(Operation::Put);
    bench.append(id, &image.commit(&(1..=4000).collect::<Vec<_>>())).await;
    let opens = bench.destinations[0].calls(Operation::Open);
    eventually("three questions", || bench.destinations[0].calls(Operation::Open) >= opens + 3).await;
    assert_eq!(bench.destinations[0].calls(Operation::Put), puts + 1, "two megabytes were sent once only");
    bench.destinations[0].set_down(false);
    bench.reaches(0, id, 2).await;
    bench.assert_restores(0, "app", &image);
    bench.stop().await;
}
