//! Places that keep copies of databases, the planning of a restore from them, and of what may be deleted: shared by the hub and by hubctl,
//! which can restore without a hub. No gRPC, no buffer, no database of the hub's own in here.

pub mod compact;
pub mod destinations;
pub mod pack;
pub mod restore;
pub mod retention;
#[cfg(any(test, feature = "testutil"))]
pub mod testutil;
