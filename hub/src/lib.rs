//! The hub: sequences what agents send, buffers it durably, fans it out to destinations, and gives databases back.

pub mod api;
pub mod app;
pub mod buffer;
pub mod cli;
pub mod compact;
pub mod config;
pub mod copies;
pub mod db;
pub mod drills;
mod durable;
pub mod fanout;
pub mod fleet;
pub mod import;
pub mod ingest;
pub mod jobs;
mod merge;
pub mod metrics;
pub mod mirror;
pub mod rebuild;
pub mod reload;
pub mod repair;
pub mod restore;
pub mod retain;
pub mod staging;

#[cfg(any(test, feature = "testutil"))]
pub mod testutil;
