//! What is said over the local socket: one JSON object per line each way, answers in the order of the requests.
//!
//! ```text
//! > {"op":"sync","database":"app","wait":"buffered","timeout_ms":5000}
//! < {"ok":true,"result":{"database":"app","txid":812,"level":"buffered","waited_ms":3}}
//! > {"op":"sync","database":"ap"}
//! < {"ok":false,"error":{"code":"unknown-database","message":"no database \"ap\" is followed; did you mean \"app\"?","what_to_do":"…"}}
//! ```
//! A database is named by its name at the hub or by the path of its file, as `status` shows them. Fields may be added to
//! answers; fields that a request may not have are refused.

use crate::database::{Level, Refused};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest request line, its newline included.
pub const MAX_REQUEST_BYTES: usize = 4096;
/// Longest time that a request may wait.
pub const MAX_WAIT_MS: u64 = 60 * 60 * 1000;
/// How long a request waits unless it says so.
pub const DEFAULT_WAIT_MS: u64 = 30_000;
/// How long a pause lasts unless it is told.
pub const DEFAULT_PAUSE_MS: u64 = 10 * 60 * 1000;
/// Longest pause.
pub const MAX_PAUSE_MS: u64 = 24 * 60 * 60 * 1000;

/// A request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Everything about the agent: [`super::status::AgentStatus`].
    Status,
    /// Wait until everything committed before this request is safe: [`Synced`].
    Sync {
        /// Name or path.
        database: String,
        /// How safe.
        #[serde(default)]
        wait: Level,
        /// How long to wait for it.
        #[serde(default = "default_wait")]
        timeout_ms: u64,
    },
    /// Bring the WAL into the database now: [`Checkpointed`].
    Checkpoint {
        /// Name or path.
        database: String,
        /// Also cut the `-wal` file to nothing.
        #[serde(default)]
        shrink: bool,
        /// How long to wait for it.
        #[serde(default = "default_wait")]
        timeout_ms: u64,
    },
    /// Give the application its checkpoints back for a while: [`Paused`].
    Pause {
        /// Name or path.
        database: String,
        /// It ends by itself after this time.
        #[serde(default = "default_pause")]
        for_ms: u64,
        /// How long to wait until it begins.
        #[serde(default = "default_wait")]
        timeout_ms: u64,
    },
    /// End a pause: [`Resumed`].
    Resume {
        /// Name or path.
        database: String,
        /// How long to wait for it.
        #[serde(default = "default_wait")]
        timeout_ms: u64,
    },
    /// Bring a database back to a point of its history, as its newest transaction, while applications have it open:
    /// [`Restored`].
    Restore {
        /// Name or path.
        database: String,
        /// Exactly after this transaction.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        txid: Option<u64>,
        /// The newest transaction at or before this time, Unix milliseconds. Without both: the newest at the hub.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timestamp_ms: Option<i64>,
        /// Assertions "SQL = value" that must hold of the restored database before the live one is changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        checks: Vec<String>,
        /// It is given up after this time, unless the live database is being changed by then.
        #[serde(default = "longest_wait")]
        timeout_ms: u64,
    },
}

fn default_wait() -> u64 {
    DEFAULT_WAIT_MS
}

fn longest_wait() -> u64 {
    MAX_WAIT_MS
}

fn default_pause() -> u64 {
    DEFAULT_PAUSE_MS
}

impl Request {
    /// How long the answer may take.
    pub fn timeout_ms(&self) -> u64 {
        match self {
            Request::Status => DEFAULT_WAIT_MS,
            Request::Sync { timeout_ms, .. }
            | Request::Checkpoint { timeout_ms, .. }
            | Request::Pause { timeout_ms, .. }
            | Request::Resume { timeout_ms, .. }
            | Request::Restore { timeout_ms, .. } => (*timeout_ms).min(MAX_WAIT_MS),
        }
    }
}

/// Answer to a sync.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Synced {
    /// Name at the hub.
    pub database: String,
    /// Everything committed before the request is in the transactions up to this one.
    pub txid: u64,
    /// How safe they are.
    pub level: Level,
    /// How long it took.
    pub waited_ms: u64,
}

/// Answer to a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpointed {
    /// Name at the hub.
    pub database: String,
    /// Everything committed is in the database file. `false`: a reader was still in the WAL.
    pub complete: bool,
    /// The `-wal` file was cut to nothing.
    pub truncated: bool,
    /// How long writers were kept out, microseconds.
    pub held_us: u64,
    /// Bytes of the WAL in use afterwards.
    pub wal_bytes: u64,
}

/// Answer to a pause.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Paused {
    /// Name at the hub.
    pub database: String,
    /// When it ends by itself, Unix milliseconds.
    pub until_ms: i64,
}

/// Answer to a resume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// Name at the hub.
    pub database: String,
    /// False when there was no pause to end.
    pub was_paused: bool,
}

/// Answer to a restore.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// Name at the hub.
    pub database: String,
    /// The transaction whose state is the live one now.
    pub txid: u64,
    /// Its database checksum, which the restored state was proven by.
    pub checksum: String,
    /// Its time, Unix milliseconds.
    pub time_ms: i64,
    /// The transaction that brought it back; `null` when nothing differed.
    pub new_txid: Option<u64>,
    /// The restore point of what was there before.
    pub safety_txid: Option<u64>,
    /// Bytes fetched from the hub.
    pub fetched_bytes: u64,
    /// How long it took.
    pub waited_ms: u64,
}

/// Why a request was not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// For programs: `bad-request`, `unknown-database`, `timeout`, `not-followed`, `hub-away`, `paused`, `busy`, `failed`,
    /// `stopping`, `too-many-connections`.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what_to_do: Option<String>,
}

/// The code of a wait that was over before the answer came.
pub const TIMEOUT: &str = "timeout";

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        Problem { code: refused.code.into(), message: refused.message, what_to_do: refused.what_to_do }
    }
}

/// An answer: a result when `ok`, else a problem.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

impl Answer {
    /// Done.
    pub fn done(result: &impl Serialize) -> Answer {
        match serde_json::to_value(result) {
            Ok(result) => Answer { ok: true, result: Some(result), error: None },
            Err(e) => Answer::problem(Refused::new("failed", e.to_string(), "report it").into()),
        }
    }

    /// Not done.
    pub fn problem(problem: Problem) -> Answer {
        Answer { ok: false, result: None, error: Some(problem) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_defaults_and_no_unknown_fields() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"op":"status"}"#).unwrap(), Request::Status);
        let sync = read(r#"{"op":"sync","database":"a"}"#).unwrap();
        let expected =
            Request::Sync { database: "a".into(), wait: Level::Buffered, timeout_ms: DEFAULT_WAIT_MS };
        assert_eq!(sync, expected);
        let pause = read(r#"{"op":"pause","database":"a","for_ms":5}"#).unwrap();
        let expected = Request::Pause { database: "a".into(), for_ms: 5, timeout_ms: DEFAULT_WAIT_MS };
        assert_eq!(pause, expected);
        for wrong in [
            r#"{"op":"sync"}"#,
            r#"{"op":"sync","database":"a","wait":"forever"}"#,
            r#"{"op":"checkpoint","database":"a","shrunk":true}"#,
            r#"{"op":"drop","database":"a"}"#,
            r#"{"database":"a"}"#,
            "[]",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let endless = r#"{"op":"sync","database":"a","timeout_ms":18446744073709551615}"#;
        assert_eq!(read(endless).unwrap().timeout_ms(), MAX_WAIT_MS);
    }
}
