//! The hub's metrics as a monitoring server sees them: right after real commits, red with a cause when a destination fails,
//! loud when a drill does; and whoever sends rubbish there does no harm.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use walhub_common::config::{Document, Section, value};
use walhub_tests::binaries::source_root;
use walhub_tests::cluster::PATIENCE;
use walhub_tests::config::free_port;
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::tail;
use walhub_tests::scrape::{self, Page};
use walhub_tests::workload::Writer;
use walhub_tests::{Cluster, replica};

const DATABASE: &str = "node/app.db";
const FAR: [(&str, &str); 1] = [("destination", "far")];
const NEAR: [(&str, &str); 1] = [("destination", "near")];

/// Name, labels, value.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// A hub whose metrics can be asked for, and their address.
fn watched(name: &str, lines: &str) -> (Cluster, String) {
    let mut cluster = Cluster::new(name);
    let address = format!("127.0.0.1:{}", free_port());
    cluster.hub_lines(&format!("metrics: {{listen: '{address}'}}\n{lines}"));
    (cluster, address)
}

/// With a node that commits, and two folders.
fn running(name: &str, lines: &str) -> (Cluster, String, PathBuf) {
    let (mut cluster, address) = watched(name, lines);
    cluster.add_folder("near");
    cluster.add_folder("far");
    let database = cluster.path("data/app.db");
    Writer::spawn(&database, &["--commits", "20"]).wait();
    cluster.agent("node", &[("app.db", &database)]);
    cluster.start_hub();
    cluster.start_agent("node");
    settled(&cluster, &database);
    (cluster, address, database)
}

fn settled(cluster: &Cluster, database: &Path) -> u64 {
    let (_, txid) = cluster.await_buffered("node", "app.db", database);
    cluster.await_everywhere("node", "app.db", txid);
    txid
}

/// Waits until each of these is so on one page, and gives that page.
#[track_caller]
fn shows(address: &str, what: &str, values: &[Expected<'_>]) -> Page {
    eventually(what, PATIENCE, || {
        let page = Page::of(address)?;
        for (name, labels, expected) in values {
            let found = page.value(name, labels)?;
            ensure(found == *expected, || format!("{name} {labels:?} is {found}, not {expected}"))?;
        }
        Ok(page)
    })
}

/// Sums that `hubctl status` has as well.
fn same_as_status(cluster: &Cluster, page: &Page) -> Result<(), String> {
    let status = cluster.client().status().map_err(|status| status.message().to_owned())?;
    let hub = status.hub.ok_or("no hub")?;
    let same = |name: &str, labels: &[(&str, &str)], expected: f64| {
        let found = page.value(name, labels)?;
        ensure(found == expected, || format!("{name} {labels:?} is {found}, the status says {expected}"))
    };
    same("walhub_build_info", &[("version", &hub.version)], 1.0)?;
    same("walhub_start_time_seconds", &[], hub.started_ms as f64 / 1000.0)?;
    same("walhub_buffer_segments_total", &[], hub.segments as f64)?;
    same("walhub_buffer_segment_bytes_total", &[], hub.segment_bytes as f64)?;
    same("walhub_buffer_used_bytes", &[], hub.buffer_bytes as f64)?;
    same("walhub_buffer_limit_bytes", &[], hub.buffer_max_bytes as f64)?;
    for destination in &status.destinations {
        let name = [("destination", destination.name.as_str())];
        same("walhub_destination_put_files_total", &name, destination.puts as f64)?;
        same("walhub_destination_put_bytes_total", &name, destination.put_bytes as f64)?;
        let puts = page.value("walhub_destination_requests_total", &[name[0], ("operation", "put")])?;
        ensure(puts >= destination.puts as f64, || {
            format!("{puts} requests for {} files", destination.puts)
        })?;
        ensure(destination.puts > 0, || "nothing was put".to_owned())?;
    }
    Ok(())
}

#[test]
fn the_page_says_what_was_committed_and_where_it_lies() {
    let (mut cluster, address, database) = running("metrics", "drills: {every: 24h}\n");
    let connected: [Expected<'_>; 14] = [
        ("walhub_databases", &[], 1.0),
        ("walhub_databases_open", &[], 1.0),
        ("walhub_databases_refused", &[], 0.0),
        ("walhub_databases_not_durable", &[], 0.0),
        ("walhub_agents", &[], 1.0),
        ("walhub_agents_connected", &[], 1.0),
        ("walhub_agent_connected", &[("agent", "node")], 1.0),
        ("walhub_agent_databases", &[("agent", "node")], 1.0),
        ("walhub_destination_up", &NEAR, 1.0),
        ("walhub_destination_up", &FAR, 1.0),
        ("walhub_destination_databases", &FAR, 1.0),
        ("walhub_destination_lag_seconds", &FAR, 0.0),
        ("walhub_destination_lag_p99_seconds", &FAR, 0.0),
        ("walhub_buffer_full", &[], 0.0),
    ];
    let before = shows(&address, "everything is where it belongs", &connected);
    eventually("it says what the status says", PATIENCE, || same_as_status(&cluster, &Page::of(&address)?));
    let started = before.find("walhub_start_time_seconds", &[]).expect("a start");
    assert_eq!(before.find("walhub_drill_interval_seconds", &[]), Some(86_400.0));

    Writer::spawn(&database, &["--commits", "20"]).wait();
    settled(&cluster, &database);
    // A page is given again for a moment.
    eventually("the new ones as well", PATIENCE, || {
        let after = Page::of(&address)?;
        assert_eq!(after.fallen(&before), [""; 0]);
        for (name, labels) in [
            ("walhub_buffer_segments_total", &[][..]),
            ("walhub_buffer_segment_bytes_total", &[]),
            ("walhub_buffer_syncs_total", &[]),
            ("walhub_destination_put_files_total", &FAR),
            ("walhub_destination_put_bytes_total", &NEAR),
        ] {
            ensure(after.find(name, labels) > before.find(name, labels), || format!("{name} stands still"))?;
        }
        Ok(())
    });
    shows(&address, "everything is where it belongs again", &connected);
    cluster.stop_agent("node");
    let gone: [Expected<'_>; 4] = [
        ("walhub_agents", &[], 1.0),
        ("walhub_agents_connected", &[], 0.0),
        ("walhub_agent_connected", &[("agent", "node")], 0.0),
        ("walhub_databases_open", &[], 0.0),
    ];
    let page = shows(&address, "the agent is gone", &gone);
    let seen = page.find("walhub_agent_last_seen_timestamp_seconds", &[("agent", "node")]);
    assert!(seen.is_some_and(|seen| seen >= started), "{seen:?}");
    let status =
        |method: &str, path: &str| scrape::request(&address, method, path).expect("an answer").status;
    assert_eq!((status("GET", "/healthz"), status("HEAD", "/metrics")), (200, 200));
    assert_eq!(
        (status("GET", "/"), status("POST", "/metrics"), status("DELETE", "/healthz")),
        (404, 405, 405)
    );
    cluster.stop_hub();
    assert!(TcpStream::connect(&address).is_err(), "somebody listens though the hub has ended");
}

#[test]
fn a_destination_that_fails_is_red_with_its_cause_until_it_has_caught_up() {
    let (mut cluster, address, database) = running("metrics-red", "");
    let (far, aside) = (cluster.path("far"), cluster.path("aside"));
    std::fs::rename(&far, &aside).expect("moves away");
    Writer::spawn(&database, &["--commits", "5"]).wait();
    let cause = [("destination", "far"), ("cause", "bucket missing")];
    let page = shows(
        &address,
        "far is red, near is not",
        &[
            ("walhub_destination_up", &FAR, 0.0),
            ("walhub_destination_down", &cause, 1.0),
            ("walhub_destination_databases_behind", &FAR, 1.0),
            ("walhub_destination_up", &NEAR, 1.0),
        ],
    );
    assert!(page.find("walhub_destination_failures_total", &cause) >= Some(1.0));
    assert_eq!(page.all("walhub_destination_down").len(), 1);
    let lag = page.find("walhub_destination_lag_seconds", &FAR).expect("a lag");
    eventually("it lags more and more", PATIENCE, || {
        let page = Page::of(&address)?;
        let now = page.value("walhub_destination_lag_seconds", &FAR)?;
        ensure(now > lag && page.find("walhub_destination_lag_p99_seconds", &FAR) == Some(now), || {
            format!("{now}")
        })
    });
    std::fs::rename(&aside, &far).expect("moves back");
    settled(&cluster, &database);
    let green: [Expected<'_>; 3] = [
        ("walhub_destination_up", &FAR, 1.0),
        ("walhub_destination_databases_behind", &FAR, 0.0),
        ("walhub_destination_lag_seconds", &FAR, 0.0),
    ];
    let page = shows(&address, "far is green again", &green);
    assert_eq!(page.all("walhub_destination_down"), [], "nothing is down");
    assert!(page.find("walhub_destination_failures_total", &cause) >= Some(1.0), "what was is not forgotten");
    cluster.stop_hub();
}

#[test]
fn a_drill_that_fails_is_loud_until_the_object_is_repaired() {
    let lines = "levels: [24h]\ndrills: {every: 8760h, repair: false}\n";
    let (mut cluster, address, database) = running("metrics-drills", lines);
    for commits in ["30", "1", "1", "30", "1"] {
        Writer::spawn(&database, &["--commits", commits]).wait();
        settled(&cluster, &database);
    }
    let drill =
        |destination: &str| cluster.hubctl(&["drills", "run", DATABASE, "--destination", destination]).code;
    assert_eq!((drill("far"), drill("near")), (0, 0));
    let passed = [("destination", "far"), ("verdict", "passed")];
    let page = shows(
        &address,
        "the drill is told",
        &[("walhub_drills_total", &passed, 1.0), ("walhub_drill_copies_failing", &FAR, 0.0)],
    );
    assert_eq!(page.all("walhub_drill_failing"), []);
    assert!(page.find("walhub_drill_read_bytes_total", &FAR) > Some(0.0));
    let success = page.find("walhub_drill_last_success_timestamp_seconds", &FAR).expect("a success");
    assert_eq!(page.find("walhub_drill_last_timestamp_seconds", &FAR), Some(success));

    let mut files = replica::files(&cluster.path("far").join(DATABASE)).expect("whole files");
    let bad = files.remove(files.len() / 2).path;
    let mut bytes = std::fs::read(&bad).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&bad, bytes).expect("an object");
    assert_eq!(drill("far"), 1);
    let copy = [("agent", "node"), ("database", "app.db"), ("destination", "far")];
    let failed: [Expected<'_>; 5] = [
        ("walhub_drill_failing", &copy, 1.0),
        ("walhub_drill_copies_failing", &FAR, 1.0),
        ("walhub_drill_copies_failing", &NEAR, 0.0),
        ("walhub_drills_total", &[("destination", "far"), ("verdict", "failed")], 1.0),
        ("walhub_repaired_objects_total", &FAR, 0.0),
    ];
    let page = shows(&address, "the drill fails loudly", &failed);
    assert_eq!(page.find("walhub_drill_last_success_timestamp_seconds", &FAR), Some(success));
    assert!(page.find("walhub_drill_last_timestamp_seconds", &FAR) > Some(success));
    let log = cluster.hub().log();
    let loud = log.lines().find(|line| line.contains("ERROR") && line.contains("drill failed"));
    let name = bad.file_name().expect("a name").to_string_lossy().into_owned();
    let loud = loud.unwrap_or_else(|| panic!("no error in the log:\n{}", tail(&log, 20)));
    assert!(loud.contains(DATABASE) && loud.contains("far") && loud.contains(&name), "{loud}");

    // It is not forgotten by a hub that begins anew.
    cluster.stop_hub();
    cluster.start_hub();
    shows(&address, "it still fails", &failed[..3]);
    settled(&cluster, &database);
    assert_eq!(cluster.hubctl(&["repair", DATABASE, "--destination", "far"]).code, 0);
    let page = shows(
        &address,
        "it is mended",
        &[("walhub_drill_copies_failing", &FAR, 0.0), ("walhub_repaired_objects_total", &FAR, 1.0)],
    );
    assert_eq!(page.all("walhub_drill_failing"), []);
    assert!(page.find("walhub_drill_last_success_timestamp_seconds", &FAR) > Some(success));
    cluster.stop_hub();
}

#[test]
fn whoever_sends_rubbish_or_nothing_does_no_harm() {
    let (mut cluster, address, database) = running("metrics-hostile", "");
    let seed: u64 = rand::rng().random_range(0..1_000_000);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // More than there is room for, each with a request that never ends.
    let mut slow: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&address).expect("connects")).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nx-slow: ");
    }
    let huge = |line: &str| format!("{line}{}\r\n\r\n", "x".repeat(4 << 20)).into_bytes();
    let mut rubbish: Vec<Vec<u8>> = vec![
        huge("GET /metrics HTTP/1.1\r\nhost: "),
        huge("GET /"),
        b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\ncontent-length: 18446744073709551616\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes(),
        b"\0\r\n\r\n".to_vec(),
    ];
    for _ in 0..20 {
        let mut bytes = vec![0; random.random_range(1..5000)];
        random.fill_bytes(&mut bytes);
        bytes.extend(b"\r\n\r\n");
        rubbish.push(bytes);
    }
    for bytes in &rubbish {
        // Whatever it answers, it is no page.
        let answer = scrape::send(&address, bytes).unwrap_or_default();
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
        for stream in &mut slow {
            // The hub may have had enough of it.
            let _ = stream.write_all(b"x");
        }
    }
    eventually("the page comes as ever", PATIENCE, || Page::of(&address));
    Writer::spawn(&database, &["--commits", "20"]).wait();
    settled(&cluster, &database);
    let one = shows(&address, "commits go on", &[("walhub_databases_not_durable", &[], 0.0)]);
    // Many at once get the same.
    let pages: Vec<Page> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..50).map(|_| scope.spawn(|| Page::of(&address).expect("a page"))).collect();
        asked.into_iter().map(|page| page.join().expect("a page")).collect()
    });
    assert!(pages.iter().all(|page| page.families == one.families && page.fallen(&one).is_empty()));
    let resident = resident_kib(cluster.hub().id());
    assert!(resident < 512 << 10, "the hub has {resident} KiB in memory");
    // It ends in order, whoever is still connected.
    let _held = TcpStream::connect(&address).expect("connects");
    cluster.stop_hub();
}

fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut cluster = Cluster::new("metrics-port");
    cluster.add_folder("near");
    cluster.hub_lines(&format!("metrics: {{listen: '{}'}}\n", taken.local_addr().expect("an address")));
    cluster.spawn_hub();
    let status = cluster.hub().wait(PATIENCE);
    let said = cluster.hub().log();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("metrics.listen: cannot listen on 127.0.0.1:") && said.contains("in use"),
        "{said}"
    );
}

/// One rule: what it is called, what it asks, and the texts that name labels.
struct Rule {
    alert: String,
    expr: String,
    texts: Vec<String>,
}

fn rule(mut section: Section<'_>) -> Option<Rule> {
    let alert = section.required("alert", value::string);
    let expr = section.required("expr", value::string);
    section.optional("for", value::duration);
    let mut labels = section.section("labels");
    let severities = [("critical", ()), ("warning", ())];
    labels.required("severity", value::one_of(&severities));
    labels.finish();
    let mut annotations = section.section("annotations");
    let summary = annotations.required("summary", value::string);
    let description = annotations.required("description", value::string);
    annotations.finish();
    section.finish();
    Some(Rule { alert: alert?, expr: expr?, texts: vec![summary?, description?] })
}

/// The rules of the deployment; a key that Prometheus does not know is a fault.
fn rules() -> Vec<Rule> {
    let path = source_root().join("deploy/monitoring/alerts.yml");
    let document = Document::read(path).expect("YAML");
    let mut root = document.root();
    let mut rules = Vec::new();
    for mut group in root.sections("groups") {
        group.required("name", value::string);
        rules.extend(group.sections("rules").into_iter().filter_map(rule));
        group.finish();
    }
    root.finish();
    document.check(Some(rules)).expect("rules as Prometheus takes them")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn every_alert_asks_for_metrics_that_a_hub_exports() {
    let (mut cluster, address) = watched("metrics-alerts", "");
    cluster.add_folder("near");
    cluster.start_hub();
    let page = eventually("a page", PATIENCE, || Page::of(&address));
    let names = page.names();
    let rules = rules();
    for Rule { alert, expr, texts } in &rules {
        assert!(alert.starts_with("Walhub") && rules.iter().filter(|rule| rule.alert == *alert).count() == 1);
        let asked: Vec<&str> = words(expr).filter(|word| word.starts_with("walhub_")).collect();
        assert!(!asked.is_empty() || expr == "up{job=\"walhub\"} == 0", "{alert} asks for nothing: {expr}");
        for name in asked.iter().chain(
            &texts
                .iter()
                .flat_map(|text| words(text))
                .filter(|w| w.starts_with("walhub_"))
                .collect::<Vec<_>>(),
        ) {
            assert!(names.contains(*name), "{alert}: a hub does not export {name}");
        }
        let (mut open, mut quoted) = (Vec::new(), false);
        for c in expr.chars() {
            match c {
                '"' => quoted = !quoted,
                '(' | '[' | '{' if !quoted => open.push(c),
                ')' | ']' | '}' if !quoted => {
                    let begun = open.pop();
                    assert!(
                        matches!((begun, c), (Some('('), ')') | (Some('['), ']') | (Some('{'), '}')),
                        "{alert}: {expr}"
                    );
                }
                _ => {}
            }
        }
        assert!(open.is_empty() && !quoted, "{alert}: {expr}");
        for text in texts {
            assert_eq!(text.matches("{{").count(), text.matches("}}").count(), "{alert}: {text}");
            for label in text.split("$labels.").skip(1).filter_map(|rest| words(rest).next()) {
                let known = ["instance", "job", "agent", "database", "destination", "cause"];
                assert!(known.contains(&label), "{alert} names the label {label}");
            }
        }
    }
    for must in ["DrillFailing", "DrillOverdue", "DestinationDown", "BufferNearlyFull", "AgentSilent"] {
        assert!(rules.iter().any(|rule| rule.alert == format!("Walhub{must}")), "no rule for {must}");
    }
    cluster.stop_hub();
}
