//! The epoch of every agent, durable: the fence against a node that booted an older image of itself.
//!
//! An agent raises its epoch at every start. The hub remembers the highest it has welcomed and which incarnation of the
//! agent brought it; a lower epoch, or the same one from another incarnation, is a copy of the node from the past.
//!
//! Invariants: an epoch is on disk before it is used in an answer; the file is replaced as a whole, so a crash leaves
//! the old or the new one. Non-goal: it holds nothing but epochs; losing the file weakens the fence, and forks are still
//! caught by checksums.

use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use walhub_common::AgentName;

/// Longest instance id that is taken, bytes.
pub const MAX_INSTANCE_BYTES: usize = 64;
const FILE: &str = "agents.json";
const VERSION: u32 = 1;

/// Why a node is not let in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stale {
    /// A lower epoch than the one welcomed before.
    #[error(
        "an older image of node {agent} is speaking: its epoch is {offered}, the hub has seen {held}; \
         if this machine is the right one, remove the agent's state directory on it and start it again"
    )]
    Older {
        /// Which agent.
        agent: AgentName,
        /// What it said.
        offered: u64,
        /// What the hub holds.
        held: u64,
    },
    /// The same epoch, from another run of the agent: two machines share one identity.
    #[error(
        "an older image of node {agent}, or a second machine with its certificate, is speaking: epoch {epoch} belongs \
         to another run of the agent; every machine needs a certificate of its own"
    )]
    Twin {
        /// Which agent.
        agent: AgentName,
        /// The epoch in question.
        epoch: u64,
    },
}

/// A claim that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The node must not be let in.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The epoch could not be made durable.
    #[error("the hub cannot record epochs: {0}")]
    Io(Arc<io::Error>),
}

/// An agent that was let in, and by what it is recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownAgent {
    /// Its name.
    pub name: AgentName,
    /// The highest epoch.
    pub epoch: u64,
    /// The run of the agent that brought it, hex digits.
    pub instance: String,
}

impl KnownAgent {
    /// False for what no hub can have recorded.
    pub fn is_possible(&self) -> bool {
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        self.epoch > 0 && self.instance.len() <= 2 * MAX_INSTANCE_BYTES && self.instance.bytes().all(hex)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    epoch: u64,
    instance: String,
    #[serde(skip)]
    generation: u64,
}

#[derive(Serialize, Deserialize, Default)]
struct Stored {
    version: u32,
    agents: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Memory {
    agents: BTreeMap<String, Entry>,
    generation: u64,
}

/// The epochs of one hub.
pub struct Epochs {
    dir: PathBuf,
    memory: Mutex<Memory>,
    /// Generation on disk. Whoever holds the lock writes for everybody who waits.
    saved: tokio::sync::Mutex<u64>,
}

impl Epochs {
    /// Reads the file of `data_dir`. A damaged one is moved aside, loudly.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let agents = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Stored>(&bytes) {
                Ok(stored) if stored.version == VERSION => stored.agents,
                Ok(stored) => {
                    return Err(io::Error::other(format!(
                        "{} has version {}, this hub knows {VERSION}",
                        path.display(),
                        stored.version
                    )));
                }
                Err(error) => {
                    let aside = data_dir.join(format!("{FILE}.damaged"));
                    fs::rename(&path, &aside)?;
                    tracing::error!(
                        %error, moved_to = %aside.display(),
                        "the record of agent epochs is damaged: older images of nodes are recognised by checksum only"
                    );
                    BTreeMap::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            dir: data_dir.to_path_buf(),
            memory: Mutex::new(Memory { agents, generation: 0 }),
            saved: tokio::sync::Mutex::new(0),
        })
    }

    /// Writes the record of a hub whose disk was lost into the folder of the one that takes its place. Durable when it
    /// returns. Blocking.
    pub fn restore(data_dir: &Path, agents: &[KnownAgent]) -> io::Result<()> {
        let entry = |agent: &KnownAgent| {
            let entry = Entry { epoch: agent.epoch, instance: agent.instance.clone(), generation: 0 };
            (agent.name.as_str().to_owned(), entry)
        };
        let stored = Stored { version: VERSION, agents: agents.iter().map(entry).collect() };
        durable::replace(data_dir, FILE, &serde_json::to_vec(&stored)?)
    }

    /// All agents, by name.
    pub fn known(&self) -> Vec<KnownAgent> {
        let known = |(name, entry): (&String, &Entry)| {
            // Names of the file that are none were never let in.
            let name = AgentName::new(name.as_str()).ok()?;
            Some(KnownAgent { name, epoch: entry.epoch, instance: entry.instance.clone() })
        };
        self.memory().agents.iter().filter_map(known).collect()
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges an epoch without recording it. `offered` 0 is a node without state, which is never stale.
    pub fn check(&self, agent: &AgentName, offered: u64, instance: &[u8]) -> Result<(), Stale> {
        judge(self.memory().agents.get(agent.as_str()), agent, offered, instance).map(|_| ())
    }

    /// Judges and records; the epoch the node has from now on. Durable when it returns.
    pub async fn claim(&self, agent: &AgentName, offered: u64, instance: &[u8]) -> Result<u64, ClaimError> {
        let (epoch, generation) = {
            let mut memory = self.memory();
            let held = memory.agents.get(agent.as_str());
            let epoch = judge(held, agent, offered, instance)?;
            match held {
                Some(held) if held.epoch == epoch => (epoch, held.generation),
                _ => {
                    memory.generation += 1;
                    let generation = memory.generation;
                    let entry = Entry { epoch, instance: hex(instance), generation };
                    memory.agents.insert(agent.as_str().to_owned(), entry);
                    (epoch, generation)
                }
            }
        };
        self.save_up_to(generation).await?;
        Ok(epoch)
    }

    async fn save_up_to(&self, generation: u64) -> Result<(), ClaimError> {
        let mut saved = self.saved.lock().await;
        if *saved >= generation {
            return Ok(());
        }
        let (stored, newest) = {
            let memory = self.memory();
            (Stored { version: VERSION, agents: memory.agents.clone() }, memory.generation)
        };
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || durable::replace(&dir, FILE, &serde_json::to_vec(&stored)?))
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|e| ClaimError::Io(Arc::new(e)))?;
        *saved = newest;
        Ok(())
    }
}

fn judge(held: Option<&Entry>, agent: &AgentName, offered: u64, instance: &[u8]) -> Result<u64, Stale> {
    let Some(held) = held else { return Ok(offered.max(1)) };
    if offered == 0 {
        return Ok(held.epoch.saturating_add(1));
    }
    if offered < held.epoch {
        return Err(Stale::Older { agent: agent.clone(), offered, held: held.epoch });
    }
    if offered == held.epoch && held.instance != hex(instance) {
        return Err(Stale::Twin { agent: agent.clone(), epoch: offered });
    }
    Ok(offered)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentName {
        AgentName::new(name).unwrap()
    }

    #[tokio::test]
    async fn an_older_image_stays_out_across_a_restart_of_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        let a = agent("a");
        let epochs = Epochs::open(dir.path()).unwrap();
        assert_eq!(epochs.claim(&a, 5, b"one").await.unwrap(), 5);
        assert_eq!(epochs.claim(&a, 5, b"one").await.unwrap(), 5, "a reconnect of the same run");
        drop(epochs);
        let epochs = Epochs::open(dir.path()).unwrap();
        assert!(matches!(epochs.check(&a, 4, b"one"), Err(Stale::Older { held: 5, .. })));
        assert!(matches!(epochs.check(&a, 5, b"two"), Err(Stale::Twin { .. })));
        assert!(epochs.check(&a, 6, b"two").is_ok());
        assert!(matches!(epochs.claim(&a, 4, b"one").await, Err(ClaimError::Stale(_))));
        assert!(epochs.check(&agent("b"), 1, b"x").is_ok(), "another node is not concerned");
    }

    #[tokio::test]
    async fn a_node_without_state_gets_the_next_epoch_and_fences_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let a = agent("a");
        let epochs = Epochs::open(dir.path()).unwrap();
        assert_eq!(epochs.claim(&a, 0, b"one").await.unwrap(), 1);
        assert_eq!(epochs.claim(&a, 7, b"two").await.unwrap(), 7);
        assert_eq!(epochs.claim(&a, 0, b"three").await.unwrap(), 8);
        assert!(epochs.check(&a, 7, b"two").is_err());
        assert_eq!(epochs.claim(&a, 8, b"three").await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_thousand_claims_at_once_are_all_durable() {
        let dir = tempfile::tempdir().unwrap();
        let epochs = Arc::new(Epochs::open(dir.path()).unwrap());
        let claims = (0..1000).map(|n| {
            let epochs = epochs.clone();
            async move { epochs.claim(&agent(&format!("n{n}")), 3, b"i").await.unwrap() }
        });
        futures_util::future::join_all(claims).await;
        let again = Epochs::open(dir.path()).unwrap();
        assert!((0..1000).all(|n| again.check(&agent(&format!("n{n}")), 2, b"i").is_err()));
    }

    #[tokio::test]
    async fn a_damaged_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"version\":1,\"agents\":{\"a\"").unwrap();
        let epochs = Epochs::open(dir.path()).unwrap();
        assert_eq!(epochs.claim(&agent("a"), 2, b"i").await.unwrap(), 2);
        assert!(dir.path().join("agents.json.damaged").exists());
    }
}
