//! Both sides as their users run them: hub + agent with one file destination, and litestream with a file replica.

use rusqlite::Connection;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use walhub_common::ltx::name;
use walhub_tests::certs::{Authority, Files, Who};
use walhub_tests::config::{Destination, agent_yml, free_port, hub_yml};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::Process;
use walhub_tests::{binaries, client::Client, services};

/// Name and path of a database.
pub(crate) type Database = (String, PathBuf);

/// A hub and an agent.
pub(crate) struct Ours {
    /// Lives as long as the agent needs it.
    pub(crate) hub: Process,
    /// The agent.
    pub(crate) agent: Process,
    /// For questions to the hub.
    pub(crate) client: Client,
    /// HOST:PORT of the hub.
    pub(crate) address: String,
    /// Certificate of an operator.
    pub(crate) operator: Files,
    /// The file destination.
    pub(crate) copies: PathBuf,
    socket: PathBuf,
}

/// A hub with one file destination at a 1 s interval; gives its process and address.
pub(crate) fn hub(dir: &Path, authority: &Authority) -> (Process, String, PathBuf) {
    let copies = dir.join("copies");
    let address = format!("127.0.0.1:{}", free_port());
    let tls = authority.issue(Who::Hub("hub"));
    let destination = Destination::file("disk", &copies).every_ms(1000);
    let policy = "buffer: {max-bytes: 40GiB}\npolicy: {copies: 2, media: 1, offsite: 0}\n";
    let config = hub_yml(&address, &dir.join("hub"), &tls, &[destination], policy);
    let path = dir.join("hub.yml");
    std::fs::write(&path, config).expect("hub.yml");
    let ready = dir.join("hub.ready");
    let mut command = Command::new(binaries::program("walhub-hub"));
    command.args(["run", "--config"]).arg(&path).arg("--ready-file").arg(&ready);
    let hub = Process::spawn("hub", command, &dir.join("hub.log"));
    eventually("the hub to serve", Duration::from_secs(20), || {
        ensure(ready.exists(), || "no ready file".into())
    });
    (hub, address, copies)
}

/// Starts hub and agent over `databases` and waits until each of them is buffered.
pub(crate) fn ours(dir: &Path, databases: &[Database]) -> Ours {
    let ours = start(dir, databases);
    eventually("every database to be buffered and copied", Duration::from_secs(300), || {
        let status = ours.client.status().map_err(|e| e.to_string())?;
        let done = status.databases.iter().filter(|d| {
            let buffered = d.buffered.map_or(0, |p| p.txid);
            buffered > 0 && d.copies.iter().all(|c| c.txid == buffered)
        });
        let done = done.count();
        ensure(done == databases.len(), || format!("{done} of {} are", databases.len()))
    });
    ours
}

/// Starts hub and agent over `databases`.
pub(crate) fn start(dir: &Path, databases: &[Database]) -> Ours {
    let authority = Authority::new(&dir.join("pki"), "bench");
    let (hub, address, copies) = hub(dir, &authority);
    let operator = authority.issue(Who::Operator("bench"));
    let client = Client::new(&address, &operator);
    let state = dir.join("agent");
    let config = agent_yml(&address, &state, &authority.issue(Who::Agent("node")), databases, "");
    let path = dir.join("agent.yml");
    std::fs::write(&path, config).expect("agent.yml");
    let mut command = Command::new(binaries::program("walhub-agent"));
    command.args(["run", "--config"]).arg(&path);
    let agent = Process::spawn("agent", command, &dir.join("agent.log"));
    Ours { hub, agent, client, address, operator, copies, socket: state.join("agent.sock") }
}

impl Ours {
    /// Newest acked TXID of a database, as the agent has it.
    pub(crate) fn acks(&self) -> Acks {
        Acks { socket: self.socket.clone(), open: None }
    }

    /// Newest TXID at the file destination, by its directory alone.
    pub(crate) fn copied(&self, database: &str) -> u64 {
        newest_file(&self.copies.join("node").join(database).join("ltx/0"))
    }
}

/// Asks the agent over its local socket.
pub(crate) struct Acks {
    socket: PathBuf,
    open: Option<BufReader<UnixStream>>,
}

/// How far the agent is with a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Newest TXID that was read, made into a segment and given to the link.
    pub(crate) captured: u64,
    /// Newest TXID on the hub's disk.
    pub(crate) buffered: u64,
}

impl Acks {
    /// How far it is with a database.
    pub(crate) fn progress(&mut self, database: &str) -> Progress {
        let answer = self.ask().expect("an answer from the agent");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON from the agent");
        let databases = answer["result"]["databases"].as_array().expect("databases");
        let found = databases.iter().find(|d| d["name"] == database).expect("the database");
        let txid = |field: &str| found[field].as_u64().expect("a TXID");
        Progress { captured: txid("captured_txid"), buffered: txid("buffered_txid") }
    }

    /// Over the open connection, or a new one when the agent closed that.
    fn ask(&mut self) -> std::io::Result<String> {
        for _ in 0..2 {
            let mut connection = match self.open.take() {
                Some(connection) => connection,
                None => BufReader::new(UnixStream::connect(&self.socket)?),
            };
            let asked = connection.get_mut().write_all(b"{\"op\":\"status\"}\n");
            let mut line = String::new();
            if asked.is_ok() && connection.read_line(&mut line)? > 0 {
                self.open = Some(connection);
                return Ok(line);
            }
        }
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// Litestream over `databases` with file replicas under `dir`; waits until each has its first file.
pub(crate) fn litestream(dir: &Path, databases: &[Database]) -> (Process, PathBuf) {
    let program = services::litestream()
        .expect("set WALHUB_TEST_LITESTREAM to the stock binary (tests/bench/run does)");
    let replicas = dir.join("litestream");
    let mut config = String::from("dbs:\n");
    for (name, path) in databases {
        let replica = replicas.join(name);
        writeln!(
            config,
            "  - path: {}\n    replica: {{type: file, path: {}, sync-interval: 1s}}",
            path.display(),
            replica.display()
        )
        .expect("BUG: a string takes everything");
    }
    let path = dir.join("litestream.yml");
    std::fs::write(&path, config).expect("litestream.yml");
    let mut command = Command::new(program);
    command.args(["replicate", "-config"]).arg(&path);
    let process = Process::spawn("litestream", command, &dir.join("litestream.log"));
    eventually("every database to be replicated", Duration::from_secs(300), || {
        let done = databases.iter().filter(|(name, _)| newest_file(&replicas.join(name).join("ltx/0")) > 0);
        let done = done.count();
        ensure(done == databases.len(), || format!("{done} of {} are", databases.len()))
    });
    (process, replicas)
}

/// Newest TXID in a folder of LTX files; 0 when there is none.
pub(crate) fn newest_file(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let ranges = entries.flatten().filter_map(|e| name::parse(e.file_name().to_str()?));
    ranges.map(|range| range.max().get()).max().unwrap_or(0)
}

/// A WAL-mode database with a table `t` and `rows` rows of about 200 bytes.
pub(crate) fn database(path: &Path, rows: u32) -> Connection {
    let connection = Connection::open(path).expect("open a database");
    connection.pragma_update(None, "journal_mode", "wal").expect("WAL mode");
    connection.pragma_update(None, "synchronous", "normal").expect("synchronous");
    connection.busy_timeout(Duration::from_secs(10)).expect("busy timeout");
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, note TEXT, data BLOB)")
        .expect("schema");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO t(note, data) SELECT 'row ' || i, randomblob(180) FROM n";
    if rows > 0 {
        connection.execute(fill, [rows]).expect("fill");
    }
    connection
}

/// One small transaction.
pub(crate) fn commit(connection: &Connection) {
    let insert = "INSERT INTO t(note, data) VALUES ('a small transaction', randomblob(100))";
    connection.prepare(insert).and_then(|mut s| s.execute([])).expect("commit");
}
