//! The runbooks for a bad night, run as they are: a real hub, an agent and an application that writes, then the disaster, then
//! the script of `deploy/runbooks`, with the commands of a service manager. What it says of time and loss is reported.

mod site;

use site::{NODE, Site, all_stock, moment, open, rows, stock, told};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use walhub_common::clock;
use walhub_tests::binaries::source_root;
use walhub_tests::certs::Who;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::run;
use walhub_tests::report::report;
use walhub_tests::workload::Writer;
use walhub_tests::{Image, oracle};

#[test]
fn a_lost_server_comes_back_on_a_new_machine() {
    let mut site = Site::new("runbook-server-lost");
    // One of a `dir:` entry: on the new machine only the hub knows its name.
    let quiet = site.cluster.path("data/tenants/quiet db.db");
    std::fs::create_dir(quiet.parent().expect("a folder")).expect("folder");
    stock(&quiet, 1000);
    let shop = site.shop.clone();
    let first = site.cluster.authority().issue(Who::Agent(NODE));
    site.cluster.agent(NODE, &[("shop", &shop)]);
    site.cluster.agent_certificate(NODE, first.clone());
    site.cluster.start_agent(NODE);
    site.cluster.kill_agent(NODE);
    let tenants = format!(
        "  - dir: {}\n    pattern: '*.db'\n    prefix: t-\n",
        site.cluster.path("data/tenants").display()
    );
    let written = std::fs::read_to_string(site.cluster.agent_config(NODE)).expect("agent.yml") + &tenants;
    std::fs::write(site.cluster.agent_config(NODE), &written).expect("agent.yml");
    site.shell(&site.start_agent());
    let (quiet_image, _) = site.cluster.await_buffered(NODE, "t-quiet_db.db", &quiet);
    let stock_before = all_stock(&shop);
    let mut writer = Writer::spawn(&shop, &["--rate", "200", "--note", "300"]);
    writer.await_acked(300);
    let promised = site.cluster.buffered(NODE, "shop").expect("buffered").0;

    // The server, with all it had.
    site.kill("agent");
    let lost_at = clock::format_ms(clock::now_ms());
    let acked = writer.kill9();
    for folder in ["data", "pos-1-state"] {
        std::fs::remove_dir_all(site.cluster.path(folder)).expect("the disk is lost");
    }
    for file in [&first.cert, &first.key] {
        std::fs::remove_file(file).expect("the certificate is lost");
    }
    let config = site.cluster.agent_config(NODE).display().to_string();
    let (agent, app) = (site.start_agent(), site.start_app(2, 100));
    let given =
        ["--config", &config, "--lost-at", &lost_at, "--start-agent", &agent, "--start-app", &app, "--yes"];

    // Without a certificate nothing begins, and it says where one comes from. Nor without an answer.
    let refused = site.runbook("./server-lost.sh", &given);
    assert!(refused.code == 64 && refused.stderr.contains("hubctl cert issue --agent"), "{refused:?}");
    site.cluster.authority().issue(Who::Agent(NODE));
    let unanswered = site.runbook("./server-lost.sh", &given[..given.len() - 1]);
    assert!(unanswered.code == 1 && unanswered.stderr.contains("nothing was changed"), "{unanswered:?}");
    assert!(!shop.exists() && !site.cluster.path("pos-1-state").exists());

    let (rto, rpo) = told("server lost", site.runbook("./server-lost.sh", &given));
    assert!(rto > 0.0 && rpo >= 0.0);
    site.await_acked(1);
    let (after, again) = (site.audit(), site.acked());
    site.await_acked(again + 20);
    let returned = after.transfers.values().filter(|life| **life == 1).count() as u64;
    assert!(returned <= acked, "{returned} transfers came back, {acked} were made");
    report("server lost: rows", &format!("{returned} of {acked} transfers came back"));
    Image::live(&quiet).assert_same(&quiet_image, "the quiet database");
    assert_eq!(all_stock(&shop), stock_before);
    site.proven("server lost");
    assert!(site.cluster.buffered(NODE, "shop").expect("buffered").0 > promised, "one history goes on");

    // Nothing of what lay at the hub travelled there again.
    let status = site.cluster.agent_command(NODE, &["status", "--json"]).json();
    for database in status["databases"].as_array().expect("databases") {
        let sent = database["bytes_sent"].as_u64().expect("bytes");
        let limit = if database["name"] == "t-quiet_db.db" { 100_000 } else { quiet_image.len() as u64 / 2 };
        assert!(sent < limit, "{database}");
    }
    // Again: there is nothing to do, and nothing is done.
    let second = site.runbook("./server-lost.sh", &given);
    assert!(second.code == 0 && second.stderr.matches("the file exists").count() == 2, "{second:?}");
    Image::live(&quiet).assert_same(&quiet_image, "the quiet database, after a second run");
}

#[test]
fn a_corrupted_file_is_put_aside_and_the_newest_sound_state_takes_its_place() {
    let mut site = Site::new("runbook-corrupted");
    // Writes the configuration.
    site.cluster.start_agent(NODE);
    site.cluster.kill_agent(NODE);
    site.shell(&site.start_agent());
    let stock_before = all_stock(&site.shop);
    // Each commit a restore point of its own.
    site.shell(&site.start_app(1, 20));
    site.await_acked(20);
    let (shop, config) =
        (site.shop.display().to_string(), site.cluster.agent_config(NODE).display().to_string());
    let script = |site: &Site, life: u32, more: &[&str]| {
        let (stop_agent, start_agent) = (site.service("stop agent"), site.start_agent());
        let (stop_app, start_app) = (site.service("stop app"), site.start_app(life, 20));
        let mut words = vec![&shop[..], "--config", &config, "--stop-agent", &stop_agent, "--start-agent"];
        words.extend([&start_agent[..], "--stop-app", &stop_app, "--start-app", &start_app]);
        words.extend(more);
        site.runbook("./database-corrupted.sh", &words)
    };
    // A sound one is left alone, and the application goes on.
    let sound = script(&site, 1, &["--yes"]);
    assert!(sound.code == 0 && sound.stderr.contains("nothing to do"), "{sound:?}");

    // Rot: below SQLite, in the middle of the file.
    eventually("the log is in the file", PATIENCE, || {
        let done = site.cluster.agent_command(NODE, &["checkpoint", "shop", "--shrink", "--json"]).json();
        ensure(done["truncated"] == true, || done.to_string())
    });
    {
        let file = std::fs::File::options().write(true).open(&site.shop).expect("the file");
        for page in [200, 201, 350] {
            file.write_all_at(&[0x55; 4096], page * 4096).expect("rot");
        }
    }
    let (rotten, mode) = (std::fs::metadata(&site.shop).expect("it").ino(), 0o640);
    std::fs::set_permissions(&site.shop, PermissionsExt::from_mode(mode)).expect("mode");
    let asked = script(&site, 2, &[]);
    assert!(asked.code == 1 && asked.stderr.contains("nothing was changed"), "{asked:?}");
    assert_eq!(std::fs::metadata(&site.shop).expect("it").ino(), rotten);
    let said = script(&site, 2, &["--yes"]);
    let moved: u64 = said
        .stderr
        .lines()
        .find_map(|line| line.split_once(" bytes came")?.0.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{said:?}"));
    let (_, rpo) = told("file corrupted, by rot", said);
    assert!(rpo == 0.0, "the newest state is sound: {rpo}");
    assert_eq!(all_stock(&site.shop), stock_before);
    let now = std::fs::metadata(&site.shop).expect("it");
    assert_eq!((now.mode() & 0o777, now.ino() == rotten), (mode, false));
    assert!(moved < now.len() / 10, "{moved} bytes came for {}", now.len());
    let kept = |site: &Site| -> Vec<u64> {
        let files = std::fs::read_dir(site.cluster.path("data")).expect("data").flatten();
        let aside = files.filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.contains(".corrupted-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        });
        aside.map(|file| file.metadata().expect("it").ino()).collect()
    };
    assert_eq!(kept(&site), [rotten], "the corrupted file itself is kept");
    let before = site.acked();
    site.await_acked(before + 20);
    let first_life = site.audit().transfers.values().filter(|life| **life == 1).count();
    // A transfer that was lost would be made a second time.
    let log = std::fs::read_to_string(site.services.join("app.log")).expect("app.log");
    let made: Vec<u64> = log.lines().filter_map(|line| line.strip_prefix("acked ")?.parse().ok()).collect();
    assert!(made.is_sorted_by(|one, next| one < next), "{made:?}");
    report("file corrupted, by rot: rows", &format!("{first_life} transfers from before, none lost"));

    // Corruption that was committed, and so is at the hub as well.
    let until = site.acked();
    eventually("they are at the hub", PATIENCE, || {
        let synced = site.cluster.agent_command(NODE, &["sync", "shop", "--json"]);
        ensure(synced.code == 0, || synced.stderr)
    });
    let root: i64 = oracle::observer(&site.shop)
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'stock'", [], |row| row.get(0))
        .expect("a page");
    let damaged = open(&site.shop)
        .execute("UPDATE sqlite_dbpage SET data = randomblob(4096) WHERE pgno = ?1", [root])
        .expect("committed corruption");
    assert_eq!(damaged, 1);
    let wrong = site.acked();
    site.await_acked(wrong + 40);
    let (_, rpo) = told("file corrupted, by a commit", script(&site, 3, &["--yes"]));
    assert!(rpo > 0.0, "what was committed on top is undone");
    site.await_acked(until + 1);
    let audit = site.audit();
    let kept_rows = audit.transfers.iter().filter(|(_, life)| **life < 3).count() as u64;
    assert!(kept_rows >= until, "{kept_rows} transfers came back, {until} were there before the corruption");
    assert_eq!(all_stock(&site.shop), stock_before);
    assert_eq!(kept(&site).len(), 2);
    report(
        "file corrupted, by a commit: rows",
        &format!("{kept_rows} transfers came back, {until} were sure"),
    );
    site.proven("after corruption");
    assert_eq!(oracle::integrity(&site.shop), "ok");
}

#[test]
fn corruption_right_after_the_first_transaction_is_undone() {
    let mut site = Site::new("runbook-corrupted-early");
    site.cluster.start_agent(NODE);
    let (sound, txid) = site.cluster.await_buffered(NODE, "shop", &site.shop);
    // At a time of its own.
    moment();
    open(&site.shop)
        .execute("UPDATE sqlite_dbpage SET data = randomblob(4096) WHERE pgno = 2", [])
        .expect("committed corruption");
    site.cluster.await_buffered(NODE, "shop", &site.shop);
    site.cluster.stop_agent(NODE);
    let (shop, config) =
        (site.shop.display().to_string(), site.cluster.agent_config(NODE).display().to_string());
    let agent = site.start_agent();
    let words = [&shop[..], "--config", &config, "--stop-agent", "true", "--stop-app", "true", "--yes"];
    let words = [&words[..], &["--start-agent", &agent]].concat();
    // A state that is not sound is not taken when it was asked for, and everything stays as it is.
    let now = moment();
    let refused = site.runbook("./database-corrupted.sh", &[&words[..], &["--timestamp", &now]].concat());
    assert!(refused.code == 1 && refused.stderr.contains("is unchanged"), "{refused:?}");
    assert_ne!(oracle::integrity(&site.shop), "ok");
    told(
        "file corrupted, right after the first transaction",
        site.runbook("./database-corrupted.sh", &words),
    );
    site.cluster.await_buffered(NODE, "shop", &site.shop);
    sound.assert_same(&Image::live(&site.shop), "the only sound state");
    assert!(site.cluster.buffered(NODE, "shop").expect("buffered").0 > txid, "one history goes on");
}

#[test]
fn rows_that_were_deleted_come_back_and_nothing_else_changes() {
    let mut site = Site::new("runbook-rows");
    let app = open(&site.shop);
    app.execute_batch(
        "CREATE TABLE \"the orders\"(id INTEGER PRIMARY KEY, customer INTEGER, note TEXT,
             size INTEGER GENERATED ALWAYS AS (length(note)));
         CREATE TABLE line(\"order\" REFERENCES \"the orders\"(id) ON DELETE CASCADE, pos, what BLOB,
             PRIMARY KEY(\"order\", pos)) WITHOUT ROWID;
         CREATE TABLE diary(text);
         CREATE TABLE audit(id);
         CREATE TRIGGER written AFTER INSERT ON diary BEGIN INSERT INTO audit VALUES (new.rowid); END;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO \"the orders\" SELECT i, i % 20, 'it''s order ' || i FROM n;
         INSERT INTO line SELECT o.id, pos.value, randomblob(50) FROM \"the orders\" AS o, json_each('[1,2,3]') AS pos;
         INSERT INTO diary SELECT 'day ' || id FROM \"the orders\" WHERE id < 100;",
    )
    .expect("a shop");
    site.cluster.start_agent(NODE);
    site.cluster.await_buffered(NODE, "shop", &site.shop);
    let contents = |site: &Site| {
        let quoted = "SELECT quote(id) || quote(customer) || quote(note) FROM \"the orders\" WHERE id < 9000 ORDER BY id";
        let lines = "SELECT quote(\"order\") || quote(pos) || quote(what) FROM line ORDER BY 1";
        let diary = "SELECT rowid || quote(text) FROM diary ORDER BY rowid";
        [quoted, lines, diary].map(|sql| rows(&site.shop, sql))
    };
    let mut wanted = contents(&site);
    let deleted_at = moment();
    app.execute_batch("DELETE FROM \"the orders\" WHERE customer = 7; DELETE FROM diary")
        .expect("an accident");
    // Life goes on: one order was changed, one came anew under an old number.
    app.execute_batch(
        "UPDATE \"the orders\" SET note = 'changed' WHERE id = 8;
         INSERT INTO \"the orders\" VALUES (27, 3, 'new')",
    )
    .expect("changes");
    wanted[0][7] = "88'changed'".to_owned();
    wanted[0][26] = "273'new'".to_owned();

    let (shop, config) =
        (site.shop.display().to_string(), site.cluster.agent_config(NODE).display().to_string());
    let orders = ["--table", "the orders", "--where", "customer = 7", "--table", "line"];
    let hub = format!("{NODE}/shop");
    let script = |site: &Site, more: &[&str]| {
        let mut words = vec![&shop[..], "--deleted-at", &deleted_at];
        words.extend(more);
        site.runbook("./rows-deleted.sh", &words)
    };
    // What cannot be is refused, and what is not answered.
    let before = Image::live(&site.shop);
    for (more, part) in [
        (&["--config", &config, "--table", "order", "--yes"][..], "no table order"),
        (&["--config", &config, "--table", "line", "--where", "nonsense > 1", "--yes"], "nonsense"),
        (&["--config", &config, "--table", "line", "--yes"], "FOREIGN KEY"),
        (&["--config", &config, "--table", "the orders"], "nothing was changed"),
        (&["--hub", "pos-1/nothing", "--table", "line", "--yes"], "pos-1/nothing"),
    ] {
        let refused = script(&site, more);
        assert!(refused.code == 1 && refused.stderr.contains(part), "{more:?}: {refused:?}");
    }
    before.assert_same(&Image::live(&site.shop), "after what was refused");

    // Another connection writes meanwhile.
    let ended = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let app = open(&site.shop);
            let mut id = 10_000_i64;
            while !ended.load(Ordering::Relaxed) {
                app.execute("INSERT INTO \"the orders\" VALUES (?1, 7, 'meanwhile')", [id])
                    .expect("an order");
                id += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            id - 10_000
        });
        let said = script(&site, &[&["--hub", &hub, "--yes"], &orders[..]].concat());
        ended.store(true, Ordering::Relaxed);
        let written = writing.join().expect("the writer");
        let there: i64 = app
            .query_row("SELECT count(*) FROM \"the orders\" WHERE id >= 10000", [], |row| row.get(0))
            .expect("a count");
        assert_eq!(there, written, "what was written meanwhile is there");
        said
    });
    assert!(said.stderr.contains("1 rows were changed since then"), "{}", said.stderr);
    let (_, rpo) = told("rows deleted", said);
    assert!(rpo >= 0.0);
    let now = contents(&site);
    assert_eq!((&now[0], &now[1]), (&wanted[0], &wanted[1]));
    assert!(now[2].is_empty(), "the diary was not asked for");
    let second = script(&site, &[&["--hub", &hub, "--yes"], &orders[..]].concat());
    assert!(second.code == 0 && second.stderr.contains("nothing is missing"), "{second:?}");

    // A table without a key, by the node's own certificate; triggers off.
    let diary = ["--config", &config[..], "--table", "diary", "--no-triggers", "--yes"];
    let said = script(&site, &diary);
    assert!(said.stderr.contains("--in-place"), "the way back is named: {}", said.stderr);
    told("rows deleted, from the node", said);
    assert_eq!(contents(&site), wanted);
    let audited: i64 = app.query_row("SELECT count(*) FROM audit", [], |row| row.get(0)).expect("a count");
    assert_eq!(audited, 99, "triggers did not fire");
    let (image, _) = site.cluster.await_buffered(NODE, "shop", &site.shop);
    image.assert_same(&Image::restored(&site.cluster.restore(&hub, "after.db", &[])), "replication goes on");
}

#[test]
fn every_runbook_explains_itself() {
    let scripts = ["server-lost.sh", "database-corrupted.sh", "rows-deleted.sh"];
    for script in scripts {
        let run_it = |arguments: &[&str]| {
            let mut command = Command::new(source_root().join("deploy/runbooks").join(script));
            command.args(arguments);
            run(command)
        };
        let help = run_it(&["--help"]).success();
        assert!(help.contains("--yes") && help.contains("Exit codes") && !help.contains("set -e"), "{help}");
        for wrong in [&["--no-such-thing"][..], &["--config"], &["a", "b", "c"]] {
            let said = run_it(wrong);
            assert!(said.code == 2 && said.stderr.contains("--help"), "{script} {wrong:?}: {said:?}");
        }
    }
}
