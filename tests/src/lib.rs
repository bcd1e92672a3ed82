//! The test harness: real binaries as processes, real writers, and oracles that compare what came back with the live
//! database, page for page.
//!
//! # What a test may rely on
//! - Nothing here shares code with what it judges, except the wire messages, the LTX decoder and the checksum (whose
//!   own tests hold them against bytes of stock Litestream): images are read by SQLite itself, certificates are made
//!   here, configuration is written as text.
//! - No blind sleeps: [`eventually`] polls until its condition holds and fails with the last reason.
//! - A panicking test prints the end of every process log and keeps its folder.
//!
//! Non-goals: no product code, nobody imports this crate.

pub mod binaries;
pub mod certs;
pub mod client;
pub mod cluster;
pub mod config;
pub mod disaster;
pub mod eventually;
pub mod faults;
pub mod fleet;
pub mod ledger;
pub mod litestream;
pub mod oracle;
pub mod outage;
pub mod process;
pub mod promises;
pub mod proxy;
pub mod replica;
pub mod report;
pub mod scrape;
pub mod scratch;
pub mod segments;
pub mod services;
pub mod wire;
pub mod workload;

pub use cluster::Cluster;
pub use eventually::eventually;
pub use oracle::Image;
