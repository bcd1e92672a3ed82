//! The whole agent against a hub in memory: real SQLite writers, real capture, TLS on loopback, and everything that can go
//! wrong on the way.

mod certs;
mod hub;
mod local;
mod node;
mod offline;
mod pace;
mod scenarios;
mod shutdown;
mod states;
mod torture;
