//! An older state is put in place of a live database: other connections see the one or the other, whatever dies when, and
//! the history goes on.

use crate::child::{App, Process, live_image, serve};
use crate::hub::{Place, Replica, checksum};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_agent::capture::{Capture, Next, NoSurvey, NotReplaced, Replaced, Surveyed, Unfit, Wanted};
use walhub_agent::page_map::{PageMap, Room};
use walhub_common::{Checksum, PageSize, Pgno, Pos, Txid};

const PATIENT: Duration = Duration::from_secs(30);

fn size_of(image: &[u8]) -> PageSize {
    match u16::from_be_bytes([image[16], image[17]]) {
        1 => PageSize::new(65536).unwrap(),
        size => PageSize::new(size.into()).unwrap(),
    }
}

fn pages(image: &[u8]) -> impl Iterator<Item = (Pgno, &[u8])> {
    let size = size_of(image);
    let pages = (1..).filter_map(Pgno::new).zip(image.chunks(size.bytes()));
    pages.filter(move |(pgno, _)| *pgno != size.lock_page())
}

/// What a fetch of the page checksums gives.
pub(crate) fn wanted(place: &Place, image: &[u8]) -> Arc<Wanted> {
    let size = size_of(image);
    let position = Pos { txid: Txid::FIRST, checksum: checksum(image, size) };
    let commit = u32::try_from(image.len() / size.bytes()).unwrap();
    let sums = pages(image).map(|(pgno, page)| Checksum::of_page(pgno, page));
    let sums = PageMap::whole(size, commit, Txid::FIRST, sums, Room::beside(&place.state())).unwrap();
    Arc::new(Wanted::new(position, sums, &place.state().join("scratch")).unwrap().unwrap())
}

/// What a fetch of the pages that differ gives; how many they are.
pub(crate) fn fetch(wanted: &Wanted, image: &[u8], surveyed: &Surveyed) -> u32 {
    let missing = pages(image).filter(|(pgno, _)| !surveyed.settled.contains(*pgno));
    missing.map(|(pgno, page)| wanted.take(pgno, page).unwrap()).count() as u32
}

/// All steps, without anybody beside.
pub(crate) fn bring_back(place: &Place, capture: &mut Capture, image: &[u8]) -> Replaced {
    let wanted = wanted(place, image);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    fetch(&wanted, image, &surveyed);
    capture.replace(&wanted, PATIENT).unwrap().unwrap()
}

/// The same database, but for what page 1 may differ in: WAL versions, change counter, size, schema cookie, library.
fn same(a: &[u8], b: &[u8]) -> bool {
    let own = |at: usize| matches!(at, 18..20 | 24..32 | 40..44 | 92..100);
    a.len() == b.len() && (0..100).all(|at| a[at] == b[at] || own(at)) && a[100..] == b[100..]
}

fn read_all(capture: &mut Capture, replica: &mut Replica) {
    while let Next::Sent(meta) = replica.step(capture) {
        capture.acked(meta.range.max());
    }
}

fn churn(app: &mut App, rng: &mut StdRng, auto_vacuum: u32) {
    match rng.random_range(0..10) {
        0 => app.insert_many(40),
        1 => app.sql("DELETE FROM t WHERE id % 3 = 0"),
        2 => app.sql("UPDATE t SET a = randomblob(300) WHERE id % 5 = 0"),
        3 => app.sql(&format!(
            "CREATE TABLE IF NOT EXISTS x{0}(b); INSERT INTO x{0} VALUES (randomblob(9000))",
            rng.random_range(0..5)
        )),
        4 => app.sql(&format!("DROP TABLE IF EXISTS x{}", rng.random_range(0..5))),
        5 => app.sql("CREATE INDEX IF NOT EXISTS i ON t(a)"),
        6 => app.sql("DROP INDEX IF EXISTS i"),
        7 if auto_vacuum == 2 => app.sql("PRAGMA incremental_vacuum(20)"),
        8 if rng.random_bool(0.2) => app.sql("VACUUM"),
        _ => app.insert(),
    }
}

/// Any state is brought back from any other, forwards and backwards, larger and smaller, beside an application that goes on.
fn to_and_fro(seed: u64, page_size: u32, auto_vacuum: u32) {
    let mut rng = StdRng::seed_from_u64(seed);
    let place = Place::with_frames([30, 1000][rng.random_range(0..2)]);
    let mut app =
        App::create(&place.db(), &format!("PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum};"));
    let mut idle = App::open(&place.db());
    let (mut capture, mut replica) = place.follow();
    let mut states = vec![live_image(&place.db())];
    let mut written = 0;
    for _ in 0..14 {
        for _ in 0..rng.random_range(1..6) {
            churn(&mut app, &mut rng, auto_vacuum);
        }
        if rng.random_bool(0.5) {
            replica.drain(&mut capture);
            replica.assert_is_live(&place.db());
        }
        if rng.random_bool(0.5) {
            states.push(live_image(&place.db()));
            continue;
        }
        idle.query("SELECT count(*) FROM sqlite_schema");
        let state = &states[rng.random_range(0..states.len())];
        read_all(&mut capture, &mut replica);
        let wanted = wanted(&place, state);
        let surveyed = capture.survey(&wanted).unwrap().unwrap();
        assert_eq!(surveyed.rotten, 0);
        fetch(&wanted, state, &surveyed);
        // What is committed after the survey goes as well, and is in the history before.
        for _ in 0..rng.random_range(0..4) {
            churn(&mut app, &mut rng, auto_vacuum);
        }
        let latest = live_image(&place.db());
        let done = capture.replace(&wanted, PATIENT).unwrap().unwrap();
        assert!(done.proven, "{done:?}");
        assert_eq!(
            done.before.checksum,
            checksum(&latest, size_of(&latest)),
            "the restore point of what went"
        );
        let live = live_image(&place.db());
        assert!(same(&live, state), "seed {seed}: not what was asked for");
        read_all(&mut capture, &mut replica);
        assert_eq!(replica.position, Some(done.after.unwrap_or(done.before)));
        replica.assert_is_live(&place.db());
        written += done.pages;
        for connection in [&mut app, &mut idle] {
            assert_eq!(connection.query("PRAGMA integrity_check"), "ok", "seed {seed}");
        }
        // The same once more is nothing.
        let again = bring_back(&place, &mut capture, state);
        assert_eq!((again.after, again.pages), (None, 0));
    }
    replica.drain(&mut capture);
    app.insert();
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
    println!("seed {seed}: {written} pages written, transaction {:?}", replica.position.unwrap().txid);
}

#[test]
fn any_state_follows_any_other() {
    for (seed, (page_size, auto_vacuum)) in
        [(4096, 0), (512, 1), (1024, 2), (65536, 0), (4096, 1), (4096, 2), (8192, 1)].into_iter().enumerate()
    {
        to_and_fro(seed as u64 + 1, page_size, auto_vacuum);
    }
}

#[test]
fn a_free_list_outlives_a_database_that_has_been_given_auto_vacuum_since() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(300);
    app.sql("DELETE FROM t WHERE id > 20");
    let (mut capture, mut replica) = place.follow();
    let with_free_pages = live_image(&place.db());
    app.sql("PRAGMA auto_vacuum=FULL; VACUUM");
    let vacuumed = live_image(&place.db());
    assert!(vacuumed.len() < with_free_pages.len());
    for state in [&with_free_pages, &vacuumed, &with_free_pages] {
        read_all(&mut capture, &mut replica);
        assert!(bring_back(&place, &mut capture, state).proven);
        assert!(same(&live_image(&place.db()), state));
        assert_eq!(app.query("PRAGMA integrity_check"), "ok");
        app.insert();
    }
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

#[test]
fn readers_keep_their_snapshot_and_statements_find_the_schema_of_then() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.sql("CREATE TABLE gone(a); INSERT INTO gone VALUES (7)");
    let (mut capture, mut replica) = place.follow();
    let then = live_image(&place.db());
    app.sql("DROP TABLE gone; CREATE TABLE new(a); CREATE INDEX i ON t(a); INSERT INTO new VALUES (1)");
    let mut reader = App::open(&place.db());
    reader.sql("BEGIN");
    assert_eq!(reader.query("SELECT count(*) FROM new"), "1");
    let mut keeper = Process::start("keeper");
    keeper.ask(&format!("open {}", place.db().display()));
    assert_eq!(keeper.ask("step"), "1 1");
    read_all(&mut capture, &mut replica);
    assert!(bring_back(&place, &mut capture, &then).proven);
    assert_eq!(reader.query("SELECT count(*) FROM new"), "1", "a snapshot is kept");
    assert_eq!(reader.query("SELECT count(*) FROM pragma_index_list('t')"), "1");
    // It cannot write on from a state that is not the newest one.
    assert!(reader.try_sql("INSERT INTO new VALUES (2)").unwrap_err().contains("locked"));
    reader.sql("COMMIT");
    assert_eq!(reader.query("SELECT a FROM gone"), "7");
    assert!(reader.try_sql("SELECT * FROM new").unwrap_err().contains("no such table"));
    // Prepared before: prepared again by SQLite itself, or refused by name; the next transaction works.
    assert_eq!(keeper.ask("step"), "1 -1");
    assert_eq!(keeper.ask("write"), "2");
    read_all(&mut capture, &mut replica);
    replica.assert_is_live(&place.db());
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
}

/// A connection whose statements are prepared once: a count of `t`, a count of `new`, an insert into `t`.
pub(crate) fn keeper() {
    let mut path = String::new();
    let mut line = String::new();
    while path.is_empty() && std::io::stdin().read_line(&mut line).unwrap() > 0 {
        path = line.trim().strip_prefix("open ").unwrap_or_default().to_owned();
    }
    println!("\n@@ ok ");
    let db = Connection::open(path).unwrap();
    db.busy_timeout(PATIENT).unwrap();
    let mut t = db.prepare("SELECT count(*) FROM t").unwrap();
    let mut new = db.prepare("SELECT count(*) FROM new").unwrap();
    let mut insert = db.prepare("INSERT INTO t(a) VALUES (1)").unwrap();
    serve(|command, _| match command {
        "step" => {
            let count =
                |s: &mut rusqlite::Statement<'_>| s.query_row([], |row| row.get::<_, i64>(0)).unwrap_or(-1);
            Ok(format!("{} {}", count(&mut t), count(&mut new)))
        }
        _ => {
            insert.execute([]).map_err(|e| e.to_string())?;
            t.query_row([], |row| row.get::<_, i64>(0)).map(|n| n.to_string()).map_err(|e| e.to_string())
        }
    });
}

#[test]
fn a_writer_that_holds_its_lock_is_waited_for_and_then_named() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let then = live_image(&place.db());
    app.insert();
    read_all(&mut capture, &mut replica);
    let wanted = wanted(&place, &then);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    fetch(&wanted, &then, &surveyed);
    app.sql("BEGIN IMMEDIATE; INSERT INTO t(a) VALUES (1)");
    let begun = Instant::now();
    let busy = capture.replace(&wanted, Duration::from_millis(200)).unwrap().unwrap_err();
    assert!(matches!(busy, NotReplaced::WriterBusy), "{busy}");
    assert!(begun.elapsed() < PATIENT);
    app.sql("COMMIT");
    let done = capture.replace(&wanted, PATIENT).unwrap().unwrap();
    assert!(done.proven);
    // Both transactions of the application are in the history.
    read_all(&mut capture, &mut replica);
    assert_eq!(replica.position, done.after);
    assert_eq!(done.before.txid.get(), 3);
    assert!(same(&live_image(&place.db()), &then));
    replica.assert_is_live(&place.db());
}

#[test]
fn what_was_copied_into_the_file_since_is_noticed() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    let then = live_image(&place.db());
    app.insert_many(50);
    read_all(&mut capture, &mut replica);
    let wanted = wanted(&place, &then);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    fetch(&wanted, &then, &surveyed);
    capture.maintain().unwrap();
    assert!(capture.checkpoint(true).unwrap().unwrap().complete);
    app.sql("UPDATE t SET a = 1");
    read_all(&mut capture, &mut replica);
    let refused = capture.replace(&wanted, PATIENT).unwrap().unwrap_err();
    assert!(matches!(refused, NotReplaced::Overtaken), "{refused}");
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    fetch(&wanted, &then, &surveyed);
    // The log begins anew, as all of it was copied before the survey.
    app.sql("UPDATE t SET a = 2");
    assert!(capture.replace(&wanted, PATIENT).unwrap().unwrap().proven);
    read_all(&mut capture, &mut replica);
    replica.assert_is_live(&place.db());
    assert!(same(&live_image(&place.db()), &then));
}

#[test]
fn pages_that_were_not_fetched_come_from_the_state_that_was_surveyed() {
    let place = Place::with_frames(1);
    let mut app = App::create(&place.db(), "");
    app.insert_many(100);
    let (mut capture, mut replica) = place.follow();
    let then = live_image(&place.db());
    app.sql("UPDATE t SET a = 1 WHERE id < 5");
    replica.drain(&mut capture);
    let wanted = wanted(&place, &then);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    let fetched = fetch(&wanted, &then, &surveyed);
    assert!(fetched < 10, "{fetched} pages fetched");
    for _ in 0..5 {
        // Everything changes; nothing is copied into the file.
        app.sql("UPDATE t SET a = randomblob(2900); CREATE TABLE IF NOT EXISTS more(a); INSERT INTO more VALUES (zeroblob(50000))");
        replica.drain(&mut capture);
    }
    let done = capture.replace(&wanted, PATIENT).unwrap().unwrap();
    assert!(done.proven && done.pages > 70, "{done:?}");
    assert!(same(&live_image(&place.db()), &then));
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
}

#[test]
fn what_open_connections_could_not_follow_is_refused() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "PRAGMA page_size=4096;");
    let (mut capture, _) = place.follow();
    let before = live_image(&place.db());
    let other = Place::new();
    drop(App::create(&other.db(), "PRAGMA page_size=1024;"));
    let wanted_small = wanted(&place, &live_image(&other.db()));
    let refused = capture.survey(&wanted_small).unwrap().unwrap_err();
    assert!(matches!(refused, NoSurvey::PageSize { .. }), "{refused}");
    let other = Place::new();
    drop(App::create(&other.db(), "PRAGMA encoding='UTF-16le';"));
    let image = live_image(&other.db());
    let wanted = wanted(&place, &image);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    fetch(&wanted, &image, &surveyed);
    let refused = capture.replace(&wanted, PATIENT).unwrap().unwrap_err();
    assert!(matches!(refused, NotReplaced::Unfit(Unfit::Encoding)), "{refused}");
    assert_eq!(live_image(&place.db()), before);
    app.insert();
}

#[test]
fn a_page_that_rotted_on_disk_is_replaced_too() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    app.insert_many(60);
    let (mut capture, mut replica) = place.follow();
    assert!(capture.checkpoint(true).unwrap().unwrap().complete);
    let then = live_image(&place.db());
    // By another process: this one would lose its locks.
    let rot = format!(
        "printf ROT | dd of={} bs=1 seek=$((4096 * 9 + 77)) conv=notrunc status=none",
        place.db().display()
    );
    assert!(std::process::Command::new("sh").args(["-c", &rot]).status().unwrap().success());
    assert!(!same(&live_image(&place.db()), &then));
    read_all(&mut capture, &mut replica);
    let wanted = wanted(&place, &then);
    let surveyed = capture.survey(&wanted).unwrap().unwrap();
    assert_eq!((surveyed.rotten, surveyed.differing), (1, 1));
    fetch(&wanted, &then, &surveyed);
    assert!(capture.replace(&wanted, PATIENT).unwrap().unwrap().proven);
    assert!(same(&live_image(&place.db()), &then));
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
    replica.drain(&mut capture);
    replica.assert_is_live(&place.db());
}

/// An agent that goes to and fro between two images until it is killed.
pub(crate) fn restless() {
    let mut words = String::new();
    std::io::stdin().read_line(&mut words).unwrap();
    let mut words = words.split_whitespace();
    let place = Place::at(Path::new(words.next().unwrap()), 20);
    let images: Vec<_> = words.map(|path| std::fs::read(path).unwrap()).collect();
    let mut capture = place.attach();
    let mut sink = crate::hub::Discard;
    if capture.position().is_none() {
        capture.snapshot(&mut sink).unwrap();
    }
    println!("\n@@ ok ");
    for round in 0.. {
        // What is not acked stays in the log.
        while let Next::Sent(_) = capture.next(&mut sink).unwrap() {}
        bring_back(&place, &mut capture, &images[round % 2]);
        println!("\n@@ ok ");
    }
}

#[test]
fn whatever_moment_the_agent_dies_at_the_file_is_the_one_or_the_other() {
    let place = Place::with_frames(20);
    let mut app = App::create(&place.db(), "");
    app.insert_many(200);
    let small = live_image(&place.db());
    app.sql("UPDATE t SET a = randomblob(2900) WHERE id % 2; CREATE TABLE more(a)");
    app.insert_many(500);
    let large = live_image(&place.db());
    let (mut capture, mut replica) = place.follow();
    let paths = [place.path("small"), place.path("large")];
    for (path, image) in paths.iter().zip([&small, &large]) {
        std::fs::write(path, image).unwrap();
    }
    replica.drain(&mut capture);
    capture.detach().unwrap();
    let mut rng = StdRng::seed_from_u64(77);
    let mut seen = [0, 0];
    for round in 0..20 {
        let mut agent = Process::start("restless");
        agent.tell(&format!("{} {} {}", place.folder().display(), paths[0].display(), paths[1].display()));
        for _ in 0..rng.random_range(1..4) {
            agent.reply().unwrap().unwrap();
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..60_000)));
        agent.kill();
        let live = live_image(&place.db());
        let is = [&small, &large].map(|state| same(&live, state));
        assert!(is[0] ^ is[1], "round {round}: a mix");
        seen[usize::from(is[1])] += 1;
        // The next agent finds its place, or what differs; the numbers go on where the hub stands.
        let mut capture = place.attach();
        let txid = |position: Option<Pos>| position.map(|p| p.txid);
        if txid(capture.position()) < txid(replica.position) {
            replica.roll(&mut capture).unwrap();
        }
        if capture.position() == replica.position {
            capture.heal(&mut replica).unwrap();
        } else {
            let meta = capture.delta_since(replica.position, &mut replica).unwrap();
            capture.acked(meta.range.max());
        }
        replica.drain(&mut capture);
        replica.assert_is_live(&place.db());
        assert_eq!(app.query("PRAGMA integrity_check"), "ok");
        capture.detach().unwrap();
    }
    println!("small {} times, large {} times", seen[0], seen[1]);
}
