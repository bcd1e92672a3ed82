//! Which agents are connected, since when, from where; one stream per agent.
//!
//! Invariant: of one agent at most one session runs. A newer stream cancels the older one and waits until it has fully
//! ended, so two sessions never judge segments against the same position.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use walhub_common::{AgentName, clock};

/// What a session leaves for the status.
#[derive(Debug, Default)]
struct Seen {
    peer: String,
    version: String,
    connected: bool,
}

#[derive(Debug)]
struct Agent {
    seen: Mutex<Seen>,
    last_ms: AtomicI64,
    /// Cancels the session that now has, or waits for, the place.
    newest: Mutex<CancellationToken>,
    place: Arc<tokio::sync::Mutex<()>>,
}

/// One agent as the status shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentSeen {
    /// Its name.
    pub name: AgentName,
    /// A session runs.
    pub connected: bool,
    /// Address of the newest session.
    pub peer: String,
    /// Program version it said.
    pub version: String,
    /// Last message, Unix ms.
    pub last_seen_ms: i64,
}

/// All agents seen since the start.
#[derive(Debug, Default)]
pub struct Registry {
    agents: Mutex<BTreeMap<AgentName, Arc<Agent>>>,
}

/// The place of the one running session of an agent; dropping it lets the next one in.
#[derive(Debug)]
pub struct Seat {
    agent: Arc<Agent>,
    replaced: CancellationToken,
    _place: tokio::sync::OwnedMutexGuard<()>,
}

/// A newer stream of the same agent came before this one got its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a newer stream of this node has replaced this one")]
pub struct Replaced;

impl Registry {
    /// Takes the agent's place: cancels the session that holds it and waits for its end. `replaced` becomes this
    /// session's token: it is cancelled by the next one.
    pub async fn seat(
        &self,
        name: &AgentName,
        peer: &str,
        version: &str,
        replaced: CancellationToken,
    ) -> Result<Seat, Replaced> {
        let agent = {
            let mut agents = lock(&self.agents);
            agents.entry(name.clone()).or_insert_with(|| Arc::new(Agent::new())).clone()
        };
        let older = std::mem::replace(&mut *lock(&agent.newest), replaced.clone());
        older.cancel();
        let place = tokio::select! {
            place = agent.place.clone().lock_owned() => place,
            () = replaced.cancelled() => return Err(Replaced),
        };
        {
            let mut seen = lock(&agent.seen);
            *seen = Seen { peer: peer.to_owned(), version: version.to_owned(), connected: true };
        }
        let seat = Seat { agent, replaced, _place: place };
        seat.heard();
        Ok(seat)
    }

    /// Everyone seen since the start, by name.
    pub fn agents(&self) -> Vec<AgentSeen> {
        let agents = lock(&self.agents);
        let view = |(name, agent): (&AgentName, &Arc<Agent>)| {
            let seen = lock(&agent.seen);
            AgentSeen {
                name: name.clone(),
                connected: seen.connected,
                peer: seen.peer.clone(),
                version: seen.version.clone(),
                last_seen_ms: agent.last_ms.load(Ordering::Relaxed),
            }
        };
        agents.iter().map(view).collect()
    }
}

impl Agent {
    fn new() -> Self {
        Self {
            seen: Mutex::default(),
            last_ms: AtomicI64::new(0),
            newest: Mutex::new(CancellationToken::new()),
            place: Arc::default(),
        }
    }
}

impl Seat {
    /// Notes that the agent spoke.
    pub fn heard(&self) {
        self.agent.last_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// Cancelled when a newer stream wants the place.
    pub fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.agent.seen).connected = false;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_stream_waits_for_the_end_of_the_older_one() {
        let registry = Arc::new(Registry::default());
        let name = AgentName::new("a").unwrap();
        let first = registry.seat(&name, "1.1.1.1:1", "1", CancellationToken::new()).await.unwrap();
        let second = registry.seat(&name, "1.1.1.1:2", "1", CancellationToken::new());
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(first.replaced().is_cancelled());
        assert!(futures_util::poll!(&mut second).is_pending(), "the older one has not ended yet");
        drop(first);
        let second = second.await.unwrap();
        assert!(!second.replaced().is_cancelled());
        let seen = registry.agents();
        assert_eq!((seen.len(), seen[0].connected, seen[0].peer.as_str()), (1, true, "1.1.1.1:2"));
        drop(second);
        assert!(!registry.agents()[0].connected);
    }

    #[tokio::test]
    async fn of_two_waiting_streams_the_newest_wins() {
        let registry = Registry::default();
        let name = AgentName::new("a").unwrap();
        let first = registry.seat(&name, "p", "1", CancellationToken::new()).await.unwrap();
        let second = registry.seat(&name, "p", "1", CancellationToken::new());
        let third = registry.seat(&name, "p", "1", CancellationToken::new());
        tokio::pin!(second, third);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        assert_eq!(second.await.unwrap_err(), Replaced);
        drop(first);
        assert!(third.await.is_ok());
    }
}
