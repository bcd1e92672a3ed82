//! The hub: sequences what agents send, buffers it durably, fans it out to destinations, and gives databases back.

pub mod buffer;
pub mod config;
pub mod db;
pub mod fanout;
pub mod fleet;
pub mod ingest;

#[cfg(any(test, feature = "testutil"))]
pub mod testutil;
