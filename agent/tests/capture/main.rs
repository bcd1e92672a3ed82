//! Capture against real writers: other processes with their own SQLite, killed at the worst moments. A replica built from
//! nothing but the segments must equal, byte for byte, what a third process reads from the live database.
//!
//! One case per test here; all of them at once, from a seed, are `tests/torture`.

mod agents;
mod align;
mod child;
mod faults;
mod follow;
mod frozen;
mod hub;
mod joined;
mod lint;
mod locks;
mod operator;
mod power;
mod power_disk;
mod raw;
mod replace;
mod scale;
mod stage;
mod upkeep;

/// Not a test: what this binary does when a test starts it as another process.
#[test]
fn child_process() {
    child::main();
}
