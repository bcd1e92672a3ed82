//! What the documents say is what happens: the README's commands are run as written, the example configurations are
//! good, the units are understood.

use rusqlite::Connection;
use std::path::Path;
use std::process::Command;
use walhub_tests::binaries::{program, source_root};
use walhub_tests::certs::{Authority, Who};
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
    // The one thing a test may not share with its neighbours.
    let readme = readme.replace("127.0.0.1:7443", &format!("127.0.0.1:{}", free_port()));
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
    command.env("PATH", format!("{}:{path}", folders.join(":")));
    run(command).success();

    let live = Image::live(&scratch.join("app.db"));
    for restored in ["restored.db", "restored-fleet/node-1/app", "on-the-node.db", "without-walhub.db"] {
        live.assert_same(&Image::restored(&scratch.join(restored)), restored);
    }
    for point in ["restored-at.db", "first.db"] {
        assert!(scratch.join(point).is_file(), "{point} was not restored");
    }
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
    for unit in ["walhub-hub.service", "walhub-agent.service"] {
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
