//! What the hub knows of its agents.
//!
//! - [`epochs`]: the durable fence against older images of a node.
//! - [`registry`]: who is connected; one session per agent.
//! - [`status`]: agents, databases and their copies as one picture.
//!
//! Non-goals: no storage but the epochs; positions and lineages belong to the buffer.

pub mod epochs;
pub mod registry;
pub mod status;

pub use epochs::Epochs;
pub use registry::Registry;

use crate::copies::Board;
use std::sync::Arc;

/// The parts that everybody shares.
pub struct Fleet {
    /// Epochs.
    pub epochs: Epochs,
    /// Sessions.
    pub registry: Registry,
    /// Copies.
    pub board: Arc<Board>,
}
