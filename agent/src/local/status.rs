//! The answer to `status`.

use crate::database::{DatabaseStatus, Shared};
use crate::roster::Public;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use walhub_common::AgentName;

/// The agent, as `status --json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Name in its certificate.
    pub agent: String,
    /// Program version.
    pub version: String,
    /// Process.
    pub pid: u32,
    /// Start, Unix milliseconds.
    pub started_ms: i64,
    /// State folder.
    pub state_dir: PathBuf,
    /// Incarnation of the state folder; 0 before the first contact.
    pub epoch: u64,
    /// The link.
    pub hub: HubStatus,
    /// Unacked segment bytes in memory.
    pub window_bytes: u64,
    /// By name.
    pub databases: Vec<DatabaseStatus>,
    /// Files and folders that are not followed.
    pub faults: Vec<FaultStatus>,
}

/// The link to the hub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HubStatus {
    /// As configured.
    pub address: String,
    /// True while the stream is open.
    pub connected: bool,
    /// Since when it has been so, Unix milliseconds.
    pub since_ms: i64,
    /// Version of the hub that was last met.
    pub version: Option<String>,
    /// Why there is no link, or why the last one ended.
    pub last_error: Option<String>,
}

/// Something that is not followed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultStatus {
    /// File or folder.
    pub path: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// Where the answer comes from.
#[derive(Debug)]
pub struct Facts {
    /// Name in the certificate.
    pub agent: AgentName,
    /// As configured.
    pub hub: String,
    /// State folder.
    pub state_dir: PathBuf,
    /// Start, Unix milliseconds.
    pub started_ms: i64,
    /// Link, budget, epoch.
    pub shared: Arc<Shared>,
    /// Databases and faults.
    pub public: Arc<Public>,
}

impl Facts {
    /// The answer as of now.
    pub fn status(&self) -> AgentStatus {
        let link = self.shared.board.status();
        let faults = self.public.faults().into_iter().map(|f| FaultStatus { path: f.path, reason: f.reason });
        AgentStatus {
            agent: self.agent.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_ms: self.started_ms,
            state_dir: self.state_dir.clone(),
            epoch: self.shared.state.epoch(),
            hub: HubStatus {
                address: self.hub.clone(),
                connected: link.connected,
                since_ms: link.since_ms,
                version: link.hub_version,
                last_error: link.last_error,
            },
            window_bytes: self.shared.budget.used() as u64,
            databases: self.public.databases(),
            faults: faults.collect(),
        }
    }
}
