//! What the documents say is what happens: the README's commands are run as written, the example configurations are
//! good, the units are understood.

use rusqlite::Connection;
use std::path::Path;
use std::process::Command;
use walhub_tests::binaries::{program, source_root};
use walhub_tests::certs::{Authority, Who};
use walhub_tests::cluster::Cluster;
use walhub_tests::config::free_port;
use walhub_tests::oracle::Image;
use walhub_tests::process::run;
use walhub_tests::scratch::Scratch;
use walhub_tests::services;

/// Fenced blocks of one language, in order.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("\n```").next().expect("a block ends")).collect()
}

#[test]
fn the_commands_of_the_readme_work_as_written() {
    let Some(litestream) = services::litestream() else { return };
    let scratch = Scratch::new("readme");
    let readme = std::fs::read_to_string(source_root().join("README.md")).expect("README.md");
    // What a test may not share with its neighbours.
    let readme = readme.replace("127.0.0.1:7443", &format!("127.0.0.1:{}", free_port()));
    let readme = readme.replace("127.0.0.1:9464", &format!("127.0.0.1:{}", free_port()));
    for config in blocks(&readme, "yaml") {
        let name = config.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a file name");
        std::fs::write(scratch.join(name), config).expect("configuration");
    }
    let app = Connection::open(scratch.join("app.db")).expect("app.db");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").expect("rows");

    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p); wait' EXIT\n");
    for block in blocks(&readme, "sh") {
        script.push_str(block);
        script.push('\n');
        // The only thing a person does that the text does not say: wait for the hub to be up.
        if block.contains("walhub-hub run") {
            script.push_str("sleep 1\n");
        }
    }
    std::fs::write(scratch.join("readme.sh"), &script).expect("script");
    let programs = program("hubctl");
    let folders = [programs.parent(), litestream.parent()]
        .map(|folder| folder.expect("a folder").display().to_string());
    let path = std::env::var("PATH").expect("PATH");
    let mut command = Command::new("timeout");
    command.args(["120", "bash", "-x", "readme.sh"]).current_dir(scratch.path());
    command.env("PATH", format!("{}:{path}", folders.join(":"))).env("XDG_CACHE_HOME", scratch.join("cache"));
    run(command).success();

    let live = Image::live(&scratch.join("app.db"));
    for restored in ["restored.db", "restored-fleet/node-1/app", "on-the-node.db", "without-walhub.db"] {
        live.assert_same(&Image::restored(&scratch.join(restored)), restored);
    }
    for point in ["restored-at.db", "first.db"] {
        assert!(scratch.join(point).is_file(), "{point} was not restored");
    }
}

/// A hub and an agent as in the README, and what a lost hub had: a database on hold.
const BEFORE_THE_HUB_WAS_LOST: &str = r#"set -euo pipefail
trap 'kill $(jobs -p); wait' EXIT
hubctl ca init --dir pki
hubctl cert issue --dir pki --hub hub --host 127.0.0.1 --host localhost
hubctl cert issue --dir pki --agent node-1
hubctl cert issue --dir pki --operator admin
walhub-hub run --config hub.yml & hub=$!
walhub-agent run --config agent.yml &
export WALHUB_HUB=127.0.0.1:7443 WALHUB_CA=pki/ca.pem WALHUB_CERT=pki/operator-admin.pem WALHUB_KEY=pki/operator-admin.key
until hubctl databases list | grep node-1/app; do sleep 0.2; done
hubctl hold add node-1/app --reason "case 7"
sed 's/hub-data/no-data/' hub.yml > probe.yml
until walhub-hub rebuild --from copies --config probe.yml --dry-run --json > probe.json \
    && grep '"case 7"' probe.json && grep '"txid": [1-9]' probe.json; do sleep 0.2; done
kill -9 $hub
wait $hub || true
rm -r hub-data hub.yml pki/hub-hub.*
unset WALHUB_HUB WALHUB_CA WALHUB_CERT WALHUB_KEY
"#;

#[test]
fn the_runbook_of_a_lost_hub_works_as_written() {
    let scratch = Scratch::new("runbook-hub-lost");
    let runbook =
        std::fs::read_to_string(source_root().join("deploy/runbooks/hub-lost.md")).expect("a runbook");
    let write = |name: &str, text: &str| std::fs::write(scratch.join(name), text).expect(name);
    let copies = scratch.join("copies").display().to_string();
    write(
        "hub.yml",
        &format!(
            "listen: 127.0.0.1:7443\ndata-dir: hub-data\nmirror-interval: 200ms\n\
             tls: {{ca: pki/ca.pem, cert: pki/hub-hub.pem, key: pki/hub-hub.key}}\n\
             destinations: [{{name: copies, type: file, path: {copies}}}]\n"
        ),
    );
    write(
        "agent.yml",
        "hub: 127.0.0.1:7443\nstate-dir: agent-state\n\
         tls: {ca: pki/ca.pem, cert: pki/agent-node-1.pem, key: pki/agent-node-1.key}\n\
         databases: [{path: app.db, name: app}]\n",
    );
    let app = Connection::open(scratch.join("app.db")).expect("app.db");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").expect("rows");
    let blocks = blocks(&runbook, "sh").join("\n").replace("file:///srv/walhub", &format!("file://{copies}"));
    let after = "hubctl hold list | grep 'case 7'\nhubctl restore node-1/app -o restored.db\n";
    let script = format!("{BEFORE_THE_HUB_WAS_LOST}{blocks}\n{after}");
    // What a test may not share with its neighbours.
    let address = format!("127.0.0.1:{}", free_port());
    for name in ["hub.yml", "agent.yml"] {
        let text = std::fs::read_to_string(scratch.join(name)).expect(name);
        write(name, &text.replace("127.0.0.1:7443", &address));
    }
    write("runbook.sh", &script.replace("127.0.0.1:7443", &address));
    let programs = program("hubctl").parent().expect("a folder").display().to_string();
    let mut command = Command::new("timeout");
    command.args(["120", "bash", "-x", "runbook.sh"]).current_dir(scratch.path());
    command.env("PATH", format!("{programs}:{}", std::env::var("PATH").expect("PATH")));
    run(command).success();
    let live = Image::live(&scratch.join("app.db"));
    live.assert_same(&Image::restored(&scratch.join("restored.db")), "after the runbook");
}

#[test]
fn the_example_configurations_are_good() {
    let scratch = Scratch::new("examples");
    let authority = Authority::new(&scratch.join("pki"), "examples");
    for (binary, example, who) in
        [("walhub-hub", "hub.yml", Who::Hub("hub")), ("walhub-agent", "agent.yml", Who::Agent("node-1"))]
    {
        let files = authority.issue(who);
        let text =
            std::fs::read_to_string(source_root().join("deploy/config").join(example)).expect("an example");
        let role = if binary == "walhub-hub" { "hub" } else { "agent" };
        let place = |path: &Path| path.display().to_string();
        let text = text
            .replace("/etc/walhub/ca.pem", &place(&files.ca))
            .replace(&format!("/etc/walhub/{role}.pem"), &place(&files.cert))
            .replace(&format!("/etc/walhub/{role}.key"), &place(&files.key));
        let config = scratch.join(example);
        std::fs::write(&config, text).expect("configuration");
        let mut command = Command::new(program(binary));
        command.args(["check-config", "--config"]).arg(&config);
        run(command).success();
    }
}

#[test]
fn the_units_are_understood_by_systemd() {
    let scratch = Scratch::new("units");
    for unit in ["walhub-hub.service", "walhub-agent.service", "walhub-first-boot.service"] {
        let text = std::fs::read_to_string(source_root().join("deploy/systemd").join(unit)).expect("a unit");
        // The programs are not installed where the unit expects them.
        let text =
            text.replace("/usr/bin/walhub-hub", "/bin/true").replace("/usr/bin/walhub-agent", "/bin/true");
        let text = text.replace("User=walhub\n", "User=daemon\n");
        std::fs::write(scratch.join(unit), text).expect("unit");
        let mut command = Command::new("systemd-analyze");
        command.arg("verify").arg(scratch.join(unit));
        let said = run(command);
        // An unknown key is only a warning, with exit code 0: anything it says about our unit is a fault.
        let about: Vec<&str> = said.stderr.lines().filter(|line| line.contains("walhub")).collect();
        assert!(said.code == 0 && about.is_empty(), "{unit}: {}", said.stderr);
    }
}

#[test]
fn the_examples_of_a_first_boot_bring_the_database_back() {
    let mut cluster = Cluster::new("first-boot");
    cluster.add_folder("near");
    let path = cluster.path("data/app.db");
    cluster.agent("node-1", &[("app", &path)]);
    cluster.start_hub();
    let app = Connection::open(&path).expect("app.db");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    app.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").expect("rows");
    cluster.start_agent("node-1");
    let (image, _) = cluster.await_buffered("node-1", "app", &path);
    drop(app);
    cluster.stop_agent("node-1");
    let read = |name: &str| std::fs::read_to_string(source_root().join("deploy").join(name)).expect(name);
    let (unit, compose) = (read("systemd/walhub-first-boot.service"), read("compose.yml"));
    let state = cluster.path("node-1-state").display().to_string();
    let from_unit: Vec<String> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart="))
        .map(|line| line.replace("/usr/bin/", "").replace("/var/lib/walhub-agent", &state))
        .collect();
    assert_eq!(from_unit.len(), 2, "{from_unit:?}");
    let line = compose.lines().find_map(|line| line.trim().strip_prefix("command: [walhub-agent, restore, "));
    let words = line
        .and_then(|line| line.strip_suffix(']'))
        .expect("the command of the init step")
        .replace(", ", " ");
    let from_compose = format!("walhub-agent restore {words}")
        .replace("/data", &path.parent().expect("data").display().to_string());
    let programs = program("hubctl").parent().expect("a folder").display().to_string();
    let search = format!("{programs}:{}", std::env::var("PATH").expect("PATH"));
    for (what, commands) in [("unit", from_unit), ("compose", vec![from_compose])] {
        std::fs::remove_dir_all(cluster.path("data")).expect("a new disk");
        // The second boot changes nothing.
        for _ in 0..2 {
            for command in &commands {
                let config = cluster.agent_config("node-1").display().to_string();
                let mut bash = Command::new("bash");
                bash.args(["-c", &command.replace("/etc/walhub/agent.yml", &config)]).env("PATH", &search);
                run(bash).success();
            }
            image.assert_same(&Image::restored(&path), what);
        }
    }
    assert!(cluster.path("node-1-state/first-boot-done").exists());
}
