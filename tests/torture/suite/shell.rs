//! A torture writer that is told what to do, line by line, on one of the three engines.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use walhub_tests::binaries::{program, source_root};

/// The SQLite inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    System,
    Old,
    New,
}

pub(crate) const ENGINES: [Engine; 3] = [Engine::System, Engine::Old, Engine::New];

/// Folder of what `tests/torture/build` makes.
pub(crate) fn cache() -> PathBuf {
    source_root().join("tests/.cache/torture")
}

impl Engine {
    /// What it must say it is.
    pub(crate) fn version(self) -> String {
        match self {
            Engine::System => {
                let path = cache().join("system.version");
                std::fs::read_to_string(path).expect("run tests/torture/build first").trim().to_owned()
            }
            Engine::Old => "3.51.1".to_owned(),
            Engine::New => rusqlite::version().to_owned(),
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Engine::System => cache().join("system/debug/walhub-torture-writer"),
            Engine::Old => cache().join("bundled/debug/walhub-torture-writer"),
            Engine::New => program("walhub-torture-writer"),
        }
    }
}

/// The process; it is killed with its handle.
pub(crate) struct Shell {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// Opens a database; the engine must be what it says.
    #[track_caller]
    pub(crate) fn open(engine: Engine, database: &Path) -> Shell {
        let mut child = Command::new(engine.program())
            .arg(database)
            .arg("shell")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run tests/torture/build first");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut shell = Shell { input: child.stdin.take(), child, output };
        assert_eq!(shell.line(), format!("sqlite {}", engine.version()), "{engine:?}");
        shell
    }

    /// Sends a line without waiting for the answer.
    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("open"), "{line}").expect("the writer lives");
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Runs statements.
    #[track_caller]
    pub(crate) fn sql(&mut self, sql: &str) {
        self.tell(&format!("sql {sql}"));
        let answer = self.line();
        assert!(answer.starts_with("ok"), "{sql}: {answer}");
    }

    /// First column of the first row, or the error.
    pub(crate) fn query(&mut self, sql: &str) -> String {
        self.tell(&format!("query {sql}"));
        let answer = self.line();
        answer.strip_prefix("ok ").unwrap_or(&answer).to_owned()
    }

    /// Closes the database in order and ends.
    pub(crate) fn close(mut self) {
        drop(self.input.take());
        let status = self.child.wait().expect("wait for a writer");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
