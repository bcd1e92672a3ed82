//! What drills are to do: the checked `drills:` of the configuration. Pure.

use glob::Pattern;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use walhub_common::DatabaseKey;

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
            scratch: None,
            scratch_max: 10 << 30,
            download_limit: None,
            timeout: Duration::from_secs(6 * 3600),
            assertions: Vec::new(),
        }
    }
}

impl Rules {
    /// What must be true of a database, from every entry that matches it.
    pub fn checks_of(&self, database: &DatabaseKey) -> Vec<Assertion> {
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
    pub checks: Vec<Assertion>,
}

/// `SQL = value`: the first column of the first row, as text, is the value. The statement is everything before the last `=`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assertion {
    /// The statement.
    pub sql: String,
    /// What it must give.
    pub value: String,
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once('=').map(|(sql, value)| (sql.trim(), value.trim()));
        match parts {
            Some((sql, value)) if !sql.is_empty() && !value.is_empty() => {
                Ok(Self { sql: sql.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!(
                "{text:?} is not of the form \"SQL = value\", such as \"SELECT count(*) > 0 FROM users = 1\""
            )),
        }
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.sql, self.value)
    }
}
