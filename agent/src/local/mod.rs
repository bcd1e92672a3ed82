//! The way in for people and programs on the same machine: questions and answers, one JSON object per line, over a socket
//! in the state folder that only the agent's own user and root can open.
//!
//! Non-goals: no configuration, nothing that reads or changes a database's content, no way in from the network.

mod answer;
pub mod client;
pub mod protocol;
pub mod server;
pub mod status;
