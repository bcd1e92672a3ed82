//! The way of segments to the hub: one stream per node, what waits for an ack, and how both sides find each other again
//! after a break.
//!
//! Invariants:
//! - one stream carries every database; a refusal of one database never touches another;
//! - what is queued or kept in memory is bounded by bytes for the whole node ([`link`], [`window`]);
//! - where to go on is decided by one pure function ([`resume`]), at a start as after every break.
//!
//! Non-goals: reading databases (`capture`), when to read them (`database`).

pub mod connect;
pub mod inbox;
pub mod link;
pub mod resume;
pub mod session;
pub mod throttle;
pub mod window;
