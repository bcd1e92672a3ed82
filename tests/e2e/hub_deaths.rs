//! kill -9 of the hub in the middle of whatever it does with a small buffer: squashing, copying forward, giving files back,
//! catching destinations up, and with what it has put: compacting, making snapshots, deleting what is old, retiring packs. The
//! folders are watched, so that the kill comes the moment something of that happens. After each one, every file that lies in a
//! folder ends with a restore point there; in the end each restore point that a destination lists restores, and nothing
//! acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use walhub_common::ltx::name;
use walhub_proto::v1;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::Destination;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::ledger::mix;
use walhub_tests::outage::Outage;
use walhub_tests::promises::Watch;
use walhub_tests::report::{report, rounds};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, Image};

const DATABASES: [&str; 3] = ["one.db", "two.db", "three.db"];
/// The packed one takes all databases in one object per flush.
const DESTINATIONS: [&str; 3] = ["near", "far", "packed"];
/// Restores that are really done, of each database at each destination.
const RESTORES: usize = 8;
/// How long something to kill the hub in is waited for.
const WATCH: Duration = PATIENCE;

#[test]
fn every_restore_point_that_is_listed_restores() {
    let mut cluster = Cluster::new("hub-deaths");
    for name in ["near", "far"] {
        cluster.add(tended(Destination::file(name, &cluster.path(name))));
    }
    let packed = Destination::file("packed", &cluster.path("packed")).every_ms(300);
    cluster.add(tended(packed.with("layout: packed")));
    cluster.hub_lines("buffer: {max-bytes: 32MiB, when-full: squash}\nlevels: [2s, 10s]\n");
    let paths: Vec<PathBuf> = DATABASES.iter().map(|name| cluster.path("data").join(name)).collect();
    let named: Vec<(&str, &Path)> = DATABASES.into_iter().zip(paths.iter().map(PathBuf::as_path)).collect();
    cluster.agent("node", &named);
    let loads: [&[&str]; 3] = [
        &["--rate", "60", "--sync", "normal", "--churn"],
        &["--rate", "40", "--sync", "normal", "--churn"],
        &["--rate", "5", "--sync", "normal"],
    ];
    let mut writers: Vec<Writer> =
        paths.iter().zip(loads).map(|(path, load)| Writer::spawn(path, load)).collect();
    for writer in &mut writers {
        writer.await_acked(1);
    }
    cluster.start_hub();
    cluster.start_agent("node");
    for name in DATABASES {
        cluster.await_everywhere("node", name, 1);
    }
    let watch = Watch::start(cluster.client().clone());

    let rounds = rounds();
    let (mut squashed, mut hits, mut seen) = (0, BTreeMap::new(), 0);
    let mut outages: Vec<Outage> = Vec::new();
    for round in 1..=rounds {
        // In turns: all is well, one destination is away, all are.
        match round % 10 {
            1 => outages.clear(),
            // A hub that starts looks at the folder itself.
            4 => outages.push(Outage::of(&cluster.path("far/node"))),
            6 => {
                outages.extend(["near/node", "packed/walhub"].map(|folder| Outage::of(&cluster.path(folder))))
            }
            _ => {}
        }
        await_progress(&cluster);
        let moment = Moment::of(round);
        if moment == Moment::Any {
            std::thread::sleep(Duration::from_millis(mix(round) % 1500));
            squashed += given_up(&cluster);
        }
        let came = moment.wait(&cluster);
        cluster.kill_hub();
        *hits.entry(if came { moment } else { Moment::Any }).or_insert(0_u64) += 1;
        for folder in ["near", "far"] {
            seen += check_folder(&cluster.path(folder));
        }
        cluster.spawn_hub();
    }
    outages.clear();
    for writer in writers {
        writer.stop();
    }
    let (mut points, mut levels) = (0, BTreeSet::new());
    let mut lives = Vec::new();
    for (name, path) in &named {
        let (live, txid) = cluster.await_buffered("node", name, path);
        cluster.await_everywhere("node", name, txid);
        // Nothing goes between listing and restoring.
        cluster.hubctl(&["hold", "add", &format!("node/{name}")]).success();
        lives.push((*name, live, txid));
    }
    let promises = watch.stop();
    for (name, live, txid) in &lives {
        let newest = promises[*name].keys().next_back().copied().unwrap_or(0);
        assert!(newest <= *txid, "{name}: {newest} was promised, {txid} is there");
        for source in DESTINATIONS {
            points += judge(&cluster, name, source, live, *txid, &mut levels);
        }
    }
    assert!(levels.is_superset(&BTreeSet::from([0, 1, 2, 9])), "levels {levels:?}");
    for moment in [Moment::Compacting, Moment::Putting, Moment::Deleting, Moment::Retiring] {
        // In a long run each of them has had many occasions.
        assert!(rounds < 100 || hits.contains_key(&moment), "no kill came at {moment:?}: {hits:?}");
    }
    let text = format!(
        "kills at {hits:?}; {seen} files in folders after kills, each a restore point; {points} listed restore points planned at \
         the end, {squashed} were given up while all were away"
    );
    report(&format!("kill -9 of a hub with a full buffer, {rounds} rounds"), &text);
}

/// Old files go all the time.
fn tended(destination: Destination) -> Destination {
    destination
        .with("snapshot-interval: 4s")
        .with("retention: 3s")
        .with("l0-retention: 1s")
        .with("retention-check-interval: 1s")
}

/// When the hub is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Moment {
    /// At any time.
    Any,
    /// A file of a level or a snapshot is in the making.
    Compacting,
    /// One appeared at a destination.
    Putting,
    /// A file of a destination has gone.
    Deleting,
    /// A pack has gone.
    Retiring,
}

impl Moment {
    /// What needs destinations comes in rounds in which they are there.
    fn of(round: u64) -> Moment {
        match round % 10 {
            1 => Moment::Retiring,
            2 | 5 => Moment::Deleting,
            3 => Moment::Compacting,
            4 => Moment::Putting,
            _ => Moment::Any,
        }
    }

    /// True as soon as it has come.
    fn wait(self, cluster: &Cluster) -> bool {
        let ltx = |folder: &str, levels: &[&str]| -> Vec<PathBuf> {
            let levels = levels.iter().map(|level| format!("ltx/{level}"));
            let under =
                |level: String| DATABASES.map(|name| cluster.path(format!("{folder}/node/{name}/{level}")));
            levels.flat_map(under).collect()
        };
        match self {
            Moment::Any => true,
            Moment::Compacting => changes(&[cluster.path("hub-data/compaction")], appeared),
            Moment::Putting => changes(&ltx("near", &["1", "2", "9"]), appeared),
            Moment::Deleting => changes(&ltx("near", &["0", "1", "2", "9"]), vanished),
            Moment::Retiring => changes(&[cluster.path("packed/walhub/packs")], vanished),
        }
    }
}

fn appeared(before: &BTreeSet<PathBuf>, now: &BTreeSet<PathBuf>) -> bool {
    !now.is_subset(before)
}

fn vanished(before: &BTreeSet<PathBuf>, now: &BTreeSet<PathBuf>) -> bool {
    !before.is_subset(now)
}

/// Looks into folders until what lies there has changed in this way; false when nothing of that happens for long.
fn changes(folders: &[PathBuf], how: fn(&BTreeSet<PathBuf>, &BTreeSet<PathBuf>) -> bool) -> bool {
    let look = || -> BTreeSet<PathBuf> {
        let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        let is_it = |path: &PathBuf| path.extension().is_some_and(|e| e == "ltx" || e == "pack");
        entries.flatten().map(|entry| entry.path()).filter(is_it).collect()
    };
    let (mut before, began) = (look(), Instant::now());
    while began.elapsed() < WATCH {
        let now = look();
        if how(&before, &now) {
            return true;
        }
        before = now;
        std::thread::sleep(Duration::from_micros(300));
    }
    false
}

/// Every file that a killed hub left in a destination's folder ends with a restore point there; how many there are.
fn check_folder(folder: &Path) -> usize {
    let mut count = 0;
    for name in DATABASES {
        let mut files = Vec::new();
        for level in 0..10_u32 {
            let Ok(entries) = std::fs::read_dir(folder.join(format!("node/{name}/ltx/{level}"))) else {
                continue;
            };
            let ranges = entries.flatten().filter_map(|entry| name::parse(entry.file_name().to_str()?));
            files.extend(ranges.map(|range| (range.max().get(), range.min().get(), level)));
        }
        count += files.len();
        restore_points(files, &format!("{name} in {}", folder.display()));
    }
    count
}

/// The restore points that files (end, beginning, level) give; each of them ends with one.
fn restore_points(mut files: Vec<(u64, u64, u32)>, what: &str) -> BTreeSet<u64> {
    files.sort_unstable();
    let mut points = BTreeSet::from([0]);
    for group in files.chunk_by(|a, b| a.0 == b.0) {
        let leads = |(max, min, _): &(u64, u64, u32)| points.range(min - 1..*max).next().is_some();
        let found = group.iter().any(leads);
        assert!(found, "{what}: nothing leads to {:?} of {files:?}", group[0]);
        points.insert(group[0].0);
    }
    points.remove(&0);
    points
}

fn await_progress(cluster: &Cluster) {
    for name in DATABASES {
        let mut before = None;
        eventually(&format!("{name} goes on"), PATIENCE, || {
            let (txid, _) = cluster.buffered("node", name)?;
            let first = *before.get_or_insert(txid);
            ensure(txid > first, || format!("the hub stays at {txid}"))
        });
    }
}

fn given_up(cluster: &Cluster) -> u64 {
    DATABASES.iter().filter_map(|name| cluster.database("node", name).ok()).map(|d| d.given_up_points).sum()
}

/// Each restore point of a database at a destination has a plan there, some are restored, the newest is the live image.
fn judge(
    cluster: &Cluster,
    name: &str,
    source: &str,
    live: &Image,
    newest: u64,
    levels: &mut BTreeSet<u32>,
) -> usize {
    let key = format!("node/{name}");
    let files = cluster.client().files("node", name, source).expect("files").files;
    levels.extend(files.iter().map(|file| file.level));
    let mut ranges: Vec<(u64, u64, u32)> =
        files.iter().filter_map(|file| file.range.as_ref().map(|r| (r.max, r.min, file.level))).collect();
    if source == "packed" {
        // What retention took out of a pack that others keep alive shows again after a restart, until the next round.
        let oldest =
            ranges.iter().filter(|(_, _, level)| *level == 9).map(|(max, _, _)| *max).min().unwrap_or(0);
        ranges.retain(|(max, _, level)| *level > 0 || *max > oldest);
    }
    let points = restore_points(ranges, &format!("{key} at {source}"));
    let points: Vec<u64> = points.into_iter().collect();
    assert_eq!(points.last(), Some(&newest), "{key} at {source}");
    for txid in &points {
        let request = v1::RestoreRequest {
            database: Some(v1::DatabaseRef { agent: "node".to_owned(), name: name.to_owned() }),
            target: Some(v1::restore_request::Target::Txid(*txid)),
            after_txid: 0,
            source: source.to_owned(),
        };
        let mut service = cluster.client().restore();
        let plan = cluster.client().block_on(async { service.plan_restore(request).await });
        let plan =
            plan.unwrap_or_else(|status| panic!("{key} at {source}: TXID {txid}: {}", status.message()));
        assert_eq!(
            plan.into_inner().position.map(|position| position.txid),
            Some(*txid),
            "{key} at {source}"
        );
    }
    for txid in points.iter().rev().step_by((points.len() / RESTORES).max(1)) {
        // The restore itself proves the checksum that was taken at the source.
        let out = cluster.restore(
            &key,
            &format!("{source}-{txid}-{name}"),
            &["--source", source, "--txid", &txid.to_string()],
        );
        let image = Image::restored(&out);
        if *txid == newest {
            live.assert_same(&image, &format!("{key} from {source}"));
        }
        std::fs::remove_file(out).expect("remove a restored file");
    }
    points.len()
}
