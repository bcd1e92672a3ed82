//! A day of hub time with all levels, snapshots and retention at work at once, on every kind of destination; then what the
//! destinations hold is given to stock Litestream and to hubctl, and compared page for page with what the database was.

mod drive;
mod source;

use drive::{Day, Point};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::Path;
use walhub_common::{Level, TxidRange, clock};
use walhub_hub::config::Config;
use walhub_tests::Cluster;
use walhub_tests::config::Destination;
use walhub_tests::litestream::{Litestream, Replica};
use walhub_tests::report::report;
use walhub_tests::services;

const SEED: u64 = 0x0da7;
/// A midnight, long ago: servers stamp objects with the time of the test, the hub's own times lie in the past.
const START_MS: i64 = 1_748_736_000_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const LENGTH: i64 = 30 * HOUR;
const BUCKET: &str = "day";

/// (name, hours of retention, further keys): the window of each lies inside of the day.
const KEPT: [(&str, i64, &[&str]); 4] = [
    ("near", 6, &["snapshot-interval: 2h"]),
    ("s3", 12, &["snapshot-interval: 4h", "l0-retention: 1h"]),
    ("azure", 8, &["snapshot-interval: 3h", "keep-daily: 2"]),
    ("gcs", 24, &["snapshot-interval: 6h"]),
];

type Files = Vec<(Level, TxidRange)>;

/// Ends of the files that lead on from the beginning without a hole.
fn restore_points(files: &Files, take: impl Fn(u64) -> bool) -> BTreeSet<u64> {
    let mut files: Vec<(u64, u64)> = files
        .iter()
        .map(|&(_, range)| (range.min().get(), range.max().get()))
        .filter(|(_, max)| take(*max))
        .collect();
    files.sort_by_key(|(min, max)| (*max, *min));
    let mut ends = BTreeSet::from([0]);
    // By their ends: what a file leads on from ends before it.
    for (min, max) in files {
        if ends.range(min - 1..max).next().is_some() {
            ends.insert(max);
        }
    }
    ends.remove(&0);
    ends
}

/// What a commit was last in its window of 30 s.
fn window_ends(points: &[Point]) -> impl Iterator<Item = &Point> {
    let last = |(at, point): (usize, &Point)| {
        points
            .get(at + 1)
            .is_none_or(|next| next.time_ms.div_euclid(30_000) != point.time_ms.div_euclid(30_000))
            .then_some(at)
    };
    points.iter().enumerate().filter_map(last).map(|at| &points[at])
}

async fn live(day: &mut Day, random: &mut StdRng) -> i64 {
    let (mut now, mut hour) = (START_MS + 1_500, START_MS + HOUR);
    while now < START_MS + LENGTH {
        for _ in 0..random.random_range(1..5) {
            // A lone commit, or what a stream brought in one look of the agent.
            let count = if random.random_range(0..3) == 0 { random.random_range(2..40) } else { 1 };
            day.commit(now, count, random).await;
            now += random.random_range(200..25_000);
        }
        day.arrive().await;
        let next = now
            + [5_000, 40_000, 4 * MINUTE, 11 * MINUTE, 25 * MINUTE, 3 * HOUR].choose(random).expect("some");
        while now < next {
            now = (now + 10 * MINUTE).min(next);
            day.compact(now).await;
            if now >= hour {
                day.retain(now).await;
                hour = now + HOUR;
            }
        }
    }
    now += 2 * HOUR;
    day.compact(now).await;
    day.retain(now).await;
    now
}

/// What a destination must hold at the end, from its policy; its restore points.
fn judge(name: &str, files: &Files, points: &[Point], window_ms: i64, now: i64) -> BTreeSet<u64> {
    let ends = restore_points(files, |_| true);
    let newest = points.last().expect("points").txid;
    assert_eq!(ends.last(), Some(&newest), "{name}");
    for point in window_ends(points).filter(|point| point.time_ms >= now - window_ms) {
        assert!(
            ends.contains(&point.txid),
            "{name} lost {} of {}",
            point.txid,
            clock::format_ms(point.time_ms)
        );
    }
    let known: BTreeSet<u64> = points.iter().map(|point| point.txid).collect();
    assert!(ends.is_subset(&known), "{name} has restore points that nobody made");
    for level in [0, 1, 2, 3, 9] {
        assert!(files.iter().any(|(found, _)| found.get() == level), "{name} has nothing of level {level}");
    }
    ends
}

struct Bench<'a> {
    cluster: &'a Cluster,
    litestream: &'a Litestream,
    points: &'a [Point],
    checked: usize,
}

impl Bench<'_> {
    fn same(&mut self, out: &Path, txid: u64, what: &str) {
        let point = self.points.iter().find(|point| point.txid == txid).expect("a point");
        let bytes = std::fs::read(out).unwrap_or_else(|error| panic!("{what}: {error}"));
        let differing = bytes.chunks(1024).zip(point.image.chunks(1024)).filter(|(a, b)| a != b).count();
        assert!(
            bytes == point.image,
            "{what}, {txid}: {differing} pages differ, {} of {} bytes",
            bytes.len(),
            point.image.len()
        );
        std::fs::remove_file(out).expect("remove");
        self.checked += 1;
    }

    /// Both programs restore this point from one destination.
    fn restore(&mut self, name: &str, replica: &Replica<'_>, txid: u64, stock: &[&str], ours: &[&str]) {
        let out = self.cluster.path("out.db");
        self.litestream.restore_at(replica, &out, stock).success();
        self.same(&out, txid, &format!("litestream, {name} {stock:?}"));
        let ours: Vec<&str> = ["--source", name].into_iter().chain(ours.iter().copied()).collect();
        let out = self.cluster.restore("node/app.db", "ours.db", &ours);
        self.same(&out, txid, &format!("hubctl, {ours:?}"));
    }
}

#[test]
fn a_day_with_all_levels_and_retention_restores_everywhere() {
    let (Some(litestream), Some(s3)) = (Litestream::find(), services::s3()) else { return };
    let (Some(azure), Some(gcs)) = (services::azure(), services::gcs()) else { return };
    let mut cluster = Cluster::new("day");
    s3.make_bucket(BUCKET);
    let prefix = format!("day-{}", std::process::id());
    let near = cluster.path("near");
    let places = [
        Destination::file("near", &near),
        Destination::s3("s3", &s3, BUCKET, &prefix),
        Destination::azure("azure", &azure, "walhub", &prefix),
        Destination::gcs("gcs", &gcs, "walhub", &prefix),
    ];
    for (place, (name, hours, keys)) in places.into_iter().zip(KEPT) {
        assert_eq!(place.name, name);
        let place = place.every_ms(10).with(&format!("retention: {hours}h"));
        cluster.add(keys.iter().fold(place, |place, key| place.with(key)));
    }
    let config = Config::read(&cluster.write_hub_config()).expect("a good configuration");
    let mut random = StdRng::seed_from_u64(SEED);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (points, held, deleted, now) = runtime.block_on(async {
        let mut day = Day::new(&config, "node/app.db", &cluster.path("day")).await;
        let now = live(&mut day, &mut random).await;
        assert!(day.deleted.iter().all(|deleted| *deleted > 100), "{:?}", day.deleted);
        let deleted: usize = day.deleted.iter().sum();
        let (points, held) = day.end().await;
        (points, held, deleted, now)
    });

    // Judged by programs that know nothing of the day.
    cluster.start_hub();
    let path = format!("{prefix}/node/app.db");
    let folder = near.join("node/app.db");
    let replicas = [
        Replica::File(&folder),
        Replica::S3 { server: &s3, bucket: BUCKET, prefix: &path },
        Replica::Azure(&azure, &path),
        Replica::Gcs(&gcs, &path),
    ];
    let mut bench = Bench { cluster: &cluster, litestream: &litestream, points: &points, checked: 0 };
    let time_of = |txid: u64| points.iter().find(|point| point.txid == txid).expect("a point").time_ms;
    for (((name, hours, _), files), replica) in KEPT.iter().zip(&held).zip(&replicas) {
        let window_ms = hours * HOUR;
        let ends = judge(name, files, &points, window_ms, now);
        let newest = *ends.last().expect("ends");
        bench.restore(name, replica, newest, &[], &[]);
        let all: Vec<u64> = ends.iter().copied().collect();
        let mut chosen: Vec<u64> = all.choose_multiple(&mut random, 3).copied().collect();
        chosen.push(all[0]);
        for txid in chosen {
            bench.restore(
                name,
                replica,
                txid,
                &["-txid", &format!("{txid:016x}")],
                &["--txid", &txid.to_string()],
            );
        }
        for _ in 0..3 {
            // No commit is ever as long before the next one as this is after it.
            let at = points.choose(&mut random).expect("points").time_ms.max(now - window_ms) + 100;
            let expected = restore_points(files, |txid| time_of(txid) < at).last().copied();
            let expected = expected.expect("within retention there is a restore point before any time");
            let at = clock::format_ms(at);
            bench.restore(name, replica, expected, &["-timestamp", &at], &["--timestamp", &at]);
        }
    }
    assert_eq!(bench.checked, 4 * 8 * 2);
    let files: usize = held.iter().map(Vec::len).sum();
    let (hours, segments, checked) = ((now - START_MS) / HOUR, points.len(), bench.checked);
    report(
        "a simulated day on folder, S3, Azure, GCS",
        &format!(
            "{hours} h, {segments} segments, {files} files there, {deleted} deleted, {checked} restores equal"
        ),
    );
}
