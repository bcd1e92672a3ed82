//! Labels that operators give to agents, to pick them by: on the hub's own disk, in one small file.
//!
//! Invariants: a change is on disk before it is confirmed; a file that cannot be read keeps the hub from starting, because a
//! job for `site=berlin` must not quietly become a job for nobody.

use crate::durable;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use walhub_common::AgentName;

const FILE: &str = "labels.json";
const VERSION: u32 = 1;
/// Longest key or value, bytes.
const MAX_BYTES: usize = 63;
/// Labels of one agent.
const MAX_LABELS: usize = 32;
/// Agents with labels.
const MAX_AGENTS: usize = 100_000;

/// Labels of one agent, by key.
pub type Labels = BTreeMap<String, String>;

/// A label that could not be given.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// A key or a value is none.
    #[error("{0:?} cannot be part of a label: 1 to 63 letters, digits, '.', '_' and '-'")]
    Word(String),
    /// Too many.
    #[error("an agent has at most {MAX_LABELS} labels, and at most {MAX_AGENTS} agents have some")]
    TooMany,
    /// The disk.
    #[error("labels cannot be recorded: {0}")]
    Io(#[from] io::Error),
}

/// Checks a key or a value.
pub fn check_word(word: &str) -> Result<(), LabelError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if word.is_empty() || word.len() > MAX_BYTES || !word.bytes().all(fine) {
        return Err(LabelError::Word(word.chars().take(MAX_BYTES).collect()));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    agents: BTreeMap<String, Labels>,
}

/// The labels of all agents.
#[derive(Debug)]
pub struct LabelBook {
    dir: PathBuf,
    agents: Mutex<BTreeMap<AgentName, Labels>>,
    /// One change at a time.
    changes: tokio::sync::Mutex<()>,
}

impl LabelBook {
    /// Reads the file of `data_dir`. Blocking.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let broken = |reason: String| io::Error::other(format!("{}: {reason}", path.display()));
        let mut agents = BTreeMap::new();
        match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
                if stored.version != VERSION {
                    return Err(broken(format!(
                        "it has version {}, this hub knows {VERSION}",
                        stored.version
                    )));
                }
                for (name, labels) in stored.agents {
                    agents.insert(AgentName::new(name).map_err(|e| broken(e.to_string()))?, labels);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            dir: data_dir.to_path_buf(),
            agents: Mutex::new(agents),
            changes: tokio::sync::Mutex::default(),
        })
    }

    /// Writes the labels of a hub whose disk was lost into the folder of the one that takes its place. Durable when it
    /// returns. Blocking.
    pub fn restore(data_dir: &Path, agents: &BTreeMap<AgentName, Labels>) -> io::Result<()> {
        let agents = agents.iter().map(|(name, labels)| (name.to_string(), labels.clone())).collect();
        durable::replace(data_dir, FILE, &serde_json::to_vec(&Stored { version: VERSION, agents })?)
    }

    /// All agents that have labels.
    pub fn all(&self) -> BTreeMap<AgentName, Labels> {
        self.agents().clone()
    }

    /// The labels of one agent.
    pub fn of(&self, agent: &AgentName) -> Labels {
        self.agents().get(agent).cloned().unwrap_or_default()
    }

    /// Sets and removes labels of an agent; what it has then. Durable when it returns.
    pub async fn change(
        &self,
        agent: &AgentName,
        set: Labels,
        remove: &[String],
    ) -> Result<Labels, LabelError> {
        for word in set.iter().flat_map(|(key, value)| [key, value]) {
            check_word(word)?;
        }
        let _change = self.changes.lock().await;
        let mut next = self.all();
        let mut labels = next.remove(agent).unwrap_or_default();
        labels.retain(|key, _| !remove.contains(key));
        labels.extend(set);
        if labels.len() > MAX_LABELS || next.len() >= MAX_AGENTS {
            return Err(LabelError::TooMany);
        }
        if !labels.is_empty() {
            next.insert(agent.clone(), labels.clone());
        }
        let stored = next.iter().map(|(name, labels)| (name.to_string(), labels.clone())).collect();
        let bytes =
            serde_json::to_vec(&Stored { version: VERSION, agents: stored }).map_err(io::Error::from)?;
        let dir = self.dir.clone();
        let saved = tokio::task::spawn_blocking(move || durable::replace(&dir, FILE, &bytes)).await;
        saved.map_err(io::Error::other)??;
        *self.agents() = next;
        Ok(labels)
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<AgentName, Labels>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[tokio::test]
    async fn labels_survive_the_hub_and_words_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let a = AgentName::new("a").unwrap();
        let book = LabelBook::open(dir.path()).unwrap();
        book.change(&a, labels(&[("site", "berlin"), ("ring", "1")]), &[]).await.unwrap();
        let left = book.change(&a, labels(&[("ring", "2")]), &["site".to_owned()]).await.unwrap();
        assert_eq!(left, labels(&[("ring", "2")]));
        for bad in ["", "a b", "a=b", "a,b", "ä", &"x".repeat(64)] {
            assert!(book.change(&a, labels(&[("k", bad)]), &[]).await.is_err(), "{bad:?}");
            assert!(book.change(&a, labels(&[(bad, "v")]), &[]).await.is_err(), "{bad:?}");
        }
        let many: Labels = (0..40).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        assert!(matches!(book.change(&a, many, &[]).await, Err(LabelError::TooMany)));
        drop(book);
        let book = LabelBook::open(dir.path()).unwrap();
        assert_eq!(book.of(&a), labels(&[("ring", "2")]));
        book.change(&a, Labels::new(), &["ring".to_owned()]).await.unwrap();
        assert!(book.all().is_empty());
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(LabelBook::open(dir.path()).is_err());
    }
}
