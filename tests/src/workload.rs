//! Handles on writers: our own ledger writer as a process, with what it was promised by SQLite.

use crate::binaries::program;
use crate::eventually::try_eventually;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running ledger writer.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    stdin: Option<ChildStdin>,
    acked: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
    errors: PathBuf,
}

impl Writer {
    /// Starts one; `options` as in the module doc of `src/bin/writer.rs`. Its stderr goes beside the database.
    #[track_caller]
    pub fn spawn(database: &Path, options: &[&str]) -> Writer {
        let errors = database.with_extension("writer.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&errors).expect("writer log");
        let mut child = Command::new(program("walhub-test-writer"))
            .arg(database)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("start the writer");
        let acked = Arc::new(AtomicU64::new(0));
        let (count, stdout) = (acked.clone(), child.stdout.take().expect("piped"));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(seq) = line.strip_prefix("acked ") {
                    count.store(seq.parse().expect("a number"), Ordering::Release);
                }
            }
        });
        Writer { stdin: child.stdin.take(), child, acked, reader: Some(reader), errors }
    }

    /// Number of the last transfer whose commit SQLite reported as done; 0 before the first of this life.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Waits until it has committed transfer `seq`.
    #[track_caller]
    pub fn await_acked(&mut self, seq: u64) {
        let reached = try_eventually(Duration::from_secs(60), || {
            if self.acked() >= seq {
                return Ok(());
            }
            match self.child.try_wait().expect("wait") {
                Some(status) => {
                    Err(format!("the writer ended at {} ({status}): {}", self.acked(), self.said()))
                }
                None => Err(format!("the writer is at {}", self.acked())),
            }
        });
        reached.unwrap_or_else(|reason| panic!("waiting for transfer {seq}: {reason}"));
    }

    /// `kill -9`; gives the last acked transfer.
    pub fn kill9(mut self) -> u64 {
        let _ = self.child.kill();
        self.gone().1
    }

    /// Asks it to end between two transactions; gives the last acked transfer.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.stdin = None;
        let said = self.errors.clone();
        let (status, acked) = self.gone();
        assert!(status.success(), "the writer failed: {}", std::fs::read_to_string(said).unwrap_or_default());
        acked
    }

    /// Waits until it ends by itself; gives how, and the last acked transfer.
    pub fn wait(mut self) -> (ExitStatus, u64) {
        // stdin stays open: closing it would be the request to end.
        let keep = self.stdin.take();
        let ended = self.gone();
        drop(keep);
        ended
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    fn gone(&mut self) -> (ExitStatus, u64) {
        let status = wait_keeping_stdin(&mut self.child);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reader of the writer's output");
        }
        (status, self.acked())
    }
}

fn wait_keeping_stdin(child: &mut Child) -> ExitStatus {
    child.wait().expect("wait for the writer")
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.reader.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
