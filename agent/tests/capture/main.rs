//! Capture against real writers: other processes with their own SQLite, killed at the worst moments. A replica built from
//! nothing but the segments must equal, byte for byte, what a third process reads from the live database.
//!
//! `WALHUB_TORTURE_SECONDS` sets how long the torture runs (10 by default), `WALHUB_TORTURE_SEED` what it does.

mod agents;
mod align;
mod child;
mod faults;
mod follow;
mod hub;
mod lint;
mod locks;
mod operator;
mod raw;
mod scale;
mod torture;
mod upkeep;

/// Not a test: what this binary does when a test starts it as another process.
#[test]
fn child_process() {
    child::main();
}
