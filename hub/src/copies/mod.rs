//! Which copies of which database exist where, and when that is enough: posted by the lanes and the sessions, read by the
//! status, told to whoever waits for `durable`.
//!
//! - [`policy`]: when a transaction is durable. Pure.
//! - [`rules`]: what applies to which database. Pure.
//! - [`roster`]: the destinations in service, as a value.
//! - [`meters`]: requests of today. - [`folders`]: ids of folders.
//! - [`points`]: restore points that destinations surely have.
//! - [`awaited`]: restore points that are still to be brought back.
//! - [`board`]: the shared picture.
//!
//! Non-goals: no copying, no connections; of all this only the requests of today and the ids of folders lie on disk (cursors
//! belong to the buffer).

pub mod awaited;
pub mod board;
pub mod folders;
pub mod meters;
pub mod points;
pub mod policy;
pub mod roster;
pub mod rules;

pub use awaited::{Awaited, Need, Needs, Wait};
pub use board::{Board, Inbox, LaneHealth, Row};
pub use folders::FolderIds;
pub use meters::Meters;
pub use points::{Points, Turn};
pub use policy::{Policy, Site};
pub use roster::{InService, LaneId, Place, Roster, Terms};
pub use rules::{Rules, Selector};
