//! An agent that hangs, or is stopped: the application goes on.

use crate::child::{App, Process, serve};
use crate::hub::{Discard, Place};
use bytes::Bytes;
use rusqlite::Connection;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walhub_agent::capture::{Capture, Options, SegmentMeta, Sink};
use walhub_agent::watchdog::{Limits, beat, start, watch, with_writer_lock};

/// A second of silence, and half of it for those who keep writers waiting.
const LIMITS: Limits = Limits { tick: Duration::from_millis(50), ticks: 20, ticks_with_writer_lock: 10 };

/// Takes a segment and never gives an answer: what a hanging disk or a bug does to a capture thread.
struct Hang;

impl Sink for Hang {
    fn begin(&mut self, _: &SegmentMeta) -> io::Result<()> {
        loop {
            std::thread::park();
        }
    }
    fn chunk(&mut self, _: Bytes, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The agent's process: follows `app.db` in a folder under a watchdog, and hangs when it is told to.
pub(crate) fn main() {
    let what: Arc<str> = "app".into();
    let mut capture = None;
    serve(|command, rest| {
        match command {
            "start" => {
                start(LIMITS).map_err(|e| e.to_string())?;
                let options = Options {
                    path: Path::new(rest).join("app.db"),
                    state_dir: Path::new(rest).join("state"),
                    checkpoint_frames: 1000,
                    wal_limit_bytes: 64 << 20,
                    compression: walhub_common::ltx::Compression::FAST,
                };
                let mut attached = Capture::attach(options).map_err(|e| e.to_string())?;
                attached.snapshot(&mut Discard).map_err(|e| e.to_string())?;
                capture = Some(attached);
            }
            "hang" => {
                let capture: &mut Capture = capture.as_mut().ok_or("not started")?;
                watch(&what, || capture.next(&mut Hang)).map_err(|e| e.to_string())?;
            }
            "hang-with-writer-lock" => watch(&what, || {
                with_writer_lock(|| {
                    let db = Connection::open(rest).unwrap();
                    db.execute_batch("BEGIN IMMEDIATE").unwrap();
                    loop {
                        std::thread::park();
                    }
                })
            }),
            // Three times as long as a hang may last, and never silent for long.
            "work" => watch(&what, || {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(3) {
                    std::thread::sleep(Duration::from_millis(100));
                    beat();
                }
            }),
            other => return Err(format!("unknown command {other}")),
        }
        Ok(String::new())
    });
}

fn guarded(place: &Place) -> Process {
    let mut process = Process::start("guarded");
    process.ask(&format!("start {}", place.db().parent().unwrap().display()));
    process
}

fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_capture_that_hangs_ends_its_process_and_the_locks_are_free() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut agent = guarded(&place);
    app.insert();
    assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "1", "the agent owns the checkpoint lock");
    let begun = Instant::now();
    agent.tell("hang");
    app.insert();
    agent.expect_death();
    assert!(begun.elapsed() > Duration::from_millis(900), "it was given time: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "0");
    // The next one finds its place, or the gap.
    drop(guarded(&place));
    assert_eq!(app.query("PRAGMA integrity_check"), "ok");
}

#[test]
fn writers_do_not_wait_for_ever_for_a_lock_that_hangs() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut agent = guarded(&place);
    agent.tell(&format!("hang-with-writer-lock {}", place.db().display()));
    let mut other = App::open(&place.db());
    other.sql("PRAGMA busy_timeout=0");
    let begun = Instant::now();
    while other.try_sql("BEGIN IMMEDIATE; COMMIT").is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the lock was never taken");
    }
    // Its busy timeout is 20 s.
    app.insert();
    agent.expect_death();
}

#[test]
fn an_agent_that_was_stopped_is_not_ended_for_it() {
    let place = Place::new();
    let mut app = App::create(&place.db(), "");
    let mut agent = guarded(&place);
    agent.tell("work");
    std::thread::sleep(Duration::from_millis(300));
    signal(&agent, "STOP");
    // Frozen for longer than a hang may last. Nobody waits for it.
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(4) {
        let at = Instant::now();
        app.insert();
        assert_eq!(app.query("PRAGMA wal_checkpoint(TRUNCATE)"), "1", "busy at once");
        slowest = slowest.max(at.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(slowest < Duration::from_secs(2), "a commit and a checkpoint took {slowest:?}");
    signal(&agent, "CONT");
    assert_eq!(agent.reply(), Some(Ok(String::new())), "it goes on with its work");
    agent.ask("work");
}
