//! What may be deleted at one destination: files, time, policy, awaited points ▸ a [`Plan`] with a reason for every file. Pure.
//!
//! # Invariants (`tests` tries to break them)
//! - The newest state, and every restore point that the [`Policy`] keeps, can be restored from this destination alone
//!   afterwards; and also when only some of the files were deleted, in whatever order.
//! - Every restore point that a file which stays ends with can be restored if it could before.
//! - A file goes because others that were listed stand in for it, or because it is too old; never because of files that
//!   are only expected.
//! - What leads to a point that somebody waits to restore stays, however old it is.
//! - At least one file of level 0 stays: Litestream goes on from it when somebody leaves us.
//! - Where the listing has a hole, what lies behind it stays: another destination may lead there.
//!
//! Litestream's rules, with one difference: a snapshot older than `retention` stays while a restore point younger than
//! `retention` needs it.
//!
//! Non-goals: no listing, no deleting (the hub does both); nothing of what lies at other destinations counts.

mod closure;
pub mod plan;
pub mod policy;
#[cfg(test)]
mod tests;

pub use plan::{Dropped, Kept, Plan, Shield, plan};
pub use policy::{Period, Policy};
