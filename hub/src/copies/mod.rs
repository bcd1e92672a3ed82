//! Which copies of which database exist where, and when that is enough: posted by the lanes and the sessions, read by the
//! status, told to whoever waits for `durable`.
//!
//! - [`policy`]: when a transaction is durable. Pure.
//! - [`board`]: the shared picture.
//!
//! Non-goals: no copying, no connections, nothing on disk (cursors belong to the buffer).

pub mod board;
pub mod policy;

pub use board::{Board, Inbox, LaneFacts, LaneHealth, Row};
pub use policy::{Policy, Site};
