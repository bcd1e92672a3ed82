//! What a drill found, as a value.

use super::schedule;
use serde::{Deserialize, Serialize};
use std::fmt;
use walhub_common::{DatabaseKey, DestinationName, Level, TxidRange};
use walhub_store::destinations::FileKey;

/// A database at one destination: what a drill is of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// Which database.
    #[serde(with = "text")]
    pub database: DatabaseKey,
    /// Where.
    #[serde(with = "text")]
    pub destination: DestinationName,
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.database, self.destination)
    }
}

/// What came of a drill.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What was restored is what was captured, and every check holds.
    Passed,
    /// Objects were damaged or missing; they were made anew from other copies, and then it passed.
    Repaired,
    /// The copy cannot be relied on.
    Failed,
    /// Nothing was found out: the destination did not answer, no room, cancelled.
    Undone,
    /// An object is being replaced. A hub that ends there tries this copy first when it is back.
    Repairing,
}

impl Verdict {
    /// In lower case, for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Repaired => "repaired",
            Verdict::Failed => "failed",
            Verdict::Undone => "undone",
            Verdict::Repairing => "repairing",
        }
    }
}

/// A restore point that was tried beside the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OlderPoint {
    /// After which transaction.
    pub txid: u64,
    /// Its time, Unix ms.
    pub point_ms: i64,
}

/// One drill.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drill {
    /// Of what.
    #[serde(flatten)]
    pub copy: Copy,
    /// When it began, Unix ms.
    pub began_ms: i64,
    /// How long it took, ms.
    pub elapsed_ms: u64,
    /// What came of it.
    pub verdict: Verdict,
    /// The transaction that was restored; 0 when it did not come so far.
    #[serde(default)]
    pub txid: u64,
    /// The time of that, Unix ms; 0 when it did not come so far.
    #[serde(default)]
    pub point_ms: i64,
    /// Points before it that were restored as well.
    #[serde(default)]
    pub older: Vec<OlderPoint>,
    /// Size of the restored database.
    #[serde(default)]
    pub database_bytes: u64,
    /// Bytes read from the destination.
    #[serde(default)]
    pub bytes: u64,
    /// Requests sent to the destination.
    #[serde(default)]
    pub requests: u64,
    /// Why it did not pass; names the object. Where it passed: what it was made without, else empty.
    #[serde(default)]
    pub message: String,
    /// Damaged objects that lie there under a lock; drills of a schedule leave them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<Locked>,
    /// What was done about damaged objects, one sentence each.
    #[serde(default)]
    pub repairs: Vec<String>,
}

/// A damaged object that cannot be replaced as long as a lock keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Locked {
    /// Its level.
    level: u8,
    /// Its first transaction.
    first: u64,
    /// Its last one.
    last: u64,
    /// The lock, in the destination's words.
    pub lock: String,
}

impl Locked {
    /// An object under this lock.
    pub(super) fn new(object: &FileKey, lock: String) -> Self {
        let (first, last) = (object.range.min().get(), object.range.max().get());
        Self { level: object.level.get(), first, last, lock }
    }

    /// The object; `None` when what was read back is none.
    pub(super) fn object(&self, database: &DatabaseKey) -> Option<FileKey> {
        let range = TxidRange::from_raw(self.first, self.last)?;
        Some(FileKey { database: database.clone(), level: Level::new(self.level)?, range })
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, first, last, lock } = self;
        write!(f, "level {level} file {first:016x}-{last:016x}.ltx, which is damaged and locked ({lock})")
    }
}

impl Drill {
    /// One that has just begun.
    pub(super) fn begin(copy: Copy, began_ms: i64) -> Self {
        Self {
            copy,
            began_ms,
            elapsed_ms: 0,
            verdict: Verdict::Undone,
            txid: 0,
            point_ms: 0,
            older: Vec::new(),
            database_bytes: 0,
            bytes: 0,
            requests: 0,
            message: String::new(),
            locked: Vec::new(),
            repairs: Vec::new(),
        }
    }
}

impl Drill {
    /// Decides what chance is to decide in it: the same drill tries the same.
    pub(super) fn seed(&self) -> u64 {
        schedule::lot(&self.copy, self.began_ms as u64)
    }
}

/// A name as text.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub(super) fn serialize<T: Display, S: Serializer>(name: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(name)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(Error::custom)
    }
}
