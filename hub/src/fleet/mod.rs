//! What the hub knows of its agents.
//!
//! - [`epochs`]: the durable fence against older images of a node.
//! - [`labels`]: what operators call them together.
//! - [`orders`]: the desk where orders for them lie.
//! - [`registry`]: who is connected; one session per agent.
//! - [`status`]: agents, databases and their copies as one picture.
//!
//! Non-goals: no storage but epochs and labels; positions and lineages belong to the buffer.

pub mod epochs;
pub mod labels;
pub mod orders;
pub mod registry;
pub mod status;

pub use epochs::Epochs;
pub use labels::LabelBook;
pub use orders::OrderDesk;
pub use registry::Registry;

use crate::copies::Board;
use std::sync::Arc;

/// The parts that everybody shares.
pub struct Fleet {
    /// Epochs.
    pub epochs: Epochs,
    /// Sessions.
    pub registry: Registry,
    /// Labels.
    pub labels: LabelBook,
    /// Orders under way.
    pub orders: OrderDesk,
    /// Copies.
    pub board: Arc<Board>,
}
