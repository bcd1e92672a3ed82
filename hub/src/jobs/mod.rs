//! Restores of many databases on their nodes, at one point in time, in waves: planned once, recorded, and carried on through
//! every restart until each database is there or the operator was told why not.
//!
//! - [`selector`], [`waves`]: which databases, in which order.
//! - [`plan`], [`cost`]: selection and point as a list of databases with positions, and what that takes.
//! - [`model`], [`machine`]: a job as a value, and every decision about it as a pure function.
//! - [`journal`]: jobs on disk, one file each; [`copy`]: jobs in a mirror of the hub.
//! - [`owner`]: the one task that owns them; gives orders to agents and hears of them.
//! - [`view`]: jobs on the wire.
//!
//! # Invariants
//! - What was decided is on disk before it takes effect: after `kill -9` the hub goes on where it was.
//! - A database is in at most one job that has not ended.
//! - Nodes that are away hold nobody up, and get their order when they come back.
//! - No order of a wave is given before the waves ahead of it are settled; none at all past the stop rule.
//!
//! Non-goals: how a database is restored (the agent), restores into files of an operator (`crate::restore`).

mod copy;
mod cost;
mod journal;
mod machine;
mod model;
mod owner;
pub mod plan;
mod selector;
mod view;
mod waves;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod owner_tests;
#[cfg(test)]
mod tests;

pub use copy::{JobCopy, Revived, restore, revive};
pub use cost::Cost;
pub use journal::Journals;
pub use model::{JobId, Mode};
pub use owner::{Action, JobError, Jobs, View};
pub use plan::{Asked, PlanFault, Planned, Planner};
