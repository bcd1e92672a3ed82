//! The way in for people on the same machine: one question (`status`), one JSON answer, over a socket in the state folder
//! that only the agent's own user and root can open.

pub mod client;
pub mod server;
pub mod status;
