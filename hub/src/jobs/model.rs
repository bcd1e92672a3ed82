//! A job as a value: what was asked, its databases, where each stands; and the records that change it, which are what is
//! written to disk.

use super::cost::{Cost, Pace};
use crate::copies::Need;
use serde::{Deserialize, Serialize};
use std::fmt;
use walhub_common::{DatabaseKey, Txid, clock};
use walhub_proto::v1;

/// Name of a job at this hub: the minute it began, and something random.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// A new name for a job that begins at `now_ms`.
    pub fn new(now_ms: i64) -> JobId {
        let digits: String = clock::format_ms(now_ms).chars().filter(char::is_ascii_digit).take(12).collect();
        let (day, minute) = digits.split_at(digits.len().min(8));
        JobId(format!("{day}-{minute}-{:04x}", rand::random::<u16>()))
    }

    /// The name as text that came from outside; `None` when it is none.
    pub fn parse(text: &str) -> Option<JobId> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (!text.is_empty() && text.len() <= 40 && text.bytes().all(fine)).then(|| JobId(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How nodes bring their databases back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As one transaction into the live file.
    InPlace,
    /// Another file in its place.
    Replace,
}

impl Mode {
    /// On the wire.
    pub fn wire(self) -> v1::OrderMode {
        match self {
            Mode::InPlace => v1::OrderMode::InPlace,
            Mode::Replace => v1::OrderMode::Replace,
        }
    }
}

/// What was asked for, and the answers that do not change any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) id: JobId,
    pub(super) request_id: String,
    pub(super) operator: String,
    pub(super) started_ms: i64,
    /// As they were typed, for people: name patterns, then labels.
    pub(super) names: Vec<String>,
    pub(super) labels: Vec<String>,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) txid: Option<u64>,
    pub(super) mode: Mode,
    pub(super) wave_words: Vec<String>,
    pub(super) waves: u32,
    pub(super) max_failures: u32,
    pub(super) parallelism: u32,
    pub(super) node_rate: u64,
    pub(super) total_rate: u64,
    pub(super) checks: Vec<String>,
    /// Databases that matched and have no such point, and why.
    pub(super) unplanned: Vec<(String, String)>,
}

/// One database of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Which.
    #[serde(with = "key_text")]
    pub database: DatabaseKey,
    /// Its wave, from 1.
    pub wave: u32,
    /// Transaction and database checksum of the point.
    pub until: (u64, u64),
    /// Time of that point, Unix milliseconds.
    pub until_ms: i64,
    /// What bringing it there takes at most.
    #[serde(default)]
    pub cost: Cost,
    /// What must stay for it until then.
    #[serde(default)]
    pub stays: Stays,
}

/// What leads to a point, beside what destinations have up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Stays {
    /// The buffer, from this transaction on.
    pub buffered_from: Option<u64>,
    /// Files of several destinations.
    pub everything: bool,
}

impl Target {
    /// What is awaited as long as it is not restored.
    pub(super) fn need(&self) -> Need {
        let Stays { buffered_from, everything } = self.stays;
        let txid = Txid::new(self.until.0).unwrap_or(Txid::FIRST);
        Need { txid, buffered_from: buffered_from.and_then(Txid::new), everything }
    }
}

/// What a node reported at the end.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) bytes: u64,
    pub(super) new_txid: u64,
    pub(super) safety_txid: u64,
    pub(super) elapsed_ms: u64,
    /// From the order to its end by the hub's clock.
    pub(super) took_ms: u64,
    /// Where the node keeps the file that was there before, if it is no restore point; empty otherwise.
    #[serde(default)]
    pub(super) kept: String,
}

/// Where a database of a job stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stand {
    /// Its turn has not come.
    Pending,
    /// Its node is to be told, or was.
    Ordered { since_ms: i64 },
    /// At its point, proven.
    Done(Report),
    /// Not restored.
    Failed { reason: String, report: Report },
    /// Left as it was.
    Cancelled { reason: String },
}

impl Stand {
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Stand::Done(_) | Stand::Failed { .. } | Stand::Cancelled { .. })
    }
}

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    Running,
    Paused,
    Stopped,
    Cancelling,
    Done,
    Failed,
    Cancelled,
}

impl Phase {
    pub(super) fn is_end(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed | Phase::Cancelled)
    }
}

/// What changes a job. A job is its first record and those after it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Record {
    /// The beginning.
    Begun { spec: Box<Spec>, targets: Vec<Target> },
    /// A database stands elsewhere.
    Stand { target: usize, stand: Stand },
    /// Nodes of this wave may be told.
    Wave(u32),
    /// The job stands elsewhere. `forgiven`: failures that count no more.
    Phase { phase: Phase, reason: String, forgiven: u32, at_ms: i64 },
}

/// A job.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) spec: Spec,
    pub(super) targets: Vec<Target>,
    pub(super) stands: Vec<Stand>,
    /// What nodes said last of orders under way; not on disk, they say it again.
    pub(super) said: Vec<Option<v1::OrderUpdate>>,
    pub(super) phase: Phase,
    pub(super) reason: String,
    pub(super) wave: u32,
    pub(super) forgiven: u32,
    pub(super) ended_ms: i64,
}

impl Job {
    /// From its first record; `None` when that is another one.
    pub(super) fn begin(record: Record) -> Option<Job> {
        let Record::Begun { spec, targets } = record else { return None };
        let (stands, said) = (vec![Stand::Pending; targets.len()], vec![None; targets.len()]);
        Some(Job {
            spec: *spec,
            targets,
            stands,
            said,
            phase: Phase::Running,
            reason: String::new(),
            wave: 1,
            forgiven: 0,
            ended_ms: 0,
        })
    }

    /// Takes a record in; false when it does not belong to this job.
    pub(super) fn apply(&mut self, record: &Record) -> bool {
        match record {
            Record::Begun { .. } => return false,
            Record::Stand { target, stand } => match self.stands.get_mut(*target) {
                Some(place) => {
                    *place = stand.clone();
                    if stand.is_end() {
                        self.said[*target] = None;
                    }
                }
                None => return false,
            },
            Record::Wave(wave) => self.wave = *wave,
            Record::Phase { phase, reason, forgiven, at_ms } => {
                (self.phase, self.forgiven) = (*phase, *forgiven);
                self.reason.clone_from(reason);
                self.ended_ms = if phase.is_end() { *at_ms } else { 0 };
            }
        }
        true
    }

    /// Id of the order for a database.
    pub(super) fn order_id(&self, target: usize) -> String {
        format!("{}.{target}", self.spec.id)
    }

    /// How it goes about its databases.
    pub(super) fn pace(&self) -> Pace {
        let Spec { mode, parallelism, node_rate, total_rate, .. } = self.spec;
        Pace { mode, parallelism, node_rate, total_rate }
    }

    /// Databases that were not restored.
    pub(super) fn failures(&self) -> usize {
        self.stands.iter().filter(|stand| matches!(stand, Stand::Failed { .. })).count()
    }
}

mod key_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use walhub_common::DatabaseKey;

    pub(super) fn serialize<S: Serializer>(key: &DatabaseKey, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DatabaseKey, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
