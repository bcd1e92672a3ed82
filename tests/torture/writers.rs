//! Writers as processes: each slot keeps one alive until the round ends, whatever it dies of.

use crate::dice::Dice;
use crate::plan::{Engine, WriterPlan};
use crate::tally::Tally;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use walhub_tests::binaries::{program, source_root};

/// A writer that should have ended by itself this long ago hangs.
const GRACE: Duration = Duration::from_secs(30);

/// What `tests/torture/build` made.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = source_root().join("tests/.cache/torture").join(name);
    assert!(path.exists(), "{} does not exist: run tests/torture/build (tests/run does)", path.display());
    path
}

/// The program of an engine.
pub(crate) fn writer(engine: Engine) -> PathBuf {
    match engine {
        Engine::System => built("system/debug/walhub-torture-writer"),
        Engine::Old => built("bundled/debug/walhub-torture-writer"),
        Engine::New => program("walhub-torture-writer"),
    }
}

/// The version an engine must say it is.
pub(crate) fn version(engine: Engine) -> String {
    match engine {
        Engine::System => {
            std::fs::read_to_string(built("system.version")).expect("version").trim().to_owned()
        }
        Engine::Old => "3.51.1".to_owned(),
        Engine::New => rusqlite::version().to_owned(),
    }
}

/// One slot of a round; ends when the round does. An error means that SQLite found the live database malformed.
pub(crate) struct Slot(std::thread::JoinHandle<Result<(), String>>);

impl Slot {
    pub(crate) fn start(plan: &WriterPlan, database: &Path, ms: u64, tally: &Arc<Tally>) -> Slot {
        let (plan, database, tally) = (plan.clone(), database.to_owned(), tally.clone());
        let end = Instant::now() + Duration::from_millis(ms);
        Slot(std::thread::spawn(move || run(&plan, &database, end, &tally)))
    }

    pub(crate) fn finish(self) -> Result<(), String> {
        self.0.join().expect("BUG: the thread of a writer panicked")
    }
}

fn run(plan: &WriterPlan, database: &Path, end: Instant, tally: &Tally) -> Result<(), String> {
    let mut dice = Dice::new(plan.seed);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let killed_after = (plan.profile == "killed").then(|| Duration::from_millis(50 + dice.below(350)));
        let life = Life::start(plan, dice.roll(), database, left);
        if life.watch(plan, left + GRACE, killed_after, tally)? {
            tally.add(&tally.writer_deaths, 1);
        } else if !plan.profile.is_empty() && Instant::now() + Duration::from_millis(20) < end {
            // It could not open the database just now.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Life {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Life {
    fn start(plan: &WriterPlan, seed: u64, database: &Path, left: Duration) -> Life {
        let mut child = Command::new(writer(plan.engine))
            .arg(database)
            .args([plan.profile, &seed.to_string(), &left.as_millis().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a writer");
        let out = child.stdout.take().expect("piped");
        let mut errors = child.stderr.take().expect("piped");
        let (to_us, lines) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if to_us.send(line).is_err() {
                    return;
                }
            }
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            if !text.trim().is_empty() {
                let _ = to_us.send(format!("stderr {text}"));
            }
        });
        Life { child, lines }
    }

    /// Until it ends; true when it died of a signal. With `killed_after` it is killed from outside.
    fn watch(
        mut self,
        plan: &WriterPlan,
        patience: Duration,
        killed_after: Option<Duration>,
        tally: &Tally,
    ) -> Result<bool, String> {
        use std::os::unix::process::ExitStatusExt;
        let begun = Instant::now();
        let mut kill_at = killed_after.map(|after| begun + after);
        let mut commits = 0;
        loop {
            let until = kill_at.unwrap_or(begun + patience);
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => note(&line, plan, &mut commits, tally)?,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if kill_at.take().is_some() => {
                    tally.add(&tally.plain_kills, 1);
                    let _ = self.child.kill();
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("a writer hangs: {} on {:?}", plan.profile, plan.engine));
                }
            }
        }
        let status = self.child.wait().expect("wait for a writer");
        Ok(status.signal().is_some())
    }
}

fn note(line: &str, plan: &WriterPlan, commits: &mut u64, tally: &Tally) -> Result<(), String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "sqlite" if rest == version(plan.engine) => {}
        "commits" => {
            let now = rest.parse().expect("a number");
            tally.add(&tally.app_commits, now - std::mem::replace(commits, now));
        }
        "fault" => tally.fault(rest),
        _ => return Err(format!("{} on {:?} says: {line}", plan.profile, plan.engine)),
    }
    Ok(())
}
