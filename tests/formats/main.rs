//! The formats against their real makers: logs written by SQLite, files written by stock litestream.
//!
//! - `history`: every transaction that SQLite commits goes through log reader, LTX files, merge and restore, and comes
//!   back byte for byte.
//! - `golden`: files of stock litestream, byte by byte.
//! - `replay`: the fuzz targets on real input and its mutations.
//!
//! Non-goals: no agent, no hub, no processes; reading a database that is written at the same moment is the agent's art.

mod follower;
mod golden;
mod history;
mod replay;
