//! Other processes: this test binary again, told what to do line by line.

use crate::{agents, frozen, raw, replace};
use rusqlite::Connection;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const ROLE: &str = "WALHUB_TEST_CHILD";
/// Tells replies from what the test framework prints.
const MARK: &str = "@@ ";

/// The child's side.
pub(crate) fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("writer") => writer(),
        Ok("agent") => agents::main(),
        Ok("guarded") => frozen::main(),
        Ok("keeper") => replace::keeper(),
        Ok("restless") => replace::restless(),
        _ => {}
    }
}

/// Lines from the parent; each gets one reply.
pub(crate) fn serve(mut answer: impl FnMut(&str, &str) -> Result<String, String>) {
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let reply = match answer(command, &rest.replace('\t', "\n")) {
            Ok(text) => format!("ok {text}"),
            Err(text) => format!("err {text}"),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{MARK}{}", reply.replace('\n', "\t")).unwrap();
        out.flush().unwrap();
    }
}

fn writer() {
    let mut connection: Option<Connection> = None;
    serve(|command, rest| {
        let text = |e: rusqlite::Error| e.to_string();
        if command == "open" {
            let opened = Connection::open(rest).map_err(text)?;
            opened.busy_timeout(Duration::from_secs(20)).map_err(text)?;
            connection = Some(opened);
            return Ok(String::new());
        }
        let db = connection.as_ref().ok_or("not open")?;
        match command {
            "sql" => db.execute_batch(rest).map_err(text)?,
            "query" => {
                return db
                    .query_row(rest, [], |row| row.get::<_, rusqlite::types::Value>(0))
                    .map_err(text)
                    .map(|value| match value {
                        rusqlite::types::Value::Integer(n) => n.to_string(),
                        rusqlite::types::Value::Text(t) => t,
                        other => format!("{other:?}"),
                    });
            }
            "dump" => std::fs::write(rest, raw::serialize(db)).map_err(|e| e.to_string())?,
            "copy-from" => raw::copy_from(db, &Connection::open(rest).map_err(text)?),
            "die-in-sync" => raw::die_in_wal_sync(db),
            "fail-in-sync" => raw::fail_in_wal_sync(db),
            "die-torn" => raw::die_between_headers(db),
            "flood" => return Ok(flood(db, rest).to_string()),
            "pace" => return Ok(pace(db, rest).as_micros().to_string()),
            "close" => connection = None,
            other => return Err(format!("unknown command {other}")),
        }
        Ok(String::new())
    });
}

/// Small transactions without a pause, for so many milliseconds; says how many.
fn flood(db: &Connection, ms: &str) -> u64 {
    let until = Instant::now() + Duration::from_millis(ms.parse().unwrap());
    db.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
    let mut insert =
        db.prepare("INSERT OR REPLACE INTO t(id, a) VALUES (abs(random()) % 3000, randomblob(900))").unwrap();
    let mut commits = 0;
    while Instant::now() < until {
        insert.execute([]).unwrap();
        commits += 1;
    }
    commits
}

/// 500 small transactions a second, for so many milliseconds; the slowest.
fn pace(db: &Connection, ms: &str) -> Duration {
    let (begun, length) = (Instant::now(), Duration::from_millis(ms.parse().unwrap()));
    let mut insert = db.prepare("INSERT INTO t(a) VALUES (randomblob(200))").unwrap();
    let mut slowest = Duration::ZERO;
    for n in 1.. {
        let at = Instant::now();
        insert.execute([]).unwrap();
        slowest = slowest.max(at.elapsed());
        if begun.elapsed() >= length {
            break;
        }
        std::thread::sleep((Duration::from_millis(2) * n).saturating_sub(begun.elapsed()));
    }
    slowest
}

/// The parent's side of a child.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(role: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_process", "--exact", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, input, output }
    }

    /// Sends a command without waiting for its reply.
    pub(crate) fn tell(&mut self, line: &str) {
        // A child that died is noticed when its reply is read.
        let _ = writeln!(self.input, "{}", line.replace('\n', "\t"));
    }

    /// The reply to the oldest command told; `None` when the child is gone.
    pub(crate) fn reply(&mut self) -> Option<Result<String, String>> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.output.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(reply) = line.strip_prefix(MARK) {
                let (kind, text) = reply.trim_end_matches('\n').split_once(' ')?;
                let text = text.replace('\t', "\n");
                return Some(if kind == "ok" { Ok(text) } else { Err(text) });
            }
        }
    }

    pub(crate) fn try_ask(&mut self, line: &str) -> Result<String, String> {
        self.tell(line);
        self.reply().unwrap_or_else(|| panic!("the child died of {line:?}"))
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.try_ask(line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a child that is about to die by itself.
    pub(crate) fn expect_death(mut self) {
        assert_eq!(self.reply(), None, "the child should have died");
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process with one connection, as an application has it.
pub(crate) struct App(pub(crate) Process);

impl App {
    pub(crate) fn open(path: &Path) -> App {
        let mut process = Process::start("writer");
        process.ask(&format!("open {}", path.display()));
        App(process)
    }

    /// A new WAL database with one table, and an application that does not checkpoint by itself.
    pub(crate) fn create(path: &Path, before: &str) -> App {
        let mut app = App::open(path);
        app.sql(before);
        app.sql("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;");
        app.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a BLOB); INSERT INTO t(a) VALUES (randomblob(100));");
        app
    }

    pub(crate) fn sql(&mut self, sql: &str) {
        self.0.ask(&format!("sql {sql}"));
    }

    pub(crate) fn try_sql(&mut self, sql: &str) -> Result<(), String> {
        self.0.try_ask(&format!("sql {sql}")).map(|_| ())
    }

    pub(crate) fn query(&mut self, sql: &str) -> String {
        self.0.ask(&format!("query {sql}"))
    }

    /// One small transaction.
    pub(crate) fn insert(&mut self) {
        self.sql("INSERT INTO t(a) VALUES (randomblob(100 + abs(random()) % 300))");
    }

    /// One transaction with about this many frames.
    pub(crate) fn insert_many(&mut self, rows: u32) {
        self.sql(&format!(
            "INSERT INTO t(a) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {rows}) \
             SELECT randomblob(3000) FROM n"
        ));
    }
}

/// What a separate process reads from the live database in one read transaction.
pub(crate) fn live_image(path: &Path) -> Vec<u8> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut reader = App::open(path);
    reader.0.ask(&format!("dump {}", out.path().display()));
    std::fs::read(out.path()).unwrap()
}
