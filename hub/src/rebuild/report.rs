//! What a rebuild found and did, for people and programs.

use crate::jobs::Revived;
use crate::mirror::shelf::Unusable;
use crate::mirror::state::MirroredDatabase;
use crate::mirror::{HubId, HubState};
use serde_json::{Value, json};
use walhub_common::{DestinationName, Pos, clock};

/// One database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseReport {
    /// As mirrored.
    pub mirrored: MirroredDatabase,
    /// Where it goes on: what the destinations prove, and its time, Unix ms.
    pub position: Option<(Pos, i64)>,
    /// What that means.
    pub verdict: Verdict,
    /// Destinations that did not answer, with their reasons.
    pub unanswered: Vec<String>,
}

/// What the destinations hold of a database, compared with the mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All that the mirror names, or more.
    Complete,
    /// Less: the rest was in the hub's buffer alone, and comes back with the agent.
    Behind {
        /// By so many transactions.
        transactions: u64,
    },
    /// Nothing: it comes back with the agent.
    Nothing,
    /// Files, but not their beginning.
    Headless,
    /// Files of another history.
    Stranger {
        /// That one.
        lineage: u64,
    },
}

/// See the module doc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Whose mirror it was.
    pub from: DestinationName,
    /// The mirror.
    pub state: HubState,
    /// Newer ones, that are damaged.
    pub passed_over: Vec<Unusable>,
    /// Databases, in the order of the mirror.
    pub databases: Vec<DatabaseReport>,
    /// Jobs that had not ended, by id.
    pub jobs: Vec<Revived>,
    /// Those that cannot be read, with the reason.
    pub lost_jobs: Vec<String>,
    /// Destinations that could not be asked for a newer mirror.
    pub unanswered: Vec<String>,
    /// The hub that was made; `None` when nothing was written.
    pub hub: Option<HubId>,
}

impl DatabaseReport {
    fn txid(&self) -> u64 {
        self.position.map_or(0, |(position, _)| position.txid.get())
    }

    /// What a person should know; `None` when all is well.
    fn remark(&self) -> Option<String> {
        let said = match self.verdict {
            Verdict::Complete => None,
            Verdict::Behind { transactions } => Some(format!(
                "the lost hub held {transactions} transactions more, which no destination has: its agent brings them back"
            )),
            Verdict::Nothing => {
                Some("no destination has anything of it: its agent brings it back as a whole".to_owned())
            }
            Verdict::Headless => {
                Some("the destinations have files of it, but not their beginning".to_owned())
            }
            Verdict::Stranger { lineage } => Some(format!(
                "the destinations hold another history of that name ({lineage:016x}); it is left alone"
            )),
        };
        let silent =
            (!self.unanswered.is_empty()).then(|| format!("no answer: {}", self.unanswered.join("; ")));
        match (said, silent) {
            (Some(said), Some(silent)) => Some(format!("{said} ({silent})")),
            (said, silent) => said.or(silent),
        }
    }

    fn json(&self) -> Value {
        let verdict = match self.verdict {
            Verdict::Complete => "complete",
            Verdict::Behind { .. } => "behind",
            Verdict::Nothing => "nothing",
            Verdict::Headless => "headless",
            Verdict::Stranger { .. } => "stranger",
        };
        json!({
            "database": self.mirrored.key.to_string(),
            "lineage": format!("{:016x}", self.mirrored.lineage),
            "mirrored_txid": self.mirrored.position.map_or(0, |position| position.txid.get()),
            "txid": self.txid(),
            "verdict": verdict,
            "remark": self.remark(),
        })
    }
}

impl Report {
    /// For programs.
    pub fn json(&self) -> Value {
        let state = &self.state;
        let passed_over = self.passed_over.iter();
        json!({
            "from": self.from.to_string(),
            "lost_hub": state.id.to_string(),
            "hub": self.hub.as_ref().map(HubId::to_string),
            "mirror": {"number": state.seq, "written_at": clock::format_ms(state.written_ms), "version": state.program},
            "damaged_mirrors": passed_over.map(|one| json!({"object": one.object, "reason": one.reason})).collect::<Vec<_>>(),
            "unanswered": self.unanswered,
            "labels": state.labels.iter().map(|(agent, labels)| (agent.to_string(), json!(labels))).collect::<serde_json::Map<_, _>>(),
            "agents": state.agents.iter().map(|agent| json!({
                "agent": agent.name.to_string(),
                "epoch": agent.epoch,
            })).collect::<Vec<_>>(),
            "holds": state.holds.iter().map(|hold| json!({
                "database": hold.database.to_string(),
                "since": clock::format_ms(hold.since_ms),
                "reason": hold.reason,
            })).collect::<Vec<_>>(),
            "databases": self.databases.iter().map(DatabaseReport::json).collect::<Vec<_>>(),
            "jobs": self.jobs.iter().map(|job| json!({
                "job": job.id.to_string(),
                "operator": job.operator,
                "databases": job.databases,
                "ended": job.ended,
                "cancelling": job.cancelling,
            })).collect::<Vec<_>>(),
            "lost_jobs": self.lost_jobs,
        })
    }

    /// For people.
    pub fn lines(&self, config: &str) -> Vec<String> {
        let state = &self.state;
        let mut lines = Vec::new();
        for Unusable { object, reason } in &self.passed_over {
            lines.push(format!("WARNING: {object} at {} is damaged: {reason}", self.from));
        }
        if !self.passed_over.is_empty() {
            lines.push(
                "WARNING: the mirror before is used: holds, agents and databases that came after it are not known".to_owned(),
            );
        }
        lines.extend(
            self.unanswered.iter().map(|error| format!("WARNING: not asked for a newer mirror: {error}")),
        );
        lines.push(format!(
            "mirror {} of hub {}, made {} by version {}, from {}",
            state.seq,
            state.id,
            clock::format_ms(state.written_ms),
            state.program,
            self.from
        ));
        let (mut complete, mut remarks) = (0, Vec::new());
        for database in &self.databases {
            match database.remark() {
                None => complete += 1,
                Some(remark) => {
                    remarks.push(format!("  {}, TXID {}: {remark}", database.mirrored.key, database.txid()));
                }
            }
        }
        lines.push(format!(
            "databases: {}, {complete} of them complete at the destinations",
            self.databases.len()
        ));
        lines.extend(remarks);
        lines.push(format!(
            "agents: {}, with the fence against old images of their nodes",
            state.agents.len()
        ));
        if !state.labels.is_empty() {
            lines.push(format!("agents with labels: {}", state.labels.len()));
        }
        lines.push(format!("holds: {}", state.holds.len()));
        for hold in &state.holds {
            let since = clock::format_ms(hold.since_ms);
            lines.push(format!("  {} since {since}: {}", hold.database, hold.reason));
        }
        if !self.jobs.is_empty() {
            lines.push(format!("jobs that had not ended: {}", self.jobs.len()));
        }
        for Revived { id, operator, databases, ended, cancelling, .. } in &self.jobs {
            let word = match cancelling {
                true => "it is still being cancelled".to_owned(),
                false => format!("it waits for `hubctl jobs resume {id}` or `hubctl jobs cancel {id}`"),
            };
            lines
                .push(format!("  {id} of {operator}, {ended} of {databases} databases at their end: {word}"));
        }
        lines.extend(self.lost_jobs.iter().map(|job| format!("WARNING: a job cannot be carried on: {job}")));
        match &self.hub {
            None => lines.push("nothing was written".to_owned()),
            Some(hub) => {
                lines.push(format!("rebuilt as hub {hub}; what remains:"));
                lines.push(format!("  walhub-hub run --config {config}"));
                lines.push(
                    "  certificates are not part of a mirror: the authority's key (ca.key) never was on the hub; without it \
                     no node can be added"
                        .to_owned(),
                );
                lines.push(
                    "  databases that were new since that mirror, and transactions that no destination has, come back with \
                     their agents"
                        .to_owned(),
                );
            }
        }
        // Names and reasons come from the place: a terminal must not obey them.
        let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        lines.into_iter().map(|line| line.chars().map(plain).collect()).collect()
    }
}
