//! The agent as a value: build it, spawn it, shut it down. Tests run it in their own process.

use crate::config::{Config, Identity};
use crate::database::Shared;
use crate::local::server::LocalServer;
use crate::local::status::{AgentStatus, Facts};
use crate::orders::{self, Orders};
use crate::pulse::Pulse;
use crate::restore::Ground;
use crate::roster::{Public, Roster};
use crate::ship::session::{Session, Switchboard};
use crate::ship::window::Budget;
use crate::spool::Room;
use crate::state_dir::{StateDir, StateDirError};
use crate::watch::{self, Events};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use walhub_common::clock;
use walhub_common::folder_lock::Freed;
use walhub_common::limits::MAX_WINDOW_BYTES;
use walhub_common::task::TaskGroup;

/// Threads for blocking work: a few for long operations, the rest for following.
pub const BLOCKING_THREADS: usize = 8;
/// Operations at one time that last as long as the network lets them.
const TURNS: usize = 3;
/// Attaches at one time.
const ATTACHING: usize = 2;
/// What only waits gets at least this long to end.
const CLOSING: Duration = Duration::from_secs(1);
const _: () = assert!(TURNS + ATTACHING < BLOCKING_THREADS);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Certificates.
    #[error("{0}")]
    Identity(String),
    /// State folder.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// File events.
    #[error("file events are not available: {0}; raise fs.inotify.max_user_instances if that is the limit")]
    Watch(io::Error),
    /// The clock of streams.
    #[error("a kernel timer is not available: {0}")]
    Pulse(io::Error),
    /// Status socket.
    #[error("the status socket cannot be opened: {0}")]
    Local(io::Error),
}

/// An agent that owns its state folder and has not begun to work.
#[derive(Debug)]
pub struct App {
    config: Config,
    identity: Identity,
    shared: Arc<Shared>,
    events: Events,
    local: LocalServer,
}

/// An agent at work.
#[derive(Debug)]
pub struct Running {
    facts: Arc<Facts>,
    orders: TaskGroup,
    roster: TaskGroup,
    databases: TaskGroup,
    rest: TaskGroup,
    freed: Freed,
}

impl App {
    /// Takes the state folder and everything else that can be refused. Call it within a tokio runtime.
    pub fn build(config: Config) -> Result<App, BuildError> {
        let identity = config.identity().map_err(BuildError::Identity)?;
        let state = Arc::new(StateDir::open(&config.state_dir)?);
        let (watcher, events) = watch::open().map_err(BuildError::Watch)?;
        let local = LocalServer::bind(&state.socket()).map_err(BuildError::Local)?;
        let shared = Arc::new(Shared {
            agent: identity.agent.clone(),
            checkpoint_frames: config.checkpoint_frames,
            compression: config.compression,
            pulse: Pulse::new(config.pace).map_err(BuildError::Pulse)?,
            pace: config.pace,
            restore_points: config.restore_points,
            wal_limit: config.wal_limit,
            snapshot_rate: config.snapshot_rate,
            parts_above: config.parts_above,
            spool_room: Room::new(config.spool_max),
            poll_interval: config.poll_interval,
            board: Arc::new(Switchboard::default()),
            budget: Budget::new(MAX_WINDOW_BYTES),
            watcher,
            turns: Arc::new(Semaphore::new(TURNS)),
            attaching: Arc::new(Semaphore::new(ATTACHING)),
            state,
        });
        Ok(App { config, identity, shared, events, local })
    }

    /// Starts all tasks.
    pub fn spawn(self) -> Running {
        let App { config, identity, shared, events, local } = self;
        tracing::info!(
            agent = %identity.agent,
            hub = config.hub,
            state_dir = %config.state_dir.display(),
            epoch = shared.state.epoch(),
            version = env!("CARGO_PKG_VERSION"),
            "agent started"
        );
        let (roster_group, databases, rest) =
            (TaskGroup::new("roster"), TaskGroup::new("databases"), TaskGroup::new("session"));
        let public = Arc::new(Public::default());
        let facts = Arc::new(Facts {
            agent: identity.agent.clone(),
            hub: config.hub,
            state_dir: config.state_dir,
            started_ms: clock::now_ms(),
            shared: shared.clone(),
            public: public.clone(),
        });
        let token = rest.token().clone();
        rest.spawn(async move {
            if let Err(e) = events.run(token).await {
                tracing::error!(error = %e, "file events ended; commits are seen by the slow poll only");
            }
        });
        let freed = shared.state.freed();
        let inbox = Arc::new(orders::Inbox::default());
        let session = Session::new(
            identity.hub,
            config.upload_limit,
            shared.state.clone(),
            shared.board.clone(),
            inbox.clone(),
        );
        rest.spawn(session.run(rest.clone()));
        let orders = TaskGroup::new("orders");
        let ground = Ground { shared: shared.clone(), public: public.clone() };
        orders.spawn(Orders::new(ground, inbox).run(orders.token().clone()));
        rest.spawn(local.run(facts.clone(), rest.clone()));
        let roster = Roster::new(config.sources, shared, public, databases.clone());
        roster_group.spawn(roster.run(roster_group.token().clone()));
        Running { facts, orders, roster: roster_group, databases, rest, freed }
    }
}

impl Running {
    /// The status as of now.
    pub fn status(&self) -> AgentStatus {
        self.facts.status()
    }

    /// Sends what was committed until now, lets every database go, closes the stream and every connection. True when
    /// nothing of this agent is left: its state folder is free for another one. False when that took longer than
    /// `deadline`; nothing is lost then, the next start looks closer.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Running { facts, orders, roster, databases, rest, freed } = self;
        let begun = tokio::time::Instant::now();
        let left = || deadline.saturating_sub(begun.elapsed());
        // First: what is being restored needs its database until it has given up.
        let gave_up = orders.shutdown(left()).await;
        let let_go = roster.shutdown(left()).await & databases.shutdown(left()).await;
        // What remains only waits; it needs no time of its own.
        let closed = rest.shutdown(left().max(CLOSING)).await;
        drop(facts);
        let free = tokio::time::timeout(left().max(CLOSING), freed.wait()).await.is_ok();
        if !free {
            tracing::warn!("the state folder is still in use");
        }
        gave_up & let_go & closed & free
    }
}
