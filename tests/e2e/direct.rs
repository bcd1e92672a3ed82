//! `hubctl restore --from`: folders are read without a hub; each fault has its own words and exit code, and leaves nothing
//! half-written.

use rusqlite::Connection;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_common::ltx::{Encoder, Header, Provenance, name};
use walhub_common::{Checksum, Level, PageSize, Pgno, TxidRange};
use walhub_tests::binaries;
use walhub_tests::process::{Output, run};
use walhub_tests::scratch::Scratch;

const KEY: &str = "node/app.db";
const PAGE: PageSize = PageSize::new(4096).unwrap();

/// States of a real database, from page to page.
fn states(path: &Path) -> Vec<Vec<u8>> {
    let database = Connection::open(path).unwrap();
    database
        .execute_batch("PRAGMA page_size = 4096; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
        .unwrap();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
                INSERT INTO t SELECT i, randomblob(1500) FROM n";
    database.execute_batch(fill).unwrap();
    let mut states = vec![fs::read(path).unwrap()];
    for round in 0..5 {
        let change = format!(
            "UPDATE t SET x = randomblob(1500) WHERE id % 500 = {round}; DELETE FROM t WHERE id = {}",
            9 + round
        );
        database.execute_batch(&change).unwrap();
        states.push(fs::read(path).unwrap());
    }
    states
}

fn numbered(state: &[u8]) -> impl Iterator<Item = (Pgno, &[u8])> {
    (1..).map_while(Pgno::new).zip(state.chunks(PAGE.bytes()))
}

fn sum(state: &[u8]) -> Checksum {
    numbered(state).fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(Checksum::of_page(pgno, page)))
}

/// A snapshot after transaction 1, and a file for each one after it. Without `signed`, as Litestream writes them.
fn replica(folder: &Path, states: &[Vec<u8>], signed: bool) {
    for (at, state) in states.iter().enumerate() {
        let txid = at as u64 + 1;
        let (level, before) =
            if at == 0 { (Level::SNAPSHOT, None) } else { (Level::RAW, Some(&states[at - 1])) };
        let range = TxidRange::from_raw(txid, txid).unwrap();
        let provenance = Provenance { pre: before.map(|before| sum(before)), post: sum(state) };
        let header = Header {
            page_size: PAGE,
            commit: (state.len() / PAGE.bytes()) as u32,
            range,
            timestamp_ms: 1_800_000_000_000 + txid as i64,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 0,
            provenance: signed.then_some(provenance),
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (pgno, page) in numbered(state) {
            let old = before.and_then(|before| before.chunks(PAGE.bytes()).nth(pgno.index()));
            if old != Some(page) {
                encoder.page(pgno, page).unwrap();
            }
        }
        let path = folder.join(name::fs_dir(level));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(name::file_name(range)), encoder.finish().unwrap().0).unwrap();
    }
}

struct Bench {
    scratch: Scratch,
    states: Vec<Vec<u8>>,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let scratch = Scratch::new(name);
        let states = states(&scratch.join("live.db"));
        for place in ["one", "two"] {
            replica(&scratch.join(place).join(KEY), &states, true);
        }
        fs::create_dir(scratch.join("out")).unwrap();
        Bench { scratch, states }
    }

    fn url(&self, place: &str) -> String {
        format!("file://{}", self.scratch.join(place).display())
    }

    fn out(&self) -> PathBuf {
        self.scratch.join("out/app.db")
    }

    fn snapshot(&self, place: &str) -> PathBuf {
        self.scratch.join(place).join(KEY).join("ltx/9/0000000000000001-0000000000000001.ltx")
    }

    /// Restores with these words, and `-o`.
    fn restore(&self, words: &[&str]) -> Output {
        let mut command = hubctl();
        command.arg("restore").args(words).arg("-o").arg(self.out());
        run(command)
    }

    /// The restored file is state `number`, and nothing lies beside it. It is taken away.
    #[track_caller]
    fn is(&self, number: usize) {
        assert!(fs::read(self.out()).unwrap() == self.states[number], "another state than {number}");
        fs::remove_file(self.out()).unwrap();
        self.nothing_left();
    }

    #[track_caller]
    fn nothing_left(&self) {
        let left: Vec<_> =
            fs::read_dir(self.scratch.join("out")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Without the environment of a hub.
fn hubctl() -> Command {
    let mut command = Command::new(binaries::program("hubctl"));
    for variable in ["WALHUB_HUB", "WALHUB_CA", "WALHUB_CERT", "WALHUB_KEY"] {
        command.env_remove(variable);
    }
    command
}

#[test]
fn a_database_comes_back_from_a_folder_without_a_hub() {
    let bench = Bench::new("direct");
    let (one, two) = (bench.url("one"), bench.url("two"));
    let said = bench.restore(&["--from", &one, KEY]).success();
    assert!(said.contains("TXID 6") && said.contains("verified"), "{said}");
    bench.is(5);
    bench.restore(&["--from", &one, KEY, "--txid", "3", "--integrity-check"]).success();
    bench.is(2);
    bench.restore(&["--from", &one, KEY, "--timestamp", "2027-01-15T08:00:00.004Z"]).success();
    bench.is(3);
    // As Litestream would have written it: nobody signed anything.
    replica(&bench.scratch.join("theirs"), &bench.states, false);
    let said = bench.restore(&["--from", &bench.url("theirs"), "--json"]).json();
    assert_eq!((said["verdict"].as_str(), said["txid"].as_u64()), (Some("unproven"), Some(6)));
    bench.is(5);
    // A whole folder.
    let all = bench.scratch.join("all");
    let mut command = hubctl();
    command.args(["restore", "--all", "--from", &two, "--to"]).arg(&all);
    run(command).success();
    assert!(fs::read(all.join(KEY)).unwrap() == bench.states[5]);
    // Browsing.
    for (words, part) in [
        (&["ls", "--from", &one][..], "node/app.db"),
        (&["snapshots", KEY, "--from", &one], "9           1          1"),
        (&["wal", "--from", &bench.url("theirs")], "0           6          6"),
    ] {
        let mut command = hubctl();
        command.args(words);
        let said = run(command).success();
        assert!(said.contains(part), "{words:?}: {said}");
    }
    let mut command = hubctl();
    command.args(["restore", "--from", &one, KEY, "--dry-run", "--json"]);
    let plan = run(command).json();
    assert_eq!((plan["txid"].as_u64(), plan["cost_usd"].as_f64()), (Some(6), Some(0.0)));
    assert!(plan["requests"].as_u64().is_some_and(|requests| requests > 6), "{plan}");
}

#[test]
fn damaged_and_missing_files_are_named_and_another_place_stands_in() {
    let bench = Bench::new("direct-faults");
    let (one, two) = (bench.url("one"), bench.url("two"));
    let snapshot = bench.snapshot("one");
    let whole = fs::read(&snapshot).unwrap();
    // One byte inside of a page, of a page that no newer file has: about row 1200.
    let mut damaged = whole.clone();
    let at = damaged.len() * 2 / 5;
    damaged[at] ^= 0x40;
    fs::write(&snapshot, damaged).unwrap();
    let said = bench.restore(&["--from", &one, "--from", &two, KEY]);
    let named =
        "destination file: cannot open node/app.db level 9 file 0000000000000001-0000000000000001: corrupt";
    assert!(said.code == 0 && said.stderr.contains(named), "{said:?}");
    bench.is(5);
    let said = bench.restore(&["--from", &one, KEY]);
    assert!(said.code == 1 && said.stderr.contains(named), "{said:?}");
    bench.nothing_left();
    // Gone.
    fs::remove_file(&snapshot).unwrap();
    bench.restore(&["--from", &one, "--from", &two, KEY]).success();
    bench.is(5);
    let said = bench.restore(&["--from", &one, KEY]);
    assert!(
        said.code == 1 && said.stderr.contains("the history has a hole: after the beginning"),
        "{said:?}"
    );
    bench.nothing_left();
    fs::write(&snapshot, &whole).unwrap();
    fs::remove_file(bench.scratch.join("one").join(KEY).join("ltx/0/0000000000000004-0000000000000004.ltx"))
        .unwrap();
    let said = bench.restore(&["--from", &one, KEY]);
    let hole = "after transaction 0000000000000003 the next file starts at transaction 0000000000000005";
    assert!(said.code == 1 && said.stderr.contains(hole), "{said:?}");
    bench.nothing_left();
    // Nothing there, and words that cannot be.
    for (words, code, part) in [
        (&["--from", &bench.url("nowhere"), KEY][..], 1, "nowhere"),
        (&["--from", &one, "node/other.db"], 1, "no source holds a file of this database"),
        (&["--from", "ftp://x/y", KEY], 2, "file:///PATH"),
        (&["--from", "s3://b/p?regoin=x", KEY], 2, "\"regoin=x\" is no option"),
    ] {
        let said = bench.restore(words);
        assert!(said.code == code && said.stderr.contains(part), "{words:?}: {said:?}");
        bench.nothing_left();
    }
}

#[test]
fn a_target_that_cannot_be_written_is_left_as_it_was() {
    let bench = Bench::new("direct-target");
    let one = bench.url("one");
    let words = ["--from", one.as_str(), KEY];
    let forced = ["--from", one.as_str(), KEY, "--force"];
    fs::write(bench.out(), "mine").unwrap();
    let said = bench.restore(&words);
    assert!(
        said.code == 1 && said.stderr.contains("already exists") && said.stderr.contains("--force"),
        "{said:?}"
    );
    assert_eq!(fs::read(bench.out()).unwrap(), b"mine");
    // Open in another process.
    let mut holder =
        Command::new("sleep").arg("600").stdin(fs::File::open(bench.out()).unwrap()).spawn().unwrap();
    let said = bench.restore(&forced);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let named = format!("is open in process {} (sleep)", holder.id());
    assert!(said.code == 1 && said.stderr.contains(&named), "{said:?}");
    assert_eq!(fs::read(bench.out()).unwrap(), b"mine");
    // Its log is there.
    let wal = bench.scratch.join("out/app.db-wal");
    fs::write(&wal, "log").unwrap();
    let said = bench.restore(&forced);
    assert!(said.code == 1 && said.stderr.contains("app.db-wal exists"), "{said:?}");
    fs::remove_file(wal).unwrap();
    assert_eq!(fs::read(bench.out()).unwrap(), b"mine");
    bench.restore(&forced).success();
    bench.is(5);
    // A full disk, as a limit of the file's size: 1 MB.
    let mut command = Command::new("bash");
    command.arg("-c").arg("trap '' XFSZ; ulimit -f 1000; exec \"$@\"").arg("bash");
    command.arg(binaries::program("hubctl")).arg("restore").args(words).arg("-o").arg(bench.out());
    let said = run(command);
    assert!(said.code == 1 && said.stderr.contains("app.db.walhub-restore.tmp: File too large"), "{said:?}");
    bench.nothing_left();
    // What must be true of it is not.
    let said = bench.restore(&["--from", &one, KEY, "--check", "SELECT count(*) FROM t = 2994"]);
    assert!(said.code == 1 && said.stderr.contains("gives 2995, not 2994"), "{said:?}");
    bench.nothing_left();
    bench
        .restore(&["--from", &one, KEY, "--check", "SELECT count(*) FROM t = 2995", "--integrity-check"])
        .success();
    bench.is(5);
}
