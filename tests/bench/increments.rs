//! How fast a database with 1,000 increments comes back: one replica in Litestream's layout, a snapshot and 1,000 small files,
//! read by `hubctl restore --from` and by `litestream restore`, from a folder and from a real S3 server. Litestream 0.3.13,
//! which has another format, restores its own replica of a like database ([`generations`]).
//!
//! The reference for the folder: the restored database copied by `cp` and made durable, and all blocks of the replica
//! expanded by one core, one after the other. Everything lies in the page cache when it is read.

use crate::Plan;
use crate::generations::Generations;
use crate::table::Row;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{Decoder, Encoder, Header, Provenance, expand, name};
use walhub_common::{Checksum, DestinationName, Level, PageSize, Pgno, TxidRange};
use walhub_store::destinations::config::{DestinationConfig, S3Config, S3Keys};
use walhub_store::destinations::{Body, DynDestination, FileKey, PutMeta, s3};
use walhub_tests::litestream::Litestream;
use walhub_tests::process::run as run_command;
use walhub_tests::scratch::Scratch;
use walhub_tests::{binaries, services};

const INCREMENTS: u64 = 1000;
/// Pages that a transaction changes.
const CHANGED: usize = 50;
const PAGE: PageSize = PageSize::new(4096).unwrap();
const KEY: &str = "node/big";

/// Rows for a folder, and for a bucket when there is a server.
pub(crate) fn run(plan: &Plan) -> Vec<Row> {
    let scratch = Scratch::new("bench-increments");
    let gigabytes = plan.gigabytes.unwrap_or_else(|| plan.pick(1.0, 0.05));
    let pages = (gigabytes * 1e9 / 4096.0) as u32;
    let root = scratch.join("replica");
    let image = replica(&root.join(KEY), pages);
    let megabytes = image.bytes as f64 / 1e6;
    let litestream = Litestream::find().expect("litestream");
    let server = services::s3();
    let out = scratch.join("out.db");
    let what = |from: &str| format!("restore of {megabytes:.0} MB and 1,000 increments from {from}, MB/s");

    let from_folder = timed(megabytes, || hubctl(&format!("file://{}", root.display()), &out, None));
    let reference = megabytes / reference(&root.join(KEY), &out, &scratch.join("copy"));
    image.check(&out);
    let theirs = timed(megabytes, || litestream.restore_file(&root.join(KEY), &out, &[]).success());
    image.check(&out);
    eprintln!("folder: {from_folder:.0} MB/s, litestream {theirs:.0}, reference {reference:.0}");
    let share = from_folder / reference;
    let mut rows = vec![
        Row::new(what("a folder"), from_folder, Some(theirs))
            .more_is_better()
            .goal("≥ 10x, or ≥ 80 % of the reference", |row| {
                row.ratio().is_some_and(|ratio| ratio >= 10.0) || share >= 0.8
            }),
        Row::new("the reference: `cp` and LZ4 on one core, MB/s", reference, None).more_is_better(),
        Row::new("share of the reference, %", share * 100.0, None).more_is_better(),
    ];
    let mut from_bucket = None;
    if let Some(server) = &server {
        let prefix = format!("bench-{:016x}", rand::random::<u64>());
        upload(server, &prefix, &root.join(KEY));
        let url = format!("s3://walhub/{prefix}?endpoint={}&region={}", server.endpoint, server.region);
        let ours = timed(megabytes, || hubctl(&url, &out, Some(server)));
        image.check(&out);
        let theirs = timed(megabytes, || {
            litestream.restore_s3(server, "walhub", &format!("{prefix}/{KEY}"), &out, &[]).success()
        });
        image.check(&out);
        eprintln!("S3: {ours:.0} MB/s, litestream {theirs:.0}");
        rows.push(
            Row::new(what("S3"), ours, Some(theirs))
                .more_is_better()
                .goal("≥ 5x", |row| row.ratio().is_some_and(|ratio| ratio >= 5.0)),
        );
        from_bucket = Some(ours);
    }
    fs::remove_dir_all(&root).expect("remove the replica");
    let Some(old) = Generations::make(&scratch.join("old"), pages, INCREMENTS, CHANGED) else { return rows };
    let theirs = old.megabytes() / old.restore_file();
    rows.push(Row::new("the folder beside Litestream 0.3.13", from_folder, Some(theirs)).more_is_better());
    if let (Some(server), Some(ours)) = (&server, from_bucket) {
        let theirs = old.megabytes() / old.restore_s3(server);
        rows.push(Row::new("S3 beside Litestream 0.3.13", ours, Some(theirs)).more_is_better());
    }
    rows
}

fn timed<T>(megabytes: f64, restore: impl FnOnce() -> T) -> f64 {
    let began = Instant::now();
    restore();
    megabytes / began.elapsed().as_secs_f64()
}

fn hubctl(url: &str, out: &Path, server: Option<&services::S3>) {
    let mut command = Command::new(binaries::program("hubctl"));
    if let Some(server) = server {
        command.env("AWS_ACCESS_KEY_ID", &server.access_key);
        command.env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
    }
    command.args(["restore", "--from", url, KEY, "-o"]).arg(out);
    run_command(command).success();
}

/// Seconds that a durable copy of the restored database and the expansion of all pages of its replica take.
fn reference(replica: &Path, restored: &Path, copy: &Path) -> f64 {
    let began = Instant::now();
    let mut command = Command::new("cp");
    command.arg("--reflink=never").arg(restored).arg(copy);
    run_command(command).success();
    fs::File::open(copy).and_then(|copy| copy.sync_all()).expect("sync");
    let copied = began.elapsed().as_secs_f64();
    fs::remove_file(copy).expect("remove the copy");
    let (mut page, mut again, mut expanding) = (Vec::new(), Vec::new(), 0.0);
    for path in files(replica) {
        let mut file = Decoder::new(BufReader::new(fs::File::open(path).expect("open"))).expect("a file");
        while file.next_page(&mut page).expect("a page").is_some() {
            let block = file.block().expect("a block").to_vec();
            let began = Instant::now();
            expand(&block, PAGE, &mut again).expect("expands");
            expanding += began.elapsed().as_secs_f64();
        }
    }
    eprintln!("reference: cp {copied:.2} s, LZ4 {expanding:.2} s");
    copied + expanding
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() { found.extend(files(&entry)) } else { found.push(entry) }
    }
    found
}

/// What must come back.
struct Image {
    bytes: u64,
    checksum: Checksum,
}

impl Image {
    /// Compares a restored file, and takes it away.
    fn check(&self, path: &Path) {
        let file = fs::File::open(path).expect("the restored file");
        let bytes = file.metadata().expect("its size").len();
        let (mut file, mut page, mut sum) = (BufReader::new(file), vec![0; PAGE.bytes()], Checksum::EMPTY);
        for pgno in (1..=bytes / 4096).filter_map(|number| Pgno::new(number as u32)) {
            file.read_exact(&mut page).expect("a page");
            if pgno != PAGE.lock_page() {
                sum = sum.toggle(Checksum::of_page(pgno, &page));
            }
        }
        assert_eq!((bytes, sum), (self.bytes, self.checksum), "{}", path.display());
        fs::remove_file(path).expect("remove the restored file");
    }
}

/// Half of a page is noise, half the same byte, so that compression has something to do and does not do everything.
fn page(random: &mut StdRng) -> Vec<u8> {
    let mut page = vec![random.random(); PAGE.bytes()];
    random.fill(&mut page[..PAGE.bytes() / 2]);
    page
}

/// Writes a snapshot of `pages` pages and the increments; nobody opens the database, so its pages need no sense but the
/// first.
fn replica(folder: &Path, pages: u32) -> Image {
    let mut random = StdRng::seed_from_u64(1);
    let mut sums = vec![Checksum::EMPTY; pages as usize];
    let mut sum = Checksum::EMPTY;
    let numbers: Vec<Pgno> =
        (1..=pages).filter_map(Pgno::new).filter(|pgno| *pgno != PAGE.lock_page()).collect();
    for txid in 1..=INCREMENTS + 1 {
        let mut some = Vec::new();
        if txid > 1 {
            some.extend((0..CHANGED).map(|_| numbers[random.random_range(1..numbers.len())]));
            some.sort_unstable();
            some.dedup();
        }
        let changed = if txid > 1 { &some } else { &numbers };
        // The header comes first and names the sum: the same dice are thrown twice.
        let dice = random.clone();
        let pre = (txid > 1).then_some(sum);
        for pgno in changed {
            let new = Checksum::of_page(*pgno, &content(*pgno, &mut random));
            sum = sum.toggle(std::mem::replace(&mut sums[pgno.index()], new)).toggle(new);
        }
        let level = if txid == 1 { Level::SNAPSHOT } else { Level::RAW };
        let range = TxidRange::from_raw(txid, txid).expect("a range");
        let header = Header {
            page_size: PAGE,
            commit: pages,
            range,
            timestamp_ms: 1_800_000_000_000 + txid as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 7,
            provenance: Some(Provenance { pre, post: sum }),
        };
        let folder = folder.join(name::fs_dir(level));
        fs::create_dir_all(&folder).expect("folder");
        let file = fs::File::create(folder.join(name::file_name(range))).expect("file");
        let mut encoder = Encoder::new(std::io::BufWriter::new(file), header).expect("header");
        let mut dice = dice;
        for pgno in changed {
            encoder.page(*pgno, &content(*pgno, &mut dice)).expect("page");
        }
        encoder.finish().expect("end");
    }
    Image { bytes: u64::from(pages) * 4096, checksum: sum }
}

/// Litestream looks at the head of the first page.
fn content(pgno: Pgno, random: &mut StdRng) -> Vec<u8> {
    let mut page = page(random);
    if pgno == Pgno::FIRST {
        page[..16].copy_from_slice(b"SQLite format 3\0");
        page[16..18].copy_from_slice(&4096_u16.to_be_bytes());
        page[18..20].copy_from_slice(&[2, 2]);
    }
    page
}

/// The bucket of benchmarks, from `prefix` on.
pub(crate) async fn bucket(server: &services::S3, prefix: &str) -> DynDestination {
    let config = S3Config {
        bucket: "walhub".to_owned(),
        prefix: prefix.to_owned(),
        region: Some(server.region.clone()),
        endpoint: Some(server.endpoint.clone()),
        keys: Some(S3Keys {
            access_key_id: server.access_key.clone(),
            secret_access_key: server.secret_key.clone(),
        }),
        ..S3Config::default()
    };
    s3::create_bucket(&config).await.expect("bucket");
    let name = DestinationName::new("bench").expect("name");
    DestinationConfig::S3(config).build(name).await.expect("client")
}

/// Puts the replica into a bucket as the hub would.
fn upload(server: &services::S3, prefix: &str, replica: &Path) {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let bucket = bucket(server, prefix).await;
        let cancel = CancellationToken::new();
        for path in files(replica) {
            let level = if path.to_string_lossy().contains("/ltx/9/") { Level::SNAPSHOT } else { Level::RAW };
            let file = path.file_name().and_then(|name| name.to_str()).and_then(name::parse).expect("a name");
            let key = FileKey { database: KEY.parse().expect("key"), level, range: file };
            let meta = PutMeta { time_ms: 1_800_000_000_000 + file.max().get() as i64, post: None };
            bucket.put(&key, Body::File(path), meta, &cancel).await.expect("put");
        }
    });
}
