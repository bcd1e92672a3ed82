//! One child process whose output goes to a log file. It dies with its handle.

use crate::eventually::try_eventually;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, with stdout and stderr appended to `log`.
    #[track_caller]
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Process {
        let open = || OpenOptions::new().create(true).append(true).open(log).expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Process { name: name.to_owned(), child, log: log.to_path_buf(), status: None }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, all lives of the same log together.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status
    }

    /// Panics with its log when it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended by itself ({status}):\n{}", self.name, tail(&self.log(), 40));
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Sends a signal by name ("TERM", "STOP", "CONT").
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send {signal} to {}", self.name);
    }

    /// Asks it to end and waits for that.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        if self.ended().is_none() {
            self.signal("TERM");
        }
        self.wait(within)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let ended = try_eventually(within, || self.ended().ok_or_else(String::new));
        ended.unwrap_or_else(|_| {
            panic!("{} did not end within {within:?}:\n{}", self.name, tail(&self.log(), 40))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What a command that ran to its end gave.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + n after signal n.
    pub code: i32,
    /// Its data.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
}

impl Output {
    /// Panics with everything it said unless it succeeded; gives stdout.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, 0, "the command failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(mut command: Command) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    Output {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
