//! What drills are to do: the checked `drills:` of the configuration. Pure.

use glob::Pattern;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use walhub_common::DatabaseKey;
use walhub_common::sql::Check;

const FOLDER: &str = "walhub-drills";

/// See the module doc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Time in which [`Rules::sample`] of all copies get their turn; `None`: only when somebody asks.
    pub every: Option<Duration>,
    /// Share of all copies (a database at one destination) in a period, in thousandths of a percent.
    pub sample: u32,
    /// `PRAGMA integrity_check` of what was restored.
    pub integrity: bool,
    /// The assertions of the database.
    pub sql: bool,
    /// Damaged and missing objects are made anew from other copies.
    pub repair: bool,
    /// Points before the newest that each drill tries.
    pub older_points: usize,
    /// Folder for what is restored; `None`: in the data folder.
    pub scratch: Option<PathBuf>,
    /// Largest database that is restored there, bytes.
    pub scratch_max: u64,
    /// Bytes read per second, on average.
    pub download_limit: Option<u64>,
    /// A drill that takes longer is given up.
    pub timeout: Duration,
    /// What must be true of which databases.
    pub assertions: Vec<Assertions>,
}

impl Default for Rules {
    /// No schedule; for drills that are asked for: every check, and repair.
    fn default() -> Self {
        Self {
            every: None,
            sample: 5_000,
            integrity: true,
            sql: true,
            repair: true,
            older_points: 1,
            scratch: None,
            scratch_max: 10 << 30,
            download_limit: None,
            timeout: Duration::from_secs(6 * 3600),
            assertions: Vec::new(),
        }
    }
}

impl Rules {
    /// The scratch space: a folder of the hub's own, which is emptied when it starts.
    pub fn scratch_folder(&self, data_dir: &Path) -> PathBuf {
        self.scratch.as_deref().unwrap_or(data_dir).join(FOLDER)
    }

    /// What must be true of a database, from every entry that matches it.
    pub fn checks_of(&self, database: &DatabaseKey) -> Vec<Check> {
        let name = database.to_string();
        let of = |entry: &&Assertions| entry.patterns.iter().any(|pattern| pattern.matches(&name));
        self.assertions.iter().filter(of).flat_map(|entry| entry.checks.iter().cloned()).collect()
    }
}

/// What must be true of some databases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assertions {
    /// Any of them, over `agent/name`.
    pub patterns: Vec<Pattern>,
    /// All of them.
    pub checks: Vec<Check>,
}

/// The rules that are in force. Clones share them; a drill under way keeps those that it began with.
#[derive(Clone, Debug)]
pub struct Current(watch::Sender<Arc<Rules>>);

impl Current {
    /// From the beginning.
    pub fn new(rules: Rules) -> Self {
        Self(watch::Sender::new(Arc::new(rules)))
    }

    /// As they are now.
    pub fn now(&self) -> Arc<Rules> {
        self.0.borrow().clone()
    }

    /// Other ones from now on. Their scratch folder is there.
    pub fn replace(&self, rules: Rules) {
        self.0.send_replace(Arc::new(rules));
    }

    /// Hears of others.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Rules>> {
        self.0.subscribe()
    }
}
