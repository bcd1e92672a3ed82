//! Who is speaking, by certificate, and what they may ask.

use super::status;
use tonic::{Extensions, Status};
use tracing::warn;
use walhub_common::tls::{Identity, Role};
use walhub_common::{AgentName, DatabaseKey, DatabaseName};
use walhub_proto::v1;

/// The other end of a connection, as its handshake proved it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub(super) identity: Identity,
    pub(super) address: String,
}

impl Peer {
    /// Of the connection that carried a request.
    pub(super) fn of(extensions: &Extensions) -> Result<&Peer, Status> {
        extensions.get::<Peer>().ok_or_else(status::no_identity)
    }

    /// The agent that speaks; operators do not replicate.
    pub(super) fn agent(&self) -> Result<&AgentName, Status> {
        match self.identity.role {
            Role::Agent => Ok(&self.identity.name),
            Role::Operator | Role::Hub => {
                warn!(peer = %self.identity, address = %self.address, "refused: only agents replicate");
                Err(status::only_agents(&self.identity))
            }
        }
    }

    /// Whoever may change a hub: operators.
    pub(super) fn operator(&self) -> Result<(), Status> {
        match self.identity.role {
            Role::Operator => Ok(()),
            Role::Agent | Role::Hub => {
                warn!(peer = %self.identity, address = %self.address, "refused: only operators change the hub");
                Err(status::only_operators(&self.identity))
            }
        }
    }

    /// The database asked for, if this peer may see it: agents see their own.
    pub(super) fn may_read(&self, asked: Option<&v1::DatabaseRef>) -> Result<DatabaseKey, Status> {
        let asked = asked.ok_or_else(|| status::invalid("database", "missing"))?;
        let agent = AgentName::new(asked.agent.as_str()).map_err(|e| status::invalid("database", e))?;
        let name = DatabaseName::new(asked.name.as_str()).map_err(|e| status::invalid("database", e))?;
        self.may_see(&agent)?;
        Ok(DatabaseKey::new(agent, name))
    }

    /// Whether this peer may know of `agent`'s databases.
    pub(super) fn may_see(&self, agent: &AgentName) -> Result<(), Status> {
        match self.identity.role {
            Role::Operator => Ok(()),
            Role::Agent if self.identity.name == *agent => Ok(()),
            Role::Agent | Role::Hub => {
                warn!(peer = %self.identity, address = %self.address, asked = %agent, "refused: not its own databases");
                Err(status::foreign(&self.identity, agent))
            }
        }
    }
}
