//! From a target to a stream of LTX files: list ▸ resolve ▸ plan ▸ fetch.
//!
//! - [`inventory`]: what every source holds of one database, and which sources did not answer.
//! - [`source`]: where from; [`around`]: with something around each request.
//! - [`reach`]: which transactions can be restored at all, and the cheapest chain of files to each. Pure.
//! - [`times`]: which of these was the newest at a time. Reads a few headers, since listings of buckets show upload
//!   times.
//! - [`plan`]: the chain to a target as a value, or the exact reason why there is none. Pure.
//! - [`estimate`]: what a plan costs: requests, money, time. Pure.
//! - [`pages`]: the pages of a plan, newest first, each once; another chain stands in for what fails on the way.
//! - [`fetch`]: the bytes of a plan, in order; broken reads go on where they broke.
//!
//! Invariants: a chain has no hole; files of a chain may come from different sources; a plan never silently ends before
//! what was asked for. Non-goals: applying the files, and proving the result (`walhub_common::restore` does).

pub mod around;
pub mod estimate;
pub mod fetch;
pub mod inventory;
pub mod litestream;
pub mod pages;
pub mod plan;
pub mod reach;
pub mod source;
pub mod target;
pub mod times;

#[cfg(test)]
mod model_tests;

pub use around::{Around, Hooks};
pub use estimate::{Estimate, estimate};
pub use fetch::{Piece, fetch};
pub use inventory::{Inventory, Listing};
pub use litestream::LitestreamSource;
pub use pages::{Ask, PagesError, Told, pages};
pub use plan::{Plan, PlanError, PlannedFile, Prepared, RestoreError, prepare};
pub use reach::Reach;
pub use source::{DestinationSource, DynSource, Source, SourceName};
pub use target::Target;
