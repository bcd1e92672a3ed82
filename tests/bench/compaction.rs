//! Compaction of a chain of LTX files into one that holds the whole database: ours by the hub's engine in a process of its own,
//! put to a file destination, database checksum recomputed and compared; theirs by stock litestream, which finds the same files
//! as its level 0 and makes level 1 of them. `--gb N` sets the size of the chain (1); it needs about twice that on disk.

use crate::process::{self, Reading};
use crate::table::Row;
use crate::{Plan, chain};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{Decoder, Stamp, name};
use walhub_common::{Checksum, DatabaseKey, DestinationName, Level};
use walhub_store::compact::{Input, compact};
use walhub_store::destinations::config::FileConfig;
use walhub_store::destinations::file::FileDestination;
use walhub_store::destinations::{Body, Destination, FileKey, PutMeta};
use walhub_tests::litestream::Litestream;
use walhub_tests::process::run as run_command;
use walhub_tests::scratch::Scratch;

/// First argument of the process that compacts.
pub(crate) const CHILD: &str = "--compact";
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often litestream's folder is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// The most memory that ours may take, MB.
const MEMORY_MB: f64 = 200.0;

/// What one side took.
#[derive(Clone, Copy, Debug)]
struct Taken {
    seconds: f64,
    cpu: f64,
    /// MB.
    peak: f64,
}

pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let gigabytes = plan.gigabytes.unwrap_or_else(|| plan.pick(1.0, 0.1));
    let scratch = Scratch::new("compact");
    let replica = scratch.join("replica");
    let level_0 = replica.join("ltx/0");
    std::fs::create_dir_all(&level_0).expect("folder");
    let source = scratch.join("source.db");
    let begun = Instant::now();
    let chain = chain::write(&source, &level_0, (gigabytes * 1e9) as u64);
    let (files, megabytes) = (chain.files, chain.bytes as f64 / 1e6);
    eprintln!("{files} files of {megabytes:.0} MB, written in {:.0} s", begun.elapsed().as_secs_f64());
    cold(&level_0);
    let ours = ours(&scratch, &level_0, chain.checksum);
    eprintln!("ours: {ours:?}");
    cold(&level_0);
    let theirs = theirs(&scratch, &source, &replica, chain.checksum);
    eprintln!("theirs: {theirs:?}");
    let title = format!("compaction of {files} files, {:.1} GB, into one", megabytes / 1e3);
    let rate = |taken: Taken| megabytes / taken.seconds;
    let cpu = |taken: Taken| taken.cpu / megabytes * 1e3;
    vec![
        Row::new(format!("{title}: MB/s"), rate(ours), Some(rate(theirs))).more_is_better(),
        Row::new(format!("{title}: CPU s per GB"), cpu(ours), Some(cpu(theirs))),
        Row::new(format!("{title}: peak memory, MB"), ours.peak, Some(theirs.peak))
            .goal(format!("≤ {MEMORY_MB} MB"), |row| row.ours <= MEMORY_MB),
    ]
}

/// Both begin alike: everything written is on the disk, and nothing of the chain in memory.
fn cold(level_0: &Path) {
    for (_, path) in chain::files(level_0) {
        let file = File::open(path).expect("open");
        file.sync_all().expect("sync");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("out of memory with it");
    }
}

fn ours(scratch: &Scratch, level_0: &Path, expected: Checksum) -> Taken {
    let copies = scratch.join("copies");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(CHILD).arg(level_0).arg(&copies).arg(scratch.join("made"));
    let said = run_command(command).json();
    let number = |field: &str| said[field].as_f64().expect("a number");
    let taken = Taken { seconds: number("seconds"), cpu: number("cpu"), peak: number("peak") / 1e6 };
    let made = chain::files(&copies.join("node/db/ltx/9"));
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(image_of(&made[0].1), expected, "our file");
    std::fs::remove_dir_all(copies).expect("the disk is needed");
    std::fs::remove_dir_all(scratch.join("made")).expect("the disk is needed");
    taken
}

/// What the child does, and says as JSON: compacts the files in a folder and puts the result, as the hub does.
pub(crate) fn child(mut arguments: impl Iterator<Item = String>) {
    let mut path = || PathBuf::from(arguments.next().expect("three folders"));
    let (level_0, copies, made) = (path(), path(), path());
    std::fs::create_dir_all(&made).expect("folder");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let destination =
        FileDestination::new(DestinationName::new("disk").expect("a name"), &FileConfig { path: copies });
    let cancel = CancellationToken::new();
    runtime.block_on(destination.probe(&cancel)).expect("a destination");
    let before = process::read(std::process::id()).expect("read the process");
    let files = chain::files(&level_0);
    let inputs = files.iter().map(|(_, path)| {
        let path = path.clone();
        Box::new(move || Ok(Box::new(File::open(path)?) as Box<dyn Read + Send>)) as Input
    });
    let out = made.join("1.ltx");
    let stamp = Stamp { timestamp_ms: walhub_common::clock::now_ms(), node_id: 1, whole: true };
    let made = compact(inputs.collect(), stamp, &out, &cancel).expect("compacted");
    let key = FileKey {
        database: "node/db".parse::<DatabaseKey>().expect("a key"),
        level: Level::SNAPSHOT,
        range: made.header.range,
    };
    let meta = PutMeta { time_ms: stamp.timestamp_ms, post: made.header.provenance.map(|p| p.post) };
    runtime.block_on(destination.put(&key, Body::File(out), meta, &cancel)).expect("put");
    let after = process::read(std::process::id()).expect("read the process");
    let peak = process::peak(std::process::id()).expect("read the process");
    let (seconds, cpu) = (before.until(&after).as_secs_f64(), before.cpu(&after).as_secs_f64());
    println!("{}", serde_json::json!({ "seconds": seconds, "cpu": cpu, "peak": peak }));
}

/// Litestream goes on behind the chain (its newest file is what lies in the log of the database), and one second later makes
/// level 1 of it. A snapshot is there already, so it makes none beside.
fn theirs(scratch: &Scratch, source: &Path, replica: &Path, expected: Checksum) -> Taken {
    let files = chain::files(&replica.join("ltx/0"));
    let (level_1, level_9) = (replica.join("ltx/1"), replica.join("ltx/9"));
    std::fs::create_dir_all(&level_9).expect("folder");
    let (first, image) = &files[0];
    let snapshot = level_9.join(name::file_name(*first));
    std::fs::hard_link(image, &snapshot).expect("a snapshot");
    File::options()
        .append(true)
        .open(&snapshot)
        .and_then(|f| f.set_modified(std::time::SystemTime::now()))
        .expect("its time");
    let config = scratch.join("litestream.yml");
    let text = format!(
        "levels:\n  - interval: 1s\nsnapshot:\n  interval: 8760h\nl0-retention: 24h\ndbs:\n  - path: {}\n    \
         replica: {{type: file, path: {}, sync-interval: 1s}}\n",
        source.display(),
        replica.display()
    );
    std::fs::write(&config, text).expect("litestream.yml");
    let stock = Litestream::find().expect("set WALHUB_TEST_LITESTREAM to the stock binary");
    let log = scratch.join("litestream.log");
    let mut running = stock.replicate_by_config(&config, &log);
    let newest = files.last().expect("files").0.max();
    let (mut begun, deadline): (Option<(Instant, Reading)>, Instant) = (None, Instant::now() + PATIENCE);
    loop {
        running.assert_running();
        assert!(Instant::now() < deadline, "litestream does not compact: {}", running.log());
        if begun.is_none() && std::fs::read_dir(&level_1).is_ok_and(|mut entries| entries.next().is_some()) {
            begun = Some((Instant::now(), process::read(running.id()).expect("read the process")));
        }
        let made = chain::files(&level_1);
        if let Some(&(range, ref path)) = made.first() {
            let (at, before) =
                begun.expect("litestream's level 1 appeared between two looks: take more data");
            let seconds = at.elapsed().as_secs_f64();
            let cpu = before.cpu(&process::read(running.id()).expect("read the process")).as_secs_f64();
            let peak = process::peak(running.id()).expect("read the process") as f64 / 1e6;
            assert!(range.max() >= newest, "litestream took {range} only");
            if range.max() == newest {
                assert_eq!(image_of(path), expected, "litestream's file");
            }
            return Taken { seconds, cpu, peak };
        }
        thread::sleep(LOOK);
    }
}

/// The database checksum of a file that holds every page.
fn image_of(path: &Path) -> Checksum {
    let file = std::io::BufReader::with_capacity(1 << 20, File::open(path).expect("open"));
    let mut decoder = Decoder::new(file).expect("a header");
    let (mut page, mut sum) = (Vec::new(), Checksum::EMPTY);
    while let Some(pgno) = decoder.next_page(&mut page).expect("a page") {
        sum = sum.toggle(Checksum::of_page(pgno, &page));
    }
    decoder.finish().expect("whole");
    sum
}
