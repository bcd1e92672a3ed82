//! What is mirrored, as a value. Reading trusts nothing: names, lineages and positions are checked as if a stranger sent
//! them. No I/O.

use crate::buffer::Registered;
use crate::fleet::epochs::KnownAgent;
use crate::fleet::labels::{Labels, check_word};
use crate::jobs::{JobCopy, JobId};
use crate::retain::Hold;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use walhub_common::{AgentName, DatabaseKey, DatabaseName, Pos};
use walhub_proto::{Message, convert, v1};

/// Bytes of an id as text.
const ID_BYTES: usize = 32;

/// Identity of one hub, that is of one data folder: 32 hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HubId(String);

impl HubId {
    /// A new one.
    pub fn draw() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// From text.
    pub fn new(text: &str) -> Option<Self> {
        let good = text.len() == ID_BYTES && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MirroredDatabase {
    /// Its name.
    pub key: DatabaseKey,
    /// Identity of its history, never 0.
    pub lineage: u64,
    /// Where the hub's buffer stood. Destinations may hold less or more.
    pub position: Option<Pos>,
    /// Hub time of that, Unix ms.
    pub time_ms: i64,
    /// Path on the node.
    pub path: String,
}

impl From<Registered> for MirroredDatabase {
    fn from(registered: Registered) -> Self {
        let Registered { id: _, key, lineage, position, time_ms, path } = registered;
        Self { key, lineage, position, time_ms, path }
    }
}

/// A destination, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MirroredPlace {
    /// Name in the configuration.
    pub name: String,
    /// `file`, `s3`, `gcs`, `abs`.
    pub kind: String,
    /// Where it is.
    pub location: String,
}

/// See the module doc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HubState {
    /// Whose.
    pub id: HubId,
    /// The hub in whose place it came.
    pub predecessor: Option<HubId>,
    /// Number of the mirror.
    pub seq: u64,
    /// When it was made, Unix ms.
    pub written_ms: i64,
    /// Program version.
    pub program: String,
    /// The configuration without secrets.
    pub config: String,
    /// Agents with their epochs, by name.
    pub agents: Vec<KnownAgent>,
    /// Databases, by name, each once.
    pub databases: Vec<MirroredDatabase>,
    /// Holds, by name of the database, each once.
    pub holds: Vec<Hold>,
    /// Destinations.
    pub places: Vec<MirroredPlace>,
    /// Labels of agents.
    pub labels: BTreeMap<AgentName, Labels>,
    /// Jobs that have not ended, by id, each once. What they are is not looked at here.
    pub jobs: Vec<JobCopy>,
}

/// A field that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its {field} cannot be used: {reason}")]
pub struct StateError {
    field: &'static str,
    reason: String,
}

impl HubState {
    /// True when nothing in it would be missed.
    pub fn is_empty(&self) -> bool {
        let Self { agents, databases, holds, labels, jobs, .. } = self;
        agents.is_empty() && databases.is_empty() && holds.is_empty() && labels.is_empty() && jobs.is_empty()
    }

    /// Digests of what neither files at destinations nor nodes tell, and of all of it with what they do: positions, and ends of a
    /// job's databases. Neither digest knows number or time.
    pub(super) fn digests(&self) -> ([u8; 32], [u8; 32]) {
        let mut wire = v1::HubMirror { seq: 0, written_ms: 0, ..self.to_wire() };
        let all = *blake3::hash(&wire.encode_to_vec()).as_bytes();
        for database in &mut wire.databases {
            (database.position, database.time_ms) = (None, 0);
        }
        wire.jobs.iter_mut().for_each(|job| job.stands.clear());
        (*blake3::hash(&wire.encode_to_vec()).as_bytes(), all)
    }

    /// As a message.
    pub fn to_wire(&self) -> v1::HubMirror {
        let agent = |agent: &KnownAgent| v1::MirroredAgent {
            name: agent.name.to_string(),
            epoch: agent.epoch,
            instance: agent.instance.clone(),
        };
        let database = |database: &MirroredDatabase| v1::MirroredDatabase {
            database: Some(reference(&database.key)),
            lineage: database.lineage,
            position: Some(convert::position_to_wire(database.position)),
            time_ms: database.time_ms,
            path: database.path.clone(),
        };
        let hold = |hold: &Hold| v1::MirroredHold {
            database: Some(reference(&hold.database)),
            since_ms: hold.since_ms,
            reason: hold.reason.clone(),
        };
        let place = |place: &MirroredPlace| v1::MirroredPlace {
            name: place.name.clone(),
            kind: place.kind.clone(),
            location: place.location.clone(),
        };
        let job = |job: &JobCopy| v1::MirroredJob {
            id: job.id.to_string(),
            head: job.head.clone(),
            stands: job.stands.clone(),
        };
        v1::HubMirror {
            hub_id: self.id.to_string(),
            predecessor: self.predecessor.as_ref().map_or_else(String::new, HubId::to_string),
            seq: self.seq,
            written_ms: self.written_ms,
            program: self.program.clone(),
            config: self.config.clone(),
            agents: self.agents.iter().map(agent).collect(),
            databases: self.databases.iter().map(database).collect(),
            holds: self.holds.iter().map(hold).collect(),
            places: self.places.iter().map(place).collect(),
            labels: self.labels.iter().flat_map(|(agent, labels)| labels_to_wire(agent, labels)).collect(),
            jobs: self.jobs.iter().map(job).collect(),
        }
    }

    /// From a message.
    pub fn from_wire(wire: v1::HubMirror) -> Result<Self, StateError> {
        let id = HubId::new(&wire.hub_id).ok_or_else(|| fault("hub_id", &wire.hub_id))?;
        let predecessor = match wire.predecessor.as_str() {
            "" => None,
            text => Some(HubId::new(text).ok_or_else(|| fault("predecessor", text))?),
        };
        let agents: Vec<KnownAgent> = wire.agents.into_iter().map(agent).collect::<Result<_, _>>()?;
        let databases: Vec<_> = wire.databases.into_iter().map(database).collect::<Result<_, _>>()?;
        let holds: Vec<Hold> = wire.holds.into_iter().map(hold).collect::<Result<_, _>>()?;
        once("agents", agents.iter().map(|agent| agent.name.as_str().to_owned()))?;
        once("databases", databases.iter().map(|database| database.key.to_string()))?;
        once("holds", holds.iter().map(|hold| hold.database.to_string()))?;
        let jobs: Vec<JobCopy> = wire.jobs.into_iter().map(job).collect::<Result<_, _>>()?;
        once("jobs", jobs.iter().map(|job| job.id.to_string()))?;
        let place = |place: v1::MirroredPlace| MirroredPlace {
            name: place.name,
            kind: place.kind,
            location: place.location,
        };
        Ok(Self {
            id,
            predecessor,
            seq: wire.seq,
            written_ms: wire.written_ms,
            program: wire.program,
            config: wire.config,
            agents,
            databases,
            holds,
            places: wire.places.into_iter().map(place).collect(),
            labels: labels(wire.labels)?,
            jobs,
        })
    }
}

fn fault(field: &'static str, reason: impl fmt::Display) -> StateError {
    StateError { field, reason: reason.to_string() }
}

fn once(field: &'static str, names: impl Iterator<Item = String>) -> Result<(), StateError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if let Some(twice) = seen.replace(name) {
            return Err(fault(field, format!("{twice} stands there twice")));
        }
    }
    Ok(())
}

fn reference(key: &DatabaseKey) -> v1::DatabaseRef {
    v1::DatabaseRef { agent: key.agent.to_string(), name: key.name.to_string() }
}

fn key(field: &'static str, wire: Option<v1::DatabaseRef>) -> Result<DatabaseKey, StateError> {
    let wire = wire.ok_or_else(|| fault(field, "a name is missing"))?;
    let agent = AgentName::new(wire.agent).map_err(|e| fault(field, e))?;
    Ok(DatabaseKey::new(agent, DatabaseName::new(wire.name).map_err(|e| fault(field, e))?))
}

fn agent(wire: v1::MirroredAgent) -> Result<KnownAgent, StateError> {
    let name = AgentName::new(wire.name).map_err(|e| fault("agents", e))?;
    let agent = KnownAgent { name, epoch: wire.epoch, instance: wire.instance };
    if agent.is_possible() { Ok(agent) } else { Err(fault("agents", "an epoch or instance is none")) }
}

fn database(wire: v1::MirroredDatabase) -> Result<MirroredDatabase, StateError> {
    let key = key("databases", wire.database)?;
    if wire.lineage == 0 {
        return Err(fault("databases", format!("{key} has no lineage")));
    }
    let position = convert::position_from_wire(wire.position.as_ref()).map_err(|e| fault("databases", e))?;
    Ok(MirroredDatabase { key, lineage: wire.lineage, position, time_ms: wire.time_ms, path: wire.path })
}

fn labels_to_wire<'a>(
    agent: &'a AgentName,
    labels: &'a Labels,
) -> impl Iterator<Item = v1::MirroredLabel> + 'a {
    labels.iter().map(|(key, value)| v1::MirroredLabel {
        agent: agent.to_string(),
        key: key.clone(),
        value: value.clone(),
    })
}

fn labels(wire: Vec<v1::MirroredLabel>) -> Result<BTreeMap<AgentName, Labels>, StateError> {
    let mut all: BTreeMap<AgentName, Labels> = BTreeMap::new();
    for v1::MirroredLabel { agent, key, value } in wire {
        let agent = AgentName::new(agent).map_err(|e| fault("labels", e))?;
        check_word(&key).and_then(|()| check_word(&value)).map_err(|e| fault("labels", e))?;
        if all.entry(agent).or_default().insert(key, value).is_some() {
            return Err(fault("labels", "one stands there twice"));
        }
    }
    Ok(all)
}

fn hold(wire: v1::MirroredHold) -> Result<Hold, StateError> {
    Ok(Hold { database: key("holds", wire.database)?, since_ms: wire.since_ms, reason: wire.reason })
}

fn job(wire: v1::MirroredJob) -> Result<JobCopy, StateError> {
    let id = JobId::parse(&wire.id).ok_or_else(|| fault("jobs", "an id is none"))?;
    Ok(JobCopy { id, head: wire.head, stands: wire.stands })
}

#[cfg(test)]
pub(crate) fn sample() -> HubState {
    use walhub_common::{Checksum, Txid};
    let database = |name: &str, position| MirroredDatabase {
        key: format!("node/{name}").parse().unwrap(),
        lineage: 0xabc,
        position,
        time_ms: 12,
        path: format!("/data/{name}"),
    };
    let position = Pos { txid: Txid::new(9).unwrap(), checksum: Checksum::new(1 << 63 | 5).unwrap() };
    HubState {
        id: HubId::draw(),
        predecessor: Some(HubId::draw()),
        seq: 3,
        written_ms: 1_795_354_117_000,
        program: "0.1.0".into(),
        config: "listen: x\n".into(),
        agents: vec![KnownAgent { name: AgentName::new("node").unwrap(), epoch: 4, instance: "ab01".into() }],
        databases: vec![database("a.db", Some(position)), database("b.db", None)],
        holds: vec![Hold { database: "node/a.db".parse().unwrap(), since_ms: 5, reason: "case 7".into() }],
        places: vec![MirroredPlace { name: "near".into(), kind: "file".into(), location: "/srv".into() }],
        labels: BTreeMap::from([(
            AgentName::new("node").unwrap(),
            Labels::from([("site".into(), "berlin".into()), ("tier".into(), "1".into())]),
        )]),
        jobs: vec![JobCopy {
            id: JobId::parse("20261123-0230-abcd").unwrap(),
            head: "{}\n".into(),
            stands: "[]\n".into(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was() {
        let state = sample();
        assert_eq!(HubState::from_wire(state.to_wire()), Ok(state));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let broken: [fn(&mut v1::HubMirror); 15] = [
            |m| m.hub_id = "../../x".into(),
            |m| m.hub_id.make_ascii_uppercase(),
            |m| m.predecessor = "x".into(),
            |m| m.agents[0].name = "..".into(),
            |m| m.agents[0].instance = "xyz".into(),
            |m| m.agents.push(m.agents[0].clone()),
            |m| m.labels[0].key = "a b".into(),
            |m| m.labels.push(m.labels[0].clone()),
            |m| m.jobs[0].id = "../../x".into(),
            |m| m.jobs.push(m.jobs[0].clone()),
            |m| m.databases[0].lineage = 0,
            |m| m.databases[0].database = None,
            |m| m.databases.push(m.databases[0].clone()),
            |m| m.databases[0].position = Some(v1::Position { txid: 1, checksum: 1 }),
            |m| m.holds[0].database.as_mut().unwrap().name = "a/b".into(),
        ];
        for (index, breaks) in broken.into_iter().enumerate() {
            let mut wire = HubState { id: HubId::new(&"a".repeat(32)).unwrap(), ..sample() }.to_wire();
            breaks(&mut wire);
            assert!(HubState::from_wire(wire).is_err(), "{index}");
        }
    }

    #[test]
    fn positions_alone_are_no_change_of_structure() {
        let before = sample();
        let mut after = HubState { seq: 9, written_ms: 9, ..before.clone() };
        assert_eq!(before.digests(), after.digests());
        (after.databases[1].position, after.databases[1].time_ms) = (before.databases[0].position, 99);
        assert_eq!(before.digests().0, after.digests().0);
        assert_ne!(before.digests().1, after.digests().1);
        let mut later = before.clone();
        later.jobs[0].stands.clear();
        assert_eq!(before.digests().0, later.digests().0);
        assert_ne!(before.digests().1, later.digests().1);
        later.jobs[0].head.clear();
        assert_ne!(before.digests().0, later.digests().0);
        after.agents[0].epoch += 1;
        assert_ne!(before.digests().0, after.digests().0);
    }
}
