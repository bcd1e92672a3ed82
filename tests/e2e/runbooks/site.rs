//! A node, its hub and its application, and the scripts of `deploy/runbooks` run on them.

use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use walhub_common::clock;
use walhub_tests::binaries::{program, source_root};
use walhub_tests::cluster::PATIENCE;
use walhub_tests::eventually::{ensure, eventually, try_eventually};
use walhub_tests::ledger::{self, Audit};
use walhub_tests::process::{Output, run};
use walhub_tests::report::report;
use walhub_tests::{Cluster, Image, oracle};

pub(super) const NODE: &str = "pos-1";

/// What a service manager does for the scripts: `start NAME COMMAND` when it does not run, `stop NAME`.
const SERVICE: &str = r#"#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
alive() { { [[ -s $1.pid ]] && read -r _ _ state _ <"/proc/$(<"$1.pid")/stat"; } 2>/dev/null && [[ $state != Z ]]; }
case $1 in
    start) alive "$2" || { setsid bash -c "$3" >>"$2.log" 2>&1 </dev/null & echo $! >"$2.pid"; } ;;
    stop) ! alive "$2" || { kill -TERM -- "-$(<"$2.pid")"; while alive "$2"; do sleep 0.05; done; } ;;
esac
"#;

/// A node and its hub. The database `shop` has stock that rests, and a ledger that the application writes.
pub(super) struct Site {
    pub(super) services: PathBuf,
    pub(super) shop: PathBuf,
    // Last: its folder outlives what runs there.
    pub(super) cluster: Cluster,
}

impl Site {
    pub(super) fn new(name: &str) -> Site {
        let mut cluster = Cluster::new(name);
        cluster.add_folder("near");
        let (services, shop) = (cluster.path("services"), cluster.path("data/shop.db"));
        std::fs::create_dir(&services).expect("folder");
        let script = services.join("service");
        std::fs::write(&script, SERVICE).expect("service");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("mode");
        stock(&shop, 600);
        cluster.agent(NODE, &[("shop", &shop)]);
        cluster.start_hub();
        Site { services, shop, cluster }
    }

    pub(super) fn service(&self, words: &str) -> String {
        format!("{} {words}", self.services.join("service").display())
    }

    pub(super) fn start_agent(&self) -> String {
        let config = self.cluster.agent_config(NODE);
        self.service(&format!("start agent 'exec walhub-agent run --config {}'", config.display()))
    }

    pub(super) fn start_app(&self, life: u32, rate: u32) -> String {
        let shop = self.shop.display();
        self.service(&format!(
            "start app 'exec walhub-test-writer {shop} --rate {rate} --life {life} < <(exec tail -f /dev/null)'"
        ))
    }

    pub(super) fn shell(&self, command: &str) {
        let mut bash = Command::new("bash");
        bash.args(["-c", command]).env("PATH", search_path());
        run(bash).success();
    }

    /// A script of `deploy/runbooks`.
    pub(super) fn runbook(&self, name: &str, arguments: &[&str]) -> Output {
        let mut words = vec!["300", name];
        words.extend(arguments);
        let mut command = Command::new("timeout");
        command.args(words).env("PATH", search_path()).current_dir(source_root().join("deploy/runbooks"));
        let hubctl = self.cluster.hubctl_command(&[]);
        command.envs(hubctl.get_envs().filter_map(|(key, value)| Some((key, value?))));
        run(command)
    }

    /// `kill -9` of what runs as a service, if it does.
    pub(super) fn kill(&self, service: &str) {
        if let Ok(id) = std::fs::read_to_string(self.services.join(format!("{service}.pid"))) {
            let _ = Command::new("kill").args(["-9", "--", &format!("-{}", id.trim())]).status();
            // A dead one may wait for its parent to look.
            let stat = Path::new("/proc").join(id.trim()).join("stat");
            let _ = try_eventually(PATIENCE, || {
                let text = std::fs::read_to_string(&stat).unwrap_or_default();
                ensure(text.is_empty() || text.contains(") Z "), || text)
            });
        }
    }

    pub(super) fn acked(&self) -> u64 {
        let log = std::fs::read_to_string(self.services.join("app.log")).unwrap_or_default();
        log.lines().rev().find_map(|line| line.strip_prefix("acked ")?.parse().ok()).unwrap_or(0)
    }

    pub(super) fn await_acked(&self, seq: u64) {
        eventually(&format!("the application commits transfer {seq}"), PATIENCE, || {
            ensure(self.acked() >= seq, || format!("it is at {}", self.acked()))
        });
    }

    pub(super) fn audit(&self) -> Audit {
        let observer = oracle::observer(&self.shop);
        // One state of it, while the application writes.
        observer.execute_batch("BEGIN").expect("a read transaction");
        ledger::audit_connection(&observer).expect("a sound ledger")
    }

    /// The application rests; page by page what it has is what the hub gives back.
    pub(super) fn proven(&self, what: &str) -> Image {
        self.shell(&self.service("stop app"));
        let (image, txid) = self.cluster.await_buffered(NODE, "shop", &self.shop);
        let name = format!("proof-{}.db", what.replace(' ', "-"));
        let restored = self.cluster.restore(&format!("{NODE}/shop"), &name, &["--txid", &txid.to_string()]);
        image.assert_same(&Image::restored(&restored), what);
        image
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill("app");
        self.kill("agent");
    }
}

fn search_path() -> String {
    let programs = program("hubctl").parent().expect("a folder").display().to_string();
    format!("{programs}:{}", std::env::var("PATH").expect("PATH"))
}

/// The numbers that a runbook ends with.
#[track_caller]
pub(super) fn told(title: &str, output: Output) -> (f64, f64) {
    let text = output.stderr.clone();
    let said = output.success();
    let number = |word: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(word)?.split_once(" s: "));
        line.and_then(|(number, _)| number.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no {word}in {said}\n{text}"))
    };
    report(title, &said);
    (number("RTO "), number("RPO "))
}

pub(super) fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("open");
    connection.busy_timeout(PATIENCE).expect("busy timeout");
    connection.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    connection.pragma_update(None, "foreign_keys", true).expect("foreign keys");
    connection
}

pub(super) fn stock(path: &Path, rows: u32) {
    open(path)
        .execute_batch(&format!(
            "CREATE TABLE stock(id INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO stock(body) SELECT randomblob(3000) FROM n;"
        ))
        .expect("stock");
}

/// Every row of a query as text.
pub(super) fn rows(path: &Path, sql: &str) -> Vec<String> {
    let connection = oracle::observer(path);
    let mut select = connection.prepare(sql).expect("a query");
    let found = select.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    found.map(|row| row.expect("a row")).collect()
}

pub(super) fn all_stock(path: &Path) -> Vec<String> {
    rows(path, "SELECT id || ' ' || hex(body) FROM stock ORDER BY id")
}

/// A moment, in the text that people write, that lies between what was at the hub before and what comes after.
pub(super) fn moment() -> String {
    let now = clock::now_ms();
    eventually("the clock to move on", PATIENCE, || {
        ensure(clock::now_ms() > now + 5, || "it stands still".to_owned())
    });
    clock::format_ms(now + 2)
}
