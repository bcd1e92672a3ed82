//! What the hub knows of its agents, and where every database lies.
//!
//! - [`epochs`]: the durable fence against older images of a node.
//! - [`registry`]: who is connected; one session per agent.
//! - [`board`]: which destination holds what, who has what open, who waits for `durable`.
//! - [`policy`]: when a transaction is durable.
//! - [`status`]: all of it as one picture.
//!
//! Non-goals: no storage but the epochs; positions and lineages belong to the buffer.

pub mod board;
pub mod epochs;
pub mod policy;
pub mod registry;
pub mod status;

pub use board::Board;
pub use epochs::Epochs;
pub use registry::Registry;

/// The three parts that everybody shares.
pub struct Fleet {
    /// Epochs.
    pub epochs: Epochs,
    /// Sessions.
    pub registry: Registry,
    /// Copies.
    pub board: Board,
}
