//! Follows SQLite databases and streams their committed transactions to a hub.
//!
//! ```text
//! config ▸ app ─┬─ roster ▸ discover      which files, under which names
//!               ├─ watch                  file events ▸ letter boxes
//!               ├─ pulse                  when streams of commits are read
//!               ├─ database (one task per file) ▸ capture ▸ page_map; spool while the hub is away
//!               ├─ ship                   one stream to the hub, what waits for its acks, how to resume
//!               ├─ orders ▸ restore       databases brought back as the hub orders
//!               └─ local                  the status socket
//! ```
//! Nothing but `capture` opens a database or its `-shm`: closing a descriptor would drop SQLite's locks of this process.

pub mod app;
pub mod capture;
pub mod cli;
pub mod config;
pub mod database;
pub mod discover;
pub mod disk;
pub mod local;
pub mod orders;
pub mod page_map;
pub mod pulse;
pub mod restore;
pub mod roster;
pub mod ship;
pub mod spool;
pub mod state_dir;
pub mod watch;
pub mod watchdog;
